"""A repartition copies each event once into a new topic, while events are appended and counted."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture

from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, GenerationSwitched, KeyLost, StreamError, TallyError
from tallystream.producing.buffer import BufferSettings
from tallystream.producing.decider import Decider
from tallystream.producing.producer import Producer
from tallystream.producing.send_queue import SendQueue
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.settings import SpoolSettings
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.deployment_hash import spread_fields
from tallystream.storage.rule_changes import changes_of_topic, read_changes
from tallystream.wire.event import Event
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.commands.ingest import _wait_until_counted
from tallystream_worker.cli.repartition import drop_topics, to_partitions
from tallystream_worker.ingest.job import jobs_of, run
from tallystream_worker.ingest.lines import Mapping
from tallystream_worker.ingest.pool import IngestRun
from tallystream_worker.process.failpoints import GIVE_UP_PLACES, MOVE_PLACES
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.reopen import reopen
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.catch_up import CatchUpCounter
from tallystream_worker.repartition.copy import CopiedElsewhere, StreamCopier
from tallystream_worker.repartition.migration import Repartition, repartition
from tallystream_worker.repartition.reading_marks import HOLDER
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.settings.settings import ArchiveSettings, RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.drill import drill
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.integration.alerts.test_alerts import count
from tests.integration.counting.test_rules_exact import RULES, deliver, feed, happenings, without_zeros
from tests.integration.rebuild.test_rebuild import settings_for, stored
from tests.oracle_rules import tally
from tests.rewind import copy_of, go_back
from tests.waiting import until

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import Layout

relaxed = settings(
    max_examples=int(os.environ.get("TALLYSTREAM_EXAMPLES", "4")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
PLAIN = Rules({"view": Metric(ids=None), "call": Metric(limit=5, per="total")})


def moved(harness: Harness, partitions: int, **options) -> None:
    """Repartition; the harness reads the new topic from then on."""
    repartition(
        settings_for(harness.url, harness.rules, 0), Deployment.create_or_load(harness.client), partitions, **options
    )
    harness.layout = Deployment.create_or_load(harness.client).layout


def emit(harness: Harness, subject: str, n: int) -> None:
    """Append `n` plain views of a subject."""
    for _ in range(n):
        harness.client.xadd(harness.layout.keys_of(subject).stream, {"metric": "view", "subject": subject})


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000), before=st.integers(1, 4), after=st.integers(1, 7))
def test_after_a_move_everything_is_what_the_oracle_says(server, drawn, seed, before, after):
    """After a repartition, counters equal those of the oracle, the ledger agrees, and an audit finds no difference."""
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=before) as harness:
        happened = feed(harness, drawn, chance)
        if chance.random() < 0.5:
            deliver(harness, chance)  # else nothing is counted yet: a repartition does not need it
        moved(harness, after)
        assert harness.layout.partitions == after
        expected, found = tally(happened, RULES.metric), stored(harness)
        for name in ("totals", "up", "windows"):
            assert found[name] == without_zeros(getattr(expected, name)), name
        assert audit(harness.client, Deployment.create_or_load(harness.client), RULES).differences == []
        with Totals(server.url) as totals:
            books = totals.run(query_ledger(totals.deployment.layout))
        assert (books.unaccounted, books.appended) == (0, len(drawn))


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_a_second_move_equals_the_first(server, drawn, seed):
    """After a second repartition, to fewer partitions, the counters still equal those of the oracle."""
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        happened = feed(harness, drawn, chance)
        moved(harness, 5)
        topic.drop(harness.client, Deployment.create_or_load(harness.client))
        happened += feed(harness, drawn[:10], chance)
        moved(harness, 1)
        expected, found = tally(happened, RULES.metric), stored(harness)
        for name in ("totals", "up", "windows"):
            assert found[name] == without_zeros(getattr(expected, name)), name


def test_the_copied_changes_are_none_of_the_new_topic(server):
    """A topic that a repartition has filled begins with the rules of its copies; earlier changes are not its own."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        for limit in (5, 6, 7):
            harness.rules = Rules(PLAIN.metric | {"call": Metric(limit=limit, per="total")})
            open_deployment(Settings(RedisSettings(harness.url, partitions=2), rules=harness.rules))
        assert len(changes_of_topic(read_changes(harness.client, harness.layout))) == 3
        moved(harness, 3)
        copied = read_changes(harness.client, harness.layout)
        assert len(copied) == 3
        assert changes_of_topic(copied) == copied[-1:]


def test_a_copied_entry_is_as_late_as_the_original(server):
    """Lateness is measured by the time at which the old topic took an event, not by the ID of its copy."""
    with Harness(server.url, rules=Rules({"aside": Metric(accept_late="1h", late="aside")}), partitions=2) as harness:
        for keys, id_ in zip(harness.layout.keys, ("7200000-0", "1-5"), strict=True):
            subject = next(s for n in range(99) if harness.layout.keys_of(s := f"s:{n}") == keys)
            harness.client.xadd(keys.stream, {"metric": "aside", "subject": subject, "at": "60"}, id=id_)
        harness.finish()
        before = harness.ledger(), harness.totals()
        deployment = Deployment.create_or_load(harness.client)
        new = topic.begin(harness.client, deployment, topic.propose(harness.client, deployment, 1), harness.rules)
        for source in (0, 1):  # the newer entry first: the copy of the older one then has a larger ID than its entry
            other = StreamCopier(harness.client, deployment.layout, new.layout)
            other.look()
            other._from = lambda n, only=source, read=other._from: read(n) if n == only else iter(())
            other()
        harness.layout = new.layout
        with CatchUpCounter(settings_for(harness.url, harness.rules, 0), new, harness.rules) as counting:
            counting()
        assert (harness.ledger(), harness.totals()) == before


