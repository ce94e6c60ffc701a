"""Counting stays exact while a cluster changes under load, without a restart of producers, workers or readers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import pytest
import structlog
from redis.exceptions import RedisError, TryAgainError

from tallystream import Producer, TallyError, aio
from tallystream.client.cluster.slots import slot_of
from tallystream.client.connect import connect
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.storage.keys import Layout
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.waiting import until

if TYPE_CHECKING:
    from tests.local_cluster import LocalCluster, LocalNode

SUBJECTS = [f"article:{i}" for i in range(40)]


class Load:
    """Emits a view and a like of the same subject in pairs, and counts them, until the block ends.

    `check` makes the checks B (totals equal the emitted events), P (pairs are equal) and D (no entry waits) of the
    fault table.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.emitted = 0
        self._open = contextlib.ExitStack()
        self._stopping = threading.Event()
        self._settings = settings

    def __enter__(self) -> Self:
        self._open.enter_context(counting(Settings(redis=RedisSettings(url=self.url)), structlog.get_logger()))
        self.producer = self._open.enter_context(Producer(self.url, when_full="block", **self._settings))
        self.totals = self._open.enter_context(Totals(self.url))
        self._thread = threading.Thread(target=self._emit, name="load")
        self._thread.start()
        return self

    def _emit(self) -> None:
        while not self._stopping.wait(0.002):
            subject = SUBJECTS[self.emitted % len(SUBJECTS)]
            self.producer.emit("view", subject)
            self.producer.emit("like", subject)
            self.emitted += 1

    def counted(self, subject: str | None = None) -> int:
        """Return the number of counted views, of all subjects or of one; -1 if they cannot be read now."""
        wanted = [(each, "view") for each in SUBJECTS if subject in (None, each)]
        try:
            return sum(self.totals.get_many(wanted).values.values())
        except (RedisError, TallyError):
            return -1

    def goes_on(self, subject: str | None = None) -> None:
        """Wait until another view is counted, of any subject or of the given one."""
        before = until(lambda: self.counted(subject) + 1, 60, 0.01, "a reading") - 1
        until(lambda: self.counted(subject) > before, 60, 0.01, "progress")

    def check(self) -> None:
        """Stop emitting, and assert that each emitted event was counted once."""
        self._stopping.set()
        self._thread.join()
        self.producer.flush(60, wait="counted")
        values = self.totals.get_many((subject, metric) for subject in SUBJECTS for metric in ("view", "like")).values
        views = {subject: values[subject, "view"] for subject in SUBJECTS}
        assert views == {subject: values[subject, "like"] for subject in SUBJECTS}
        assert sum(views.values()) == self.emitted
        ledger = self.totals.run(query_ledger(self.totals.deployment.layout))
        assert (ledger.waiting, ledger.dead, ledger.unaccounted) == (0, 0, 0)
        assert ledger.events["trimmed"] == self.producer.stats.dropped == self.producer.stats.lost_entries == 0

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._open.close()


def other(cluster: LocalCluster, node: LocalNode) -> LocalNode:
    """Return a primary of the cluster that is not `node`."""
    return next(each for each in cluster.nodes if each is not node and each.is_primary())


def subject_at(cluster: LocalCluster, node: LocalNode) -> str:
    """Return a subject whose partition is on a node."""
    layout = Layout()
    return next(each for each in SUBJECTS if cluster.owner(layout.keys_of(each).stream) is node)


def measured(load: Load, subject: str, since: float) -> str:
    """Wait until another view of a subject is counted; return a text with the seconds since `since`."""
    load.goes_on(subject)
    return f"counting again {time.monotonic() - since:.2f} s after the promotion"


@pytest.mark.slow
def test_slots_move_under_load(cluster, server):
    """While events are counted, each partition's slot can be moved to another node and back, some keys at a time."""
    with Load(server.url) as load:
        load.goes_on()
        for _ in range(2):
            for keys in Layout().keys:
                slot, source = slot_of(keys.stream), cluster.owner(keys.stream)
                target = other(cluster, source)
                cluster.open_move(slot, source, target)
                while cluster.move_keys(slot, source, target, 25):
                    load.counted()  # a read must be possible during the move
                cluster.close_move(slot, source, target)
                load.goes_on()
        load.check()
        assert load.producer.stats.rewound_streams == 0


@pytest.mark.slow
def test_a_primary_is_killed(cluster, server, capsys):
    """After a primary is killed, its replica is promoted, and events that the replica confirmed are counted once."""
    with Load(server.url, durability="replica") as load:
        load.goes_on()
        victim = cluster.owner(Layout().keys[0].stream)
        subject, heir = subject_at(cluster, victim), cluster.replica_of(victim)
        victim.server.kill()
        until(heir.is_primary, 30, 0.01, "the promotion")
        promoted = time.monotonic()
        # Writes need the confirmation of a replica: the killed node returns as the replica.
        victim.server.start()
        with capsys.disabled():
            print(f"\n[{server.kind}] killed: {measured(load, subject, promoted)}")  # noqa: T201
        cluster.wait_until_whole()
        load.check()


