"""The task of the broadcaster survives every error of a pass; its limit counts each followed counter once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tallystream_worker.live.broadcaster import Broadcaster, TooManyReaders
from tallystream_worker.live.subscriber import LiveReader
from tallystream_worker.live.subscription import subscription_of
from tallystream_worker.settings.settings import RedisSettings
from tests.harness import Harness

if TYPE_CHECKING:
    from tests.servers import Server

FAILURES = 1_200
"""The number of failed passes: 100 minutes of pauses of 5 s, and more than the doublings that overflow a float."""


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), ZeroDivisionError("a bug")])
def test_readers_go_on_after_hours_without_redis(
    server: Server, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Readers get one `stale` message while passes fail, and updates again when Redis replies."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def follow(harness: Harness) -> None:
        broadcaster = Broadcaster(RedisSettings(harness.url))
        reader = LiveReader(subscription_of(["view"], ["a"]))
        await broadcaster.join(reader)
        (first,) = await reader.next()
        deployment = broadcaster._totals.deployment
        failed, back = asyncio.Event(), asyncio.Event()
        failures = 0

        async def failing() -> object:
            nonlocal failures
            if back.is_set():
                return await deployment()
            failures += 1
            if failures == FAILURES:
                failed.set()
            raise error

        monkeypatch.setattr(asyncio, "sleep", noted)
        monkeypatch.setattr(broadcaster._totals, "deployment", failing)
        async with asyncio.timeout(100):
            await failed.wait()
            told = await reader.next()
            harness.client.xadd(harness.layout.keys_of("a").stream, {"metric": "view", "subject": "a"})
            harness.drain()
            back.set()
            (update,) = await reader.next()
        monkeypatch.setattr(asyncio, "sleep", sleep)
        await broadcaster.close()
        assert first.event == update.event == "counters"
        assert b'"value":1' in update.body
        assert [message.event for message in told] == ["stale"]

    with Harness(server.url) as harness:
        asyncio.run(follow(harness))
    assert len(pauses) >= FAILURES
    assert max(pauses) <= 5.0


def test_a_change_is_sent_although_its_first_read_failed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the totals of a pass cannot be read, the next pass sends the same changes."""

    async def follow(harness: Harness) -> None:
        broadcaster = Broadcaster(RedisSettings(harness.url))
        reader = LiveReader(subscription_of(["view"], ["a"]))
        await broadcaster.join(reader)
        await reader.next()
        read = broadcaster._totals.read
        failures = 0

        async def failing_once(*arguments: Any) -> Any:
            nonlocal failures
            if not failures:
                failures += 1
                raise RedisConnectionError("gone")
            return await read(*arguments)

        monkeypatch.setattr(broadcaster._totals, "read", failing_once)
        async with asyncio.timeout(20):
            harness.client.xadd(harness.layout.keys_of("a").stream, {"metric": "view", "subject": "a"})
            harness.drain()
            told = [*await reader.next()]
            while told[-1].event != "counters":
                told += await reader.next()
        await broadcaster.close()
        assert failures == 1
        assert [message.event for message in told] == ["stale", "counters"]
        assert b'"value":1' in told[-1].body

    with Harness(server.url) as harness:
        asyncio.run(follow(harness))


def test_a_counter_that_two_readers_follow_is_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second reader of the same counters is added, although there is no room for further counters."""
    monkeypatch.setattr("tallystream_worker.live.broadcaster.MAX_NAMED", 1)

    async def follow(harness: Harness) -> None:
        broadcaster = Broadcaster(RedisSettings(harness.url))
        for _ in range(2):
            await broadcaster.join(LiveReader(subscription_of(["view"], ["a"])))
        with pytest.raises(TooManyReaders, match="follow the maximum of 1 counters"):
            await broadcaster.join(LiveReader(subscription_of(["view"], ["b"])))
        await broadcaster.close()

    with Harness(server.url) as harness:
        asyncio.run(follow(harness))