def test_what_lies_in_a_wrong_partition_does_so_after_the_move(server):
    """An event in the stream of a wrong partition is dead-lettered before a repartition and after it."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        right = harness.layout.keys_of("a")
        wrong = next(keys for keys in harness.layout.keys if keys != right)
        harness.client.xadd(wrong.stream, {"metric": "view", "subject": "a"})
        harness.client.xadd(right.stream, {"metric": "view", "subject": "a"})
        harness.client.xadd(right.stream, {"metric": "view", "colour": "red"})
        harness.finish()
        before = harness.ledger()
        moved(harness, 3)
        assert harness.totals() == {("view", "a"): 1}
        assert harness.ledger() == before


def test_producers_hold_what_is_refused_and_go_on_in_the_new_log(server, tmp_path):
    """Events emitted before, during and after the switch are each counted once, from memory and from a spool."""
    with Harness(server.url, rules=PLAIN, partitions=3) as harness, ExitStack() as stack:
        plain = stack.enter_context(Producer(harness.url, linger=0))
        spooled = stack.enter_context(Producer(harness.url, linger=0, spool=tmp_path, entry_events=7))
        expected = {}

        def emit_all(amount: int) -> None:
            for producer, name in ((plain, "p"), (spooled, "s")):
                for n in range(50):
                    producer.emit("view", f"{name}:{n}", amount)
                    expected["view", f"{name}:{n}"] = expected.get(("view", f"{name}:{n}"), 0) + amount

        emit_all(1)
        plain.flush(5)
        spooled.flush(5)
        deployment = Deployment.create_or_load(harness.client)
        configured = settings_for(harness.url, PLAIN, 0)
        moving = Repartition(configured, harness.client, deployment, topic.propose(harness.client, deployment, 5))
        moving.begin()
        with CatchUpCounter(configured, moving.new, PLAIN) as counting:
            moving.catch_up(counting)
            emit_all(10)
            topic.close(harness.client, deployment, moving.new.layout, 1)
            emit_all(100)  # refused, and kept in the buffers
            until(lambda: plain.stats.buffered and spooled.stats.buffered, what="held events")
            moving.switch(counting)
        emit_all(1000)
        for producer in (plain, spooled):
            producer.flush(10)
            assert producer.stats.appended == producer.stats.emitted
        harness.layout = Deployment.create_or_load(harness.client).layout
        harness.finish()
        assert harness.totals() == expected
        for producer in (plain, spooled):
            producer.flush(5, wait="counted")


@pytest.mark.parametrize("held", [(), (1,), (0, 2), (0, 1, 2, 3)])
def test_a_spool_whose_owner_died_before_the_move_is_delivered_after_it(server, tmp_path, held):
    """Entries in the spool of a dead process are appended to the new topic only if the old one does not have them."""
    with Harness(server.url, rules=PLAIN, partitions=4) as harness:
        spool = Spool(BufferSettings(entry_events=5), SpoolSettings(tmp_path, 2**20, "os", "tally"))
        send_queue = SendQueue(harness.client, Deployment.create_or_load(harness.client), spool, DurabilityCheck())
        for queue in (send_queue.appender.queues[partition] for partition in held):
            queue.resume_at = float("inf")  # the process dies before it sends these
        for n in range(60):
            spool.put(-1, "view", f"s:{n % 10}", 1, 60.0, None, None)
        for _ in range(4):
            send_queue.step()
        spool.abandon()
        moved(harness, 3)
        topic.drop(harness.client, Deployment.create_or_load(harness.client))
        with Producer(harness.url, spool=tmp_path) as other:
            until(lambda: not any(path.is_dir() for path in tmp_path.iterdir()), what="delivery")
            assert other.stats.lost_entries == 0
        harness.finish()
        assert harness.totals() == {("view", f"s:{n}"): 6 for n in range(10)}


def test_a_decision_waits_until_it_is_known_where_it_goes(server):
    """A decision during the switch is made in the new topic, and earlier decisions count towards its limit."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        decide = Decider(harness.connect(), Deployment.create_or_load(harness.client))
        assert [decide(Event("call", "k")).accepted for _ in range(3)] == [True] * 3
        deployment = Deployment.create_or_load(harness.client)
        layout = topic.propose(harness.client, deployment, 3)
        configured = settings_for(harness.url, PLAIN, 0)
        moving = Repartition(configured, harness.client, deployment, layout)
        moving.begin()
        verdicts = []
        with CatchUpCounter(configured, moving.new, PLAIN) as counting:
            moving.catch_up(counting)
            topic.close(harness.client, deployment, layout, 1)
            waiting = threading.Thread(target=lambda: verdicts.append(decide(Event("call", "k")).remaining))
            waiting.start()
            moving.switch(counting)
        waiting.join(10)
        assert verdicts == [1]
        assert [decide(Event("call", "k")).accepted for _ in range(2)] == [True, False]
        harness.layout = Deployment.create_or_load(harness.client).layout
        harness.finish()
        assert harness.totals() == {("call", "k"): 5}


