"""A repartition counts each event once, although a node of a cluster goes back to older data in its middle or later."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, ConsumerGroupMissing, StreamError, Unconfirmed
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.keys import CLOSED
from tallystream_worker.process import barrier
from tallystream_worker.process.description import note_durability
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.catch_up import CatchUpCounter
from tallystream_worker.repartition.migration import Repartition, repartition
from tallystream_worker.repartition.stragglers import StragglerCopier
from tests.harness import Harness
from tests.integration.client.test_durability import frozen, replica_of
from tests.integration.rebuild.test_rebuild import settings_for
from tests.rewind import Slot

PLAIN = Rules({"view": Metric(ids=None)})
SUBJECTS = [f"s:{n}" for n in range(40)]


def begun(harness, partitions):
    """Begin a repartition."""
    deployment = Deployment.load(harness.client)
    layout = topic.propose(harness.client, deployment, partitions)
    run = Repartition(settings_for(harness.url, PLAIN, 0), harness.client, deployment, layout)
    run.begin()
    return run


@contextmanager
def caught_up(harness):
    """Begin a repartition to four partitions; provide it when it has caught up, its counter, and a slot as before."""
    run = begun(harness, 4)
    with CatchUpCounter(settings_for(harness.url, PLAIN, 0), run.new, PLAIN) as counting:
        slot = Slot(harness.client, 3)
        run.catch_up(counting)
        yield run, counting, slot


def emit(producer):
    """Append one view of each subject."""
    for subject in SUBJECTS:
        producer.emit("view", subject)
    producer.flush(10)


def totals(harness):
    """Count everything in the live topic, and return the totals by subject."""
    harness.layout = Deployment.load(harness.client).layout
    harness.finish()
    return {subject: value for (_, subject), value in harness.totals().items()}


def test_a_group_that_the_new_topic_loses_is_named(server):
    """If a consumer group of the new topic is deleted meanwhile, the error of the repartition names it."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        emit(producer)
        harness.drain()
        with caught_up(harness) as (run, counting, _):
            keys = run.new.layout.keys[0]
            harness.client.xgroup_destroy(keys.stream, keys.group)
            with pytest.raises(ConsumerGroupMissing, match=f"{keys.group}' is missing"):
                run.switch(counting)
        topic.give_up(harness.client, Deployment.load(harness.client))
        assert len(totals(harness)) == len(SUBJECTS)


def test_entries_that_the_old_topic_loses_are_not_copied_twice(server):
    """If the old topic loses entries that were copied, the repartition is refused; after `--drop`, another one counts.

    A producer has sent the lost entries again, so the old topic has them once, with other IDs.
    """
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        emit(producer)
        run = begun(harness, 3)
        slot = Slot(harness.client, 1)
        emit(producer)
        with CatchUpCounter(settings_for(harness.url, PLAIN, 0), run.new, PLAIN) as counting:
            run.catch_up(counting)
        slot.go_back()
        emit(producer)
        assert producer.stats.rewound_streams == 1
        configured, deployment = settings_for(harness.url, PLAIN, 0), Deployment.load(harness.client)
        with pytest.raises(StreamError, match=r"gone back to older data.*rebuild --drop"):
            repartition(configured, deployment, 3)
        topic.give_up(harness.client, Deployment.load(harness.client))
        repartition(configured, Deployment.load(harness.client), 3)
        assert totals(harness) == dict.fromkeys(SUBJECTS, 3)


def test_a_number_that_a_failover_has_lost_is_not_used_for_other_partitions(server):
    """If the root has lost that a topic is filled, a repartition to another number of partitions uses none of its keys.

    Its copies are in the partitions of the first number.
    """
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        emit(producer)
        run = begun(harness, 3)
        with CatchUpCounter(settings_for(harness.url, PLAIN, 0), run.new, PLAIN) as counting:
            run.catch_up(counting)
        harness.client.hdel(harness.layout.root, "moving", "moving-partitions", "newest-log")
        configured = settings_for(harness.url, PLAIN, 0)
        with pytest.raises(
            ConfigurationError, match=r"^topic 2 has keys of a repartition to 3 partitions.*rebuild --drop"
        ):
            repartition(configured, Deployment.load(harness.client), 5)
        topic.give_up(harness.client, Deployment.load(harness.client))
        repartition(configured, Deployment.load(harness.client), 5)
        assert totals(harness) == dict.fromkeys(SUBJECTS, 1)


