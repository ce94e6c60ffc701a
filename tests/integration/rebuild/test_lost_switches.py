"""Readers follow a switch of generations when it is complete; what a failover takes back of it is switched again."""

from __future__ import annotations

import sys

import pytest
import redis
from redis.exceptions import ClusterDownError, ReadOnlyError, TryAgainError

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, KeyLost, StreamError, Unconfirmed
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.retraction import Retraction
from tallystream_worker.cli.generation import build, finish_switch
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.process import barrier
from tallystream_worker.process.description import note_durability
from tallystream_worker.process.failover_watch import FailoverWatch
from tallystream_worker.rebuild import rebuild
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.reset import reset
from tallystream_worker.rebuild.retract import ends, propose_without
from tallystream_worker.rebuild.turn import Overtaken, take_turn
from tests.harness import Harness
from tests.integration.client.test_durability import frozen, replica_of
from tests.integration.rebuild.test_rebuild import settings_for
from tests.rewind import Slot

PLAIN = Rules({"view": Metric(ids=None, unique="day")})
SUBJECTS = [f"s:{n}" for n in range(40)]


def counted(harness, producer):
    """Count two views of each subject, one of them by the actor `bot`."""
    for subject in SUBJECTS:
        producer.emit("view", subject, actor="man")
        producer.emit("view", subject, actor="bot")
    producer.flush(10)
    harness.drain()


def proposed(harness):
    """Propose the generation without the events of `bot`; return the deployment and its number."""
    deployment = Deployment.load(harness.client)
    number = propose_without(harness.client, deployment, Retraction(ends(harness.client, deployment), actor="bot"))
    return Deployment.load(harness.client), number


def totals(harness):
    """Return the live totals by subject."""
    harness.layout = Deployment.load(harness.client).layout
    return {subject: value for (_, subject), value in harness.totals().items()}


def test_retracted_events_that_a_failover_brings_back_are_taken_back_again(server):
    """The generation that a partition has gone back to cannot be dropped; the next command makes the switch again."""
    settings = settings_for(server.url, PLAIN)
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        counted(harness, producer)
        deployment, number = proposed(harness)
        with Rebuild(settings, deployment, number) as run:
            run.begin()
            run.catch_up()
            slot = Slot(harness.client, 1)
            run.switch()
        slot.go_back()
        assert sum(totals(harness).values()) > len(SUBJECTS)
        deployment = Deployment.load(harness.client)
        with pytest.raises(ConfigurationError, match="a failover has undone it: finish it with tallystream rebuild"):
            drop(harness.client, deployment, 1)
        deployment = finish_switch(settings, deployment, "")
        assert totals(harness) == dict.fromkeys(SUBJECTS, 1)
        assert drop(harness.client, deployment, 1) > 0
        assert finish_switch(settings, deployment, "") is deployment
        assert totals(harness) == dict.fromkeys(SUBJECTS, 1)


def test_a_worker_creates_no_group_of_a_generation_that_a_failover_has_taken_back(server):
    """It has read from the old primary that the generation is live; with a group, no rebuild could begin any more."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        counted(harness, producer)
        slot = Slot(harness.client, 1)
        deployment, number = proposed(harness)
        settings = settings_for(server.url, PLAIN)
        with Rebuild(settings, deployment, number) as run:
            run.begin()
        slot.go_back()
        keys = harness.layout.of(number).keys[1]
        with pytest.raises(KeyLost, match=keys.begun):
            Fetch(harness.client, keys, "w").ensure_group()
        assert not harness.client.exists(keys.ledger)
        build(settings, deployment, number, "")
        assert totals(harness) == dict.fromkeys(SUBJECTS, 1)


@pytest.fixture
def built(server):
    """Provide a harness, and a rebuild that has caught up in generation 2."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness, Producer(server.url) as producer:
        counted(harness, producer)
        deployment, number = proposed(harness)
        with Rebuild(settings_for(server.url, PLAIN), deployment, number) as run:
            run.begin()
            run.catch_up()
            yield harness, run


