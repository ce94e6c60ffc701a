"""A topic that another one has replaced counts and takes nothing more, also after it was dropped."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, KeyLost
from tallystream.producing.appender import _APPEND, Appender
from tallystream.producing.buffer import Buffer, BufferSettings
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.producing.producer import Producer
from tallystream.producing.send_queue import SendQueue
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.settings import SpoolSettings
from tallystream.producing.validation import UNROUTED
from tallystream.rules.batch import Batch, BucketResolver
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.scripts import Script
from tallystream.wire.codec import Payload, Single, encode
from tallystream.wire.event import Event
from tallystream_worker.cli.repartition import drop_topics
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.copy import CopiedElsewhere, StreamCopier
from tallystream_worker.runtime.publication import publish_rules
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.repartition.test_migration import PLAIN, emit, moved
from tests.proxy import Proxy
from tests.waiting import until

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys

VOTES = Rules({"call": Metric(limit=5, per="total"), "vote": Metric(once="forever")})
PAYLOAD = encode(Payload([], [Single("view", "a", 1, 60_000, None, None)]))


def dropped(harness: Harness, partitions: int) -> None:
    """Repartition, and drop the topic before; the harness reads the new topic from then on."""
    moved(harness, partitions)
    topic.drop(harness.client, Deployment.create_or_load(harness.client))


def refusals(client: redis.Redis, keys: PartitionKeys) -> dict[str, str]:
    """Call each script that counts in a partition or appends to it; return the status in its reply."""

    def status(package: str, name: str, names: list[str], arguments: list[object]) -> str:
        try:
            return str(Script(package, name)(client, names, arguments)[0].decode())
        except KeyLost:
            return "damaged"

    adding = Batch(keys, PLAIN.zone, PLAIN.alerts)
    adding.add(BucketResolver(PLAIN)("view", 1), "a", 1, 60_000, None, None)
    batch = adding.encode(["1-1"], {"counted": 1})
    gate = [keys.stream, keys.sequences, keys.topic_ledger]
    total = keys.total("view", "a")
    deciding = [keys.stream, keys.live, keys.ledger, keys.topic_ledger, keys.sequences]
    return {
        "append": status("tallystream.storage", "append", gate, ["1", "f" * 16, 1, 1, PAYLOAD, "0-0"]),
        "ingest": status("tallystream_worker.ingest", "ingest", gate, ["1", "file:x", 0, 10, 1, PAYLOAD]),
        "decide": status("tallystream.storage", "decide", deciding, [batch, 1, total, 1, "", 0, "v", "1"]),
        "apply": status(
            "tallystream_worker.counting", "apply", [keys.stream, keys.dead, keys.ledger, keys.live], ["g", batch, 1]
        ),
        "retry": status(
            "tallystream_worker.dead_letters", "retry", [keys.dead, keys.dead, keys.ledger, keys.live], [batch, 1]
        ),
        "copy": status(
            "tallystream_worker.repartition",
            "copy",
            [keys.stream, keys.copied, keys.topic_ledger],
            [0, 1, 1, 2, "v", "1"],
        ),
    }


REFUSED = {
    "append": "closed",
    "ingest": "closed",
    "decide": "switched",
    "apply": "switched",
    "retry": "switched",
    "copy": "closed",
}
UNKNOWN = dict.fromkeys(REFUSED, "damaged")
"""The same for a topic whose keys are all gone."""


@pytest.mark.parametrize("moves", [1, 2])
def test_a_decision_after_the_drop_is_made_in_the_live_log(server, moves):
    """A process that was idle while topics were replaced and dropped decides by the counters of the live topic."""
    with Harness(server.url, rules=VOTES, partitions=2) as harness, Producer(server.url) as producer:
        decide = Decider(harness.connect(), Deployment.create_or_load(harness.client))
        assert [decide(Event("call", "k")).accepted for _ in range(5)] == [True] * 5
        assert producer.decide("vote", "p", actor="u0").accepted
        for number in range(moves):
            dropped(harness, 3 + number)
        assert [decide(Event("call", "k")).accepted for _ in range(2)] == [False] * 2
        assert [producer.decide("vote", "p", actor=f"u{n}").accepted for n in range(3)] == [False, True, True]
        harness.finish()
        assert harness.totals() == {("call", "k"): 5, ("vote", "p"): 3}


def test_every_script_refuses_a_replaced_log_for_ever(server):
    """Every script that counts or appends refuses a topic that was replaced: kept, dropped, or dropped long ago."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        first = harness.layout
        emit(harness, "a", 3)
        harness.finish()
        moved(harness, 3)
        second = harness.layout
        assert {name: refusals(harness.client, first.keys[0])[name] for name in REFUSED} == REFUSED
        topic.drop(harness.client, Deployment.create_or_load(harness.client))
        assert refusals(harness.client, first.keys[0]) == REFUSED
        dropped(harness, 1)
        for layout in (first, second):
            before = set(harness.client.scan_iter(layout.keys[0].prefix + "[!l]*"))
            assert refusals(harness.client, layout.keys[0]) == REFUSED
            assert set(harness.client.scan_iter(layout.keys[0].prefix + "[!l]*")) == before


