"""The routes of rules: leaderboards, limits, votes and unique actors."""

from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from tallystream.aio import Totals
from tallystream.reading.actor_rules import Limit, Uniques, Votes
from tallystream.reading.leaderboards import Leaderboard
from tallystream_worker.service.parameters import After, published, subject_in_path
from tallystream_worker.settings.settings import ServeSettings


class RuleReads(Controller):
    """The HTTP routes that read leaderboards, limits, votes and unique actors.

    They are `GET /v1/top/{metric}`, and `/v1/limits`, `/v1/votes` and `/v1/uniques`, each with `/{metric}/{subject}`.
    """

    path = "/v1"
    tags = ("rules",)

    @get("/top/{metric:str}", summary="The subjects with the largest totals")
    async def top(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        metric: FromPath[str],
        window: Annotated[
            str | None,
            QueryParameter(name="window", description="a window such as day, or a range such as 7d; default all time"),
        ] = None,
        n: Annotated[
            int | None, QueryParameter(name="n", description="number of subjects, at most `top` of the metric")
        ] = None,
        offset: Annotated[
            int, QueryParameter(name="offset", description="number of subjects to skip: `next` of the last page")
        ] = 0,
        after: After = None,
    ) -> Leaderboard:
        """Return a leaderboard, the largest value first; subjects may change places between two pages.

        Without `n`, return 10 places at most. Respond 404 if the metric is not declared, and 400 if it has no
        leaderboard or not this window, if a range is not valid, or if `n` or `offset` is out of range.
        """
        await published(totals, metric)
        return await totals.top(metric, window, n=n, offset=offset, after=after, timeout=limits.read_timeout)

    @get("/limits/{metric:str}/{subject:str}", summary="How much of a limit is used")
    async def limit(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        metric: FromPath[str],
        subject: FromPath[str],
        after: After = None,
    ) -> Limit:
        """Return the limit of a subject, and how many events are used and remain in the present period.

        `used` also has the rejected events, so it may be above the limit. Respond 404 if the metric is not declared,
        and 400 if it has no limit.
        """
        name = subject_in_path(subject)
        await published(totals, metric)
        return await totals.limit(name, metric, after=after, timeout=limits.read_timeout)

    @get("/votes/{metric:str}/{subject:str}", summary="The votes for a subject")
    async def votes(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        metric: FromPath[str],
        subject: FromPath[str],
        after: After = None,
    ) -> Votes:
        """Return the score of a subject, and the numbers of votes for and against it.

        The score is `up - down`, and 0 without votes. But if `error` is `null`, because `once` was added to a metric
        with events, the score also has the amounts of earlier events, and `down`, which is computed from it, may be
        wrong. Respond 404 if the metric is not declared, and 400 if it has no votes (no `once`).
        """
        name = subject_in_path(subject)
        await published(totals, metric)
        return await totals.votes(name, metric, after=after, timeout=limits.read_timeout)

    @get("/uniques/{metric:str}/{subject:str}", summary="The number of different actors")
    async def uniques(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        metric: FromPath[str],
        subject: FromPath[str],
        over: Annotated[
            str | None,
            QueryParameter(
                name="over", description="a range such as 7d; default: the present hour, day or month, as `unique` sets"
            ),
        ] = None,
        after: After = None,
    ) -> Uniques:
        """Return an estimate of the number of different actors of a subject in a range, or in the present bucket.

        Of a range, whole buckets are read, from `start` to `end` of the response: they cover it if they are kept.
        Respond 404 if the metric is not declared, and 400 if it has no `unique` or the range is not valid.
        """
        name = subject_in_path(subject)
        await published(totals, metric)
        return await totals.uniques(name, metric, over, after=after, timeout=limits.read_timeout)