def test_a_switch_whose_last_reply_is_lost_is_finished(built, monkeypatch):
    """The command does not end in doubt: an operator would run `rebuild --undo` again, and so go back once more."""
    harness, run = built
    promote, calls = rebuild._PROMOTE, []

    def promote_once(*arguments):
        calls.append(arguments)
        answer = promote(*arguments)
        if len(calls) == 1:
            raise redis.ConnectionError("the connection broke")
        return answer

    monkeypatch.setattr(rebuild, "_PROMOTE", promote_once)
    run.switch()
    assert len(calls) == 2
    assert Deployment.load(harness.client).generation == 2
    assert totals(harness) == dict.fromkeys(SUBJECTS, 1)


def test_a_switch_that_a_failover_has_undone_in_a_partition_is_not_finished(built, monkeypatch):
    """Readers do not follow a generation that a partition does not count."""
    harness, run = built
    slot, promote = Slot(harness.client, 1), rebuild._PROMOTE

    def fail_over(*_):
        slot.go_back()
        raise redis.ConnectionError("the connection broke")

    monkeypatch.setattr(rebuild, "_PROMOTE", fail_over)
    with pytest.raises(StreamError, match=r"a failover has undone the switch .* run the command again"):
        run.switch()
    assert Deployment.load(harness.client).generation == 1
    monkeypatch.setattr(rebuild, "_PROMOTE", promote)
    run.switch()
    assert totals(harness) == dict.fromkeys(SUBJECTS, 1)


@pytest.mark.parametrize("error", [ClusterDownError, TryAgainError, ReadOnlyError])
def test_the_last_step_is_repeated_after_each_error_of_a_failover(built, monkeypatch, error):
    """A cluster without a primary for a slot, and a demoted server, refuse commands until the failover has ended."""
    harness, run = built
    promote, calls = rebuild._PROMOTE, []

    def promote_later(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise error("not now")
        return promote(*arguments)

    monkeypatch.setattr(rebuild, "_PROMOTE", promote_later)
    run.switch()
    assert Deployment.load(harness.client).generation == 2


def test_the_last_step_is_not_repeated_after_a_wrong_password(built, monkeypatch):
    """The command ends at once."""
    _, run = built
    calls = []

    def refuse(*arguments):
        calls.append(arguments)
        raise redis.AuthenticationError("invalid username-password pair")

    monkeypatch.setattr(rebuild, "_PROMOTE", refuse)
    with pytest.raises(redis.AuthenticationError):
        run.switch()
    assert len(calls) == 1


def test_a_partition_that_goes_back_just_before_the_last_step_is_noticed(built, monkeypatch):
    """The partitions are checked after the watch for failovers has begun, so none can go back unnoticed between."""
    harness, run = built
    slot, steps = Slot(harness.client, 1), []

    class GoingBack(FailoverWatch):
        def __init__(self, *arguments):
            steps.append(self)
            if len(steps) == 2:
                slot.go_back()
            super().__init__(*arguments)

    monkeypatch.setattr(barrier, "FailoverWatch", GoingBack)
    with pytest.raises(StreamError, match="a failover has undone the switch"):
        run.switch()
    assert Deployment.load(harness.client).generation == 1


def test_a_generation_that_a_failover_has_lost_is_not_continued_by_other_rules(built):
    """If the server has lost that a generation is built, no other one gets its number, and so its counters.

    After `--drop`, a rebuild counts by its own rules.
    """
    harness, _ = built
    meta = harness.layout.meta
    harness.client.hdel(meta, "building", "newest", "generation", "newest-revision", "rules@2", "revision@2")
    deployment = Deployment.load(harness.client)
    assert deployment.building is None
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=r"^the partitions count in generation 2, of which .* rebuild --drop"
        ):
            propose(harness.client, deployment, PLAIN)
    assert Deployment.load(harness.client).building is None
    drop(harness.client, deployment, 2)
    settings = settings_for(harness.url, PLAIN)
    number = propose(harness.client, deployment, PLAIN)
    build(settings, Deployment.load(harness.client), number, "")
    assert totals(harness) == dict.fromkeys(SUBJECTS, 2)


