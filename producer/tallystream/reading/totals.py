"""Reads: totals, and how good they are.

What to ask and how to read the answer (`Query`) is apart from who asks, so threads and asyncio (`aio.Totals`) share
it, as they share how to wait (`ReadBarrier`). A query asks for positions first and values after: the values are
complete up to the position, or further. Nothing here writes: a reader needs no right to.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import OutOfMemoryError, RedisError

from tallystream.client.connect import DEFAULT_URL, connect
from tallystream.deployment import Deployment
from tallystream.errors import EventError, FlushTimeout
from tallystream.reading.query import Answer, Command, Query, as_of, lag_of, raise_on_error
from tallystream.reading.sketches import bound, estimate, estimate_command
from tallystream.storage.deployment_hash import live_log
from tallystream.storage.keys import DEFAULT_PARTITIONS, FIRST_LOG, Layout
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_metric, check_text
from tallystream.wire.position import CountingPosition, parse_position, position_commands
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from tallystream.rules.metrics import Rules

Counter = tuple[str, str]
"""A subject and a metric of it."""

DEPLOYMENT_AGE: Final = 1.0
"""Seconds after which it is read again what is stored: which generation is live, and which rules are published.

After a rebuild's switch, a reader goes on for as long with the generation before, complete up to its position.
"""

POLL: Final = (0.003, 0.05)
"""Seconds between the first looks while waiting for a position, and at the most: many may be waiting."""


@dataclass(frozen=True)
class Reading:
    """Values, and how good they are.

    Attributes:
        values: What was asked for, 0 where nothing was counted.
        positions: By partition number, how far counting had come when the values were read, or less far.
        errors: By how much a value may be too high, for those that are not exact.
    """

    values: dict[Counter, int]
    positions: dict[int, CountingPosition]
    errors: dict[Counter, int] = field(default_factory=dict)

    @property
    def lag(self) -> int | None:
        """Entries of these partitions that are not in the values yet; `None` where the server cannot tell."""
        return lag_of(list(self.positions.values()))

    @property
    def as_of(self) -> str:
        """Stream ID up to which everything is in the values."""
        return as_of(list(self.positions.values()))

    def error(self, counter: Counter | None = None) -> int:
        """Return by how much a value (or the worst of them) may be too high: 0 when exact."""
        return max(self.errors.values(), default=0) if counter is None else self.errors.get(counter, 0)


def query_deployment(partitions: int | None, namespace: str) -> Query[Deployment]:
    """Ask what is stored here.

    Before anything is stored, the answer has the partitions that are expected or usual (see `is_stored`).

    Raises:
        ConfigurationError: what is stored disagrees with `partitions` or with this release's layout.
    """
    unstored = Deployment(Layout(partitions or DEFAULT_PARTITIONS, namespace))

    def parse(replies: list[Any]) -> Deployment | Query[Deployment]:
        if isinstance(replies[0], RedisError):
            raise replies[0]
        root = replies[0]
        if not root:
            return unstored
        live = live_log(root, namespace)
        if live.log == FIRST_LOG:
            return found(root, root)
        return Query([("HGETALL", live.meta)], lambda replies: found(raise_on_error(replies[0]), root))

    def found(fields: dict[bytes, bytes], root: dict[bytes, bytes]) -> Deployment | Query[Deployment]:
        deployment = Deployment.parse(fields, partitions, namespace, root)
        return query_live(deployment) if deployment.was_rebuilt else deployment

    return Query([("HGETALL", unstored.layout.root)], parse)


def query_live(deployment: Deployment) -> Query[Deployment]:
    """Ask which generation is live in each partition."""

    def parse(replies: list[Any]) -> Deployment:
        return deployment.with_live([raise_on_error(reply) for reply in replies])

    return Query([("GET", keys.live) for keys in deployment.layout.keys], parse)


def query_counters(layout: Layout, counters: Iterable[Counter], rules: Rules | None = None) -> Query[Reading]:
    """Ask for counters, each a subject and a metric.

    With `rules`, a floor is applied to what is shown, what has no counter of its own is read from its sketch, and what
    is spread is the sum over all partitions.

    Raises:
        EventError: a subject or a metric that cannot exist.
    """
    by_partition: dict[int, list[Counter]] = defaultdict(list)
    spread = rules.spread if rules is not None else frozenset()
    for subject, metric in counters:
        check_metric(metric)
        normal = check_text("subject", subject, MAX_SUBJECT_BYTES)
        for number in layout.holding(normal, spread=metric in spread):
            by_partition[number].append((normal, metric))
    commands: list[Command] = []
    sketched: list[list[Counter]] = []
    for partition, wanted in by_partition.items():
        keys = layout.keys[partition]
        commands += position_commands(keys)
        commands.append(("MGET", *(keys.total(metric, subject) for subject, metric in wanted)))
        sketched.append([counter for counter in wanted if _may_be_sketched(rules, counter[1])])
        for subject, metric in sketched[-1]:
            commands.append(estimate_command(keys.sketch(metric), subject))
            commands.append(("HGET", keys.ledger, f"sketched@{metric}"))

    def parse(replies: list[Any]) -> Reading:
        reading = Reading({}, {})
        answers = iter(replies)
        for (partition, wanted), in_sketch in zip(by_partition.items(), sketched, strict=True):
            group = layout.keys[partition].group
            reading.positions[partition] = parse_position([next(answers), next(answers)], group)
            values = dict(zip(wanted, raise_on_error(next(answers)), strict=True))
            for counter in in_sketch:
                cells, sketched_sum = raise_on_error(next(answers)), int(raise_on_error(next(answers)) or 0)
                if values[counter] is None and sketched_sum > 0:
                    values[counter] = estimate(cells)
                    reading.errors[counter] = bound(sketched_sum)
            for counter, value in values.items():
                reading.values[counter] = reading.values.get(counter, 0) + int(value or 0)
        for counter, value in reading.values.items():
            reading.values[counter] = floored(rules, counter[1], value)
        return reading

    return Query(commands, parse)


def floored(rules: Rules | None, metric: str, value: int) -> int:
    """Return a value as it is shown: never below the metric's floor. What is stored stays the true sum."""
    floor = rules.metric[metric].floor if rules is not None and metric in rules.metric else None
    return value if floor is None else max(floor, value)


