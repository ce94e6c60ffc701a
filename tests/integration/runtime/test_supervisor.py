"""Tests of the worker pool: it counts until it is stopped, and refuses to count another deployment."""

from __future__ import annotations

import threading
import time

import pytest
import structlog
from structlog.processors import add_log_level
from structlog.testing import LogCapture

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import GenerationSwitched
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.storage.keys import FIRST_TOPIC
from tallystream_worker.cli.generation import build
from tallystream_worker.cli.repartition import drop_topics
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import propose
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.runtime import partition_worker
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.runtime.partition_follower import PartitionFollower
from tallystream_worker.runtime.partition_worker import PartitionWorker
from tallystream_worker.runtime.supervisor import WorkerPool
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.waiting import until

OTHER_DATA = "not the data that this process started with"


def test_a_flushed_server_is_an_alarm(server):
    """After FLUSHALL every partition stops with one log line, and no group is created."""
    log = LogCapture()
    logger = structlog.wrap_logger(None, processors=[log])
    settings = Settings(redis=RedisSettings(url=server.url))
    with counting(settings, logger) as pool:
        with Producer(server.url) as producer:
            producer.emit("view", "article:1")
            producer.flush(10, wait="counted")
        until(lambda: all(lane.problem is None for lane in pool.health), what="every partition to count")
        server.client().flushall()
        until(lambda: all(OTHER_DATA in (lane.problem or "") for lane in pool.health), what="every partition to stop")
        client = server.client()
        assert not any(client.exists(keys.stream) for keys in pool.layout.keys)
    alarms = [entry for entry in log.entries if OTHER_DATA in str(entry.get("problem"))]
    assert len(alarms) == len(pool.health)


def test_a_server_that_is_flushed_as_a_worker_begins(server, monkeypatch):
    """Nothing is counted if the server is emptied between the check and the creation of a group."""
    settings = Settings(redis=RedisSettings(url=server.url))
    deployment = open_deployment(settings)
    ensure, flushed = Fetch.ensure_group, threading.Lock()

    def late(self):
        if flushed.acquire(blocking=False):
            server.client().flushall()
            server.client().xadd(self._keys.stream, {"metric": "view", "subject": "article:1"})
        ensure(self)

    monkeypatch.setattr(Fetch, "ensure_group", late)
    log = structlog.wrap_logger(None, processors=[LogCapture()])
    pool = WorkerPool(settings, deployment, log)
    follower = PartitionFollower(settings, deployment, log, lambda _: pool)
    follower.start()
    try:
        until(lambda: all(OTHER_DATA in (lane.problem or "") for lane in pool.health), what="every partition to stop")
    finally:
        assert follower.stop(time.monotonic() + 10)
    client = server.client()
    assert not any(client.exists(keys.ledger) for keys in deployment.layout.keys)


