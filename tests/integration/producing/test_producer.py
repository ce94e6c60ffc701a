"""The producer: `emit` does not wait for the server, and every emitted event is counted once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import subprocess
import sys
import threading
import time

import pytest
import structlog

from tallystream import (
    BufferFull,
    ConfigurationError,
    EventError,
    FlushTimeout,
    Producer,
    StreamFull,
    TallyError,
    aio,
)
from tallystream.deployment import Deployment
from tallystream.producing import validation
from tallystream.producing.appender import _APPEND
from tallystream.producing.sender import Sender
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.deployment_hash import RESTORING
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.proxy import Proxy
from tests.rewind import copy_of, go_back
from tests.waiting import until

NOWHERE = "unix:///nonexistent/server.sock"


@pytest.fixture
def harness(server):
    """A test harness on an empty server."""
    with Harness(server.url) as harness:
        yield harness


@contextlib.contextmanager
def without_a_server(**settings):
    """Yield a producer whose server does not exist."""
    producer = Producer(NOWHERE, **settings)
    try:
        yield producer
    finally:
        with contextlib.suppress(TallyError):
            producer.close(timeout=0)


def test_an_emptied_server_keeps_its_number_of_partitions(server, monkeypatch):
    """A producer that looks at a server between FLUSHALL and a restore continues, with the partitions that it knows."""
    monkeypatch.setattr(validation, "_RULES_AGE", 0.0)
    with Harness(server.url, partitions=1) as harness, Producer(server.url) as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        stored = {key: harness.client.dump(key) for key in harness.client.scan_iter("*")}
        harness.client.flushall()
        producer.emit("view", "article:1")
        producer.flush(10)
        assert Deployment.find(harness.client).layout.partitions == 1
        harness.client.flushall()
        for key, value in stored.items():
            harness.client.restore(key, 0, value)
        producer.emit("view", "article:1")
        producer.flush(10)


def test_what_is_emitted_is_counted(harness):
    """Emitted events with and without amount, actor, time and id are counted, and the totals are their sums."""
    with Producer(harness.url) as producer:
        for number in range(3000):
            producer.emit("view", f"article:{number % 7}")
        producer.emit("like", "article:1", -3)
        producer.emit("vote", "article:1", 1, actor="u1", at=12.5, id="i1")
        producer.emit("view", "e\u0301")
    harness.drain()
    totals = harness.totals()
    assert sum(total for (metric, _), total in totals.items() if metric == "view") == 3001
    assert totals["like", "article:1"] == -3
    assert totals["vote", "article:1"] == 1
    assert totals["view", "\u00e9"] == 1
    assert harness.dead() == []
    assert harness.ledger()["appended"] == harness.ledger()["counted"] == 3003


def test_a_flush_waits_for_the_stream(harness):
    """After `flush` every event emitted before it is in the stream, in `stats` and in the ledger."""
    with Producer(harness.url, linger=60) as producer:
        for number in range(2500):
            producer.emit("view", f"article:{number}")
        producer.flush(10)
        stats = producer.stats
        assert (stats.emitted, stats.appended, stats.buffered, stats.dropped) == (2500, 2500, 0, 0)
        assert harness.ledger()["appended"] == 2500
        producer.flush(10)  # nothing to do


def test_events_are_sent_without_a_flush(harness):
    """An event is appended without a flush, and without further events."""
    with Producer(harness.url) as producer:
        producer.emit("view", "article:1")
        until(lambda: producer.stats.appended == 1, what="the event's arrival")
        producer.emit("view", "article:1")
        until(lambda: producer.stats.appended == 2, what="the second event's arrival")


def test_a_flush_can_wait_for_the_totals(harness):
    """After `flush(wait="counted")` the totals include every event emitted before it."""
    settings = Settings(redis=RedisSettings(url=harness.url))
    with counting(settings, structlog.get_logger()), Producer(harness.url) as producer, Totals(harness.url) as totals:
        for round_ in range(1, 6):
            for subject in ("article:1", "article:2", "article:3"):
                producer.emit("view", subject)
            producer.flush(10, wait="counted")
            assert totals.get_many([("article:1", "view"), ("article:3", "view")]).values == {
                ("article:1", "view"): round_,
                ("article:3", "view"): round_,
            }


def test_a_flush_without_a_worker_times_out(harness):
    """Without a worker, `flush(wait="counted")` raises `FlushTimeout` in time; the events are in the stream."""
    with Producer(harness.url) as producer:
        producer.emit("view", "article:1")
        with pytest.raises(FlushTimeout, match="counted"):
            producer.flush(0.2, wait="counted")
        assert producer.stats.appended == 1


@pytest.mark.parametrize("name", ["ledger", "sequences", "live"])
def test_a_flush_that_times_out_names_a_lost_key(harness, name):
    """If a partition has lost a key, the error of a flush that waits for its events names the key."""
    with Producer(harness.url) as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        harness.drain()
        producer.emit("view", "article:1")
        producer.flush(10)
        key = getattr(harness.layout.keys_of("article:1"), name)
        value = harness.client.dump(key)
        harness.client.delete(key)
        with pytest.raises(FlushTimeout, match="not counted yet.*" + re.escape(f"{key} was deleted or evicted")):
            producer.flush(0.2, wait="counted")
        if name != "live":  # an append does not need it
            producer.emit("view", "article:1")
            with pytest.raises(FlushTimeout, match="not appended yet.*" + re.escape(f"{key} was deleted or evicted")):
                producer.flush(1)
        harness.client.restore(key, 0, value, replace=True)


def test_closing_delivers_and_ends(harness):
    """`close` delivers the buffered events; afterwards `emit` raises, and a second `close` does nothing."""
    producer = Producer(harness.url, linger=60)
    producer.emit("view", "article:1")
    producer.close()
    assert harness.ledger()["appended"] == 1
    producer.close()
    with pytest.raises(TallyError, match="closed"):
        producer.emit("view", "article:1")
    assert producer.stats.emitted == 1


def test_a_closed_producer_decides_nothing(harness):
    """After `close`, `decide` raises an error, and counts nothing."""
    with Producer(harness.url) as producer:
        assert producer.decide("view", "a").accepted
    with pytest.raises(TallyError, match="closed"):
        producer.decide("view", "a")
    harness.drain()
    assert harness.totals() == {("view", "a"): 1}


def test_a_flush_of_a_closed_producer_ends(harness):
    """If `close` has left events unsent, `flush` without a limit raises an error instead of waiting without limit."""
    with Proxy(harness.url) as proxy:
        producer = Producer(proxy.url)
        producer.emit("view", "a")
        producer.flush(10)
        proxy.freeze()
        producer.emit("view", "a")
        with pytest.raises(FlushTimeout):
            producer.close(0.1)
        with pytest.raises(FlushTimeout, match="closed before all events were appended: 1 are missing"):
            producer.flush()


def test_a_thread_that_cannot_start_is_started_later(harness, monkeypatch, caplog):
    """If the system refuses a thread, `emit` keeps the event, and the problem is logged once; the next call sends all.

    `emit` raises no error, so its caller does not emit an event again that is in the buffer.
    """
    with caplog.at_level(logging.INFO, "tallystream"), Producer(harness.url, linger=0) as producer:
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse_thread)
            producer.emit("view", "a")
            producer.emit("view", "a")
            for timeout in (None, 0.1):
                with pytest.raises(FlushTimeout, match=r"2 events are not appended yet: .* can't start new thread"):
                    producer.flush(timeout)
            assert producer.stats.buffered == 2
        producer.emit("view", "a")
        until(lambda: harness.ledger().get("appended") == 3, what="all events in the stream")
    assert [line.split()[0] for line in caplog.messages] == ["sending.paused", "sending.resumed"]


@pytest.mark.parametrize("how", ["flush", "raise", "drop", "block"])
def test_a_thread_that_could_not_start_is_started_by_each_call(harness, monkeypatch, how):
    """Also a flush starts it, and an event for which there is no room."""
    when_full = "block" if how == "flush" else how
    full = {"buffer_events": 1, "entry_events": 1, "when_full": when_full, "block_timeout": 0.01}
    with Producer(harness.url, linger=0, **full) as producer:
        with monkeypatch.context() as busy:
            busy.setattr(threading.Thread, "start", refuse_thread)
            producer.emit("view", "a")
        if how == "flush":
            producer.flush(10)
        elif how == "drop":
            producer.emit("view", "b")
        else:
            with pytest.raises(BufferFull):
                producer.emit("view", "b")
        until(lambda: harness.ledger().get("appended") == 1, what="the event in the stream")


def test_a_producer_whose_thread_cannot_start_states_so_when_it_is_closed(harness, monkeypatch):
    """`close` raises the reason why events are lost, and a refused metric stays a refused metric."""
    monkeypatch.setattr(threading.Thread, "start", refuse_thread)
    producer = Producer(harness.url)
    producer.emit("view", "a")
    with pytest.raises(FlushTimeout, match=r"1 events are not appended yet: .* can't start new thread"):
        producer.close()


def refuse_thread(_: threading.Thread) -> None:
    """Raise the error of a system that has no more threads."""
    raise RuntimeError("can't start new thread")


def test_a_refused_event_is_not_taken(harness):
    """`emit` rejects an invalid event with an error that names its field, and does not buffer it."""
    with Producer(harness.url) as producer:
        for wrong in (
            {"metric": "a b"},
            {"subject": ""},
            {"amount": True},
            {"amount": 2**53},
            {"amount": 1.0},
            {"actor": "\x1b"},
            {"at": time.time() + 7200},
            {"at": 10**400},
            {"id": ""},
        ):
            (field,) = wrong
            with pytest.raises(EventError) as refused:
                producer.emit(**({"metric": "view", "subject": "a"} | wrong))
            assert refused.value.field == field
        assert producer.stats.emitted == 0


def test_an_undeclared_metric_is_refused(harness):
    """When the rules have been read, `emit` rejects an undeclared metric, and accepts it once it is declared."""
    with Producer(harness.url) as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        with pytest.raises(EventError, match="veiw is not declared; declared are like, view, vote"):
            producer.emit("veiw", "article:1")
        assert producer.stats.emitted == 1
        with Harness(harness.url, metrics=["view", "veiw"]):

            def accepted() -> bool:
                try:
                    producer.emit("veiw", "article:1")
                except EventError:
                    return False
                return True

            until(accepted, what="the declaration's arrival at the producer")


def test_an_undeclared_metric_that_was_accepted_is_logged(harness, caplog):
    """A new producer accepts any metric until it has read the rules; then it logs each undeclared one once."""
    with Producer(harness.url) as producer:
        for _ in range(3):
            producer.emit("veiw", "article:1")
            producer.emit("lkie", "article:1")
            producer.emit("like", "article:1")
        producer.flush(10)
        until(lambda: len(undeclared(caplog)) == 2, what="the lines of the log")
        with pytest.raises(EventError, match="lkie is not declared"):
            producer.emit("lkie", "article:1")
        producer.emit("like", "article:1")
        producer.flush(10)
    assert [line.split()[1] for line in undeclared(caplog)] == ["metric=lkie:", "metric=veiw:"]
    harness.drain()
    assert harness.totals() == {("like", "article:1"): 4}
    assert harness.client.xlen(harness.layout.keys_of("article:1").dead) == 2


def undeclared(caplog) -> list[str]:
    """Return the lines of the log that name an undeclared metric."""
    return [line for line in caplog.messages if line.startswith("metric.undeclared")]


def test_raising_when_full():
    """With `when_full="raise"` a full buffer raises `BufferFull` at once, and each refused event counts as dropped."""
    with without_a_server(when_full="raise", buffer_events=10, entry_events=10) as producer:
        for _ in range(10):
            producer.emit("view", "article:1")
        for _ in range(3):
            with pytest.raises(BufferFull, match=r"10 events .* the limits are 10 and .*unreachable"):
                producer.emit("view", "article:1")
        stats = producer.stats
        assert (stats.emitted, stats.buffered, stats.appended, stats.dropped) == (10, 10, 0, 3)


def test_dropping_when_full():
    """With `when_full="drop"` events that find a full buffer are dropped without an error, and counted."""
    with without_a_server(when_full="drop", buffer_events=10, entry_events=10) as producer:
        for _ in range(25):
            producer.emit("view", "article:1")
        assert (producer.stats.emitted, producer.stats.dropped) == (10, 15)


def test_a_buffer_is_bounded_in_bytes():
    """The buffer is full when `buffer_bytes` is reached, even with few events."""
    with without_a_server(when_full="drop", buffer_bytes=10_000, entry_bytes=5_000) as producer:
        for number in range(100):
            producer.emit("view", f"{number:0>1000}")
        assert 5 <= producer.stats.emitted <= 12
        assert producer.stats.emitted + producer.stats.dropped == 100


def test_blocking_when_full_gives_up_in_time():
    """With `when_full="block"` `emit` waits `block_timeout` seconds, then raises `BufferFull` and counts the drop."""
    with without_a_server(when_full="block", block_timeout=0.1, buffer_events=1, entry_events=1) as producer:
        producer.emit("view", "article:1")
        began = time.monotonic()
        with pytest.raises(BufferFull):
            producer.emit("view", "article:1")
        assert 0.1 <= time.monotonic() - began < 5
        assert producer.stats.dropped == 1


def test_blocking_when_full_loses_nothing(harness):
    """With `when_full="block"` and a small buffer, `emit` waits for room and every event is counted."""
    with Producer(harness.url, buffer_events=50, entry_events=10, linger=0.001) as producer:
        for _ in range(1000):
            producer.emit("view", "article:1")
        producer.flush(10)
        assert (producer.stats.appended, producer.stats.dropped) == (1000, 0)
    harness.drain()
    assert harness.totals() == {("view", "article:1"): 1000}


def test_events_emitted_before_the_server_is_up(fresh_server):
    """Events that are emitted while the server is down are delivered when it is up."""
    server = fresh_server()
    url = server.url
    server.kill()
    with Producer(url) as producer:
        for number in range(1500):
            producer.emit("view", f"article:{number}")
        with pytest.raises(FlushTimeout, match="1,500 events are not appended yet"):
            producer.flush(0.1)
        server.start()
        producer.flush(20)
        assert producer.stats.appended == 1500
    with Harness(url) as harness:
        harness.drain()
        assert len(harness.totals()) == harness.ledger()["counted"] == 1500


def test_a_server_that_crashes_and_comes_back(fresh_server):
    """With `appendfsync always`, every event is counted once, even if the server is killed between them."""
    server = fresh_server(extra=["--appendfsync", "always"])
    with Producer(server.url) as producer:
        for round_ in range(3):
            for number in range(500):
                producer.emit("view", f"article:{number}")
            if round_ < 2:
                server.kill()
                producer.emit("like", "article:1")
                server.start()
            producer.flush(20)
        assert producer.stats.rewound_streams == 0
    with Harness(server.url) as harness:
        harness.drain()
        assert harness.ledger()["counted"] == 1502
        assert harness.totals()["view", "article:1"] == 3


@pytest.mark.parametrize("cut", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_lost_reply_appends_once(harness, cut):
    """If the reply to an append is lost, or never arrives, the entry is sent again and counted once."""
    with Proxy(harness.url) as proxy, Producer(proxy.url) as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        proxy.lose_reply_to(_APPEND.sha.encode(), cut=cut)
        for _ in range(100):
            producer.emit("view", "article:1")
        producer.flush(20)
        assert proxy.lost.is_set()
        assert (producer.stats.appended, producer.stats.resent_entries) == (101, 1)
    harness.drain()
    assert harness.totals() == {("view", "article:1"): 101}


def test_a_connection_that_is_cut_again_and_again(harness):
    """If the connection is cut again and again, every event is still counted once."""
    with Proxy(harness.url) as proxy, Producer(proxy.url, linger=0.001) as producer:
        for number in range(5000):
            producer.emit("view", f"article:{number % 5}")
            if number % 500 == 0:
                proxy.cut()
        producer.flush(20)
    harness.drain()
    assert harness.totals() == {("view", f"article:{n}"): 1000 for n in range(5)}


def test_a_bug_does_not_end_the_sending(harness, monkeypatch, caplog):
    """A bug in a pass of the sender is logged once with its traceback, and the pass is tried again."""
    passes, step = iter(range(1_000_000)), Sender._pass

    def failing(self):
        if next(passes) < 3:
            raise ZeroDivisionError("a bug")
        return step(self)

    monkeypatch.setattr(Sender, "_pass", failing)
    with Producer(harness.url) as producer:
        producer.emit("view", "article:1")
        producer.flush(20)
    harness.drain()
    assert harness.totals() == {("view", "article:1"): 1}
    problems = [record for record in caplog.records if "ZeroDivisionError: a bug" in record.getMessage()]
    assert [record.exc_info[0] for record in problems] == [ZeroDivisionError]


def test_threads_share_a_producer(harness):
    """Events that eight threads emit through one producer are each counted once."""
    with Producer(harness.url) as producer:

        def work(number: int) -> None:
            for i in range(2000):
                producer.emit("view", f"article:{i % 10}")
                if i % 500 == 0:
                    producer.flush(10)
            producer.emit("like", f"thread:{number}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    harness.drain()
    assert harness.totals() == {("view", f"article:{n}"): 1600 for n in range(10)} | {
        ("like", f"thread:{n}"): 1 for n in range(8)
    }


FORKING = """
import os, sys
from tallystream import Producer

