"""The figures of the whole, what is declared, and subjects by the beginning of their name."""

from typing import Annotated

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from tallystream.aio import Totals
from tallystream.reading.search import FoundSubjects
from tallystream.rules.metrics import Ratio
from tallystream_worker.live.broadcaster import Broadcaster
from tallystream_worker.live.overview import Overview
from tallystream_worker.service.parameters import published


class Declared(msgspec.Struct, frozen=True):
    """A metric and its rules, as far as a reader needs them; see docs/rules.md.

    `exact` is false if its totals are an approximation: `exact = false`, or `seen = "bloom"`.
    """

    metric: str
    description: str
    windows: list[str]
    top: int
    unique: str | None
    votes: bool
    limit: int | None
    per: str | None
    exact: bool


class Whole(msgspec.Struct, frozen=True):
    """The overview, the declared metrics, and of the ratios what they are of and by."""

    overview: Overview
    declared: list[Declared]
    ratios: dict[str, Ratio]
    zone: str


class Summary(Controller):
    """Reads of the whole."""

    path = "/v1"
    tags = ("overview",)

    @get("/overview", summary="Totals by metric, the ledger, and what is declared")
    async def overview(self, totals: NamedDependency[Totals], broadcaster: NamedDependency[Broadcaster]) -> Whole:
        """Return what the dashboard begins with; `GET /v1/live?overview=true` keeps it up to date."""
        rules = await published(totals)
        declared = [
            Declared(
                name, rule.description, list(rule.windows), rule.top, rule.unique, rule.once is not None,
                rule.limit, rule.per, rule.exact and rule.seen == "exact",
            )
            for name, rule in rules.metric.items()
        ]  # fmt: skip
        return Whole(await broadcaster.overview(), declared, rules.ratio, rules.zone)

    @get("/subjects", summary="Subjects of the leaderboards by the beginning of their name")
    async def subjects(
        self,
        totals: NamedDependency[Totals],
        prefix: Annotated[str, QueryParameter(name="prefix", description="how the subject begins")],
        n: Annotated[int, QueryParameter(name="n", description="how many, at most 50")] = 10,
    ) -> FoundSubjects:
        """Search the all-time leaderboards; a subject that leads nowhere is found by its whole name only."""
        return await totals.search(prefix, n)
