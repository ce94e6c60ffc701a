"""Counters over HTTP, each figure with how good it is.

In a path, `/` separates subject and metric, and a slash that belongs to a subject is written `%2F`: the counter
`view` of `/favicon.ico` is `/v1/counters/%2Ffavicon.ico/view`. Where something in between decodes that, the form
with `?subject=` says the same.
"""

from typing import Annotated, Final

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from tallystream.aio import Totals
from tallystream.reading.counters import CounterTotal, CounterTotals, SubjectTotals
from tallystream.reading.series import RollingSum, Series
from tallystream_worker.service.parameters import After, published, subject_in_path
from tallystream_worker.service.problems import bad_request
from tallystream_worker.settings.settings import ServeSettings

MAX_COUNTERS: Final = 1000
"""The most counters that one request may ask for."""


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
    ) -> SubjectTotals:
        """Return the totals of every declared metric, and the ratios of them."""
        return await totals.of(subject_in_path(subject), after=after, timeout=limits.read_timeout)

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
    ) -> CounterTotal | Series | RollingSum:
        """Return one total; or with `window` its latest buckets, or with `over` its sum over a range."""
        if window is not None and over is not None:
            raise bad_request("window", "either window or over, not both")
        name, timeout = subject_in_path(subject), limits.read_timeout
        await published(totals, metric)
        if window is not None:
            return await totals.series(name, metric, window, last, after=after, timeout=timeout)
        if over is not None:
            return await totals.sum(name, metric, over, after=after, timeout=timeout)
        return await totals.get(name, metric, after=after, timeout=timeout)

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
    ) -> CounterTotals:
        """Return each of the metrics for each of the subjects, at most 1,000 in all."""
        if not subject:
            raise bad_request("subject", "at least one is needed: /v1/counters?subject=article:1")
        rules = await published(totals)
        metrics = sorted(rules.metric) if metric is None else list(dict.fromkeys(metric))
        if (asked := len(subject) * len(metrics)) > MAX_COUNTERS:
            raise bad_request("subject", f"at most {MAX_COUNTERS:,} counters at once, these are {asked:,}")
        await published(totals, *metrics)
        wanted = ((name, each) for name in subject for each in metrics)
        return await totals.get_many(wanted, after=after, timeout=limits.read_timeout)
