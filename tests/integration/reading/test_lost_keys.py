"""No read states a figure of a partition that has lost its sequences, its ledger or its live generation."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from tallystream import aio
from tallystream.deployment import Deployment
from tallystream.errors import KeyLost
from tallystream.producing.producer import Producer
from tallystream.reading.questions import get
from tallystream.reading.replaced import unless_lost
from tallystream.reading.totals import Totals
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.live.broadcaster import Broadcaster
from tallystream_worker.live.subscriber import LiveReader
from tallystream_worker.live.subscription import subscription_of
from tallystream_worker.repartition import topic
from tallystream_worker.settings.settings import RedisSettings
from tests.harness import Harness
from tests.http_service import http_service
from tests.integration.rebuild.test_rebuild import rebuilt
from tests.integration.repartition.test_migration import moved
from tests.integration.service.test_metrics import scrape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tallystream.storage.keys import PartitionKeys

RULES = Rules(
    {
        "view": Metric(ids=None, windows=("hour", "day"), top=5, unique="day"),
        "vote": Metric(once="forever"),
        "call": Metric(limit=5, per="day", ids=None),
        "hot": Metric(ids=None, top=5, spread=True),
    },
    alert=(Alert("viral", "view", above=100),),
)

READS: dict[str, Callable[[Totals, str], object]] = {
    "get": lambda totals, subject: totals.get(subject, "view"),
    "get_many": lambda totals, subject: totals.get_many([(subject, "view"), (subject, "call")]),
    "read": lambda totals, subject: totals.read([(subject, "view")]),
    "series": lambda totals, subject: totals.series(subject, "view", "hour"),
    "sum": lambda totals, subject: totals.sum(subject, "view", "7d"),
    "limit": lambda totals, subject: totals.limit(subject, "call"),
    "votes": lambda totals, subject: totals.votes(subject, "vote"),
    "uniques": lambda totals, subject: totals.uniques(subject, "view"),
}
"""Reads of the partition of a subject."""

WHOLE_READS: dict[str, Callable[[Totals, str], object]] = {
    "of, with a spread metric": lambda totals, subject: totals.of(subject),
    "a spread total": lambda totals, subject: totals.get(subject, "hot"),
    "top": lambda totals, _: totals.top("view"),
    "top of a day": lambda totals, _: totals.top("view", "day"),
    "top of a range": lambda totals, _: totals.top("view", "7d"),
    "top of a spread metric": lambda totals, _: totals.top("hot"),
    "ledger": lambda totals, _: totals.ledger(),
    "alerts": lambda totals, _: totals.alerts(),
    "search": lambda totals, _: totals.search("d"),
}
"""Reads of all partitions."""

LOSSES = {
    "all keys": lambda keys: keys.sequences,
    "sequences": lambda keys: keys.sequences,
    "ledger": lambda keys: keys.topic_ledger,
    "ledger of the generation": lambda keys: keys.ledger,
    "live generation": lambda keys: keys.live,
}
"""By what a partition of subject `a` has lost, the key that an error names."""


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Provide counted events of all rules, of the subjects `a` and `d`, which are in different partitions."""
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        assert harness.layout.keys_of("a") != harness.layout.keys_of("d")
        with Producer(harness.url) as producer:
            for subject in ("a", "d"):
                producer.emit("view", subject, 3, actor="u")
                producer.emit("vote", subject, 1, actor="u")
                producer.emit("call", subject)
                producer.emit("hot", subject, 2)
        harness.finish()
        yield harness


def partition(harness: Harness, subject: str = "a") -> PartitionKeys:
    """Return the keys of the partition of a subject, in its live generation."""
    return Deployment.load(harness.client).layout.keys_of(subject)


def lose(harness: Harness, what: str) -> str:
    """Rename what the partition of subject `a` is to lose, and return the name of the key that an error names."""
    keys = partition(harness)
    lost = LOSSES[what](keys)
    for name in harness.client.scan_iter(f"{keys.prefix}*") if what == "all keys" else [lost.encode()]:
        harness.client.rename(name, name.replace(b"tally:", b"kept:", 1))
    return lost


def repair(harness: Harness) -> None:
    """Undo `lose`."""
    for name in harness.client.scan_iter("kept:*"):
        harness.client.rename(name, name.replace(b"kept:", b"tally:", 1))


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("what", LOSSES)
def test_no_read_states_a_figure_of_a_partition_without_its_keys(harness, generation, what):
    """Each read of the partition names the lost key; the other partition is read, and both are after the repair."""
    if generation == 2:
        rebuilt(harness)
    with Totals(harness.url) as before, Totals(harness.url) as after:
        reads = READS | WHOLE_READS
        expected = before.get("a", "view")
        key = lose(harness, what)
        for totals in (before, after):
            for read in reads.values():
                with pytest.raises(KeyLost, match=re.escape(key)):
                    read(totals, "a")
            for read in READS.values():
                read(totals, "d")
            assert totals.get("d", "view").value == 3
        repair(harness)
        for read in reads.values():
            read(after, "a")
        assert after.get("a", "view") == expected