def test_a_switch_that_fails_is_tried_again(server):
    """A worker that cannot start on a new topic keeps counting the old one, and retries at its next check."""
    settings = Settings(redis=RedisSettings(url=server.url))
    deployment = open_deployment(settings)
    log = structlog.wrap_logger(None, processors=[LogCapture()])
    started, failures = [], [RuntimeError("no threads left")]

    class Pool(WorkerPool):
        def start(self):
            if self.layout.topic != FIRST_TOPIC and failures:
                raise failures.pop()
            started.append(self.layout.topic)
            super().start()

    follower = PartitionFollower(settings, deployment, log, lambda found: Pool(settings, found, log))
    follower.pool.start()
    try:
        with Producer(server.url) as producer:
            producer.emit("view", "article:1", 3)
            producer.flush(10, wait="counted")
            declared = deployment.reload(server.client())  # with the rules, which the pool has published
            repartition(settings, declared, declared.layout.partitions + 1)
            with pytest.raises(RuntimeError, match="no threads left"):
                follower.run_once()
            assert (follower.pool.layout.topic, started) == (FIRST_TOPIC, [FIRST_TOPIC])
            follower.run_once()
            assert started == [FIRST_TOPIC, follower.pool.layout.topic] == [1, 2]
            producer.emit("view", "article:1", 4)
            producer.flush(10, wait="counted")
        with Totals(server.url) as totals:
            assert totals.get("article:1", "view").value == 7
    finally:
        assert follower.stop(time.monotonic() + 10)


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_switch_is_no_problem(server, is_idle):
    """A worker follows rebuilds and repartitions, and the removal of what was live before, without an error in the log.

    This is also true if no entry arrives meanwhile.
    """
    log = LogCapture()
    settings = Settings(redis=RedisSettings(url=server.url))
    client = server.client()
    done = threading.Event()

    def emit():
        with Producer(server.url, linger=0) as producer:
            while not done.wait(0.01):
                for subject in range(20):
                    producer.emit("view", f"article:{subject}")

    with counting(settings, structlog.wrap_logger(None, processors=[add_log_level, log])) as worker:
        until(lambda: all(lane.problem is None for lane in worker.health), what="every partition to count")
        with Producer(server.url) as producer:
            producer.emit("view", "article:1")
            producer.flush(10, wait="counted")
        load = threading.Thread(target=emit)
        if not is_idle:
            load.start()
        try:
            for partitions in (4, 5, 5, 2, 2, 1):
                deployment = Deployment.load(client)
                if partitions == deployment.layout.partitions:
                    generation = propose(client, deployment, deployment.rules)
                    build(settings, Deployment.load(client), generation, "")
                    drop(client, Deployment.load(client), deployment.generation)
                else:
                    repartition(settings, deployment, partitions)
                    drop_topics(client, Deployment.load(client))
        finally:
            done.set()
            if not is_idle:
                load.join()
        with Producer(server.url) as producer, Totals(server.url) as totals:
            producer.emit("view", "article:1")
            producer.flush(10, wait="counted")
            assert totals.run(query_ledger(totals.deployment.layout)).unaccounted == 0
        until(lambda: all(lane.problem is None for lane in worker.health), what="every partition to count")
    assert [entry for entry in log.entries if entry["level"] not in {"info", "debug"}] == []


def lone_worker(settings: Settings, deployment: Deployment) -> PartitionWorker:
    """Return a worker of the first partition that nothing else drives."""
    reading, applying = connect(settings.redis.url, block=1.0), connect(settings.redis.url)
    log, foreign = structlog.get_logger(), threading.Event()
    return PartitionWorker(settings, deployment, 0, "w", [], log, foreign, {}, reading, applying)


@pytest.mark.parametrize("is_topic", [True, False])
def test_the_keys_of_a_removed_generation_are_not_lost(server, monkeypatch, is_topic):
    """If a generation is removed while a worker begins to count it, the worker finds that another one is live."""
    settings, client = Settings(redis=RedisSettings(url=server.url)), server.client()

    def rebuild() -> None:
        deployment = Deployment.load(client)
        build(settings, deployment, propose(client, deployment, deployment.rules), "")
        drop(client, Deployment.load(client), deployment.generation)

    def replace() -> None:
        if is_topic:
            repartition(settings, Deployment.load(client), 2)
            drop_topics(client, Deployment.load(client))
        else:
            rebuild()

    def begun_of(*arguments):
        monkeypatch.undo()
        replace()
        return partition_worker.begun_of(*arguments)

    worker = lone_worker(settings, open_deployment(settings))
    rebuild()
    monkeypatch.setattr(partition_worker, "begun_of", begun_of)
    with pytest.raises(
        GenerationSwitched, match=f"topic {FIRST_TOPIC + 1} is live" if is_topic else "another generation"
    ):
        worker.run_once()


def test_a_partition_that_stays_closed_is_a_problem(server, monkeypatch):
    """If no generation is live for longer than a switch takes, a worker logs it once, and once when it counts again."""
    monkeypatch.setattr(partition_worker, "_LONGEST_SWITCH", 0.3)
    log = LogCapture()
    client = server.client()
    logger = structlog.wrap_logger(None, processors=[log], wrapper_class=structlog.make_filtering_bound_logger(0))
    with counting(Settings(redis=RedisSettings(url=server.url)), logger) as pool:
        keys = pool.layout.keys_of("a")

        def lines() -> list[str]:
            return [entry["event"] for entry in log.entries if entry.get("stream") == keys.stream]

        until(lambda: all(lane.problem is None for lane in pool.health), what="every partition to count")
        assert lines() == ["partition.started"]
        with Producer(server.url) as producer:
            live = client.get(keys.live)
            client.set(keys.live, "1 closed")
            client.xadd(keys.stream, {"metric": "view", "subject": "a"})
            until(lambda: len(lines()) > 1, what="the problem in the log")
            client.set(keys.live, live)
            producer.emit("view", "a")
            producer.flush(10, wait="counted")
        until(lambda: lines()[2:] == ["partition.resumed"], what="the partition to count again")
    assert lines() == ["partition.started", "partition.paused", "partition.resumed"]
    (paused,) = [entry for entry in log.entries if entry["event"] == "partition.paused"]
    assert "generation 1 is not the live one" in paused["problem"]


