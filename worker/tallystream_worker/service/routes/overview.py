"""The routes of the overview, the declared metrics, and the search for subjects."""

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
    """A declared metric and the rules that a reader needs; see docs/rules.md.

    `exact` is false if the totals are approximate: `exact = false`, or `seen = "bloom"`. It is true for a metric with
    `max_subjects`, although the totals of some of its subjects may be estimates.
    """

    metric: str
    """Name of the metric."""

    description: str
    """Description of the metric, from the configuration."""

    windows: list[str]
    """The windows with buckets."""

    top: int
    """Length of the leaderboards; 0 for none."""

    unique: str | None
    """The window in which different actors are counted; `null` if they are not."""

    votes: bool
    """Whether the metric has `once`: each actor has one vote for a subject (in each period, if `once` is a period)."""

    limit: int | None
    """Number of events of a subject that are accepted in each `per`; `null` without a limit."""

    per: str | None
    """The period of the limit; `null` without one."""

    exact: bool
    """Whether the totals are exact, except those in the sketch of `max_subjects`."""


class Whole(msgspec.Struct, frozen=True):
    """The overview, the declared metrics, and the ratios with the metrics that they divide."""

    overview: Overview
    """Totals by metric, ledger and lag."""

    declared: list[Declared]
    """The declared metrics."""

    ratios: dict[str, Ratio]
    """The ratios by name."""

    zone: str
    """The time zone in which days and months begin."""


class Summary(Controller):
    """The HTTP routes of the overview and of the search for subjects: `GET /v1/overview` and `GET /v1/subjects`."""

    path = "/v1"
    tags = ("overview",)

    @get("/overview", summary="Totals by metric, the ledger, and the declared metrics")
    async def overview(self, totals: NamedDependency[Totals], broadcaster: NamedDependency[Broadcaster]) -> Whole:
        """Return totals and rates by metric, the ledger, the lag, the declared metrics, the ratios and the time zone.

        `GET /v1/live?overview=true` sends updates of the totals, rates, ledger and lag.
        """
        rules = await published(totals)
        declared = [
            Declared(
                name, rule.description, list(rule.windows), rule.top, rule.unique, rule.once is not None,
                rule.limit, rule.per, rule.exact and rule.seen == "exact",
            )
            for name, rule in rules.metric.items()
        ]  # fmt: skip
        return Whole(await broadcaster.overview(), declared, rules.ratio, rules.zone)

    @get("/subjects", summary="Find subjects by the beginning of their name")
    async def subjects(
        self,
        totals: NamedDependency[Totals],
        prefix: Annotated[str, QueryParameter(name="prefix", description="the beginning of the subject")],
        n: Annotated[int, QueryParameter(name="n", description="number of subjects, at most 50")] = 10,
    ) -> FoundSubjects:
        """Return at most `n` subjects that begin with `prefix`, from the all-time leaderboards, largest total first.

        Each subject is listed once, with the largest of its totals that were found, and the metric of it. In each
        partition, the first 1,000 places of each leaderboard are searched. A subject that has none of these places, or
        only totals of 0, is not found here: read it by its whole name, with `GET /v1/counters/{subject}`. Respond 400
        if `prefix` is empty or no subject can begin with it, or if `n` is not 1 to 50.
        """
        return await totals.search(prefix, n)