producer = Producer(sys.argv[1], linger=3600)
if sys.argv[2] == "running":
    producer.emit("view", "warm-up")
    producer.flush(10)
for _ in range(10):
    producer.emit("view", "parent")
child = os.fork()
if child == 0:
    for _ in range(5):
        producer.emit("view", "child")
    producer.flush(10)
    assert producer.stats.emitted == 5
    os._exit(0)
_, status = os.waitpid(child, 0)
producer.emit("view", "parent")
producer.flush(10)
producer.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""

LEAVING = """
import sys
from tallystream import Producer

producer = Producer(sys.argv[1], linger=3600)
for _ in range(10):
    producer.emit("view", "article:1")
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a new process, and return its result."""
    # Python 3.12 warns about a fork in a process with threads, which is tested here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("state", ["idle", "running"])
def test_a_fork_does_not_double(harness, state):
    """After a fork, the child sends only its own events, and the parent sends its buffered events once."""
    done = run(FORKING, harness.url, state)
    assert (done.returncode, done.stderr) == (0, "")
    harness.drain()
    totals = harness.totals()
    totals.pop(("view", "warm-up"), None)
    assert totals == {("view", "parent"): 11, ("view", "child"): 5}


def test_leaving_without_a_close(harness):
    """A program that exits without closing its producer delivers the buffered events."""
    done = run(LEAVING, harness.url)
    assert (done.returncode, done.stderr) == (0, "")
    harness.drain()
    assert harness.totals() == {("view", "article:1"): 10}


