"""What the rules hold, over HTTP: leaderboards, limits, votes and unique actors."""

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
    """Reads of what the rules hold."""

    path = "/v1"
    tags = ("rules",)

    @get("/top/{metric:str}", summary="The subjects with the most")
    async def top(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        metric: FromPath[str],
        window: Annotated[
            str | None,
            QueryParameter(name="window", description="such as day, or a range such as 7d; else of all time"),
        ] = None,
        n: Annotated[int | None, QueryParameter(name="n", description="how many, at most the metric's top")] = None,
        offset: Annotated[int, QueryParameter(name="offset", description="behind so many; `next` of the answer")] = 0,
        after: After = None,
    ) -> Leaderboard:
        """Return a leaderboard, largest first; between two pages counting goes on, and subjects change places."""
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
        """Return what is used of a subject's limit, and what remains."""
        name = subject_in_path(subject)
        await published(totals, metric)
        return await totals.limit(name, metric, after=after, timeout=limits.read_timeout)

    @get("/votes/{metric:str}/{subject:str}", summary="The standing votes")
    async def votes(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        metric: FromPath[str],
        subject: FromPath[str],
        after: After = None,
    ) -> Votes:
        """Return a subject's score, and the votes for and against it."""
        name = subject_in_path(subject)
        await published(totals, metric)
        return await totals.votes(name, metric, after=after, timeout=limits.read_timeout)

    @get("/uniques/{metric:str}/{subject:str}", summary="About how many different actors")
    async def uniques(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        metric: FromPath[str],
        subject: FromPath[str],
        over: Annotated[
            str | None,
            QueryParameter(name="over", description="a range such as 7d; else the metric's own window, as it is now"),
        ] = None,
        after: After = None,
    ) -> Uniques:
        """Return an estimate of a subject's different actors."""
        name = subject_in_path(subject)
        await published(totals, metric)
        return await totals.uniques(name, metric, over, after=after, timeout=limits.read_timeout)
