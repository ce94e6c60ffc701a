"""Evaluates the alerts that change as time passes: sums over a range, rates, and buckets that have ended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tallystream.client.replies import is_unreachable
from tallystream.client.server_time import parse_time
from tallystream.errors import EventError, KeyLost, NodeUnreachable
from tallystream.reading.deployment_cache import removed_ends
from tallystream.reading.query import raise_on_error
from tallystream.reading.series import Covered, rolling_buckets
from tallystream.rules.alerts import ENDED, Alert
from tallystream.rules.windows import bucket
from tallystream.storage.keys import partition_of
from tallystream.storage.scripts import Script
from tallystream_worker.process.in_reach import for_each_in_reach
from tallystream_worker.process.state_log import StateLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout, PartitionKeys

_CHANGE: Final = Script("tallystream_worker.alerts", "change_alerts")
_CHUNK: Final = 500
Change = tuple[str, str, float]
"""A subject, its new state (`firing`, `resolved` or `ended`), and its value."""


class AlertEvaluator:
    """Fires and resolves the alerts with `over` or `rate`, and ends the alerts with `window` when their bucket is over.

    Each call of `run_once` is one pass over all alerts. The script that counts makes all other changes, when it counts
    an event: those of alerts on a total, and those of alerts with `window` within the bucket. Several evaluators may
    run: the script makes each change once.

    Args:
        client: The connection to the counters.
        layout: Returns the live layout, whose `unreachable` partitions are left out. Each pass calls this function,
            because a rebuild or a repartition changes the layout. It returns `None` if the deployment was deleted or
            replaced, or a restore has not finished; then the pass does nothing.
        rules: The declared metrics and alerts.
        log: Logs when an alert becomes silent, because buckets of its range are not kept or the range has too many
            buckets, and when it is evaluated again; `None` to log nothing.
    """

    def __init__(
        self,
        client: redis.Redis,
        layout: Callable[[], Layout | None],
        rules: Rules,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._client = client
        self._layout = layout
        self._rules = rules
        self._seen: dict[str, tuple[int | None, float]] = {}
        self._silent = (
            {}
            if log is None
            else {
                alert.name: StateLog(log.bind(alert=alert.name), "alert.silent", "alert.evaluated")
                for alert in rules.alert
            }
        )

    def run_once(self, now: float | None = None) -> int:
        """Fire and resolve the alerts with `over` or `rate`, and end those with `window` that fire for an ended bucket.

        Of the ended buckets, only the one before the current one is looked at. Each change also writes its notification
        to the outbox of the partition. While an outbox is full, its partition changes no state. An alert fires for at
        most `MAX_FIRING` subjects of a partition at a time. An alert whose range has an expired bucket, or too many
        buckets, changes no state. A partition that has lost a sentinel (see `storage.sentinels.lost_key`) changes no
        state, and neither does one whose node of a cluster does not answer. If `layout` returns `None`, nothing is
        done.

        Args:
            now: The present, in seconds since 1970; `None` for the time by the server's clock.

        Returns:
            How many states were changed: an alert has one state for each subject.

        Raises:
            NodeUnreachable: nodes of a cluster do not answer; raised after the partitions on other nodes.
            redis.RedisError: the server does not reply, or rejects a command; some states may be changed.

        Any error of `layout` is raised too.
        """
        found = self._layout()
        if found is None:
            return 0
        layout, present, removed = self._removed(found)
        now = present if now is None else now
        changed = 0

        def evaluate(number: int, keys: PartitionKeys) -> None:
            nonlocal changed
            for alert in self._rules.alert:
                try:
                    if alert.window is not None:
                        changed += self._end_bucket(keys, alert, now)
                    elif alert.span is not None and (
                        not alert.names_one or partition_of(alert.subject, layout.partitions) == number
                    ):
                        changed += self._look(keys, alert, now, removed)
                except KeyLost:
                    break  # the worker that counts the partition reports it

        for_each_in_reach(self._client, layout, evaluate)
        return changed

    def _removed(self, layout: Layout) -> tuple[Layout, float, Mapping[str, int]]:
        """Return the layout with what is unreachable now, the present by a server's clock, and the removed buckets.

        To `unreachable` of the layout, add the partitions whose node does not answer. The present is in seconds since
        1970. The third value is the result of `removed_ends` for the partitions that answered.

        Raises:
            redis.RedisError: no server replies, or one rejects a command.
        """
        reached = [number for number in range(layout.partitions) if number not in layout.unreachable]
        with self._client.pipeline(transaction=False) as pipeline:
            for number in reached:
                pipeline.execute_command("TIME")  # In a cluster, it is sent to the node of the key that follows it.
                pipeline.execute_command("HGETALL", layout.keys[number].forgotten)
            replies = iter(pipeline.execute(raise_on_error=False))
        times, hashes, unreachable = [], [], set(layout.unreachable)
        for number, time, forgotten in zip(reached, replies, replies, strict=True):
            if is_unreachable(time) or is_unreachable(forgotten):
                unreachable.add(number)
                continue
            times.append(parse_time(raise_on_error(time)) / 1e6)
            hashes.append(raise_on_error(forgotten))
        if not times:
            raise NodeUnreachable({keys.stream: None for keys in layout.keys}, "no node answers")
        return replace(layout, unreachable=frozenset(unreachable)), times[0], removed_ends(hashes, self._rules)

    def _end_bucket(self, keys: PartitionKeys, alert: Alert, now: float) -> int:
        """End an alert with `window` for each subject that fires in the bucket before the current; return how many.

        Each end is notified, with the value at which the alert began to fire. If the outbox is full, the other subjects
        stay firing, for the next passes. An end that is not notified before the current bucket ends too is never
        notified.

        Raises:
            KeyLost: the partition has lost a sentinel, and an alert has to be ended; the other subjects stay firing.
            redis.RedisError: the server does not reply, or rejects a command.
        """
        assert alert.window is not None  # noqa: S101  # checked by the caller
        current = bucket(alert.window, int(now) // 60, self._rules.zone)
        label = bucket(alert.window, current.start // 60 - 1, self._rules.zone).label
        records: dict[bytes, bytes] = self._client.execute_command("HGETALL", keys.alerting(alert.name, label))
        ending = [
            (subject.decode(), "ended", float(record.split()[-1]))
            for subject, record in records.items()
            if record != ENDED.encode()
        ]
        return self._change(keys, alert, label, ending)

    def _covered(self, alert: Alert, now: float, removed: Mapping[str, int]) -> Covered | None:
        """Return the buckets of the alert's range; `None` if they are too many, or if some are not kept.

        Log it if there is a problem and it was not there at the last call, and when it has ended.

        Args:
            alert: An alert with `over` or `rate`.
            now: The end of the range, in seconds since 1970.
            removed: By `<kind>:<metric>`, the second (since 1970) up to which buckets are gone: see `removed_ends`.
        """
        assert alert.span is not None  # noqa: S101  # checked by the caller
        covered = None
        problem = (
            f"the buckets of {alert.metric} are not kept for {alert.span}: the alert changes no state. "
            f"Raise retention in [metric.{alert.metric}], or declare a coarser window. "
            "If a wrong clock removed the buckets, run: tallystream rebuild"
        )
        try:
            covered = rolling_buckets(self._rules, alert.metric, alert.span, now, removed)
        except EventError as error:
            problem = str(error)
        complete = covered is not None and covered.bounds["complete"]
        if (state := self._silent.get(alert.name)) is not None:
            state.works() if complete else state.failed(problem)
        return covered if complete else None

    def _look(self, keys: PartitionKeys, alert: Alert, now: float, removed: Mapping[str, int]) -> int:
        covered = self._covered(alert, now, removed)
        if covered is None:
            return 0
        watched = keys.watched(alert.name)
        # While the range has the same bounds, a value rises only by events: check only the subjects that were counted
        # since, or that fire. If the bounds move, what leaves or enters the range may raise any value.
        start, seen = self._seen.get(watched, (None, 0.0))
        begin = covered.bounds["start"]
        least = seen if alert.above is not None and start == begin else 0
        scored: list[tuple[bytes, float]] = self._client.execute_command(
            "ZRANGE", watched, least, "+inf", "BYSCORE", "WITHSCORES"
        )
        subjects = {subject.decode() for subject, _ in scored}
        states: list[bytes] = self._client.execute_command("HKEYS", keys.alerting(alert.name, ""))
        firing = {subject.decode() for subject in states}
        subjects |= firing
        if alert.names_one:
            subjects.add(alert.subject)
        changes: list[Change] = []
        names = sorted(subjects)
        for first in range(0, len(names), _CHUNK):
            for subject, value in self._values(keys, alert, names[first : first + _CHUNK], covered, now):
                if subject in firing and alert.clears(value):
                    changes.append((subject, "resolved", value))
                elif subject not in firing and alert.fires(value):
                    changes.append((subject, "firing", value))
        changed = self._change(keys, alert, "", changes)
        if scored and changed == len(changes):  # if not, the next pass checks these subjects again
            self._seen[watched] = begin, max(float(score) for _, score in scored)
        return changed

    def _values(
        self, keys: PartitionKeys, alert: Alert, subjects: list[str], covered: Covered, now: float
    ) -> Iterable[tuple[str, float]]:
        with self._client.pipeline(transaction=False) as pipeline:
            for window, each in covered.buckets:
                pipeline.hmget(keys.window(window, alert.metric, each.label), subjects)
            columns = pipeline.execute()
        span = max(1.0, now - covered.buckets[0][1].start) if alert.rate is not None else 1.0
        for subject, *amounts in zip(subjects, *columns, strict=True):
            yield subject, sum(int(amount or 0) for amount in amounts) / span

    def _change(self, keys: PartitionKeys, alert: Alert, label: str, changes: list[Change]) -> int:
        changed = 0
        for first in range(0, len(changes), _CHUNK):
            some = [
                part
                for subject, state, value in changes[first : first + _CHUNK]
                for part in (subject, state, f"{value:.16g}")
            ]
            names = [keys.alerting(alert.name, label), keys.outbox]
            _, count = _CHANGE(self._client, names, [alert.name, alert.metric, label, *some])
            changed += int(count)
        return changed