@pytest.mark.slow  # the producer tries for five seconds
def test_leaving_without_a_server():
    """A program that exits with undelivered events writes their number to standard error, in one line."""
    done = run(LEAVING, NOWHERE)
    assert done.returncode == 0
    assert done.stderr.startswith("tallystream: the flush timed out: 10 events are not appended yet. Error 2 ")
    assert done.stderr.count("\n") == 1


def test_another_number_of_partitions(harness):
    """A producer with a wrong number of partitions raises `ConfigurationError` at `flush`, `emit` and `close`."""
    producer = Producer(harness.url, partitions=8)
    producer.emit("view", "article:1")
    for attempt in (producer.flush, lambda: producer.emit("view", "article:1"), producer.close):
        with pytest.raises(ConfigurationError, match=r"partitions is set to 8, but tally:meta was created with 4"):
            attempt()
    assert harness.ledger() == {}


def test_a_user_without_rights(harness):
    """A producer whose user lacks permissions raises `ConfigurationError` instead of retrying without end."""
    if harness.url.startswith("unix://"):
        url = harness.url.replace("unix://", "unix://nobody:secret@")
    else:
        url = harness.url.replace("redis://", "redis://nobody:secret@")
    harness.client.execute_command("ACL", "SETUSER", "nobody", "on", ">secret", "~*", "+ping", "+hello")
    try:
        producer = Producer(url)
        producer.emit("view", "article:1")
        with pytest.raises(ConfigurationError, match="Redis refuses this producer"):
            producer.flush(10)
        with pytest.raises(ConfigurationError):
            producer.close()
    finally:
        harness.client.execute_command("ACL", "DELUSER", "nobody")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"when_full": "wait"}, "when_full must be block, raise or drop, not 'wait'"),
        ({"linger": -1}, "linger must be 0 to 3,600 seconds, not -1"),
        ({"linger": float("nan")}, "linger must be"),
        ({"block_timeout": 3601}, "block_timeout must be"),
        ({"entry_events": 0}, "entry_events must be 1 to 1,000,000, not 0"),
        ({"entry_events": 2**20}, "entry_events must be 1 to 1,000,000"),
        ({"entry_bytes": 0}, "entry_bytes must be 1 to 1,048,576"),
        ({"buffer_events": 10}, "the buffer must hold at least one entry"),
        ({"url": "http://example.org"}, "Redis URL"),
    ],
)
def test_a_setting_that_cannot_be(settings, message):
    """The constructor rejects an invalid setting, and the error states the allowed values."""
    with pytest.raises(ConfigurationError, match=message):
        Producer(**settings)


