"""Alerts over HTTP: what is watched, and what is firing."""

import time
from typing import Annotated, Final

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from tallystream.aio import Totals
from tallystream.reading.alerts import query_alerts
from tallystream_worker.service.parameters import published
from tallystream_worker.service.problems import bad_request

MAX_SHOWN: Final = 1000
"""The most firing alerts in one answer."""


class Watched(msgspec.Struct, frozen=True):
    """A declared alert, and for how many subjects it is firing; `value` says what is looked at."""

    alert: str
    metric: str
    subject: str
    value: str
    above: float | None
    below: float | None
    clear: float
    firing: int


class FiringAlert(msgspec.Struct, frozen=True):
    """An alert that is firing since second `since`, when the value was `value`; `id` is its notification's."""

    alert: str
    metric: str
    subject: str
    value: float
    since: float
    id: str


class Alerts(msgspec.Struct, frozen=True):
    """What is watched and what is firing, the latest first; `more` tells whether there are others behind these."""

    alerts: list[Watched]
    firing: list[FiringAlert]
    more: bool
    undelivered: int


@get("/v1/alerts", tags=["alerts"], summary="Declared alerts, and those that are firing")
async def alerts(
    totals: NamedDependency[Totals],
    n: Annotated[int, QueryParameter(name="n", description="firing alerts to show, at most 1,000")] = 100,
    offset: Annotated[int, QueryParameter(name="offset", description="firing alerts to leave out")] = 0,
) -> Alerts:
    """Return the declared alerts, and the subjects for which one is firing."""
    if not 0 <= n <= MAX_SHOWN:
        raise bad_request("n", f"must be 0 to {MAX_SHOWN:,}, not {n:,}")
    if offset < 0:
        raise bad_request("offset", "must not be negative")
    layout, rules = await published(totals)
    found = await totals.run(query_alerts(layout, rules, time.time(), listed=n > 0))
    watched = [
        Watched(
            alert.name, alert.metric, alert.subject,
            alert.window or alert.over or (f"rate {alert.rate}" if alert.rate else "total"),
            alert.above, alert.below, alert.cleared_at, found.counts[alert.name],
        )
        for alert in rules.alert
    ]  # fmt: skip
    firing = [
        FiringAlert(each.alert.name, each.alert.metric, each.subject, each.value, each.since, each.id)
        for each in found.fired[offset : offset + n]
    ]
    more = sum(found.counts.values()) > offset + len(firing)
    return Alerts(watched, firing, more, sum(found.waiting.values()))