def test_every_script_refuses_a_log_that_was_given_up(server):
    """Every script refuses a topic of a repartition that was given up: it never becomes the live one."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        deployment = Deployment.create_or_load(harness.client)
        layout = topic.propose(harness.client, deployment, 3)
        new = topic.begin(harness.client, deployment, layout, harness.rules)
        emit(harness, "a", 3)
        copier = StreamCopier(harness.client, deployment.layout, new.layout)
        copier.look()
        topic.give_up(harness.client, Deployment.create_or_load(harness.client))
        assert refusals(harness.client, layout.keys[0]) == UNKNOWN
        with pytest.raises(CopiedElsewhere, match="was given up or replaced"):
            copier()
        assert list(harness.client.scan_iter(layout.keys[0].prefix + "*")) == []


def test_an_emptied_server_does_not_count_in_a_later_log(server):
    """After FLUSHALL, neither a decision nor an entry goes into a later topic, because a new deployment has the first.

    A process that read the deployment before asks for the new one.
    """
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        dropped(harness, 3)
        deployment = Deployment.create_or_load(harness.client)
        decide = Decider(harness.connect(), deployment)
        appender = Appender(harness.connect(), harness.layout, deployment.epoch)
        harness.client.flushall()
        assert refusals(harness.client, harness.layout.keys[0]) == UNKNOWN
        appender.push(0, SealedEntry(1, 1, len(PAYLOAD), PAYLOAD))
        assert isinstance(appender.send()[1], KeyLost)
        with pytest.raises(ConfigurationError, match="no metrics are declared"):
            decide(Event("call", "k"))


def test_a_restore_of_an_earlier_log_closes_the_later_one(server, tmp_path):
    """After a restore of a topic over a later one, no script counts in the later one, and its number is not used again.

    A process that knew the later topic decides in the restored one.
    """
    with (
        Harness(server.url, rules=VOTES, partitions=2) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        first = harness.layout
        decide = Decider(harness.connect(), Deployment.create_or_load(harness.client))
        assert [decide(Event("call", "k")).accepted for _ in range(3)] == [True] * 3
        harness.finish()
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        moved(harness, 3)
        later = harness.layout
        assert decide(Event("call", "k")).total == 4
        kept = {key for key in harness.client.scan_iter(match="*}:l2:*") if not key.endswith((b":live", b":cut"))}
        restore(harness.client, database, force=True, accept_loss=True)
        assert kept <= set(harness.client.scan_iter(match="*}:l2:*"))  # until `rebuild --drop`
        assert [refusals(harness.client, keys) for keys in later.keys] == [REFUSED] * 3
        assert [decide(Event("call", "k")).total for _ in range(2)] == [4, 5]
        deployment = Deployment.create_or_load(harness.client)
        assert (deployment.layout, topic.propose(harness.client, deployment, 3).topic) == (first, 3)
        restore(harness.client, database, force=True)  # also leaves the topic that was being filled
        deployment = Deployment.create_or_load(harness.client)
        assert set(drop_topics(harness.client, deployment)) == {2, 3}
        assert drop_topics(harness.client, deployment) == {}
        left = {key.decode().rpartition(":")[2] for key in harness.client.scan_iter(match="*}:l[23]:*")}
        assert left == {"seq", "live"}
        assert [refusals(harness.client, keys) for keys in later.keys] == [REFUSED] * 3
        assert decide(Event("call", "k")).total == 5


def test_a_restore_of_a_later_log_closes_the_first_one(server, tmp_path):
    """After a restore of a later topic to an emptied server, a process that knew the first topic is refused in it."""
    with (
        Harness(server.url, rules=VOTES, partitions=2) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        first = harness.layout
        decide = Decider(harness.connect(), Deployment.create_or_load(harness.client))
        assert [decide(Event("call", "k")).accepted for _ in range(5)] == [True] * 5
        dropped(harness, 3)
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        harness.client.flushall()
        restore(harness.client, database)
        # The records of the first topic are lost: an entry that may have been appended there before is not sent again.
        assert [refusals(harness.client, keys) for keys in first.keys] == [REFUSED | {"append": "forgotten"}] * 2
        assert not decide(Event("call", "k")).accepted
        harness.finish()
        assert harness.totals() == {("call", "k"): 5}


def test_the_drop_of_a_topic_that_a_restore_has_left_removes_its_rule_changes(server, tmp_path):
    """If a restore replaced the first topic by a later one, `rebuild --drop` also removes its record of the rules."""
    with (
        Harness(server.url, rules=VOTES, partitions=2) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        dropped(harness, 3)
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        harness.client.flushall()
    with Harness(server.url, rules=Rules({}), partitions=2) as harness:
        first = harness.layout
        chosen = Settings(RedisSettings(server.url), rules=VOTES)
        publish_rules(harness.client, chosen, Deployment.load(harness.client))
        assert harness.client.exists(first.rule_changes)
        restore(harness.client, database, force=True)
        deployment = Deployment.load(harness.client)
        assert set(drop_topics(harness.client, deployment)) == {1}
        assert not harness.client.exists(first.rule_changes)
        assert deployment.layout.rule_changes != first.rule_changes


def test_a_move_that_failed_leaves_a_later_log_open(server):
    """A later topic that was closed and opened again takes and counts events."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        dropped(harness, 3)
        deployment = Deployment.create_or_load(harness.client)
        layout = topic.propose(harness.client, deployment, 4)
        topic.begin(harness.client, deployment, layout, harness.rules)
        topic.close(harness.client, deployment, layout, 1)
        topic.give_up(harness.client, Deployment.create_or_load(harness.client))
        with Producer(server.url) as producer:
            producer.emit("view", "a")
            assert producer.decide("call", "k").accepted
        harness.finish()
        assert harness.totals() == {("view", "a"): 1, ("call", "k"): 1}


