"""The routes of counters.

In a path, `/` separates subject and metric, and a slash in a subject is written `%2F`: the counter `view` of
`/favicon.ico` is `/v1/counters/%2Ffavicon.ico/view`. If a proxy decodes `%2F`, use `/v1/counters?subject=` instead.
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
"""Largest number of counters in one request for many."""


class Counters(Controller):
    """The HTTP routes that read counters: `GET /v1/counters`, and `/v1/counters/{subject}` with or without `/{metric}`.

    The total of a counter without events is 0, or the `floor` of its metric if that is larger.
    """

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
        """Return the totals of all declared metrics of a subject, and the ratios; one whose divisor is 0 is 0."""
        return await totals.of(subject_in_path(subject), after=after, timeout=limits.read_timeout)

    @get("/{subject:str}/{metric:str}", summary="One counter: its total, a series of buckets, or a rolling sum")
    async def of_metric(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        subject: FromPath[str],
        metric: FromPath[str],
        window: Annotated[
            str | None, QueryParameter(name="window", description="return the series of this window: hour, day, ...")
        ] = None,
        last: Annotated[int, QueryParameter(name="last", description="number of buckets in the series")] = 24,
        over: Annotated[
            str | None, QueryParameter(name="over", description="return the sum over a range that ends now, such as 7d")
        ] = None,
        after: After = None,
    ) -> CounterTotal | Series | RollingSum:
        """Return the total. With `window`, return the last buckets instead; with `over`, the sum over a range.

        The sum is that of whole buckets, from `start` to `end` of the response: they cover the range if they are kept.
        The buckets come oldest first, and the last one is the present one. A bucket is `null` if it has expired, or
        if a change of the rules may have left events out of it. Respond 404 if the metric is not declared, and 400 if
        it does not have the window (with `over`, no window at all), if `last` or `over` is not valid, or if both
        `window` and `over` are given.
        """
        if window is not None and over is not None:
            raise bad_request("window", "give either window or over, not both")
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
            list[str] | None,
            QueryParameter(name="subject", description="a subject; repeat it for several, at least one"),
        ] = None,
        metric: Annotated[
            list[str] | None, QueryParameter(name="metric", description="a metric; repeat it for several; default all")
        ] = None,
        after: After = None,
    ) -> CounterTotals:
        """Return the total of each metric for each subject, each once.

        Respond 400 without a subject, if a subject is not valid, or for more than 1,000 totals (a subject that is
        repeated counts again); and 404 if a metric is not declared.
        """
        if not subject:
            raise bad_request("subject", "at least one is needed: /v1/counters?subject=article:1")
        rules = await published(totals)
        metrics = sorted(rules.metric) if metric is None else list(dict.fromkeys(metric))
        if (asked := len(subject) * len(metrics)) > MAX_COUNTERS:
            raise bad_request("subject", f"at most {MAX_COUNTERS:,} counters in one request, not {asked:,}")
        await published(totals, *metrics)
        wanted = ((name, each) for name in subject for each in metrics)
        return await totals.get_many(wanted, after=after, timeout=limits.read_timeout)