def test_a_decision_that_waits_for_too_long_was_not_made(server, monkeypatch):
    """A decision on a topic that stays closed fails, and nothing is counted."""
    monkeypatch.setattr("tallystream.producing.decider._PATIENCE", 0.1)
    with Harness(server.url, rules=PLAIN, partitions=1) as harness:
        deployment = Deployment.create_or_load(harness.client)
        decide = Decider(harness.client, deployment)
        topic.close(harness.client, deployment, topic.propose(harness.client, deployment, 2), 1)
        with pytest.raises(GenerationSwitched, match="the event was not counted"):
            decide(Event("call", "k"))
        assert topic.give_up(harness.client, Deployment.create_or_load(harness.client)) == 0
        assert decide(Event("call", "k")).total == 1


def test_a_move_that_is_given_up_leaves_everything_as_it_was(server):
    """A repartition can be given up before the switch: the old topic stays live, and the new one is removed."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        emit(harness, "a", 5)
        harness.finish()
        before = set(harness.client.scan_iter())
        deployment = Deployment.create_or_load(harness.client)
        configured = settings_for(harness.url, PLAIN, 0)
        moving = Repartition(configured, harness.client, deployment, topic.propose(harness.client, deployment, 3))
        moving.begin()
        with CatchUpCounter(configured, moving.new, PLAIN) as counting:
            moving.catch_up(counting)
            assert topic.give_up(harness.client, Deployment.create_or_load(harness.client)) > 0
            with pytest.raises(StreamError, match="given up"):
                moving.switch(counting)
        # The sequences state the number of the closing that was given up.
        left = {key.encode() for keys in harness.layout.keys for key in (keys.retention_holds, keys.sequences)}
        assert set(harness.client.scan_iter()) - left == before - left
        with Producer(harness.url) as producer:
            producer.emit("view", "a")
        harness.finish()
        assert harness.totals() == {("view", "a"): 6}
        assert (
            topic.propose(harness.client, Deployment.create_or_load(harness.client), 4).topic == 3
        )  # no number is used twice


@pytest.mark.parametrize("place", ["catch_up", "switch"])
@pytest.mark.parametrize("why", ["fails", "pending"])
def test_a_move_does_not_wait_forever_for_an_entry(server, monkeypatch, place, why):
    """If a copy is not counted, the repartition ends with the entry and the reason, and the old topic stays live."""
    monkeypatch.setattr("tallystream_worker.repartition.migration._PATIENCE", 0.5)
    rules = Rules({"view": Metric(ids=None), "call": Metric(ids=None, limit=5, per="total")})
    configured = settings_for(server.url, rules, 0)
    with Harness(server.url, rules=rules, partitions=1) as harness, ExitStack() as stack:
        deployment = Deployment.load(harness.client)
        run = Repartition(configured, harness.client, deployment, topic.propose(harness.client, deployment, 2))
        run.begin()
        counting_it = stack.enter_context(CatchUpCounter(configured, run.new, rules))
        if place == "switch":
            run.catch_up(counting_it)
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "call", "subject": "a"})
        keys = run.new.layout.keys_of("a")
        if why == "fails":
            harness.client.hset(keys.limit("call", "total"), "a", "not a number")
        else:
            keeper = stack.enter_context(ThreadPoolExecutor(1))
            ended = threading.Event()
            stack.callback(ended.set)
            kept = harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
            harness.client.xreadgroup(keys.group, "other", {keys.stream: ">"})

            def keep() -> None:
                """Be a consumer that claims its entry again before it is idle for a second."""
                client = harness.connect()
                while not ended.wait(0.01):
                    client.xclaim(keys.stream, keys.group, "other", 0, [kept])

            keeper.submit(keep)
        expected = rf"entry [0-9-]+ of {keys.stream} " + {"fails": "fails: ", "pending": "is pend.* 'other'"}[why]
        with pytest.raises(StreamError, match=rf"cannot finish the repartition: {expected}.*rebuild --drop"):
            getattr(run, place)(counting_it)
        now = Deployment.load(harness.client)
        assert (now.layout.topic, now.moving) == (1, 2)
        with Producer(harness.url) as producer:
            producer.emit("view", "a")
            producer.flush(10)
        if why == "pending":
            ended.set()
        else:
            harness.client.delete(keys.limit("call", "total"))
        monkeypatch.undo()  # the entry is claimed after a second
        run.catch_up(counting_it)
        run.switch(counting_it)
        harness.layout = Deployment.load(harness.client).layout
        assert harness.totals() == {("call", "a"): 1, ("view", "a"): 2 if why == "pending" else 1}


def closed_for_a_move(harness: Harness) -> Layout:
    """Count five events, begin a repartition to 3 partitions, and close the topic; return the layout of the new one."""
    emit(harness, "a", 5)
    harness.finish()
    deployment = Deployment.create_or_load(harness.client)
    layout = topic.propose(harness.client, deployment, 3)
    Repartition(settings_for(harness.url, PLAIN, 0), harness.client, deployment, layout).begin()
    topic.close(harness.client, deployment, layout, topic.next_closing(harness.client, deployment))
    return layout


@pytest.mark.slow
@pytest.mark.parametrize("place", GIVE_UP_PLACES)
def test_a_killed_giving_up_can_be_repeated(server, tmp_path, place):
    """If `rebuild --drop` is killed while it gives a repartition up, it ends this with the next call.

    The partitions are open again, no hold stays, and no key of the new topic.
    """
    config = tmp_path / "tallystream.toml"
    config.write_text("[metric.view]\n")
    program = Path(sys.executable).parent / "tallystream"
    command = [str(program), "rebuild", "--drop", "--redis", server.url, "--config", str(config)]
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        layout = closed_for_a_move(harness)
        environment = os.environ | {"TALLYSTREAM_FAILPOINT": place}
        assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == -9
        subprocess.run(command, check=True, timeout=60)
        assert not [keys for keys in harness.layout.keys if harness.client.exists(keys.retention_holds)]
        assert not [key for keys in layout.keys for key in harness.client.scan_iter(keys.prefix + "*")]
        assert harness.client.hget(harness.layout.root, "left") is None
        with Producer(harness.url) as producer:
            producer.emit("view", "a")
            producer.flush(10)
        harness.finish()
        assert harness.totals() == {("view", "a"): 6}
        assert verify(harness.client, "tally", Sources()).findings == {}


def test_a_partition_that_was_lost_is_reopened_after_its_repair(server):
    """If a partition lost a key while the repartition was given up, the next `rebuild --drop` reopens it."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        closed_for_a_move(harness)
        keys = harness.layout.keys_of("a")
        harness.client.delete(keys.live)
        with pytest.raises(KeyLost, match=keys.live):
            drop_topics(harness.client, Deployment.load(harness.client))
        assert reopen(harness.client, Deployment.load(harness.client)).mended == [keys.live]
        assert drop_topics(harness.client, Deployment.load(harness.client)) == {}
        with Producer(harness.url) as producer:
            producer.emit("view", "a")
            producer.flush(10)
        harness.finish()
        assert harness.totals() == {("view", "a"): 6}