def _may_be_sketched(rules: Rules | None, metric: str) -> bool:
    rule = rules.metric.get(metric) if rules is not None else None
    return rule is not None and (not rule.exact or rule.max_subjects is not None)


def declared(deployment: Deployment) -> list[str]:
    """Return the names of the declared metrics.

    Raises:
        ConfigurationError: no worker has published them yet.
    """
    return sorted(deployment.rules.metric)


class DeploymentCache:
    """The `Deployment` that was last read, while it may still be used."""

    def __init__(self) -> None:
        self._deployment: Deployment | None = None
        self._until = 0.0

    def get(self) -> Deployment | None:
        """Return it, or `None` where it must be read."""
        return self._deployment if time.monotonic() < self._until else None

    def expected(self, partitions: int | None) -> int | None:
        """Return the number to check against: none once it was checked, since a live system may be moved to another."""
        return partitions if self._deployment is None else None

    def put(self, deployment: Deployment) -> Deployment:
        """Keep it, unless it still lacks the rules: these come the moment that a worker starts."""
        if deployment.declared is not None:
            self._deployment = deployment
            self._until = time.monotonic() + DEPLOYMENT_AGE
        return deployment


class ReadBarrier:
    """Says whether to look again while waiting until everything up to a stream ID is counted.

    Args:
        after: The stream ID; `None` waits for nothing.
        timeout: Seconds to wait.

    Raises:
        EventError: `after` is not a stream ID.
    """

    def __init__(self, after: str | None, timeout: float) -> None:
        if after is not None:
            try:
                parse_id(after)
            except ValueError as error:
                raise EventError("after", str(error)) from None
        self._after = after
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._pause, self._longest = POLL

    def ends(self, reading: Reading) -> bool:
        """Tell whether the reading is what was waited for.

        Raises:
            FlushTimeout: it is not, and the time is up.
        """
        if self._after is None or reached(reading, self._after):
            return True
        if time.monotonic() >= self._deadline:
            raise FlushTimeout(f"entry {self._after} was not counted within {self._timeout:g} seconds")
        return False

    def pause(self) -> float:
        """Return the seconds to let pass before the next look: more from look to look."""
        pause = min(self._pause, max(0.0, self._deadline - time.monotonic()))
        self._pause = min(self._longest, self._pause * 1.5)
        return pause


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
        self._remembered = DeploymentCache()

    @property
    def deployment(self) -> Deployment:
        """What is stored here, at most a second old; see `query_deployment`."""
        remembered = self._remembered
        return remembered.get() or remembered.put(
            self.run(query_deployment(remembered.expected(self._partitions), self._namespace))
        )

    def get(self, subject: str, metric: str) -> int:
        """Return one total."""
        return next(iter(self.read([(subject, metric)]).values.values()))

    def get_many(self, counters: Iterable[Counter]) -> dict[Counter, int]:
        """Return many totals, by subject and metric."""
        return self.read(counters).values

    def of(self, subject: str) -> dict[str, int]:
        """Return the totals of every declared metric of a subject, by metric."""
        reading = self.read((subject, metric) for metric in declared(self.deployment))
        return {metric: value for (_, metric), value in reading.values.items()}

    def read(self, counters: Iterable[Counter], *, after: str | None = None, timeout: float = 5.0) -> Reading:
        """Return totals and how good they are.

        Args:
            counters: Subjects and metrics.
            after: A stream ID; wait until everything up to it is counted, in the partitions concerned.
            timeout: Seconds to wait for that.

        Raises:
            EventError: a subject, a metric or a stream ID that cannot exist.
            FlushTimeout: not counted in time.
        """
        patience = ReadBarrier(after, timeout)
        wanted = list(counters)
        while True:
            deployment = (
                self.deployment
            )  # anew each time: what is waited for may be counted by another generation by now
            reading = self.run(query_counters(deployment.layout, wanted, deployment.declared))
            if patience.ends(reading):
                return reading
            time.sleep(patience.pause())

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def run(self, query: Query[Answer]) -> Answer:
        """Ask, and return what the answer means."""
        while True:
            with self._client.pipeline(transaction=query.atomic) as pipeline:
                for command in query.commands:
                    pipeline.execute_command(*command)
                try:
                    replies = pipeline.execute(raise_on_error=False)
                except OutOfMemoryError:
                    if not query.atomic:
                        raise
                    query = query.without_transaction()
                    continue
            answer = query.parse(replies)
            if not isinstance(answer, Query):
                return answer
            query = answer

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
