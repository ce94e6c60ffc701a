"""One generation of counters is live in each partition; workers, deciders and readers use the live one."""

from __future__ import annotations

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream.deployment import Deployment
from tallystream.errors import GenerationSwitched
from tallystream.producing.decider import Decider
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream.storage.keys import Layout
from tallystream.wire.event import Event
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness


def begin(harness: Harness, generation: int) -> None:
    """Make an empty generation the live one in every partition; it counts only later entries."""
    for keys in harness.layout.of(generation).keys:
        harness.client.xgroup_create(keys.stream, keys.group, "$", mkstream=True)
        harness.client.set(keys.live, generation)
        harness.client.hset(keys.ledger, "entries:settled", 0)
        harness.client.set(keys.begun, harness.client.xinfo_stream(keys.stream)["last-generated-id"])
    harness.client.hset(harness.layout.meta, "generation", generation)


def test_the_first_generation_has_the_names_that_were_always_there():
    """The keys of a topic are the same in every generation; the keys of counters and the group's name differ."""
    first, second = Layout(1).keys[0], Layout(1).of(2).keys[0]
    assert first.total("view", "a") == "tally:{p0.425}:total:view:a"
    assert second.total("view", "a") == "tally:{p0.425}:g2:total:view:a"
    assert (first.group, second.group) == ("tally", "tally-2")
    assert first.stream == second.stream
    assert first.sequences == second.sequences
    assert first.topic_ledger == second.topic_ledger == first.ledger != second.ledger


def test_a_consumer_of_a_generation_that_is_no_longer_live_changes_nothing(server):
    """A batch for a generation that is no longer live is refused and stays pending, so an undo counts it."""
    with Harness(server.url, partitions=1) as harness:
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": "a"})
        begin(harness, 2)
        consumer = harness.consumer()
        with pytest.raises(GenerationSwitched):
            consumer.run_once()
        assert harness.totals() == {}
        assert len(harness.pending()) == 1


def test_a_decision_goes_to_the_generation_that_is_live(server):
    """A decider that was made before the switch decides by the counters of the new generation."""
    with Harness(server.url, partitions=2) as harness:
        decide = Decider(harness.client, Deployment.create_or_load(harness.client))
        assert decide(Event("view", "a")).total == 1
        begin(harness, 2)
        assert decide(Event("view", "a")).total == 1  # the new generation is empty: it began after the first decision
        assert decide(Event("view", "a")).total == 2
        harness.finish_beside()
        assert harness.totals()["view", "a"] == 3  # the old generation counts what was decided in the new one
        with Totals(server.url) as totals:
            assert totals.get("a", "view").value == 2


def test_workers_and_readers_follow_a_switch(server):
    """Running workers and readers continue in the new generation, which counts only events after the switch."""
    settings = Settings(redis=RedisSettings(url=server.url, partitions=2))
    logger = structlog.wrap_logger(None, processors=[LogCapture()])
    with Producer(server.url, partitions=2) as producer, Totals(server.url) as totals, counting(settings, logger):
        producer.emit("view", "a", 3)
        producer.flush(10, wait="counted")
        assert totals.get("a", "view").value == 3
        with Harness(server.url, partitions=2, rules=settings.rules) as harness:
            begin(harness, 2)
        producer.emit("view", "a", 4)
        producer.flush(10, wait="counted")
        last_id = server.client().xinfo_stream(Layout(2).keys_of("a").stream)["last-generated-id"].decode()
        assert totals.read([("a", "view")], after=last_id, timeout=10).values == {("a", "view"): 4}