def test_a_repartition_does_not_trust_what_a_killed_giving_up_has_left(server, tmp_path):
    """If `rebuild --drop` was killed, the next repartition reopens the old topic, and protects all its entries."""
    program = Path(sys.executable).parent / "tallystream"
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        emit(harness, "a", 5)
        harness.finish()
        deployment = Deployment.create_or_load(harness.client)
        layout = topic.propose(harness.client, deployment, 3)
        given_up = Repartition(settings_for(harness.url, PLAIN, 0), harness.client, deployment, layout)
        given_up.begin()
        with CatchUpCounter(settings_for(harness.url, PLAIN, 0), given_up.new, PLAIN) as counting:
            given_up.catch_up(counting)
        topic.close(harness.client, deployment, layout, topic.next_closing(harness.client, deployment))
        killed = subprocess.run(
            [str(program), "rebuild", "--drop", "--redis", server.url],
            env=os.environ | {"TALLYSTREAM_FAILPOINT": "move-given-up"},
            cwd=tmp_path,
            check=False,
            timeout=60,
        )
        assert killed.returncode == -9
        keys = harness.layout.keys_of("a")
        assert harness.client.hget(keys.retention_holds, HOLDER) != b"0-0"
        harness.client.xtrim(keys.stream, maxlen=4, approximate=False)
        with pytest.raises(ConfigurationError, match=r"1 entries are no longer in the streams"):
            moved(harness, 4)
        assert [harness.client.hget(each.sequences, "!closed") for each in harness.layout.keys] == [b"", b""]
        assert [harness.client.hget(each.retention_holds, HOLDER) for each in harness.layout.keys] == [None, None]
        assert Deployment.load(harness.client).moving is None


def test_a_refused_move_leaves_nothing(server):
    """If a repartition is refused because entries are gone, no key, hold or unfinished topic stays."""
    with Harness(server.url, rules=PLAIN, partitions=1) as harness:
        emit(harness, "a", 5)
        harness.finish()
        harness.client.xtrim(harness.layout.keys[0].stream, maxlen=2, approximate=False)
        before = set(harness.client.keys())
        with pytest.raises(ConfigurationError, match="no longer in the streams"):
            moved(harness, 3)
        assert set(harness.client.keys()) == before
        assert Deployment.load(harness.client).moving is None
        assert HOLDER.encode() not in harness.client.hgetall(harness.layout.keys[0].retention_holds)
        assert harness.client.hget(harness.layout.keys[0].sequences, "!closed") in (None, b"")
        emit(harness, "a", 1)
        harness.finish()
        assert harness.totals() == {("view", "a"): 6}


@pytest.mark.parametrize("option", ["--archive", "[archive] url"])
def test_a_move_whose_archive_cannot_be_used_leaves_nothing(server, tmp_path, option):
    """If an archive cannot be read or written before anything is copied, no key, hold or unfinished topic stays."""
    path = tmp_path / "a-file"
    path.write_text("no folder")
    with Harness(server.url, rules=PLAIN, partitions=1) as harness:
        emit(harness, "a", 5)
        harness.finish()
        harness.client.xtrim(harness.layout.keys[0].stream, maxlen=2, approximate=False)
        before = set(harness.client.keys())
        configured, archive = settings_for(harness.url, PLAIN, 0), str(path)
        if option != "--archive":
            configured, archive = replace(configured, archive=ArchiveSettings(url=str(path))), ""
        with pytest.raises(TallyError):
            repartition(configured, Deployment.load(harness.client), 3, archive=archive, accept_loss=not archive)
        assert set(harness.client.keys()) == before
        assert Deployment.load(harness.client).moving is None
        assert HOLDER.encode() not in harness.client.hgetall(harness.layout.keys[0].retention_holds)