@pytest.mark.parametrize("what", ["all keys", "live generation"])
def test_a_lost_live_generation_is_not_taken_for_the_first(harness, what):
    """The layout of a partition that has lost the number of its live generation stays that of the deployment."""
    rebuilt(harness)
    before = Deployment.load(harness.client).layout
    lose(harness, what)
    assert Deployment.load(harness.client).layout == before
    with Totals(harness.url) as totals:
        assert totals.deployment.layout == before


@pytest.mark.parametrize("what", LOSSES)
def test_concurrent_reads_name_a_lost_key(harness, what):
    """Of reads that share a pipeline, those of the partition name the lost key, and the others have their total."""

    async def read() -> list[object]:
        async with aio.Totals(harness.url) as totals:
            await totals.get("a", "view")
            key = await asyncio.to_thread(lose, harness, what)
            found = await asyncio.gather(*(totals.get(each, "view") for each in "adad"), return_exceptions=True)
            return [each.key == key if isinstance(each, KeyLost) else each.value for each in found]

    assert asyncio.run(read()) == [True, 3, True, 3]


@pytest.mark.parametrize("what", ["all keys", "live generation"])
def test_the_read_service_names_a_lost_key(harness, what):
    """Reads over HTTP respond 503 with the name of the key; the metrics lack the ledger and the alerts."""
    rebuilt(harness)
    with http_service(harness.url) as http:
        assert http.get("/v1/counters/a/view").json()["value"] == 3
        assert ("events_appended_total", ()) in scrape(http)
        key = lose(harness, what)
        for path in ("counters/a/view", "counters/a", "top/view", "limits/call/a", "overview", "alerts"):
            answer = http.get(f"/v1/{path}")
            assert (answer.status_code, key in answer.json()["detail"]) == (httpx.codes.SERVICE_UNAVAILABLE, True), path
        assert http.get("/v1/counters/d/view").json()["value"] == 3
        samples = scrape(http)
        assert samples["redis_up", ()] == 1
        assert {("workers", ()), ("redis_evicted_keys_total", ())} <= samples.keys()
        assert not [
            name for name, _ in samples if name.startswith(("events", "lag", "counted", "unaccounted", "alert"))
        ]


@pytest.mark.parametrize("what", ["all keys", "live generation"])
def test_live_updates_pause_while_a_key_is_lost(harness, what):
    """Readers get `stale` with the name of the key, no total of 0, and new totals after the repair."""
    rebuilt(harness)

    async def follow() -> None:
        broadcaster = Broadcaster(RedisSettings(harness.url))
        reader = LiveReader(subscription_of(["view"], ["a"]), overview=True)
        await broadcaster.join(reader)
        told = await reader.next()
        key = lose(harness, what)
        async with asyncio.timeout(30):
            while told[-1].event != "stale":
                told += await reader.next()
            assert key.encode() in told[-1].body
            repair(harness)
            harness.client.xadd(partition(harness).stream, {"metric": "view", "subject": "a"})
            harness.drain()
            while told[-1].event != "counters" or len([each for each in told if each.event == "counters"]) < 2:
                told += await reader.next()
        await broadcaster.close()
        assert b'"value":4' in told[-1].body
        assert {each.event for each in told} == {"counters", "overview", "stale"}

    asyncio.run(follow())


def test_a_topic_that_was_dropped_has_lost_no_key(harness):
    """A query for a topic that was dropped meanwhile does not name its ledger, which was removed with it."""
    rebuilt(harness)
    before = Deployment.load(harness.client)
    query = unless_lost(get("a", "view")(before), before)
    with Totals(harness.url) as totals:
        assert totals.run(query).value == 3
        moved(harness, 3)
        topic.drop(harness.client, Deployment.create_or_load(harness.client))
        assert totals.run(query).value == 0


def test_a_partition_that_was_repaired_is_read_again(harness):
    """If a key is back before a reader has found out its name, the reader reads the figure again."""
    deployment = Deployment.load(harness.client)
    query = unless_lost(get("a", "view")(deployment), deployment)
    lose(harness, "all keys")
    replies = [harness.client.execute_command(*command) for command in query.commands[2:]]
    again = query.parse([[], [], *replies])
    repair(harness)
    with Totals(harness.url) as totals:
        assert totals.run(again).value == 3


def test_a_deployment_that_is_not_stored_has_lost_no_key(server):
    """Before a deployment is stored, a total is 0."""
    with Totals(server.url) as totals:
        assert totals.get("a", "view").value == 0