def test_a_password_is_not_repeated():
    """The error for an invalid URL does not contain its password."""
    with pytest.raises(ConfigurationError) as refused:
        Producer("http://user:secret@example.org")
    assert "secret" not in str(refused.value)


def test_a_full_stream_is_said_and_nothing_is_lost(harness):
    """A stream at its limit refuses events and decisions; buffered events are counted when the limit is removed."""
    for keys in harness.layout.keys:
        harness.client.hset(keys.sequences, "!limit", 1)
    with Producer(harness.url, entry_events=1) as producer:
        for _ in range(3):
            producer.emit("view", "article:1")
        until(lambda: producer.stats.backlogged, what="the reply that the stream is full")
        with pytest.raises(StreamFull, match="has reached its limit of 1 entries"):
            producer.decide("view", "article:1")
        assert (producer.stats.appended, producer.stats.buffered) == (1, 2)
        for keys in harness.layout.keys:
            harness.client.hdel(keys.sequences, "!limit")
        producer.flush(10)
    harness.drain()
    assert harness.totals() == {("view", "article:1"): 3}


def test_a_lost_end_of_the_log_is_logged(harness, caplog):
    """The warning of a producer whose entries the server has lost has the IDs between which they are."""
    stream = harness.layout.keys_of("a").stream
    with Producer(harness.url) as producer:
        producer.emit("view", "a")
        producer.flush()
        earlier = copy_of(harness.client)
        producer.emit("view", "a")
        producer.flush()
        kept, lost = (id_.decode() for id_, _ in harness.client.xrange(stream))
        go_back(harness.client, earlier)
        producer.emit("view", "a")
        until(lambda: producer.stats.rewound_streams, what="the rollback of the producer")
        producer.flush()
    assert f"stream.rolled_back stream={stream} after={kept} until={lost} resent=1 lost=0" in caplog.text
    assert harness.client.xlen(stream) == 3