def test_a_crew_counts_and_stops(server):
    """A pool counts the emitted events, and after its stop leaves later ones to the next pool."""
    settings = Settings(redis=RedisSettings(url=server.url))
    logger = structlog.wrap_logger(None, processors=[LogCapture()])
    with Producer(server.url) as producer, Totals(server.url) as totals:
        with counting(settings, logger):
            producer.emit("view", "article:1", 3)
            producer.flush(10, wait="counted")
            assert totals.get("article:1", "view").value == 3
        producer.emit("view", "article:1", 4)
        producer.flush(10)
        assert totals.get("article:1", "view").value == 3
        with counting(settings, logger):
            producer.flush(10, wait="counted")
            assert totals.get("article:1", "view").value == 7


def test_metrics_that_raise_stop_nothing(server):
    """With a subscriber that raises for each batch, a pool counts everything and logs it once per partition."""
    log = LogCapture()

    def fragile(_result):
        raise KeyError("a metric")

    with counting(Settings(redis=RedisSettings(url=server.url)), structlog.wrap_logger(None, [log]), [fragile]) as pool:
        with Producer(server.url, linger=0) as producer, Totals(server.url) as totals:
            for _ in range(5):
                producer.emit("view", "article:1")
                producer.flush(10, wait="counted")
            assert totals.get("article:1", "view").value == 5
            assert totals.run(query_ledger(totals.deployment.layout)).unaccounted == 0
        until(lambda: all(lane.problem is None for lane in pool.health), what="every partition to count")
    failed = [entry for entry in log.entries if entry["event"] == "subscriber.failed"]
    assert [line["problem"] for line in failed] == ["KeyError: 'a metric'"]
    assert not [entry for entry in log.entries if entry["event"] in {"entry.left_pending", "partition.paused"}]


def test_a_worker_accounts_for_what_vanished(server):
    """If a foreign client trims a stream under a pool, the lost events are logged, and the ledger balances."""
    log = LogCapture()
    logger = structlog.wrap_logger(None, processors=[log])
    settings = Settings(redis=RedisSettings(url=server.url))
    client = server.client()
    with Producer(server.url) as producer, Totals(server.url) as totals:
        with counting(settings, logger):
            producer.emit("view", "a")
            producer.flush(10, wait="counted")
        for number in range(5):
            producer.emit("view", f"b{number}")
        producer.flush(10)
        for keys in totals.deployment.layout.keys:
            client.xtrim(keys.stream, maxlen=0, approximate=False)
        with counting(settings, logger):
            books = until(
                lambda: (found := totals.run(query_ledger(totals.deployment.layout))).events["trimmed"] == 5 and found,
                what="the loss to be in the ledger",
            )
        assert (books.appended, books.counted, books.events["trimmed"], books.unaccounted) == (6, 1, 5, 0)
    lines = [entry for entry in log.entries if entry["event"] == "events.lost"]
    assert sum(line["events"] for line in lines) == 5
    assert {line["log_level"] for line in lines} == {"error"}


def test_a_decision_in_the_first_moment_is_no_lost_group(server):
    """The groups exist before the rules are published, so a decision in the first moment is safe."""
    settings = Settings(redis=RedisSettings(url=server.url))
    deployment = open_deployment(settings)
    with Producer(server.url) as producer:
        assert producer.decide("view", "article:1").total == 1
    client = server.client()
    for keys in deployment.layout.keys:
        assert [group["name"] for group in client.xinfo_groups(keys.stream)] == [keys.group.encode()]
        Fetch(client, keys, "w").ensure_group()
