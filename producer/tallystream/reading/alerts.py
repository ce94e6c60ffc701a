"""Reads of alerts: which are firing, for whom, and what waits to be delivered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.rules.alerts import ENDED, Alert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

_SHOWN: Final = 1000
"""Subjects of one alert and partition that are listed at most."""


@dataclass(frozen=True)
class FiredAlert:
    """An alert that is firing for a subject since second `since`, when its value was `value`."""

    alert: Alert
    subject: str
    value: float
    since: float
    id: str


@dataclass(frozen=True)
class FiringAlerts:
    """What is firing now.

    Attributes:
        counts: By alert, for how many subjects.
        fired: Those that were asked for, the latest first.
        waiting: By stream, the notifications that nobody has taken yet.
    """

    counts: Mapping[str, int]
    fired: list[FiredAlert]
    waiting: Mapping[str, int]


def query_alerts(layout: Layout, rules: Rules, now: float, *, listed: bool = False) -> Query[FiringAlerts]:
    """Ask which alerts fire in second `now`; `listed` asks for the subjects as well."""
    commands: list[Command] = []
    for keys in layout.keys if rules.alert else ():
        commands.append(("XLEN", keys.outbox))
        for alert in rules.alert:
            key = keys.alerting(alert.name, alert.label(now, rules.zone))
            commands.append(("HLEN", key))
            if listed:
                commands.append(("HSCAN", key, 0, "COUNT", _SHOWN))

    def parse(replies: list[Any]) -> FiringAlerts:
        answers = iter(replies)
        counts = {alert.name: 0 for alert in rules.alert}
        fired: list[FiredAlert] = []
        waiting: dict[str, int] = {}
        for keys in layout.keys if rules.alert else ():
            waiting[keys.stream] = int(raise_on_error(next(answers)))
            for alert in rules.alert:
                counts[alert.name] += int(raise_on_error(next(answers)))
                if listed:
                    fired += _listed(keys.prefix, alert, raise_on_error(next(answers))[1])
        fired.sort(key=lambda each: (-each.since, each.alert.name, each.subject))
        return FiringAlerts(counts, fired, waiting)

    return Query(commands, parse)


def _listed(prefix: str, alert: Alert, records: Mapping[bytes, bytes]) -> list[FiredAlert]:
    tag = prefix.partition("{")[2].partition("}")[0]
    found = []
    for subject, record in records.items():
        if record != ENDED.encode():
            entry, _, value = record.decode().partition(" ")
            since = int(entry.partition("-")[0]) / 1000
            found.append(FiredAlert(alert, subject.decode(), float(value), since, f"{tag}-{entry}"))
    return found
