"""What the rules hold, over HTTP: leaderboards, limits, votes and unique actors."""

import time
from typing import Annotated, Final

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from tallystream.aio import Totals
from tallystream.reading.actor_rules import query_limit, query_uniques, query_votes
from tallystream.reading.leaderboards import query_top
from tallystream.reading.query import as_of, lag_of
from tallystream_worker.service.parameters import published, subject_in_path
from tallystream_worker.service.problems import bad_request
from tallystream_worker.service.responses import Figure, at

PLACES: Final = 10
"""The places of a leaderboard that are shown where none are asked for, or all where it is shorter."""


class Place(msgspec.Struct, frozen=True):
    """One place of a leaderboard."""

    subject: str
    value: int


class Top(Figure, frozen=True):
    """The subjects with the most; `error` is by how much a value, or an unlisted subject, may be off.

    `next` is the `offset` of the places behind these, `null` at the end of the leaderboard.
    """

    metric: str
    window: str
    top: list[Place]
    next: int | None


class Limit(Figure, frozen=True):
    """A limit's bucket now; `reset_at` is the second at which it ends, `null` where it never does."""

    metric: str
    subject: str
    limit: int
    used: int
    remaining: int
    reset_at: float | None


class Votes(Figure, frozen=True):
    """Standing votes: `score = up - down`."""

    metric: str
    subject: str
    score: int
    up: int
    down: int


class Uniques(Figure, frozen=True):
    """About how many different actors; `error` is the standard error, as a share of `value`."""

    metric: str
    subject: str
    over: str
    value: int


class Standing(Controller):
    """Reads of what the rules hold."""

    path = "/v1"
    tags = ("rules",)

    @get("/top/{metric:str}", summary="The subjects with the most")
    async def top(
        self,
        totals: NamedDependency[Totals],
        metric: FromPath[str],
        window: Annotated[
            str | None,
            QueryParameter(name="window", description="such as day, or a range such as 7d; else of all time"),
        ] = None,
        n: Annotated[int | None, QueryParameter(name="n", description="how many, at most the metric's top")] = None,
        offset: Annotated[int, QueryParameter(name="offset", description="behind so many; `next` of the answer")] = 0,
    ) -> Top:
        """Return a leaderboard, largest first; between two pages counting goes on, and subjects change places."""
        layout, rules = await published(totals, metric)
        length = rules.metric[metric].top
        if length and not 0 <= offset < length:
            raise bad_request("offset", f"must be 0 to {length - 1:,}, the last place of {metric}'s leaderboard")
        places = min(PLACES, length - offset) if n is None else n
        behind = min(offset + places, length) if 1 <= places <= length else places  # which is refused
        ranking = await totals.run(query_top(layout, rules, metric, behind, window, now=time.time()))
        return Top(
            metric, window or "all", [Place(*place) for place in ranking.places[offset:]],
            behind if len(ranking.places) == behind < length else None,
            as_of=as_of(ranking.positions), lag=lag_of(ranking.positions), error=ranking.error,
        )  # fmt: skip

    @get("/limits/{metric:str}/{subject:str}", summary="How much of a limit is used")
    async def limit(self, totals: NamedDependency[Totals], metric: FromPath[str], subject: FromPath[str]) -> Limit:
        """Return what is used of a subject's limit, and what remains."""
        name = subject_in_path(subject)
        layout, rules = await published(totals, metric)
        found = await totals.run(query_limit(layout, rules, name, metric, time.time()))
        return Limit(metric, name, found.limit, found.used, found.remaining, found.reset_at, **at(found.position))

    @get("/votes/{metric:str}/{subject:str}", summary="The standing votes")
    async def votes(self, totals: NamedDependency[Totals], metric: FromPath[str], subject: FromPath[str]) -> Votes:
        """Return a subject's score, and the votes for and against it."""
        name = subject_in_path(subject)
        layout, rules = await published(totals, metric)
        found = await totals.run(query_votes(layout, rules, name, metric))
        return Votes(metric, name, found.score, found.up, found.down, **at(found.position))

    @get("/uniques/{metric:str}/{subject:str}", summary="About how many different actors")
    async def uniques(
        self,
        totals: NamedDependency[Totals],
        metric: FromPath[str],
        subject: FromPath[str],
        over: Annotated[
            str | None,
            QueryParameter(name="over", description="a range such as 7d; else the metric's own window, as it is now"),
        ] = None,
    ) -> Uniques:
        """Return an estimate of a subject's different actors."""
        name = subject_in_path(subject)
        layout, rules = await published(totals, metric)
        span = over or rules.metric[metric].unique or ""
        found = await totals.run(query_uniques(layout, rules, name, metric, span, time.time()))
        return Uniques(metric, name, span, found.value, **at(found.position, found.error))
