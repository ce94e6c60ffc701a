"""Counters over HTTP, each figure with how good it is.

In a path, `/` separates subject and metric, and a slash that belongs to a subject is written `%2F`: the counter
`view` of `/favicon.ico` is `/v1/counters/%2Ffavicon.ico/view`. Where something in between decodes that, the form
with `?subject=` says the same.
"""

from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

import msgspec
from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from tallystream.aio import Totals
from tallystream.errors import EventError
from tallystream.event import MAX_SUBJECT_BYTES, check_metric, check_text
from tallystream.totals import Reading, declared
from tallystream_worker.http.problems import bad_request, problem
from tallystream_worker.settings import ServeSettings

MAX_COUNTERS: Final = 1000
"""The most counters that one request may ask for."""

After = Annotated[
    str | None,
    QueryParameter(
        name="after",
        description="a stream ID; the answer waits until everything up to it is counted, or is 504",
    ),
]


class Subject(msgspec.Struct, frozen=True):
    """Every declared metric of a subject, complete up to `as_of` but for `lag` entries."""

    subject: str
    counters: dict[str, int]
    as_of: str
    lag: int | None
    error: int = 0


class Counter(msgspec.Struct, frozen=True):
    """One counter."""

    subject: str
    metric: str
    value: int
    as_of: str
    lag: int | None
    error: int = 0


class Value(msgspec.Struct, frozen=True):
    """One of many counters."""

    subject: str
    metric: str
    value: int


class Values(msgspec.Struct, frozen=True):
    """Many counters; `as_of` by the names of the streams that they are counted from."""

    counters: list[Value]
    as_of: dict[str, str]
    lag: int | None
    error: int = 0


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
        """Return the totals of every declared metric."""
        name = _subject_in_path(subject)
        metrics = declared(await totals.meta())
        reading = await totals.read(((name, metric) for metric in metrics), after=after, timeout=limits.read_timeout)
        counters = {metric: value for (_, metric), value in reading.values.items()}
        return Subject(name, counters, _as_of(reading), reading.lag)

    @get("/{subject:str}/{metric:str}", summary="One counter")
    async def of_metric(
        self,
        totals: NamedDependency[Totals],
        limits: NamedDependency[ServeSettings],
        subject: FromPath[str],
        metric: FromPath[str],
        after: After = None,
    ) -> Counter:
        """Return one total."""
        name = _subject_in_path(subject)
        await _refuse_undeclared(totals, [metric])
        reading = await totals.read([(name, metric)], after=after, timeout=limits.read_timeout)
        return Counter(name, metric, reading.values[name, metric], _as_of(reading), reading.lag)

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
        metrics = declared(await totals.meta()) if metric is None else list(dict.fromkeys(metric))
        if (asked := len(subject) * len(metrics)) > MAX_COUNTERS:
            raise bad_request("subject", f"at most {MAX_COUNTERS:,} counters at once, these are {asked:,}")
        await _refuse_undeclared(totals, metrics)
        wanted = [(check_text("subject", name, MAX_SUBJECT_BYTES), each) for name in subject for each in metrics]
        reading = await totals.read(wanted, after=after, timeout=limits.read_timeout)
        streams = (await totals.meta()).layout.keys
        return Values(
            [Value(*counter, reading.values[counter]) for counter in dict.fromkeys(wanted)],
            {streams[partition].stream: position.as_of for partition, position in reading.positions.items()},
            reading.lag,
        )


def _subject_in_path(encoded: str) -> str:
    try:
        subject = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise EventError("subject", "must be UTF-8, percent-encoded") from None
    return check_text("subject", subject, MAX_SUBJECT_BYTES)


async def _refuse_undeclared(totals: Totals, metrics: list[str]) -> None:
    names = declared(await totals.meta())
    for metric in metrics:
        check_metric(metric)
        if metric not in names:
            limit = f"{metric} is not declared; declared are {', '.join(names)}"
            raise problem(HTTPStatus.NOT_FOUND, f"metric: {limit}", field="metric", limit=limit)


def _as_of(reading: Reading) -> str:
    (position,) = reading.positions.values()  # all counters of a subject are in one partition
    return position.as_of