def test_a_long_lost_end_of_the_log_is_sent_again_without_pauses(harness):
    """A producer sends 2,000 lost entries of one stream again within 30 s: each burst that arrives is progress."""
    with Producer(harness.url, entry_events=1) as producer:
        producer.emit("view", "a")
        producer.flush()
        earlier = copy_of(harness.client)
        for _ in range(2000):
            producer.emit("view", "a")
        producer.flush(30)
        go_back(harness.client, earlier)
        producer.emit("view", "a")
        producer.flush(30)
        assert (producer.stats.rewound_streams, producer.stats.lost_entries) == (1, 0)
    harness.drain()
    assert harness.totals() == {("view", "a"): 2002}


def test_lost_entries_are_sent_again_after_a_restore(harness, caplog):
    """A producer that notices lost entries while a restore runs keeps them, and sends them again after it."""
    root, stream = harness.layout.root, harness.layout.keys_of("a").stream
    with Producer(harness.url) as producer:
        producer.emit("view", "a")
        producer.flush()
        earlier = copy_of(harness.client)
        producer.emit("view", "a")
        producer.flush()
        go_back(harness.client, earlier)
        epoch = harness.client.hget(root, "epoch")
        with harness.client.pipeline(transaction=True) as pipeline:  # as begin_restore.lua does
            pipeline.hdel(root, "epoch")
            pipeline.hset(root, RESTORING, "[]")
            pipeline.execute()
        producer.emit("view", "a")
        until(lambda: "has not finished" in caplog.text, what="the producer to notice the restore")
        assert harness.client.xlen(stream) == 1
        with harness.client.pipeline(transaction=True) as pipeline:
            pipeline.hset(root, "epoch", epoch)
            pipeline.hdel(root, RESTORING)
            pipeline.execute()
        producer.flush()
    assert harness.client.xlen(stream) == 3
    assert "stream.reset" not in caplog.text