@pytest.mark.slow
def test_a_primary_is_killed_without_confirmation(cluster, server, capsys):
    """With durability "memory", producers append again the entries that a new primary lacks after a failover."""
    with Load(server.url) as load:
        load.goes_on()
        victim = cluster.owner(Layout().keys[0].stream)
        subject, heir = subject_at(cluster, victim), cluster.replica_of(victim)
        victim.server.kill()
        until(heir.is_primary, 30, 0.01, "the promotion")
        promoted = time.monotonic()
        with capsys.disabled():
            print(f"\n[{server.kind}] killed: {measured(load, subject, promoted)}")  # noqa: T201
        victim.server.start()
        cluster.wait_until_whole()
        load.check()


@pytest.mark.slow
def test_a_primary_freezes_and_comes_back(cluster, server, capsys):
    """If a frozen primary returns after a failover, its later writes are discarded, and nothing is counted twice."""
    with Load(server.url, durability="replica") as load:
        load.goes_on()
        victim = cluster.owner(Layout().keys[0].stream)
        subject, heir = subject_at(cluster, victim), cluster.replica_of(victim)
        victim.freeze()
        try:
            until(heir.is_primary, 30, 0.01, "the promotion")
            promoted = time.monotonic()
        finally:
            victim.thaw()
        with capsys.disabled():
            print(f"\n[{server.kind}] frozen: {measured(load, subject, promoted)}")  # noqa: T201
        cluster.wait_until_whole()
        load.check()


@pytest.mark.slow
def test_a_frozen_primary_is_not_waited_for(cluster, server, capsys):
    """While a primary is frozen, counting continues on its promoted replica."""
    with Load(server.url) as load:
        load.goes_on()
        victim = cluster.owner(Layout().keys[0].stream)
        subject, heir = subject_at(cluster, victim), cluster.replica_of(victim)
        victim.freeze()
        try:
            until(heir.is_primary, 30, 0.01, "the promotion")
            promoted = time.monotonic()
            with capsys.disabled():
                print(f"\n[{server.kind}] still frozen: {measured(load, subject, promoted)}")  # noqa: T201
        finally:
            victim.thaw()
        cluster.wait_until_whole()
        load.check()


@pytest.mark.slow
def test_a_node_joins_and_leaves(cluster, server, capsys):
    """While events are counted, a fourth primary can take the slots of all partitions, return them, and leave."""
    with Load(server.url) as load:
        load.goes_on()
        homes = {keys.stream: cluster.owner(keys.stream) for keys in Layout().keys}
        joined = cluster.add()
        for stream, home in homes.items():
            cluster.move(slot_of(stream), home, joined)
        load.goes_on()
        assert {cluster.owner(stream) for stream in homes} == {joined}
        for stream, home in homes.items():
            cluster.move(slot_of(stream), joined, home)
        cluster.remove(joined)
        left = time.monotonic()
        load.goes_on()
        with capsys.disabled():
            print(f"\n[{server.kind}] left: counting {time.monotonic() - left:.2f} s after it was forgotten")  # noqa: T201
        load.check()
        assert load.producer.stats.rewound_streams == 0


def test_a_node_that_has_left_is_no_informant(cluster, server):
    """If the first node of a URL belongs to no cluster, the slot map is read from the next one."""
    stranger = cluster._start()
    url = server.url.replace("redis+cluster://", f"redis+cluster://127.0.0.1:{stranger.port},")
    with contextlib.closing(connect(url)) as client:
        assert client.get("anything") is None

    async def ask() -> None:
        async with aio.Totals(url) as totals:
            assert (await totals.get("anything", "view")).value == 0

    asyncio.run(ask())


def test_no_script_runs_while_its_slot_is_moved(cluster, server):
    """While a partition's keys are on two nodes, a batch is refused before its first write; later it counts once."""
    with Harness(server.url) as harness, Producer(server.url) as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        harness.drain()
        keys = harness.layout.keys_of("article:1")
        partition = harness.layout.keys.index(keys)
        # All declared keys exist, so only the script's own check can refuse the batch while the slot moves.
        harness.client.xadd(keys.dead, {"reason": "test"})
        harness.client.set(keys.live, 1)
        producer.emit("view", "article:1")
        producer.flush(10)
        slot, source = slot_of(keys.stream), cluster.owner(keys.stream)
        target = other(cluster, source)
        cluster.open_move(slot, source, target)
        source.ask("MIGRATE", "127.0.0.1", target.port, keys.total("view", "article:1"), 0, 5000)
        with pytest.raises(TryAgainError):
            harness.consumer(partition, "w").run_once()
        assert len(harness.pending(partition)) == 1
        cluster.move_keys(slot, source, target)
        cluster.close_move(slot, source, target)
        harness.finish()
        assert harness.totals()["view", "article:1"] == 2
        harness.client.delete(keys.dead)


def test_a_reading_between_two_nodes(cluster, server):
    """While a partition's keys are on two nodes, a single key can be read from either node."""
    with Harness(server.url) as harness, Producer(server.url) as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        harness.drain()
        keys = harness.layout.keys_of("article:1")
        slot, source = slot_of(keys.stream), cluster.owner(keys.stream)
        target = other(cluster, source)
        cluster.open_move(slot, source, target)
        assert harness.client.get(keys.total("view", "article:1")) == b"1"
        cluster.move_keys(slot, source, target)
        assert harness.client.get(keys.total("view", "article:1")) == b"1"
        with Totals(server.url) as totals:
            assert totals.get("article:1", "view").value == 1
        cluster.close_move(slot, source, target)
        with Totals(server.url) as totals:
            assert totals.get("article:1", "view").value == 1