def test_a_move_is_given_up_although_a_partition_has_lost_its_keys(server):
    """The lost partition is named at the end: no hold or key of the new topic stays, and the others are reopened."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        emit(harness, "a", 5)
        deployment = Deployment.create_or_load(harness.client)
        layout = topic.propose(harness.client, deployment, 3)
        Repartition(settings_for(harness.url, PLAIN, 0), harness.client, deployment, layout).begin()
        topic.close(harness.client, deployment, layout, topic.next_closing(harness.client, deployment))
        lost, other = harness.layout.keys
        later = layout.keys[0].prefix.encode()
        harness.client.delete(*(key for key in harness.client.scan_iter(f"{lost.prefix}*") if later not in key))
        with pytest.raises(KeyLost, match=lost.sequences):
            topic.give_up(harness.client, Deployment.create_or_load(harness.client))
        assert not [keys for keys in (lost, other) if harness.client.exists(keys.retention_holds)]
        assert not [key for keys in layout.keys for key in harness.client.scan_iter(keys.prefix + "*")]
        assert harness.client.hget(other.sequences, "!closed") == b""
        assert Deployment.create_or_load(harness.client).moving is None


@pytest.mark.parametrize("is_live", [False, True])
def test_a_copy_names_a_lost_partition(server, is_live):
    """If a partition of the live topic, or of the one that is filled, has lost all keys, the copy raises `KeyLost`."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        emit(harness, "a", 5)
        deployment = Deployment.create_or_load(harness.client)
        layout = topic.propose(harness.client, deployment, 1)
        Repartition(settings_for(harness.url, PLAIN, 0), harness.client, deployment, layout).begin()
        if is_live:
            moved(harness, 1)
            emit_to(harness, deployment.layout, "a")
        (keys,) = layout.keys
        harness.client.delete(*harness.client.scan_iter(keys.prefix + "*"))
        with pytest.raises(KeyLost, match=keys.sequences):
            StreamCopier(harness.client, deployment.layout, layout)()
        assert not harness.client.exists(keys.stream)


def emit_to(harness: Harness, layout: Layout, subject: str) -> None:
    """Append a plain view to a topic, also if it is not live."""
    harness.client.xadd(layout.keys_of(subject).stream, {"metric": "view", "subject": subject})


def interrupted(harness: Harness, monkeypatch, meanwhile, *, drained: bool) -> None:
    """Run a repartition to 3 partitions that is paused after it closed the topic, or after it copied everything.

    `meanwhile` is called during the pause; afterwards, the paused run must fail.
    """
    deployment = Deployment.load(harness.client)
    chosen = settings_for(harness.url, PLAIN)
    layout = topic.propose(harness.client, deployment, 3)
    run = Repartition(chosen, harness.client, deployment, layout)
    drain = run._drain

    def pause(counter: CatchUpCounter) -> None:
        if drained:
            drain(counter)
        meanwhile()
        if not drained:
            drain(counter)

    monkeypatch.setattr(run, "_drain", pause)
    run.begin()
    with CatchUpCounter(chosen, run.new, run.rules) as counter:
        run.catch_up(counter)
        with pytest.raises(StreamError):
            run.switch(counter)


def test_a_paused_run_does_not_reopen_what_another_has_closed(server, monkeypatch):
    """If a run is paused while another one completes the repartition, it fails, and the old topic stays closed."""
    with Harness(server.url, partitions=2, rules=PLAIN) as harness, Producer(server.url) as producer:
        producer.emit("view", "a", 3)
        producer.flush()
        harness.drain()
        deployment = Deployment.load(harness.client)
        interrupted(
            harness, monkeypatch, lambda: repartition(settings_for(server.url, PLAIN), deployment, 3), drained=False
        )
        for keys in deployment.layout.keys:
            assert harness.client.hget(keys.sequences, "!closed") == b"2"
            assert harness.client.get(keys.live) == b"1 closed"


@pytest.mark.parametrize("is_checked", [False, True])
def test_a_paused_run_does_not_activate_what_another_has_reopened(server, monkeypatch, is_checked):
    """If a run is paused while another one fails and reopens the topic, it does not make its own topic live.

    With `is_checked`, it is paused after it has checked that the old topic is closed.
    """
    with Harness(server.url, partitions=2, rules=PLAIN) as harness, Producer(server.url) as producer:
        producer.emit("view", "a", 3)
        producer.flush()
        harness.drain()
        deployment = Deployment.load(harness.client)

        def fail() -> None:
            with monkeypatch.context() as patch:
                patch.setattr(Repartition, "_drain", lambda *_: (_ for _ in ()).throw(StreamError("failed")))
                with pytest.raises(StreamError, match="failed"):
                    repartition(settings_for(server.url, PLAIN), deployment, 3)
            producer.emit("view", "a", 4)  # the topic is open
            producer.flush()

        ensure = topic.ensure_closed

        def check_and_fail(*arguments: Any) -> None:
            ensure(*arguments)
            monkeypatch.setattr(topic, "ensure_closed", ensure)
            fail()

        if is_checked:
            monkeypatch.setattr(topic, "ensure_closed", check_and_fail)
        interrupted(harness, monkeypatch, (lambda: None) if is_checked else fail, drained=True)
        harness.drain()
        assert Deployment.load(harness.client).layout == deployment.layout
        assert harness.totals() == {("view", "a"): 7}
        moved(harness, 3)
        harness.drain()
        assert harness.totals() == {("view", "a"): 7}


