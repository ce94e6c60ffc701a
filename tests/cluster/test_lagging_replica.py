"""Commands stay right when a primary dies whose replica lagged: nothing is lost, counted twice, or stated too early."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.errors import StreamError, Unconfirmed
from tallystream.producing.producer import Producer
from tallystream.storage.keys import Layout
from tallystream_worker.cli.generation import build
from tallystream_worker.ingest.job import jobs_of, run
from tallystream_worker.ingest.lines import Mapping
from tallystream_worker.process import barrier
from tallystream_worker.process.description import note_durability
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.catch_up import CatchUpCounter
from tallystream_worker.repartition.migration import Repartition, repartition
from tallystream_worker.settings.settings import RedisSettings
from tests.harness import Harness
from tests.integration.rebuild.test_lost_switches import proposed
from tests.integration.rebuild.test_rebuild import settings_for
from tests.integration.repartition.test_lost_writes import PLAIN, SUBJECTS, emit, totals
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.local_cluster import LocalCluster, LocalNode

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def lagging(cluster: LocalCluster, primary: LocalNode) -> Iterator[None]:
    """In the block, the replica of a primary gets nothing; at its end the primary dies, and the replica is promoted.

    The killed node comes back as a replica.
    """
    heir = cluster.replica_of(primary)
    heir.freeze()
    try:
        primary.ask("CLIENT", "KILL", "TYPE", "replica")
        yield
    finally:
        primary.server.kill()
        heir.thaw()
        until(heir.is_primary, 30, 0.01, "the promotion")
        primary.server.start()
        cluster.wait_until_whole()


def home(cluster: LocalCluster, partition: int) -> LocalNode:
    """Return the primary of a partition that does not hold the root."""
    node = cluster.owner(Layout(8).keys[partition].stream)
    return node if node is not cluster.owner("tally:meta") else home(cluster, partition + 1)


def test_a_repartition_with_a_failover_in_its_middle_counts_nothing_twice(cluster, server):
    """The second run is refused, because it would copy what producers have sent again; after `--drop`, all is exact."""
    settings = settings_for(server.url, PLAIN, 0)
    with Harness(server.url, rules=PLAIN) as harness, Producer(server.url) as producer:
        emit(producer)
        deployment = Deployment.load(harness.client)
        begun = Repartition(settings, harness.client, deployment, topic.propose(harness.client, deployment, 8))
        begun.begin()
        with CatchUpCounter(settings, begun.new, PLAIN) as counting:
            begun.catch_up(counting)
            with lagging(cluster, home(cluster, 0)):
                emit(producer)
                begun.catch_up(counting)
        emit(producer)
        with pytest.raises(StreamError, match=r"rebuild --drop|run the command again"):
            repartition(settings, Deployment.load(harness.client), 8)
        topic.give_up(harness.client, Deployment.load(harness.client))
        repartition(settings, Deployment.load(harness.client), 8)
        assert totals(harness) == dict.fromkeys(SUBJECTS, 3)


def test_a_failover_while_a_repartition_waits_is_noticed(cluster, server, monkeypatch):
    """It copies nothing on the strength of records that the node has lost; the same command continues, without loss."""
    monkeypatch.setattr(barrier, "PATIENCE", 60)
    is_waiting, unpatched = threading.Event(), DurabilityCheck.confirm

    def confirm(*arguments: Any) -> str:
        if reason := unpatched(*arguments):
            is_waiting.set()
        return reason

    settings = settings_for(server.url, PLAIN, 0)
    with (
        Harness(server.url, rules=PLAIN) as harness,
        Producer(server.url, durability="replica") as producer,
        ThreadPoolExecutor(1) as threads,
        contextlib.ExitStack() as contexts,
    ):
        note_durability(harness.client, harness.deployment, "replica")
        emit(producer)
        deployment = Deployment.load(harness.client)
        run = Repartition(settings, harness.client, deployment, topic.propose(harness.client, deployment, 8))
        run.begin()
        counting = contexts.enter_context(CatchUpCounter(settings, run.new, PLAIN))
        monkeypatch.setattr(DurabilityCheck, "confirm", confirm)
        with lagging(cluster, home(cluster, 0)):
            first = threads.submit(run.catch_up, counting)
            assert is_waiting.wait(30)
        with pytest.raises(StreamError, match=r"failed over or restarted.*run the command again"):
            first.result(60)
        emit(producer)
        repartition(settings, Deployment.load(harness.client), 8)
        assert totals(harness) == dict.fromkeys(SUBJECTS, 2)


def test_a_new_topic_that_a_failover_takes_back_becomes_live_again(cluster, server, monkeypatch):
    """The command repeats its last step, so it never states that a topic is live that is not."""
    activate, calls = topic.activate, []
    meta = cluster.owner("tally:meta")

    def activate_once(*arguments: Any) -> bool:
        calls.append(arguments)
        if len(calls) > 1:
            return activate(*arguments)
        meta.client.wait(1, 10_000)
        with lagging(cluster, meta):
            return activate(*arguments)

    settings = settings_for(server.url, PLAIN, 0)
    with Harness(server.url, rules=PLAIN) as harness, Producer(server.url) as producer:
        emit(producer)
        monkeypatch.setattr(topic, "activate", activate_once)
        repartition(settings, Deployment.load(harness.client), 8)
        assert Deployment.load(harness.client).layout.partitions == 8
        assert len(calls) == 2
        emit(producer)
        assert totals(harness) == dict.fromkeys(SUBJECTS, 2)


@pytest.mark.parametrize("command", ["repartition", "retract", "ingest"])
def test_no_command_states_that_it_is_done_before_a_replica_has_it(cluster, server, monkeypatch, tmp_path, command):
    """With the durability `replica`, the command fails while a replica lags; after the failover, it is repeated."""
    settings = settings_for(server.url, PLAIN, 0)
    path = tmp_path / "events.ndjson"
    path.write_text("".join(f'{{"metric": "view", "subject": "{each}"}}\n' for each in SUBJECTS))
    with Harness(server.url, rules=PLAIN) as harness, Producer(server.url, durability="replica") as producer:
        note_durability(harness.client, harness.deployment, "replica")

        def act() -> None:
            if command == "repartition":
                repartition(settings, Deployment.load(harness.client), 8)
            elif command == "retract":
                deployment, number = proposed(harness)
                build(settings, deployment, number, "")
            else:
                (job,) = jobs_of(str(path), "ndjson", Mapping())
                run(job, RedisSettings(url=server.url))

        for actor in ("man", "bot"):
            for subject in SUBJECTS:
                producer.emit("view", subject, actor=actor)
        producer.flush(10)
        harness.drain()
        with monkeypatch.context() as patched, lagging(cluster, home(cluster, 0)):
            patched.setattr(barrier, "PATIENCE", 0.5)
            with pytest.raises(Unconfirmed, match=r"no replica of 127\.0\.0\.1"):
                act()
        act()
        harness.layout = Deployment.load(harness.client).layout
        harness.drain()
        expected = {"repartition": 2, "retract": 1, "ingest": 3}[command]
        assert {subject: value for (_, subject), value in harness.totals().items()} == dict.fromkeys(SUBJECTS, expected)
