"""Counters over HTTP, each figure with how good it is.

In a path, `/` separates subject and metric, and a slash that belongs to a subject is written `%2F`: the counter
`view` of `/favicon.ico` is `/v1/counters/%2Ffavicon.ico/view`. Where something in between decodes that, the form
with `?subject=` says the same.
"""

import time
from typing import Annotated, Final

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from tallystream.aio import Totals
from tallystream.reading.actor_rules import ratios
from tallystream.reading.series import query_rolling, query_series
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream_worker.service.parameters import published, subject_in_path
from tallystream_worker.service.problems import bad_request
from tallystream_worker.service.responses import Figure, at, how_good
from tallystream_worker.settings.settings import ServeSettings

MAX_COUNTERS: Final = 1000
"""The most counters that one request may ask for."""

After = Annotated[
    str | None,
    QueryParameter(
        name="after",
        description="a stream ID; the answer waits until everything up to it is counted, or is 504",
    ),
]


class Subject(Figure, frozen=True):
    """Every declared metric and ratio of a subject; `error` is that of the worst of the counters."""

    subject: str
    counters: dict[str, int]
    ratios: dict[str, float]


class Counter(Figure, frozen=True):
    """One counter."""

    subject: str
    metric: str
    value: int


class Point(msgspec.Struct, frozen=True):
    """One bucket of a series; it begins at second `start`."""

    bucket: str
    start: int
    value: int


class Series(Figure, frozen=True):
    """The latest buckets of a counter, oldest first; `error` is how much may be missing from them in all."""

    subject: str
    metric: str
    window: str
    series: list[Point]


class Rolling(Figure, frozen=True):
    """A counter's sum over whole buckets, from second `start` to `end`; `error` is how much may be missing."""

    subject: str
    metric: str
    over: str
    value: int
    start: int
    end: int
    buckets: int


class Value(msgspec.Struct, frozen=True):
    """One of many counters."""

    subject: str
    metric: str
    value: int


class Values(Figure, frozen=True):
    """Many counters; `positions` has `as_of` by the names of the streams that they are counted from."""

    counters: list[Value]
    positions: dict[str, str]


class Counters(Controller):
    """Reads of counters; one that nothing was counted for is 0."""

    path = "/v1/counters"
    tags = ("counters",)

    @get("/{subject:str}", summary="Every metric of a subject")
    async def of_subject(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        subject: FromPath[str],
        after: After = None,
    ) -> Subject:
        """Return the totals of every declared metric, and the ratios of them."""
        name = subject_in_path(subject)
        _, rules = await published(totals)
        wanted = ((name, metric) for metric in sorted(rules.metric))
        reading = await totals.read(wanted, after=after, timeout=limits.read_timeout)
        counters = {metric: value for (_, metric), value in reading.values.items()}
        return Subject(name, counters, ratios(rules, counters), **how_good(reading))

    @get("/{subject:str}/{metric:str}", summary="One counter: its total, a series of buckets, or a rolling sum")
    async def of_metric(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        subject: FromPath[str],
        metric: FromPath[str],
        window: Annotated[
            str | None, QueryParameter(name="window", description="the series of this window: hour, day, ...")
        ] = None,
        last: Annotated[int, QueryParameter(name="last", description="buckets of the series")] = 24,
        over: Annotated[
            str | None, QueryParameter(name="over", description="the sum over a range that ends now, such as 7d")
        ] = None,
        after: After = None,
    ) -> Counter | Series | Rolling:
        """Return one total; or with `window` its latest buckets, or with `over` its sum over a range."""
        if window is not None and over is not None:
            raise bad_request("window", "either window or over, not both")
        name = subject_in_path(subject)
        layout, rules = await published(totals, metric)
        if window is None and over is None:
            reading = await totals.read([(name, metric)], after=after, timeout=limits.read_timeout)
            value = reading.values[name, metric]
            return Counter(name, metric, value, **how_good(reading))
        missing = 0
        if after is not None or rules.metric[metric].max_subjects is not None:
            reading = await totals.read([(name, metric)], after=after, timeout=limits.read_timeout)
            # A subject beyond the quota has no buckets: all that was counted for it may be missing from them.
            missing = reading.values[name, metric] if reading.error() else 0
        now = time.time()
        if window is not None:
            series = await totals.run(query_series(layout, rules, name, metric, window, last, now))
            points = [Point(point.label, point.start, point.value) for point in series.points]
            return Series(name, metric, window, points, **at(series.position, missing))
        assert over is not None  # noqa: S101  # one of them is given
        sums = await totals.run(query_rolling(layout, rules, name, metric, over, now))
        return Rolling(name, metric, over, sums.value, sums.start, sums.end, sums.buckets, **at(sums.position, missing))

    @get(summary="Many counters at once")
    async def many(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        subject: Annotated[
            list[str] | None, QueryParameter(name="subject", description="at least one; repeat it for several")
        ] = None,
        metric: Annotated[
            list[str] | None, QueryParameter(name="metric", description="repeat it for several; else all")
        ] = None,
        after: After = None,
    ) -> Values:
        """Return each of the metrics for each of the subjects, at most 1,000 in all."""
        if not subject:
            raise bad_request("subject", "at least one is needed: /v1/counters?subject=article:1")
        layout, rules = await published(totals)
        metrics = sorted(rules.metric) if metric is None else list(dict.fromkeys(metric))
        if (asked := len(subject) * len(metrics)) > MAX_COUNTERS:
            raise bad_request("subject", f"at most {MAX_COUNTERS:,} counters at once, these are {asked:,}")
        await published(totals, *metrics)
        wanted = [(check_text("subject", name, MAX_SUBJECT_BYTES), each) for name in subject for each in metrics]
        reading = await totals.read(wanted, after=after, timeout=limits.read_timeout)
        return Values(
            [Value(*counter, reading.values[counter]) for counter in dict.fromkeys(wanted)],
            {layout.keys[partition].stream: position.as_of for partition, position in reading.positions.items()},
            **how_good(reading),
        )