def test_a_removal_that_was_paused_does_not_end_a_later_rebuild(built, monkeypatch):
    """The other process has taken a later turn, so this one is refused."""
    harness, _ = built
    module, steps = sys.modules["tallystream_worker.rebuild.drop"], []

    def confirm(*_):
        steps.append(_)
        if len(steps) == 1:  # another process removes the generation meanwhile, and begins the next one
            drop(harness.client, Deployment.load(harness.client), 2)
            assert propose(harness.client, Deployment.load(harness.client), PLAIN) == 3

    monkeypatch.setattr(module, "confirm", confirm)
    with pytest.raises(Overtaken):
        drop(harness.client, Deployment.load(harness.client), 2)
    assert Deployment.load(harness.client).building == 3


def test_the_end_of_a_removal_concerns_only_its_own_generation(built):
    """It leaves the note that another generation is being built."""
    harness, _ = built
    turn = take_turn(harness.client, Deployment.load(harness.client))
    harness.client.hset(harness.layout.meta, "building", 3)
    end = sys.modules["tallystream_worker.rebuild.drop"]._END
    assert end(harness.client, [harness.layout.meta], [2, turn]) == [b"dropped"]
    assert harness.client.hget(harness.layout.meta, "building") == b"3"


@pytest.fixture
def primary(fresh_server):
    """A server that a replica can follow."""
    return fresh_server(port=0, extra=["--repl-diskless-sync-delay", "0"])


def test_nothing_is_taken_back_before_a_replica_has_it(fresh_server, primary, monkeypatch):
    """If no replica confirms the switch, readers keep the earlier generation, and the same command continues."""
    replica = replica_of(fresh_server, primary)
    settings = settings_for(primary.url, PLAIN, 0)
    with Harness(primary.url, rules=PLAIN) as harness, Producer(primary.url) as producer:
        counted(harness, producer)
        note_durability(harness.client, harness.deployment, "replica")
        with frozen(replica), monkeypatch.context() as patched:
            patched.setattr(barrier, "PATIENCE", 0.1)
            with pytest.raises(Unconfirmed, match="the new generation has a number"):
                proposed(harness)
        drop(harness.client, Deployment.load(harness.client), 2)
        deployment, number = proposed(harness)
        with Rebuild(settings, deployment, number) as run:
            run.begin()
            run.catch_up()
            with frozen(replica), monkeypatch.context() as patched:
                patched.setattr(barrier, "PATIENCE", 0.1)
                with pytest.raises(Unconfirmed, match=r"count in generation 3, but .* run the command again"):
                    run.switch()
                with pytest.raises(Unconfirmed, match=r"earlier commands are refused, but .* run the command again"):
                    build(settings, deployment, number, "")
            assert Deployment.load(harness.client).generation == 1
        deployment, number = proposed(harness)
        build(settings, deployment, number, "")
        assert totals(harness) == dict.fromkeys(SUBJECTS, 1)
        with frozen(replica), monkeypatch.context() as patched:
            patched.setattr(barrier, "PATIENCE", 0.1)
            with pytest.raises(Unconfirmed, match="earlier commands are refused"):
                drop(harness.client, Deployment.load(harness.client), 1)
            assert harness.client.exists(harness.layout.of(1).keys[0].ledger)
            with pytest.raises(Unconfirmed, match="s:1 is reset"):
                reset(harness.client, Deployment.load(harness.client), "s:1", ["view"])
        assert drop(harness.client, Deployment.load(harness.client), 1) > 0
