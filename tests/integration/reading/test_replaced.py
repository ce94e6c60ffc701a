"""A reader that has cached a topic or a generation does not read it after it was dropped."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tallystream import aio
from tallystream.deployment import Deployment
from tallystream.reading import deployment_cache
from tallystream.reading.coalescing import merge
from tallystream.reading.questions import get
from tallystream.reading.replaced import CHECKS, REPLACED, checked
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.repartition import topic
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt
from tests.integration.repartition.test_migration import emit, moved

if TYPE_CHECKING:
    from collections.abc import Sequence

RULES = Rules({"view": Metric(ids=None, windows=("hour",), top=5, unique="day")})


@pytest.fixture
def harness(server, monkeypatch):
    """Provide 3 counted views of each of 2 subjects; readers keep a deployment for an hour instead of a second."""
    monkeypatch.setattr(deployment_cache, "DEPLOYMENT_AGE", 3600.0)
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        for subject in ("a", "b"):
            emit(harness, subject, 3)
        harness.finish()
        yield harness


def replace_and_drop(harness: Harness, how: str) -> None:
    """Make another topic or generation live, and drop the one before."""
    if how == "move":
        moved(harness, 3)
        topic.drop(harness.client, Deployment.create_or_load(harness.client))
    else:
        before = Deployment.create_or_load(harness.client).generation
        rebuilt(harness)
        drop(harness.client, Deployment.create_or_load(harness.client), before)


def figures(readers: Sequence[Totals]) -> list[object]:
    """Return the figures of several reads, each of one reader."""
    totals, many, subject, ranged, top, ledger, search = readers
    return [
        totals.get("a", "view").value,
        many.get_many([("a", "view"), ("b", "view")]).values,
        subject.of("a").counters,
        ranged.sum("a", "view", "30d").value,
        sorted((place.subject, place.value) for place in top.top("view").top),
        ledger.ledger().ledger["counted"],
        [found.value for found in search.search("a").subjects],
    ]


@pytest.mark.parametrize("how", ["move", "rebuild"])
def test_every_read_follows_what_replaced_its_log(harness, how):
    """Each read after the drop has the figures from before it, although the reader has cached the dropped counters."""
    with ExitStack() as stack:
        readers = [stack.enter_context(Totals(harness.url)) for _ in range(7)]
        expected = figures(readers)
        assert (expected[0], expected[5]) == (3, 6)
        for _ in range(2):
            replace_and_drop(harness, how)
            assert figures(readers) == expected


def test_a_read_of_the_live_log_reads_no_description(harness, monkeypatch):
    """If nothing was replaced, a read uses the cached deployment, whatever the number of the rules is."""
    harness.client.set(harness.layout.keys[0].live, "1 7")
    harness.client.set(harness.layout.keys[1].live, "1 7")
    with Totals(harness.url) as totals:
        assert totals.get("a", "view").value == 3
        monkeypatch.setattr(Deployment, "parse", None)
        assert totals.get("b", "view").value == 3


@pytest.mark.parametrize("how", ["move", "rebuild"])
def test_reads_in_one_pipeline_follow_what_replaced_their_log(harness, how):
    """Concurrent reads of a reader for asyncio, which share a pipeline, have the totals from before the drop."""

    async def read() -> None:
        async with aio.Totals(harness.url) as totals:
            assert (await totals.get("a", "view")).value == 3
            await asyncio.to_thread(replace_and_drop, harness, how)
            found = await asyncio.gather(*(totals.get(subject, "view") for subject in "abababc"))
            assert [each.value for each in found] == [3, 3, 3, 3, 3, 3, 0]

    asyncio.run(read())


def test_a_closed_log_is_read_until_another_one_is_live(harness):
    """While a partition is closed, and no other topic is live, reads have the figures of the closed topic."""
    deployment = Deployment.create_or_load(harness.client)
    layout = topic.propose(harness.client, deployment, 3)
    with Totals(harness.url) as totals:
        expected = figures([totals] * 7)
        topic.close(harness.client, deployment, layout, 1)
        assert figures([totals] * 7) == expected


def test_the_check_follows_every_value(harness):
    """In a pipeline of several queries, each check comes after all values: it notices a drop between two of them."""
    deployment = Deployment.create_or_load(harness.client)
    queries = [checked(get(subject, "view")(deployment), deployment) for subject in "abcdef"]
    commands, places = merge([query.commands for query in queries])
    names = [command[0] for command in commands]
    assert names == sorted(names, key=lambda name: name in CHECKS)
    for query, found in zip(queries, places, strict=True):
        assert [commands[each[0]] for each in found[-2:]] == [*query.commands[-2:]]
    *replies, live, exists = [harness.client.execute_command(*command) for command in queries[0].commands]
    assert queries[0].parse([*replies, live, exists]) != REPLACED
    for other in (b"2", b"1 closed", None):
        assert queries[0].parse([*replies, other, exists]) is REPLACED
    assert queries[0].parse([*replies, live, exists - 1]) is REPLACED
