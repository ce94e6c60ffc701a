"""A user's file: every public verb with its types. mypy and pyright check it; nothing runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_type

import tallystream
from tallystream import (
    BufferFull,
    Decision,
    Event,
    EventError,
    FlushTimeout,
    Producer,
    ProducerStats,
    TallyError,
    Totals,
    aio,
)
from tallystream.subscribe import Update, follow

if TYPE_CHECKING:
    from pathlib import Path


def count(url: str, folder: Path) -> None:
    """Emit and decide."""
    with Producer(url, linger=0.01, when_full="raise", durability="fsync", spool=folder) as producer:
        try:
            producer.emit("view", "article:1")
            producer.emit("like", "article:1", -1, actor="user:7", at=1.5, id="a")
        except BufferFull as error:
            assert_type(error, BufferFull)
        except EventError as error:
            assert_type(error.field, str)
        decision = producer.decide("api-call", "key:1")
        assert_type(decision, Decision)
        assert_type(decision.accepted, bool)
        assert_type(decision.remaining, int | None)
        assert_type(decision.reset_at, float | None)
        assert_type(decision.id, str)
        assert_type(producer.stats, ProducerStats)
        assert_type(producer.stats.buffered, int)
        try:
            producer.flush(1.0, wait="counted")
        except FlushTimeout as error:
            problem: TallyError = error
            assert_type(str(problem), str)


def read(url: str) -> None:
    """Read every kind of figure."""
    with Totals(url) as totals:
        total = totals.get("article:1", "view", after="1-0", timeout=1.0)
        assert_type(total.value, int)
        assert_type(total.error, float | None)
        assert_type(total.lag, int | None)
        many = totals.get_many([("article:1", "view"), ("article:2", "view")])
        assert_type(many.values["article:1", "view"], int)
        subject = totals.of("article:1", ["view"])
        assert_type(subject.counters["view"], int)
        for place in totals.top("view", "day", n=3).top:
            assert_type(place.subject, str)
            assert_type(place.value, int)
        assert_type(totals.sum("article:1", "view", "7d").value, int)
        assert_type(totals.limit("key:1", "api-call").used, int)
        assert_type(totals.votes("post:1", "vote").score, int)
        assert_type(totals.uniques("article:1", "view").value, int)
        for bucket in totals.series("article:1", "view", "hour", last=24).series:
            assert_type(bucket.value, int | None)


async def read_and_count(url: str) -> None:
    """The same, awaited."""
    async with aio.Producer(url) as producer, aio.Totals(url) as totals:
        await producer.emit("view", "article:1")
        assert_type(await producer.decide("api-call", "key:1"), Decision)
        await producer.flush(wait="counted")
        assert_type((await totals.get("article:1", "view")).value, int)


def watch(service: str) -> None:
    """Follow live updates."""
    for update in follow(service, metric="view", subject="article:*"):
        assert_type(update, Update)


assert_type(Event("view", "article:1").amount, int)
assert_type(tallystream.__version__, str)
