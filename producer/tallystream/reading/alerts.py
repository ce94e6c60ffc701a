"""Queries for alerts: which ones fire, for which subjects, and how many notifications wait to be delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace

from tallystream.errors import EventError
from tallystream.reading.counters import NOTHING
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.reading.reach import UnreachablePartition  # noqa: TC001  # msgspec reads the type
from tallystream.reading.series import rolling_buckets
from tallystream.rules.alerts import ENDED, Alert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

MAX_SHOWN: Final = 1000
"""The most firing alerts in one page of `Alerts`."""


class WatchedAlert(msgspec.Struct, frozen=True):
    """A declared alert, and the number of subjects for which it fires.

    Attributes:
        alert: The name of the alert.
        metric: The metric.
        subject: The subject, or the pattern of subjects.
        value: The kind of the value that is compared, as text: a window such as `hour` (the sum in its current bucket),
            a duration such as `1h` (the sum over it), `rate 5m` (events a second over 5 minutes), or `total`.
        above: The bound above which the alert fires; `null` if it has only `below`.
        below: The bound below which the alert fires; `null` if it has only `above`.
        clear: The value at which the alert ends: a value at most this (with `above`), or at least this (with `below`).
            With a window, it also ends when its bucket ends.
        firing: The number of subjects for which it fires. If the query asked for no list (`n` 0, see
            `query_alert_page`) and the server's clock was set back into an ended bucket, it may be too high: it then
            includes subjects whose alert ended with this bucket.
        complete: Whether the whole range of the alert is stored and can be read. If not, the alert is silent: it
            changes no state. Always true for an alert without a range.
    """

    alert: str
    metric: str
    subject: str
    value: str
    above: float | None
    below: float | None
    clear: float
    firing: int
    complete: bool


class FiringAlert(msgspec.Struct, frozen=True):
    """An alert that fires for one subject.

    Attributes:
        alert: The name of the alert.
        metric: The metric.
        subject: The subject.
        value: The value with which it began to fire.
        since: The second (since 1970) at which it began to fire.
        id: The ID of its notification.
    """

    alert: str
    metric: str
    subject: str
    value: float
    since: float
    id: str


class Alerts(msgspec.Struct, frozen=True):
    """The declared alerts, and one page of those that fire.

    Attributes:
        alerts: The declared alerts, in the order of the rules.
        firing: The alerts that fire, the latest first; one for each pair of alert and subject. They are at most as many
            as the query asked for (`n`), after those that it skips (`offset`).
        more: Whether further alerts fire that come after those in `firing`. If the query asked for none (`n` 0), it may
            be true although none fires: see `WatchedAlert.firing`.
        undelivered: The number of notifications that wait to be delivered, or to be removed after that; 0 if no alert
            is declared, also if notifications of former alerts still wait.
        unreachable: The partitions that are not in the figures, because their nodes of the cluster do not answer.
    """

    alerts: list[WatchedAlert]
    firing: list[FiringAlert]
    more: bool
    undelivered: int
    unreachable: list[UnreachablePartition] = []

    def lacking(self, unreachable: list[UnreachablePartition]) -> Alerts:
        """Return a copy with the given partitions as `unreachable`, in place of those that it has."""
        return replace(self, unreachable=unreachable)


@dataclass(frozen=True)
class FiringAlerts:
    """The alerts that fire now: the answer of `query_alerts`.

    Attributes:
        counts: By name of each declared alert, the number of subjects for which it fires; if the query did not ask for
            `fired`, it may be too high (see `query_alerts`).
        fired: The alerts that fire, the latest first; empty unless the query asked for them.
        waiting: By name of the event stream of each partition that was read, the number of its notifications that wait
            to be delivered, or to be removed after that; empty if no alert is declared.
        silent: The names of the alerts that cannot be evaluated, because part of their range is not kept, or the range
            has too many buckets.
    """

    counts: Mapping[str, int]
    fired: list[FiringAlert]
    waiting: Mapping[str, int]
    silent: frozenset[str] = frozenset()

    def lacking(self, _unreachable: list[UnreachablePartition]) -> FiringAlerts:
        """Return this object; the argument, the partitions that were not read, is ignored."""
        return self


def query_alert_page(
    layout: Layout, rules: Rules, now: float, n: int, offset: int, removed: Mapping[str, int] = NOTHING
) -> Query[Alerts]:
    """Return a query for the declared alerts, and for at most `n` of those that fire, after the first `offset`.

    Those that fire are pairs of alert and subject, the latest first. With `n` 0, none is listed, and the numbers of
    firing subjects may be too high: see `WatchedAlert.firing`. `now`, in seconds since 1970, selects the current
    buckets and ranges; `removed` is that of the deployment: see `tallystream.deployment.Deployment`.

    Raises:
        EventError: `n` is not 0 to 1,000, or `offset` is negative.
    """
    if not 0 <= n <= MAX_SHOWN:
        raise EventError("n", f"must be 0 to {MAX_SHOWN:,}, not {n:,}")
    if offset < 0:
        raise EventError("offset", "must not be negative")

    def show(found: FiringAlerts) -> Alerts:
        watched = [
            WatchedAlert(
                alert.name,
                alert.metric,
                alert.subject,
                alert.window or alert.over or (f"rate {alert.rate}" if alert.rate else "total"),
                alert.above,
                alert.below,
                alert.cleared_at,
                found.counts[alert.name],
                alert.name not in found.silent,
            )
            for alert in rules.alert
        ]
        firing = found.fired[offset : offset + n]
        more = sum(found.counts.values()) > offset + n
        return Alerts(watched, firing, more, sum(found.waiting.values()))

    return query_alerts(layout, rules, now, removed, listed=n > 0).then(show)


def query_alerts(
    layout: Layout, rules: Rules, now: float, removed: Mapping[str, int] = NOTHING, *, listed: bool = False
) -> Query[FiringAlerts]:
    """Return a query for the number of subjects for which each alert fires, and of notifications that wait.

    It leaves out the unreachable partitions of the layout. If no alert is declared, it has no commands.

    If `listed` is true, the answer also has the subjects: all, so that the order is right. They are at most
    `MAX_FIRING` (10,000) for each alert and partition. Otherwise, `fired` is empty, and `counts` also include subjects
    whose alert ended with the bucket that is current at `now`: there are none unless the server's clock was set back
    into an ended bucket.

    `now`, in seconds since 1970, selects the current buckets and ranges; `removed` is that of the deployment: see
    `tallystream.deployment.Deployment`.
    """
    silent = frozenset(alert.name for alert in rules.alert if _is_silent(rules, alert, now, removed))
    commands: list[Command] = []
    for keys in layout.reached if rules.alert else ():
        commands.append(("XLEN", keys.outbox))
        for alert in rules.alert:
            key = keys.alerting(alert.name, alert.label(now, rules.zone))
            commands.append(("HGETALL" if listed else "HLEN", key))

    def parse(replies: list[Any]) -> FiringAlerts:
        answers = iter(replies)
        counts = {alert.name: 0 for alert in rules.alert}
        fired: list[FiringAlert] = []
        waiting: dict[str, int] = {}
        for keys in layout.reached if rules.alert else ():
            waiting[keys.stream] = int(raise_on_error(next(answers)))
            for alert in rules.alert:
                answer = raise_on_error(next(answers))
                here = _listed(keys.prefix, alert, answer) if listed else []
                counts[alert.name] += len(here) if listed else int(answer)
                fired += here
        fired.sort(key=lambda each: (-each.since, each.alert, each.subject))
        return FiringAlerts(counts, fired, waiting, silent)

    return Query(commands, parse)


def _is_silent(rules: Rules, alert: Alert, now: float, removed: Mapping[str, int]) -> bool:
    """Return whether the range of an alert cannot be read: part of it is not kept, or it has too many buckets.

    `False` for an alert without a range (`over` or `rate`). `now`, in seconds since 1970, is the end of the range;
    `removed` is that of the deployment: see `tallystream.deployment.Deployment`.
    """
    if alert.span is None:
        return False
    try:
        return not rolling_buckets(rules, alert.metric, alert.span, now, removed).bounds["complete"]
    except EventError:
        return True


def _listed(prefix: str, alert: Alert, records: Mapping[bytes, bytes]) -> list[FiringAlert]:
    tag = prefix.partition("{")[2].partition("}")[0]
    found = []
    for subject, record in records.items():
        if record != ENDED.encode():
            entry, _, value = record.decode().partition(" ")
            since = int(entry.partition("-")[0]) / 1000
            name = f"{tag}-{entry}"
            found.append(FiringAlert(alert.name, alert.metric, subject.decode(), float(value), since, name))
    return found