def test_trimmed_entries_are_moved_from_the_archive(server, tmp_path):
    """A repartition of trimmed streams copies the gone entries from the archive; without one, it is refused."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        for subject in "abcdef":
            emit(harness, subject, 20)
        harness.finish()
        Archive(harness.client, Store(str(tmp_path)), Deployment.create_or_load(harness.client)).run_once(settled=0)
        before = harness.totals(), harness.ledger()
        for keys in harness.layout.keys:
            harness.client.xtrim(keys.stream, maxlen=3, approximate=False)
        with pytest.raises(ConfigurationError, match="no longer in the streams"):
            moved(harness, 3)
        moved(harness, 3, archive=str(tmp_path))
        assert (harness.totals(), harness.ledger()) == before


def test_without_an_archive_a_move_may_accept_the_loss(server):
    """With `accept_loss`, a repartition counts only the entries that are left."""
    with Harness(server.url, rules=PLAIN, partitions=1) as harness:
        emit(harness, "a", 5)
        harness.finish()
        harness.client.xtrim(harness.layout.keys[0].stream, maxlen=2, approximate=False)
        moved(harness, 2, accept_loss=True)
        assert harness.totals() == {("view", "a"): 2}


Counted = Counter[tuple[str, str]]
SUBJECTS = [f"s:{n}" for n in range(12)]


def write(producer: Producer, stop: threading.Event) -> Counted:
    """Emit views until `stop` is set; return their number by counter."""
    mine: Counted = Counter()
    for subject in itertools.cycle(SUBJECTS):
        if stop.wait(0.0005):
            return mine
        producer.emit("view", subject)
        mine["view", subject] += 1
    return mine


def decide_all(producer: Producer, stop: threading.Event) -> Counted:
    """Decide events until `stop` is set; return their number by counter."""
    mine: Counted = Counter()
    while not stop.wait(0.002):
        assert producer.decide("call", "k").accepted
        mine["call", "k"] += 1
    return mine


def append_by_hand(client: redis.Redis, stream: str, stop: threading.Event) -> Counted:
    """Append plain events to a stream of the first topic until `stop` is set; return their number by counter."""
    mine: Counted = Counter()
    while not stop.wait(0.005):
        client.xadd(stream, {"metric": "view", "subject": "s:0"})
        mine["view", "s:0"] += 1
    return mine


def read(totals: Totals, stop: threading.Event) -> dict[str, list[int]]:
    """Read all totals until `stop` is set; return the values read, by subject."""
    seen: dict[str, list[int]] = {subject: [] for subject in SUBJECTS}
    while not stop.is_set():
        for (subject, _), value in totals.get_many((s, "view") for s in SUBJECTS).values.items():
            seen[subject].append(value)
    return seen


def test_nobody_sees_a_total_fall_while_everything_is_moved(server, tmp_path):
    """During a repartition with several writers, no total falls, each event counts once, and the worker follows."""
    rules = Rules({"view": Metric(ids=None, windows=("hour",)), "call": Metric(limit=10**6, per="total")})
    configured = settings_for(server.url, rules, 0)
    logger = structlog.wrap_logger(None, processors=[LogCapture()])
    stop = threading.Event()
    with (
        Harness(server.url, rules=rules, partitions=3) as harness,
        counting(configured, logger) as pool,
        Producer(server.url) as plain,
        Producer(server.url, spool=tmp_path, entry_events=20) as spooled,
        Totals(server.url) as totals,
    ):
        stream = harness.layout.keys_of("s:0").stream
        with ThreadPoolExecutor(5) as threads:
            writing = [
                threads.submit(write, plain, stop),
                threads.submit(write, spooled, stop),
                threads.submit(decide_all, plain, stop),
                threads.submit(append_by_hand, harness.connect(), stream, stop),
            ]
            reading = threads.submit(read, totals, stop)
            try:
                until(lambda: totals.get("s:0", "view").value > 20, what="the beginning")
                repartition(configured, Deployment.create_or_load(harness.client), 7)
                until(lambda: pool.layout.partitions == 7, what="the worker to follow")
                before = totals.get("s:1", "view").value
                until(lambda: totals.get("s:1", "view").value > before + 20, what="the counting to continue")
            finally:
                stop.set()
            counts = sum((each.result() for each in writing), Counter())
            for values in reading.result().values():
                assert values == sorted(values)
        for producer in (plain, spooled):
            producer.flush(20, wait="counted")
        harness.layout = Deployment.create_or_load(harness.client).layout
        until(lambda: harness.totals() == dict(counts), what="the counts")
        assert audit(harness.client, Deployment.create_or_load(harness.client), rules).differences == []
        assert totals.run(query_ledger(totals.deployment.layout)).unaccounted == 0


def test_two_who_copy_the_same_copy_it_once(server):
    """If two processes copy the same page, the second copy is refused, and each event is copied once."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        for subject in "abcdef":
            emit(harness, subject, 3)
        deployment = Deployment.create_or_load(harness.client)
        new = topic.begin(harness.client, deployment, topic.propose(harness.client, deployment, 3), harness.rules)
        first, second = (StreamCopier(harness.client, deployment.layout, new.layout) for _ in range(2))
        second.look()
        assert first() == 18
        with pytest.raises(CopiedElsewhere):
            second()
        second.look()
        assert second() == 0
        harness.layout = new.layout
        with CatchUpCounter(settings_for(harness.url, PLAIN, 0), new, PLAIN) as counting_it:
            counting_it()
        assert harness.totals() == {("view", subject): 3 for subject in "abcdef"}


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("place", MOVE_PLACES)
def test_a_killed_move_goes_on_where_it_was(server, tmp_path, place, nth):
    """If a repartition is killed at any step, no total falls, producers append, and a second run completes it."""
    config = tmp_path / "tallystream.toml"
    config.write_text('[metric.view]\nids = "day"\n[metric.call]\nlimit = 5\nper = "total"\n')
    program = Path(sys.executable).parent / "tallystream"
    command = [str(program), "rebuild", "--partitions", "5", "--redis", server.url, "--config", str(config)]
    rules = Rules({"view": Metric(), "call": Metric(limit=5, per="total")})
    with Harness(server.url, rules=rules, partitions=2) as harness, ExitStack() as stack:
        producer = stack.enter_context(Producer(server.url, spool=tmp_path / "spool", entry_events=3))
        for number in range(600):
            emit(harness, f"s{number % 9}", 1)
        for _ in range(3):
            producer.decide("call", "k")
        if place == "move-copying":  # reached only once in several thousand entries
            with harness.client.pipeline(transaction=False) as pipeline:
                for number in range(9000):
                    subject = f"s{number % 9}"
                    pipeline.xadd(harness.layout.keys_of(subject).stream, {"metric": "view", "subject": subject})
                pipeline.execute()
        harness.finish()
        before = harness.totals()
        killed = subprocess.run(
            command, env=os.environ | {"TALLYSTREAM_FAILPOINT": f"{place}:{nth}"}, check=False, timeout=60
        )
        if nth == 2 and killed.returncode == 0:
            return  # this failpoint is reached only once
        assert killed.returncode == -9
        for number in range(30):
            producer.emit("view", f"s{number % 9}")
        with Totals(server.url) as reader:
            for (metric, subject), value in before.items():
                assert reader.get(subject, metric).value >= value
        subprocess.run(command, check=True, timeout=60)
        producer.flush(20)
        deployment = Deployment.create_or_load(harness.client)
        harness.layout = deployment.layout
        harness.finish()
        added = Counter(("view", f"s{number % 9}") for number in range(30))
        assert harness.totals() == dict(Counter(before) + added)
        assert (deployment.layout.partitions, deployment.kept, deployment.moving) == (5, 1, None)
        assert audit(harness.client, deployment, rules).differences == []
        with Totals(server.url) as reader:
            assert reader.run(query_ledger(deployment.layout)).unaccounted == 0