def test_a_producer_follows_a_new_deployment_before_anything_is_lost(harness, monkeypatch):
    """A producer that works in a new deployment sends again what a failover of this deployment loses.

    It notices the other epoch without a gap. So a failover, even if the producer has no record after it, is not taken
    for another deployment.
    """
    monkeypatch.setattr(validation, "_RULES_AGE", 0.0)
    first, second = "a", next(s for s in "bcdefg" if harness.layout.keys_of(s) != harness.layout.keys_of("a"))
    with Producer(harness.url) as producer:
        producer.emit("view", first)
        producer.flush(10)
        harness.client.flushall()
        Deployment.create_or_load(harness.client, 4)
        earlier = copy_of(harness.client)
        for _ in range(2):
            producer.emit("view", second)
            producer.flush(10)
        go_back(harness.client, earlier)
        producer.emit("view", second)
        producer.flush(10)
        until(lambda: harness.client.xlen(harness.layout.keys_of(second).stream) == 3, 10, what="all entries")
        assert producer.stats.lost_entries == 1  # that of the first deployment


def test_a_producer_reads_the_deployment_once_a_second_while_a_key_is_lost(harness):
    """Entries of other partitions, however many, do not make it read the deployment more often."""
    lost, other = "a", next(s for s in "bcdefg" if harness.layout.keys_of(s) != harness.layout.keys_of("a"))

    def reads() -> int:
        return int(harness.client.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"])

    with Producer(harness.url, linger=0) as producer, contextlib.suppress(FlushTimeout):
        producer.emit("view", lost)
        producer.flush(10)
        key = harness.layout.keys_of(lost).sequences
        harness.client.rename(key, "kept")
        producer.emit("view", lost)
        until(lambda: producer._sender.problem is not None, what="the lost key")
        before, began = reads(), time.monotonic()
        for number in range(1, 101):
            producer.emit("view", other)
            stream = harness.layout.keys_of(other).stream
            until(lambda: harness.client.xlen(stream) == number)  # noqa: B023  # used in this turn
        assert reads() - before <= time.monotonic() - began + 2
        harness.client.rename("kept", key)
        producer.flush(10)


@pytest.mark.parametrize("is_spooled", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_closing_producer_sends_lost_entries_again(harness, tmp_path, is_async, is_spooled):
    """If a server goes back to older data just before a producer is closed, `close` sends lost entries again.

    Also if the connection breaks at the first check.
    """
    stream = harness.layout.keys_of("a").stream
    spool = tmp_path if is_spooled else None

    async def use_async() -> None:
        async with aio.Producer(proxy.url, spool=spool) as producer:
            await producer.emit("view", "a")
            await producer.flush(10)
            earlier = copy_of(harness.client)
            await producer.emit("view", "a")
            await producer.flush(10)
            go_back(harness.client, earlier)
            proxy.lose_request(b"HGET")

    with Proxy(harness.url) as proxy:
        if is_async:
            asyncio.run(use_async())
        else:
            with Producer(proxy.url, spool=spool) as producer:
                producer.emit("view", "a")
                producer.flush(10)
                earlier = copy_of(harness.client)
                producer.emit("view", "a")
                producer.flush(10)
                go_back(harness.client, earlier)
                proxy.lose_request(b"HGET")
            assert (producer.stats.rewound_streams, producer.stats.lost_entries) == (1, 0)
    assert harness.client.xlen(stream) == 2
    harness.drain()
    assert harness.totals() == {("view", "a"): 2}


def test_data_that_comes_back_has_each_event_once(harness, monkeypatch):
    """If too old data is put back, and then the right data, each event counts once, and a flush ends.

    The producer keeps only its latest entries, so it cannot send all of them again to the older data.
    """
    monkeypatch.setattr("tallystream.producing.appender.KEEP_BYTES", 2 * 900)
    monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 0.1)
    rules = Rules({"view": Metric(ids=None)})
    with counting(Settings(RedisSettings(harness.url), rules=rules), structlog.get_logger()):
        with Producer(harness.url, linger=0) as producer:
            producer.emit("view", "a")
            producer.flush(10, wait="counted")
            older = copy_of(harness.client)
            for _ in range(10):
                producer.emit("view", "a")
                producer.flush(10, wait="counted")
            right = copy_of(harness.client)
            go_back(harness.client, older)
            until(lambda: producer.stats.rewound_streams, what="the rollback")
            producer.flush(10, wait="counted")
            assert producer.stats.lost_entries > 0
            go_back(harness.client, right)
            producer.emit("view", "b")
            producer.flush(10, wait="counted")
        assert harness.totals() == {("view", "a"): 11, ("view", "b"): 1}


def test_a_lingering_producer_sends_lost_entries_again_when_it_is_closed(harness):
    """`close` ends a long linger, checks that the server has the confirmed entries, and sends the lost ones again."""
    with Producer(harness.url, linger=3600) as producer:
        producer.emit("view", "a")
        producer.flush(10)
        earlier = copy_of(harness.client)
        producer.emit("view", "a")
        producer.flush(10)
        with pytest.raises(EventError):
            producer.emit("unheard", "a")  # wakes the sender, which has nothing to send and lingers
        go_back(harness.client, earlier)
    assert (producer.stats.rewound_streams, producer.stats.lost_entries) == (1, 0)
    harness.drain()
    assert harness.totals() == {("view", "a"): 2}


def test_closing_does_not_wait_for_a_server_that_is_gone(harness, caplog):
    """If all events are appended and the server then refuses connections, `close` logs it and raises no error."""
    with Proxy(harness.url) as proxy:
        producer = Producer(proxy.url)
        producer.emit("view", "a")
        producer.flush(10)
        proxy.retarget(NOWHERE)
        began = time.monotonic()
        producer.close(timeout=20)
        assert time.monotonic() - began < 10
    assert "producer.unchecked problem=" in caplog.text


def test_closing_ends_every_part_although_one_fails(harness, monkeypatch):
    """If the spool cannot be released, `close` raises the error after it has closed the client."""

    def refuse(_sender):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Sender, "release", refuse)
    before = len(harness.client.client_list())
    producer = Producer(harness.url)
    producer.emit("view", "a")
    producer.flush(10)
    assert len(harness.client.client_list()) > before
    with pytest.raises(OSError, match="Input/output"):
        producer.close()
    until(lambda: len(harness.client.client_list()) == before, what="the end of the producer's connections")


