"""Computes the overview of a deployment: counts and rates by metric, and the state of the counting."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tallystream.client.replies import is_unreachable
from tallystream.errors import EventError
from tallystream.reading.freshness import as_of
from tallystream.reading.ledger import OUTCOMES
from tallystream.reading.query import Query, raise_on_error
from tallystream.reading.reach import UnreachablePartition  # noqa: TC001  # msgspec reads the type
from tallystream.storage.deployment_hash import SNAPSHOT_AT, SNAPSHOT_EVERY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tallystream.aio import Totals
    from tallystream.reading.leaderboards import Place
    from tallystream.reading.ledger import Ledger
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout
    from tallystream.wire.position import CountingPosition

_SPAN: Final = 3.0
"""Seconds over which a rate is averaged."""

_ALIVE: Final = 10_000
"""Milliseconds after its last read from which a worker is not counted as running; an idle worker reads every second."""


class MetricFigures(msgspec.Struct, frozen=True):
    """The figures of a metric in the overview.

    Attributes:
        metric: The name of the metric.
        total: The sum of the totals of all subjects of the metric.
        counted: The number of counted events of the metric.
        rate: The counted events of the metric per second, over the last 3 seconds; `None` if not known.
    """

    metric: str
    total: int
    counted: int
    rate: float | None


class Overview(msgspec.Struct, frozen=True):
    """The figures of the whole deployment; a figure that is not known is `None`.

    Attributes:
        metrics: The figures of each metric.
        rate: Counted events of all declared metrics per second, over the last 3 seconds; not known if these seconds
            have no two readings that are at least 0.75 seconds apart.
        events: By outcome, the number of events in the ledger; `appended` has the number of appended events.
        lag: The number of entries that are not counted yet.
        pending: The number of entries that are delivered to a worker and not acknowledged.
        oldest_pending_seconds: Seconds since the oldest pending entry was appended; `None` if none is pending, or its
            stream ID is more than 1 second ahead of the server's clock.
        dead: The number of dead letters.
        unaccounted: Appended events without an outcome; not known while entries are not counted yet.
        workers: The number of running workers: those that have read in the last 10 seconds.
        snapshot_age_seconds: Seconds since the latest snapshot; `None` if there is none, or if it is not known.
        snapshot_every_seconds: Seconds between two snapshots; `None` if no worker takes them, or if it is not known.
            The interval of a worker that died stays.
        as_of: The stream ID up to which every entry is counted.
        at: The time of the overview by this host's clock, in seconds since 1970.
        unreachable: The partitions that are not in the figures, because their nodes of the cluster do not answer; then
            the lag and `unaccounted` are not known.
    """

    metrics: list[MetricFigures]
    rate: float | None
    events: dict[str, int]
    lag: int | None
    pending: int
    oldest_pending_seconds: float | None
    dead: int
    unaccounted: int | None
    workers: int
    snapshot_age_seconds: float | None
    snapshot_every_seconds: float | None
    as_of: str
    at: float
    unreachable: list[UnreachablePartition] = []


class Snapshots(NamedTuple):
    """The age and the interval of the snapshots of a deployment, as published in its description.

    Attributes:
        age: Seconds since the latest snapshot; `None` if there is none, or if it is not known.
        every: Seconds between two snapshots; `None` if no worker takes them, or if it is not known. The interval of a
            worker that died stays.
    """

    age: float | None
    every: float | None


class TopFigures(msgspec.Struct, frozen=True):
    """The leaderboards of all metrics in one window.

    Attributes:
        window: A window such as `day`, a range such as `7d`, or `all` for the totals.
        metrics: By metric, the first places (at most 10) of the leaderboard in `window`; a metric without a leaderboard
            or the window is left out.
        incomplete: By metric, the second (since 1970) at which its leaderboard begins, if a part of the range that was
            asked for is not in it, for example because it has expired. `null` if the leaderboard of all time may lack
            subjects or have wrong values, because a rule was changed. Other metrics are left out.
        unreachable: The partitions that are not in the leaderboards, because their nodes of the cluster do not answer.
    """

    window: str
    metrics: dict[str, list[Place]]
    incomplete: dict[str, int | None]
    unreachable: list[UnreachablePartition] = []


class Rates:
    """Computes the counted events per second of each metric, from the counts given to `take` at irregular times."""

    def __init__(self) -> None:
        self._read: deque[tuple[float, Mapping[str, int]]] = deque()

    def take(self, at: float, counted: Mapping[str, int]) -> None:
        """Add a reading: by metric, all events counted so far, read at monotonic second `at`.

        Readings that are more than 3 seconds older are dropped.
        """
        while self._read and self._read[0][0] < at - _SPAN:
            self._read.popleft()
        self._read.append((at, counted))

    def of(self, metric: str) -> float | None:
        """Return the counted events of a metric per second, averaged over the readings of the last 3 seconds.

        The last 3 seconds are those before the latest `take`. Returns `None` if there are no readings, or the oldest
        and the newest of them are less than 0.75 seconds apart. The result is never negative; it is 0 for a metric that
        is in no reading.
        """
        if not self._read or (seconds := self._read[-1][0] - self._read[0][0]) < _SPAN / 4:
            return None
        return max(0, self._read[-1][1].get(metric, 0) - self._read[0][1].get(metric, 0)) / seconds


def overview(rules: Rules, ledger: Ledger, rates: Rates, workers: int, snapshot: Snapshots) -> Overview:
    """Return the overview of the declared metrics, from figures that were read already.

    Args:
        rules: The declared metrics.
        ledger: The ledger of all partitions.
        rates: The counts of the last seconds, this ledger's included.
        workers: The number of running workers.
        snapshot: The age and the interval of the snapshots.
    """
    counted, totals = ledger.by_metric("counted"), ledger.totals
    metrics = [
        MetricFigures(metric, totals.get(metric, 0), counted.get(metric, 0), rates.of(metric))
        for metric in sorted(rules.metric)
    ]
    known = [figures.rate for figures in metrics if figures.rate is not None]
    oldest = [partition.oldest_pending for partition in ledger.partitions if partition.oldest_pending is not None]
    return Overview(
        metrics=metrics,
        rate=sum(known) if known else None,
        events={name: ledger.events[name] for name in ("appended", *OUTCOMES)},
        lag=ledger.waiting,
        pending=ledger.pending,
        oldest_pending_seconds=max(oldest, default=None),
        dead=ledger.dead,
        unaccounted=ledger.unaccounted,
        workers=workers,
        snapshot_age_seconds=snapshot.age,
        snapshot_every_seconds=snapshot.every,
        as_of=as_of_counted([partition.position for partition in ledger.partitions]),
        at=time.time(),
        unreachable=list(ledger.unreachable),
    )


def as_of_counted(positions: Sequence[CountingPosition]) -> str:
    """Return the stream ID up to which every partition is counted; `0-0` if there is none.

    Partitions in which nothing was counted and nothing waits are left out.
    """
    return as_of([position for position in positions if position.lag != 0 or position.as_of != "0-0"])


def query_workers(layout: Layout) -> Query[int]:
    """Return a query for the number of running workers: different consumer names that have read in the last 10 seconds.

    Partitions whose consumers cannot be read are left out.
    """

    def parse(replies: list[Any]) -> int:
        return len(
            {
                consumer["name"]
                for reply in replies
                if not isinstance(reply, Exception)
                for consumer in reply
                if consumer["idle"] < _ALIVE
            }
        )

    return Query([("XINFO CONSUMERS", keys.stream, keys.group) for keys in layout.keys], parse)


def query_snapshots(layout: Layout, now: float) -> Query[Snapshots]:
    """Return a query for the age of the latest snapshot at `now` (seconds since 1970), and for the interval.

    One that is not stored is `None`; both are if the node of the description does not answer.
    """

    def parse(replies: list[Any]) -> Snapshots:
        if is_unreachable(replies[0]):
            return Snapshots(None, None)
        taken, every = raise_on_error(replies[0])
        return Snapshots(
            None if taken is None else max(0.0, now - float(taken)), None if every is None else float(every)
        )

    return Query([("HMGET", layout.meta, SNAPSHOT_AT, SNAPSHOT_EVERY)], parse)


async def top_of(totals: Totals, rules: Rules, window: str) -> TopFigures:
    """Read and return the leaderboard of each metric in one window, at most 10 places; leave out metrics without one.

    Args:
        totals: Reads the leaderboards.
        rules: The declared metrics.
        window: A window such as `day` for its current bucket, a range such as `7d`, or `all` for the totals. If it is
            not valid, every metric is left out.

    Raises:
        KeyLost: a partition has lost a key.
        RedisError: the leaderboards cannot be read.

    Any error of `Totals.deployment` is raised too.
    """
    found: dict[str, list[Place]] = {}
    incomplete: dict[str, int | None] = {}
    unreachable: dict[UnreachablePartition, None] = {}
    for metric in sorted(rules.metric):
        try:
            board = await totals.top(metric, None if window == "all" else window)
        except EventError:
            continue  # a metric without a leaderboard, or without this window
        found[metric] = board.top
        unreachable |= dict.fromkeys(board.unreachable)
        if board.missing or not (board.complete or board.unreachable):
            incomplete[metric] = board.start
    return TopFigures(window, found, incomplete, list(unreachable))