@pytest.mark.parametrize("format_", ["ndjson", "combined", "parquet"])
def test_a_file_that_is_half_ingested_is_ingested_to_its_end_after_the_move(server, tmp_path, format_):
    """Each line of a file counts once, even if the partitions were at different offsets before the repartition."""
    file = tmp_path / "file"
    subjects = [f"article:{n % 7}" for n in range(200)]
    if format_ == "parquet":
        pq.write_table(pa.table({"subject": subjects, "at": [1e9 + n for n in range(200)]}), file)
    elif format_ == "ndjson":
        file.write_text("".join(f'{{"metric": "view", "subject": "{s}", "at": 1e9}}\n' for s in subjects))
    else:
        line = '1.2.3.4 - - [10/Oct/2024:13:55:36 +0000] "GET /{} HTTP/1.1" 200 1 "-" "x"\n'
        file.write_text("".join(line.format(s) for s in subjects))
    (job,) = jobs_of(str(file), format_, Mapping(metric="view"))
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        full = harness.layout.keys[1].sequences
        harness.client.hset(full, "!limit", 0)
        store = RedisSettings(url=server.url)
        run(job, store, lambda progress: progress.waiting_for is None)  # only the other partition takes its part
        harness.client.hdel(full, "!limit")
        first = harness.client.xlen(harness.layout.keys[0].stream)
        assert (first > 0, harness.client.xlen(harness.layout.keys[1].stream)) == (True, 0)
        moved(harness, 3)
        assert run(job, store).known > 0
        topic.drop(harness.client, Deployment.create_or_load(harness.client))
        assert run(job, store).events == 0
        harness.finish()
        assert sum(harness.totals().values()) == 200


def test_a_snapshot_and_an_archive_go_with_the_log(server, tmp_path):
    """After a repartition, a complete snapshot goes to the same database, and with the new archive it restores all."""
    database = Database(str(tmp_path / "snapshot.sqlite"))
    configured = replace(settings_for(server.url, PLAIN, 0), archive=ArchiveSettings(url=str(tmp_path / "archive")))
    with Harness(server.url, rules=PLAIN, partitions=4) as harness:
        for subject in "abcdefgh":
            emit(harness, subject, 3)
        harness.finish()
        Archive(harness.client, Store(configured.archive.url), Deployment.create_or_load(harness.client)).run_once(
            settled=0
        )
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        for keys in harness.layout.keys:
            harness.client.xtrim(keys.stream, maxlen=0, approximate=False)
        repartition(configured, Deployment.create_or_load(harness.client), 3, archive=configured.archive.url)
        deployment = Deployment.create_or_load(harness.client)
        harness.layout = deployment.layout
        assert Snapshotter(harness.client, database, deployment).run_once().whole == 3
        assert Snapshotter(harness.client, database, deployment).run_once().whole == 0
        assert drill(harness.client, database, deployment).differing == 0
        emit(harness, "a", 5)
        harness.drain()
        store = Store(configured.archive.url, log=2)
        Archive(harness.client, store, deployment).run_once(settled=0)
        expected = harness.totals(), harness.ledger()
        harness.client.flushall()
        restore(harness.client, database, lambda partition, after, before: entries(store, partition, after, before))
        after = Deployment.create_or_load(harness.client)
        assert (after.layout, after.earlier, after.epoch) == (deployment.layout, {1: 4}, deployment.epoch)
        assert harness.totals() == expected[0]
        with Producer(server.url) as producer:
            producer.emit("view", "a")
        harness.drain()
        with Totals(server.url) as totals:
            assert totals.get("a", "view").value == 9
    database.close()


