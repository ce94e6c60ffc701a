"""Reads: totals, and how good they are.

What to ask and how to read the answer (`Query`) is apart from who asks, so threads and asyncio share it. A query
asks for positions first and values after: the values are complete up to the position, or further.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from redis.exceptions import RedisError

from tallystream.connection import DEFAULT_URL, connect
from tallystream.errors import ConfigurationError, FlushTimeout
from tallystream.event import MAX_SUBJECT_BYTES, check_metric, check_text
from tallystream.keys import partition_of
from tallystream.meta import Meta, establish
from tallystream.position import Position, parse_id, parse_position, position_commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from tallystream.keys import Layout

Answer = TypeVar("Answer")
Command = tuple[Any, ...]
Counter = tuple[str, str]
"""A subject and a metric of it."""

META_AGE: Final = 10.0
"""Seconds after which the published rules are read again."""

POLL: Final = 0.003
"""Seconds between looks while waiting for a position."""


@dataclass(frozen=True)
class Query(Generic[Answer]):
    """Commands for one pipeline, and what their replies (errors among them) mean."""

    commands: Sequence[Command]
    parse: Callable[[list[Any]], Answer]


@dataclass(frozen=True)
class Reading:
    """Values, and how good they are.

    Attributes:
        values: What was asked for, 0 where nothing was counted.
        positions: By partition number, how far counting had come when the values were read, or less far.
    """

    values: dict[Counter, int]
    positions: dict[int, Position]

    @property
    def lag(self) -> int | None:
        """Entries of these partitions that are not in the values yet; `None` where the server cannot tell."""
        lags = [position.lag for position in self.positions.values()]
        return None if None in lags else sum(lag for lag in lags if lag is not None)


def query_position(layout: Layout, partition: int) -> Query[Position]:
    """Ask how far counting has come in one partition."""
    return Query(position_commands(layout.keys[partition]), parse_position)


def query_counters(layout: Layout, counters: Iterable[Counter]) -> Query[Reading]:
    """Ask for counters, each a subject and a metric.

    Raises:
        EventError: a subject or a metric that cannot exist.
    """
    by_partition: dict[int, list[Counter]] = defaultdict(list)
    for subject, metric in counters:
        check_metric(metric)
        normal = check_text("subject", subject, MAX_SUBJECT_BYTES)
        by_partition[partition_of(normal, layout.partitions)].append((normal, metric))
    commands: list[Command] = []
    for partition, wanted in by_partition.items():
        keys = layout.keys[partition]
        commands += position_commands(keys)
        commands.append(("MGET", *(keys.total(metric, subject) for subject, metric in wanted)))

    def parse(replies: list[Any]) -> Reading:
        reading = Reading({}, {})
        for index, (partition, wanted) in enumerate(by_partition.items()):
            groups, pending, values = replies[3 * index : 3 * index + 3]
            if isinstance(values, RedisError):
                raise values
            reading.positions[partition] = parse_position([groups, pending])
            reading.values.update((c, int(value or 0)) for c, value in zip(wanted, values, strict=True))
        return reading

    return Query(commands, parse)


def declared(meta: Meta) -> list[str]:
    """Return the names of the declared metrics.

    Raises:
        ConfigurationError: no worker has published them yet.
    """
    if meta.rules is None:
        raise ConfigurationError("no metrics are published yet: start a worker (tallystream worker) once")
    return sorted(meta.rules.metric)


class Totals:
    """Reads counters; safe across threads. A counter that nothing was counted for is 0.

    Args:
        url: Where Redis or Valkey is.
        partitions: The number of partitions, where the caller wants it checked.
        namespace: The first part of every key.
    """

    def __init__(self, url: str = DEFAULT_URL, *, partitions: int | None = None, namespace: str = "tally") -> None:
        self._client = connect(url)
        self._partitions = partitions
        self._namespace = namespace
        self._meta: Meta | None = None
        self._meta_read = 0.0

    @property
    def meta(self) -> Meta:
        """What is stored here, at most ten seconds old."""
        if self._meta is None or time.monotonic() - self._meta_read > META_AGE:
            self._meta = establish(self._client, self._partitions, self._namespace)
            self._meta_read = time.monotonic()
        return self._meta

    def get(self, subject: str, metric: str) -> int:
        """Return one total."""
        return next(iter(self.read([(subject, metric)]).values.values()))

    def get_many(self, counters: Iterable[Counter]) -> dict[Counter, int]:
        """Return many totals, by subject and metric."""
        return self.read(counters).values

    def of(self, subject: str) -> dict[str, int]:
        """Return the totals of every declared metric of a subject, by metric."""
        reading = self.read((subject, metric) for metric in declared(self.meta))
        return {metric: value for (_, metric), value in reading.values.items()}

    def read(self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0) -> Reading:
        """Return totals and how good they are.

        Args:
            counters: Subjects and metrics.
            after: A stream ID; wait until everything up to it is counted, in the partitions concerned.
            timeout: Seconds to wait for that.

        Raises:
            EventError: a subject or metric that cannot exist.
            FlushTimeout: not counted in time.
        """
        query = query_counters(self.meta.layout, counters)
        deadline = time.monotonic() + timeout
        while True:
            reading = self.run(query)
            if after is None or reached(reading, after):
                return reading
            if time.monotonic() > deadline:
                raise FlushTimeout(f"entry {after} was not counted within {timeout:g} seconds")
            time.sleep(POLL)

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def run(self, query: Query[Answer]) -> Answer:
        """Ask, and return what the answer means."""
        with self._client.pipeline(transaction=False) as pipeline:
            for command in query.commands:
                pipeline.execute_command(*command)
            return query.parse(pipeline.execute(raise_on_error=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def reached(reading: Reading, after: str) -> bool:
    """Tell whether everything up to a stream ID is in the reading."""
    wanted = parse_id(after)
    return all(p.lag == 0 or parse_id(p.as_of) >= wanted for p in reading.positions.values())
