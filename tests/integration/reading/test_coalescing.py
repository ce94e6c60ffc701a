"""Concurrent reads share a pipeline, and each gets its own answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import RedisError

from tallystream.aio import Totals
from tallystream.producing.producer import Producer
from tallystream.reading.coalescing import ReadCoalescer, merge
from tallystream.reading.query import Query
from tallystream.rules.metrics import Metric, Rules
from tests.harness import Harness
from tests.http_service import http_service

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream_worker.server.embedded import EmbeddedServer
    from tests.servers import Server

RULES = Rules({"view": Metric(""), "like": Metric("", floor=0), "page": Metric("", max_subjects=1, ids=None)})


def test_many_reads_are_few_commands(server: Server) -> None:
    """Each of 300 concurrent reads gets its value, position and error, and together they need at most 20 MGETs."""
    with Harness(server.url, rules=RULES) as harness:
        with Producer(harness.url) as producer:
            for n in range(100):
                producer.emit("view", f"s{n}", n + 1)
                producer.emit("like", f"s{n}", -1)
                producer.emit("page", f"s{n}", 7)
        harness.drain()

        async def read() -> list[object]:
            async with Totals(server.url) as totals:
                await totals.deployment()
                harness.client.config_resetstat()
                asked = [totals.read([(f"s{n}", metric)]) for n in range(100) for metric in ("view", "like", "page")]
                return await asyncio.gather(*asked)

        readings = asyncio.run(read())
        calls = {name: each["calls"] for name, each in harness.client.info("commandstats").items()}
    for n in range(100):
        view, like, page = readings[3 * n : 3 * n + 3]
        assert (view.values, view.error(), view.lag) == ({(f"s{n}", "view"): n + 1}, 0, 0)
        assert like.values == {(f"s{n}", "like"): 0}
        assert page.values[f"s{n}", "page"] >= 7
        assert view.as_of == like.as_of != "0-0"
    assert calls["cmdstat_mget"] <= 20
    assert calls["cmdstat_xpending"] <= 20


def test_one_that_fails_fails_alone(server: Server) -> None:
    """If one partition replies with an error, its readers fail, and those of other partitions get their answer."""
    with Harness(server.url, rules=RULES) as harness:
        harness.drain()
        broken = harness.layout.keys[0]
        harness.client.delete(broken.stream)
        harness.client.set(broken.stream, "no stream")

        async def read() -> list[object]:
            async with Totals(server.url) as totals:
                asked = [totals.read([(f"s{n}", "view")]) for n in range(50)]
                return await asyncio.gather(*asked, return_exceptions=True)

        answers = asyncio.run(read())
    for n, answer in enumerate(answers):
        assert isinstance(answer, RedisError) == (harness.layout.keys_of(f"s{n}") == broken)


def test_a_server_that_is_away_fails_all(fresh_server: Callable[..., EmbeddedServer]) -> None:
    """If the server is down, every reader gets an error; once it is up again, reads succeed."""
    server = fresh_server()

    async def read() -> None:
        async with Totals(server.url) as totals:
            await totals.deployment()
            server.kill()
            answers = await asyncio.gather(*(totals.read([("a", "view")]) for _ in range(50)), return_exceptions=True)
            assert all(isinstance(answer, RedisError) for answer in answers)
            server.start()
            assert (await totals.read([("a", "view")])).lag == 0

    asyncio.run(read())


def test_a_reader_that_goes_away_leaves_the_others(server: Server) -> None:
    """Cancelling a read does not affect the other reads of the same pipeline."""

    async def read() -> None:
        async with Totals(server.url) as totals:
            first, *others = [asyncio.create_task(totals.read([("a", "view")])) for _ in range(20)]
            await asyncio.sleep(0)
            first.cancel()
            assert all(reading.values == {("a", "view"): 0} for reading in await asyncio.gather(*others))
            with pytest.raises(asyncio.CancelledError):
                await first

    with Harness(server.url, rules=RULES):
        asyncio.run(read())


def test_positions_stay_before_values() -> None:
    """Merged commands have each partition's position once, before any value of the partition."""
    queries = [
        [("XINFO", "{a}s"), ("MGET", "{a}1", "{a}2")],
        [("XINFO", "{b}s"), ("MGET", "{b}1"), ("XINFO", "{a}s"), ("MGET", "{a}3")],
    ]
    merged, places = merge(queries)
    assert merged == [("XINFO", "{a}s"), ("MGET", "{a}1", "{a}2", "{a}3"), ("XINFO", "{b}s"), ("MGET", "{b}1")]
    assert places == [[(0, -1, -1), (1, 0, 2)], [(2, -1, -1), (3, 0, 1), (0, -1, -1), (1, 2, 3)]]


def test_the_short_way_answers_as_the_long_one(server: Server) -> None:
    """The fast path for one counter returns the same body and headers as the router."""
    with Harness(server.url, rules=RULES) as harness, http_service(server.url) as http:
        with Producer(harness.url) as producer:
            producer.emit("view", "/é a", 5)
        harness.drain()
        for path in ("/v1/counters/%2F%C3%A9%20a/view", "/v1/counters/none/like", "/v1/counters/x/page"):
            short, long = http.get(path), http.get(path, params={"last": 24})
            assert (short.status_code, short.content) == (200, long.content)
            ours = {name: value for name, value in short.headers.items() if name not in ("date", "server")}
            assert ours == {name: value for name, value in long.headers.items() if name not in ("date", "server")}
            again = http.get(path, headers={"if-none-match": short.headers["etag"]})
            assert again.status_code == 304
        assert http.get("/v1/counters/a/undeclared").status_code == 404
        assert http.get("/v1/counters/%00/view").json()["field"] == "subject"
        assert http.get("/v1/counters/%FF/view").status_code == 400


TOKEN = "of-readers-0123456789-0123456789"  # noqa: S105


def test_the_short_way_is_guarded_too(server: Server) -> None:
    """If a read token is set, the fast path for one counter also requires it."""
    with Harness(server.url, rules=RULES), http_service(server.url, read_token=TOKEN) as http:
        assert http.get("/v1/counters/a/view").status_code == 401
        wrong = http.get("/v1/counters/a/view", headers={"authorization": "Bearer no"})
        assert wrong.status_code == 401
        right = http.get("/v1/counters/a/view", headers={"authorization": f"Bearer {TOKEN}"})
        assert right.json()["value"] == 0


def test_who_asks_again_at_once_is_served() -> None:
    """A query that is added at the moment when the last pipeline ends is sent, too."""

    async def answer(query: Query[list[Any]]) -> list[Any]:
        return [1 for _ in query.commands]

    async def read() -> None:
        together = ReadCoalescer(answer)
        question: Query[Any] = Query([("GET", "a")], lambda replies: replies[0])

        async def again() -> None:
            for _ in range(3):
                assert await together.run(question) == 1

        await asyncio.wait_for(asyncio.gather(again(), again(), again()), 5)

    asyncio.run(read())