def test_what_fires_goes_on_firing_after_a_move(server):
    """An alert that fired before a repartition does not fire again after it, and still resolves."""
    alert = Alert("hot", "like", above=10, clear=5)
    with Harness(server.url, rules=Rules({"like": Metric(ids=None)}, alert=(alert,)), partitions=2) as harness:
        for subject in ("a", "b", "c"):
            assert count(harness, ("like", subject, 11)) == [("hot", subject, "firing", "11")]
        moved(harness, 5)
        assert count(harness, *(("like", subject, 1) for subject in ("a", "b", "c"))) == []
        assert count(harness, ("like", "b", -10)) == [("hot", "b", "resolved", "2")]


@pytest.mark.parametrize("days", [-5, 5])
def test_the_clock_of_the_host_decides_nothing_in_a_move(server, monkeypatch, days):
    """A repartition on a host whose clock is wrong keeps the alerts of the present bucket."""
    alert = Alert("busy", "like", window="day", above=10)
    rules = Rules({"like": Metric(ids=None, windows=("day",))}, alert=(alert,))
    with Harness(server.url, rules=rules, partitions=2) as harness:
        assert count(harness, ("like", "a", 11)) == [("busy", "a", "firing", "11")]
        now = time.time()
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now + days * 86_400)
            moved(harness, 3)
        assert count(harness, ("like", "a", 1)) == []


def test_an_ingest_waits_across_a_move(server):
    """After a repartition to fewer partitions, `ingest --wait` does not wait for entries of the earlier topic."""
    with Harness(server.url, rules=PLAIN, partitions=4) as harness:
        earlier = harness.layout.topic
        emit(harness, "a", 1)
        harness.drain()
        moved(harness, 1)
        last = f"{2**42}-0"  # no entry has this ID, so waiting for it would not end
        _wait_until_counted(RedisSettings(url=server.url), {(earlier, 3): last}, threading.Event())


def test_an_ingest_is_checked_across_a_move(server, tmp_path):
    """A file whose topic is removed after a repartition is not lost; if the new topic lacks its offsets, it is."""
    path = tmp_path / "events.ndjson"
    path.write_text("".join(f'{{"metric": "view", "subject": "a:{n}"}}\n' for n in range(50)))
    with Harness(server.url, rules=PLAIN, partitions=4) as harness:
        parts = jobs_of(str(path), "ndjson", Mapping())
        runs = [IngestRun(parts, RedisSettings(url=server.url), 1, threading.Event(), lambda _: True) for _ in range(2)]
        runs[0].run()
        before = copy_of(harness.client)
        moved(harness, 3)
        topic.drop(harness.client, Deployment.create_or_load(harness.client))
        runs[1].run()
        assert [run.run_lost() for run in runs] == [False, False]
        sources = harness.client.hkeys(harness.layout.keys[0].sequences)
        harness.client.hdel(harness.layout.keys[0].sequences, *[name for name in sources if name.startswith(b"file:")])
        assert [run.lost() for run in runs] == [[0], [0]]
        go_back(harness.client, before)
        assert [run.lost() for run in runs] == [[], []]
        assert [run.total.known for run in runs] == [0, 50]


def test_what_is_not_spread_any_more_goes_home(server):
    """Turning `spread` off copies the events into the partitions of their subjects; every total stays the same."""
    spread = Rules({"view": Metric(ids=None, spread=True), "like": Metric(ids=None)})
    plain = Rules({"view": Metric(ids=None), "like": Metric(ids=None)})
    with Harness(server.url, rules=spread, partitions=3) as harness:
        harness.client.hset(harness.layout.meta, mapping=spread_fields(spread.spread))
        for keys in harness.layout.keys:
            for subject in "abc":
                harness.client.xadd(keys.stream, {"metric": "view", "subject": subject})
        harness.client.xadd(harness.layout.keys_of("d").stream, {"metric": "like", "subject": "d"})
        harness.finish()
        with pytest.raises(ConfigurationError, match="tallystream rebuild"):
            open_deployment(settings_for(harness.url, plain, 0))
        deployment = Deployment.create_or_load(harness.client)
        to_partitions(settings_for(harness.url, plain, 0), deployment, 3, "", accept_loss=False, json=True)
        harness.layout = Deployment.create_or_load(harness.client).layout
        open_deployment(settings_for(harness.url, plain, 0))
        assert Deployment.create_or_load(harness.client).spread == frozenset()
        assert harness.totals() == {**{("view", subject): 3 for subject in "abc"}, ("like", "d"): 1}
        for subject in "abc":
            assert harness.client.get(harness.layout.keys_of(subject).total("view", subject)) == b"3"


def test_a_spread_metric_stays_spread_in_other_partitions(server):
    """Events of a spread metric count in any partition, before a repartition and after it."""
    spread = Rules({"view": Metric(ids=None, spread=True)})
    with Harness(server.url, rules=spread, partitions=3) as harness, Totals(server.url) as totals:
        harness.client.hset(harness.layout.meta, mapping=spread_fields(spread.spread))
        for _ in range(2):
            for keys in harness.layout.keys:
                harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
            harness.finish()
            moved(harness, harness.layout.partitions + 1)
            topic.drop(harness.client, Deployment.create_or_load(harness.client))
        assert Deployment.create_or_load(harness.client).spread == {"view"}
        until(lambda: totals.get("a", "view").value == 7, what="the reader to follow")
