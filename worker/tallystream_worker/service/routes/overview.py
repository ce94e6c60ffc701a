"""The figures of the whole, what is declared, and subjects by the beginning of their name."""

from collections import Counter
from typing import Annotated, Final

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from tallystream.aio import Totals
from tallystream.reading.query import Query, raise_on_error
from tallystream.reading.totals import floored
from tallystream.rules.metrics import Ratio
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream_worker.live.broadcaster import Broadcaster
from tallystream_worker.live.overview import Overview
from tallystream_worker.service.parameters import published
from tallystream_worker.service.problems import bad_request

MAX_FOUND: Final = 50

_SEARCHED: Final = 1000
"""Places of each leaderboard and partition that are looked at."""


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


class Found(msgspec.Struct, frozen=True):
    """A subject, and the metric that it leads in most with its total."""

    subject: str
    metric: str
    value: int


class Subjects(msgspec.Struct, frozen=True):
    """Subjects that begin so, largest first. There is no list of all: only leaderboards are searched."""

    prefix: str
    subjects: list[Found]
    searched: list[str]


class Summary(Controller):
    """Reads of the whole."""

    path = "/v1"
    tags = ("overview",)

    @get("/overview", summary="Totals by metric, the books, and what is declared")
    async def overview(self, totals: NamedDependency[Totals], broadcaster: NamedDependency[Broadcaster]) -> Whole:
        """Return what the dashboard begins with; `GET /v1/live?overview=true` keeps it up to date."""
        _, rules = await published(totals)
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
    ) -> Subjects:
        """Search the all-time leaderboards; a subject that leads nowhere is found by its whole name only."""
        begins = check_text("prefix", prefix, MAX_SUBJECT_BYTES)
        if not 1 <= n <= MAX_FOUND:
            raise bad_request("n", f"must be 1 to {MAX_FOUND}, not {n:,}")
        layout, rules = await published(totals)
        boards = [(metric, keys) for metric, rule in rules.metric.items() if rule.top for keys in layout.keys]
        commands = [("ZREVRANGE", keys.top(metric), 0, _SEARCHED - 1, "WITHSCORES") for metric, keys in boards]
        replies = await totals.run(Query(commands, lambda replies: [raise_on_error(reply) for reply in replies]))
        listed: Counter[tuple[str, str]] = Counter()
        for (metric, _), reply in zip(boards, replies, strict=True):
            for raw, score in reply:
                if (subject := raw.decode()).startswith(begins):
                    listed[subject, metric] += int(float(score))
        # What is spread may be below the boards of some partitions: what is shown is read there, too.
        in_parts = [counter for counter, _ in listed.most_common(_SEARCHED) if counter[1] in rules.spread]
        values = dict(listed) | ((await totals.read(in_parts)).values if in_parts else {})
        best: dict[str, Found] = {}
        for (subject, metric), stored in values.items():
            value = floored(rules, metric, stored)
            if subject not in best or best[subject].value < value:
                best[subject] = Found(subject, metric, value)
        found = sorted(best.values(), key=lambda each: (-each.value, each.subject))[:n]
        return Subjects(begins, found, sorted({metric for metric, _ in boards}))
