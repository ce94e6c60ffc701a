"""`tallystream.aio`: its producer and reader count and read like the threaded ones, and never block the event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tallystream.aio import Producer, Totals
from tallystream.errors import BufferFull, ConfigurationError, EventError, FlushTimeout, TallyError
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tallystream_worker.server.embedded import EmbeddedServer
    from tests.servers import Server

NOBODY = "redis://127.0.0.1:1"
"""URL of a port on which no server listens: connections are refused at once."""


def test_what_is_emitted_can_be_read(server: Server) -> None:
    """After `flush(wait="counted")`, the emitted events are in the results of `get`, `get_many` and `of`."""

    async def scenario() -> None:
        async with Producer(server.url) as producer, Totals(server.url) as totals:
            for n in range(100):
                await producer.emit("view", f"article:{n % 3}", 2)
            await producer.emit("clap", "article:0", -1, actor="u1", at=time.time() - 5.5, id="x")
            await producer.flush(20, wait="counted")
            assert (await totals.get("article:0", "view")).value == 68
            assert (await totals.get("never", "view")).value == 0
            wanted = [("article:1", "view"), ("article:0", "clap"), ("never", "like")]
            assert (await totals.get_many(wanted)).values == dict(zip(wanted, [66, -1, 0], strict=True))
            of_one = (await totals.of("article:0")).counters
            assert (of_one["view"], of_one["clap"], of_one["share"]) == (68, -1, 0)
            stats = producer.stats
            assert (stats.emitted, stats.appended, stats.buffered, stats.dropped) == (101, 101, 0, 0)

    with counting(Settings(redis=RedisSettings(url=server.url)), logs.configure(quiet=True)):
        asyncio.run(scenario())


def test_reading_waits_for_a_position(server: Server) -> None:
    """A read with `after` returns once that entry is counted, and raises `FlushTimeout` if it is not in time."""

    async def scenario(harness: Harness) -> None:
        async with Producer(server.url) as producer, Totals(server.url) as totals:
            await producer.emit("view", "article:1")
            await producer.flush(10)
            ((id_, _),) = harness.client.xrange(harness.layout.keys_of("article:1").stream)
            after = id_.decode()
            with pytest.raises(FlushTimeout, match=f"entry {after} was not counted within 0.05 seconds"):
                await totals.read([("article:1", "view")], after=after, timeout=0.05)
            waiting = asyncio.create_task(totals.read([("article:1", "view")], after=after, timeout=20))
            await asyncio.sleep(0)
            await asyncio.to_thread(harness.drain)
            reading = await waiting
            assert (reading.values["article:1", "view"], reading.lag) == (1, 0)
            with pytest.raises(EventError, match="after: "):
                await totals.read([("article:1", "view")], after="yesterday")

    with Harness(server.url) as harness:
        asyncio.run(scenario(harness))


def test_reading_an_empty_server_stores_nothing(server: Server) -> None:
    """On an empty server a counter is 0, and reading it stores no key."""

    async def scenario() -> None:
        async with Totals(server.url) as totals:
            assert (await totals.get("article:1", "view")).value == 0
            with pytest.raises(ConfigurationError, match="start a worker"):
                await totals.of("article:1")

    asyncio.run(scenario())
    assert server.client().dbsize() == 0


def test_a_wrong_number_of_partitions_is_refused(server: Server) -> None:
    """A reader with a wrong number of partitions is refused; the error states the stored number."""

    async def scenario() -> None:
        async with Totals(server.url, partitions=8) as totals:
            await totals.get("article:1", "view")

    with Harness(server.url), pytest.raises(ConfigurationError, match="Set partitions = 4"):
        asyncio.run(scenario())


def test_more_readers_than_connections(server: Server) -> None:
    """500 concurrent reads are all answered, over at most 32 connections."""

    async def scenario(harness: Harness) -> None:
        async with Totals(server.url) as totals:
            before = harness.client.info("clients")["connected_clients"]
            found = await asyncio.gather(*(totals.get(f"a:{n}", "view") for n in range(500)))
            assert [total.value for total in found] == [0] * 500
            assert harness.client.info("clients")["connected_clients"] - before <= 32

    with Harness(server.url) as harness:
        asyncio.run(scenario(harness))


def test_a_full_buffer_suspends_the_caller_and_not_the_loop(fresh_server: Callable[..., EmbeddedServer]) -> None:
    """While the server is down and the buffer is full, `emit` suspends, other tasks run, and no event is dropped."""
    server = fresh_server(extra=["--appendfsync", "always"])

    async def scenario() -> None:
        async with Producer(server.url, buffer_events=10, entry_events=5) as producer:
            await producer.emit("view", "article:1")
            await producer.flush(10)
            server.kill()
            for _ in range(10):
                await producer.emit("view", "article:1")
            blocked = asyncio.create_task(producer.emit("view", "article:1"))
            turns = 0
            until = time.monotonic() + 0.1
            while time.monotonic() < until:
                await asyncio.sleep(0)
                turns += 1
            assert turns > 100
            assert not blocked.done()
            await asyncio.to_thread(server.start)
            await asyncio.wait_for(blocked, 20)
            await producer.flush(20)
            stats = producer.stats
            assert (stats.emitted, stats.appended, stats.dropped) == (12, 12, 0)

    asyncio.run(scenario())


def test_blocking_gives_up_and_counts_one_drop() -> None:
    """After `block_timeout`, `emit` raises `BufferFull` and counts one dropped event, however often it has tried."""

    async def scenario() -> None:
        producer = Producer(NOBODY, buffer_events=1, entry_events=1, block_timeout=0.05)
        await producer.emit("view", "article:1")
        for expected in (1, 2):
            with pytest.raises(BufferFull):
                await producer.emit("view", "article:1")
            assert producer.stats.dropped == expected
        with pytest.raises(FlushTimeout):
            await producer.close(0.01)

    asyncio.run(scenario())


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_other_policies_do_not_wait(policy: str) -> None:
    """With `raise` and `drop`, `emit` does not wait for room in a full buffer, and counts each dropped event."""

    async def scenario() -> None:
        producer = Producer(NOBODY, buffer_events=1, entry_events=1, when_full=policy)  # type: ignore[arg-type]
        await producer.emit("view", "article:1")
        for _ in range(3):
            if policy == "raise":
                with pytest.raises(BufferFull):
                    await producer.emit("view", "article:1")
            else:
                await producer.emit("view", "article:1")
        assert producer.stats.dropped == 3
        with pytest.raises(FlushTimeout):
            await producer.close(0.01)

    asyncio.run(scenario())


def test_decisions_at_once_accept_exactly_the_limit(server: Server) -> None:
    """Of 100 concurrent decisions with a limit of 30, exactly 30 are accepted; `close` waits for a running decision."""

    async def scenario() -> None:
        async with Producer(server.url) as producer:
            at = time.time()
            outcomes = await asyncio.gather(*(producer.decide("call", "key:1", at=at) for _ in range(100)))
            accepted = [outcome for outcome in outcomes if outcome.accepted]
            assert sorted(outcome.total or 0 for outcome in accepted) == list(range(1, 31))
            assert {outcome.reason for outcome in outcomes} == {None, "limit"}
            with pytest.raises(EventError, match="subject: must not be empty"):
                await producer.decide("call", "")
            late = asyncio.create_task(producer.decide("call", "key:2"))
            await asyncio.sleep(0)
        assert (await late).accepted  # close waited for it
        with pytest.raises(TallyError, match="closed"):
            await producer.decide("call", "key:1")

    with Harness(server.url, rules=Rules({"call": Metric(limit=30, per="day")})):
        asyncio.run(scenario())


def test_a_bad_event_is_refused_at_once(server: Server) -> None:
    """An invalid event raises `EventError`, and a closed producer rejects every event."""

    async def scenario() -> None:
        async with Producer(server.url) as producer:
            with pytest.raises(EventError, match="subject: must not be empty"):
                await producer.emit("view", "")
        await producer.close()
        with pytest.raises(TallyError, match="closed"):
            await producer.emit("view", "article:1")

    asyncio.run(scenario())


def test_a_flush_that_was_given_up_does_not_keep_the_program() -> None:
    """A program that cancels a flush while the server is down can still exit."""
    program = f"""