def test_a_producer_of_a_later_topic_continues_after_a_restore_of_an_earlier_one(server, tmp_path):
    """An emptied server gets a snapshot from before a repartition: it never had the topic of a producer that was away.

    The producer sends again what only that topic had, and what it could not send meanwhile.
    """
    with (
        Harness(server.url, rules=PLAIN, partitions=2) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
        Proxy(server.url) as proxy,
        Producer(proxy.url) as producer,
    ):
        producer.emit("view", "a")
        producer.flush(10)
        harness.finish()
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        moved(harness, 3)
        for subject in "bcd":
            producer.emit("view", subject)
        producer.flush(10)
        assert producer._sender.appender.layout.topic == 2
        proxy.freeze()
        harness.client.flushall()
        restore(harness.client, database)
        producer.emit("view", "e")
        proxy.thaw()
        producer.flush(10)
        harness.layout = Deployment.create_or_load(harness.client).layout
        harness.finish()
        assert harness.totals() == {("view", subject): 1 for subject in "abcde"}
        assert (producer.stats.lost_entries, producer.stats.unknown_entries) == (0, 0)


@pytest.mark.parametrize("is_spooled", [False, True])
@pytest.mark.parametrize("is_taken", [False, True], ids=["empty", "other-data"])
@pytest.mark.parametrize("topics", [1, 2])
def test_a_producer_of_an_earlier_topic_sends_nothing_again_after_a_restore(
    server, tmp_path, topics, is_taken, is_spooled
):
    """The restored topic has copies of the earlier one, whose sequences an emptied server has lost.

    An entry that was sent without a reply may be there, so it is given up as unknown. Later entries are sent.
    """
    with (
        Harness(server.url, rules=PLAIN, partitions=2) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
        Proxy(server.url) as proxy,
    ):
        if topics == 2:
            dropped(harness, 4)
        settings, spool = BufferSettings(linger=0), SpoolSettings(tmp_path / "spool", 2**20, "os", "tally")
        buffer = Spool(settings, spool) if is_spooled else Buffer(settings)
        deployment = Deployment.create_or_load(harness.client)
        queue = SendQueue(harness.connect(proxy.url), deployment, buffer, DurabilityCheck())

        def emit_one() -> None:
            buffer.put(UNROUTED, "view", "a", 1, 60.0, None, None)

        emit_one()
        assert queue.step() == (True, None)
        proxy.lose_reply_to(_APPEND.sha.encode())
        emit_one()
        with pytest.raises(RedisConnectionError):
            queue.step()
        assert proxy.lost.wait(5)
        emit_one()  # never sent
        dropped(harness, 3)
        harness.finish()
        assert harness.totals() == {("view", "a"): 2}
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        harness.client.flushall()
        if is_taken:
            Deployment.create_or_load(harness.client)
        restore(harness.client, database, force=is_taken)
        if topics == 2:  # it asks the earlier topic, before it reads that another one is live
            until(lambda: queue.step() and queue.appender.is_closed)
        queue.move(Deployment.create_or_load(harness.client))
        until(lambda: queue.step() == (True, None) and queue.appender.oldest_cycle is None)
        harness.finish()
        assert harness.totals() == {("view", "a"): 3}
        assert (queue.appender.unknown, queue.appender.lost, buffer.appended) == (1, 0, 3)
        if is_spooled:
            buffer.release()