def test_entries_that_the_old_topic_loses_in_a_pass_are_noticed_in_it(server, monkeypatch):
    """If the old topic loses entries while they are copied, the same run notices it before it switches."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        run = begun(harness, 3)
        with CatchUpCounter(settings_for(harness.url, PLAIN, 0), run.new, PLAIN) as counting:
            slot = Slot(harness.client, 1)
            emit(producer)
            send = run._copying._send

            def fail_over(calls):
                send(calls)
                slot.go_back()

            monkeypatch.setattr(run._copying, "_send", fail_over)
            with pytest.raises(StreamError, match="gone back to older data"):
                run.catch_up(counting)


@pytest.mark.parametrize("is_dropped", [False, True])
def test_copies_that_the_live_topic_loses_are_copied_again(server, is_dropped):
    """While the old topic is kept, workers copy again what the live topic loses, and `--drop` first does the same."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        emit(producer)
        with caught_up(harness) as (run, counting, slot):
            run.switch(counting)
        copier = StragglerCopier(harness.connect())
        assert copier(Deployment.load(harness.client)) == 0
        slot.go_back()
        if is_dropped:
            topic.drop(harness.client, Deployment.load(harness.client))
        else:
            copier(Deployment.load(harness.client))
        assert totals(harness) == dict.fromkeys(SUBJECTS, 1)


def test_what_the_last_copy_pass_finds_missing_is_copied_before_the_switch(server):
    """Copies that are lost after they were counted are copied again while the old topic is closed."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        emit(producer)
        with caught_up(harness) as (run, counting, slot):
            slot.go_back()
            run.switch(counting)
        assert totals(harness) == dict.fromkeys(SUBJECTS, 1)


@pytest.mark.parametrize("why", ["partition", "rules"])
def test_no_topic_becomes_live_while_the_old_one_is_open(server, monkeypatch, why):
    """If a failover opens a partition of the closed topic, or its rules change, all of it is opened again."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        emit(producer)
        reload, ensure = Repartition.ensure_current, topic.ensure_closed
        opened = Slot(harness.client, 0)
        checked = []

        def change(run):
            """Change the data after the last check of the switch."""
            reload(run)
            checked.append(run)
            if len(checked) == 2 and why == "rules":
                harness.client.hset(harness.layout.meta, "rules", publish(Rules({"view": Metric(ids="day")})))

        def fail_over(*arguments):
            if why == "partition":
                opened.go_back()
            ensure(*arguments)

        with caught_up(harness) as (run, counting, _):
            monkeypatch.setattr(Repartition, "ensure_current", change)
            monkeypatch.setattr(topic, "ensure_closed", fail_over)
            with pytest.raises(StreamError, match="is open again" if why == "partition" else "rules have changed"):
                run.switch(counting)
        assert Deployment.load(harness.client).layout == harness.layout
        closed = [harness.client.hget(keys.sequences, CLOSED) for keys in harness.layout.keys]
        assert not any(closed)


def test_a_removal_that_was_paused_does_not_forget_a_later_topic(server, monkeypatch):
    """It forgets only that its own topic is kept."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        emit(producer)
        repartition(settings_for(harness.url, PLAIN, 0), Deployment.load(harness.client), 3)
        confirm = topic.confirm

        def pause(*_, **__):
            """Let other processes remove the topic while this one is paused, and repartition again."""
            monkeypatch.setattr(topic, "confirm", confirm)
            harness.client.hset(harness.layout.root, "kept", 2)

        monkeypatch.setattr(topic, "confirm", pause)
        topic.drop(harness.client, Deployment.load(harness.client))
        assert harness.client.hget(harness.layout.root, "kept") == b"2"


def test_nothing_is_switched_or_dropped_before_a_replica_has_it(fresh_server, monkeypatch):
    """If no replica confirms the copies, the old topic stays live; if none confirms the rest, it stays kept."""
    primary = fresh_server(port=0, extra=["--repl-diskless-sync-delay", "0"])
    replica = replica_of(fresh_server, primary)
    with Harness(primary.url, rules=PLAIN) as harness, Producer(primary.url) as producer:
        note_durability(harness.client, harness.deployment, "replica")
        emit(producer)
        configured, deployment = settings_for(harness.url, PLAIN, 0), Deployment.load(harness.client)
        with frozen(replica), monkeypatch.context() as patched:
            patched.setattr(barrier, "PATIENCE", 0.1)
            with pytest.raises(Unconfirmed, match=r"no replica of 127.* run the command again"):
                repartition(configured, deployment, 3)
            assert Deployment.load(harness.client).layout == deployment.layout
            emit(producer)  # it is open
        repartition(configured, Deployment.load(harness.client), 3)
        assert DurabilityCheck("replica").confirm(harness.client, deployment.layout.confirmed) == ""
        with frozen(replica), monkeypatch.context() as patched:
            patched.setattr(barrier, "PATIENCE", 0.1)
            with pytest.raises(Unconfirmed, match="which is still kept"):
                topic.drop(harness.client, Deployment.load(harness.client))
            assert harness.client.exists(deployment.layout.keys[0].stream)
        assert topic.drop(harness.client, Deployment.load(harness.client))
        assert totals(harness) == dict.fromkeys(SUBJECTS, 2)