import asyncio
from tallystream.aio import Producer
async def main():
    producer = Producer({NOBODY!r})
    await producer.emit("view", "article:1")
    try:
        await asyncio.wait_for(producer.flush(), 0.1)
    except asyncio.TimeoutError:
        print("given up")
    try:
        await producer.close(0.1)
    except TimeoutError:
        print("lost")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == ["given", "up", "lost"]


@pytest.mark.parametrize("sync", ["os", "disk"])
def test_no_event_is_taken_while_a_producer_closes(server: Server, tmp_path: Path, sync: str) -> None:
    """From the call of `close` on, `emit` raises an error at once, also while `close` waits for a decision."""

    async def run() -> None:
        producer = Producer(server.url, spool=tmp_path, spool_sync=sync)
        await producer.emit("view", "a")
        decided = threading.Event()
        producer._decisions.submit(decided.wait, 10)
        closing = asyncio.create_task(producer.close())
        await asyncio.sleep(0)
        with pytest.raises(TallyError, match="closed"):
            await producer.emit("view", "a")
        assert not closing.done()
        decided.set()
        await closing
        assert (producer.stats.emitted, producer.stats.appended) == (1, 1)

    with Harness(server.url, metrics=["view"]):
        asyncio.run(run())


@pytest.mark.parametrize(("sync", "in_loop"), [("os", None), ("disk", False)])
def test_a_spool_on_disk_does_not_block_the_loop(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, in_loop: bool | None
) -> None:
    """With `spool_sync="disk"`, `emit` returns after the event is on disk, and never waits for it in the event loop."""
    synced: list[bool] = []
    really = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        synced.append(threading.current_thread() is threading.main_thread())
        really(descriptor)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    async def run() -> None:
        async with Producer(server.url, spool=tmp_path, spool_sync=sync) as producer:
            for number in range(3):
                await producer.emit("view", "a")
                assert len(synced) >= (number + 1 if sync == "disk" else 0)
            await asyncio.gather(*(producer.emit("view", "a") for _ in range(20)))
            with pytest.raises(EventError):
                await producer.emit("", "a")
            assert producer.stats.emitted == 23
        with pytest.raises(TallyError, match="closed"):
            await producer.emit("view", "a")

    with Harness(server.url, metrics=["view"]) as harness:
        asyncio.run(run())
        harness.drain()
        assert harness.totals() == {("view", "a"): 23}
    assert set(synced) == (set() if in_loop is None else {in_loop})