def test_leaving_with_files_that_cannot_be_used():
    """If closing fails at interpreter exit because of a file, one line of standard error states it."""
    program = (
        "import tallystream\n"
        "from tallystream.producing.lifetime import follow_process\n"
        "def close(owner): raise OSError(5, 'Input/output error')\n"
        "owner = tallystream.Producer('unix:///nonexistent/server.sock')\n"
        "follow_process(owner, restart=print, close=close)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stderr == "tallystream: [Errno 5] Input/output error\n"


def test_closing_a_spool_whose_files_are_gone(tmp_path):
    """If the files of a spool were removed, `close` states how many events are missing, and ends."""
    producer = Producer(NOWHERE, spool=tmp_path)
    producer.emit("view", "a")
    for path in tmp_path.glob("*/*.log"):
        path.unlink()
    with pytest.raises(FlushTimeout, match="1 events are not appended yet"):
        producer.close(timeout=0)


def test_closing_states_that_lost_entries_were_not_sent_again(harness):
    """If the server has lost confirmed entries and a restore runs, `close` raises `FlushTimeout`."""
    producer = Producer(harness.url)
    earlier = copy_of(harness.client)
    producer.emit("view", "a")
    producer.flush(10)
    go_back(harness.client, earlier)
    harness.client.hset(harness.layout.root, RESTORING, "[]")
    with pytest.raises(FlushTimeout, match=r"has lost entries that it had confirmed.*has not finished"):
        producer.close(timeout=1)


def test_closing_with_lost_sequences_does_not_load_the_server(harness):
    """If the check of `close` cannot be made, because a key is lost, it is tried again with pauses, and named."""
    producer = Producer(harness.url)
    producer.emit("view", "a")
    producer.flush(10)
    lost = harness.layout.keys_of("a").sequences
    harness.client.delete(lost)
    harness.client.config_resetstat()
    with pytest.raises(FlushTimeout, match=re.escape(lost)):
        producer.close(timeout=1)
    assert harness.client.info("stats")["total_commands_processed"] < 1000
