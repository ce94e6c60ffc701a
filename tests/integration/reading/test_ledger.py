"""The ledger of a real server agrees at every moment."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from tallystream import aio
from tallystream.producing.producer import Producer
from tallystream.reading.ledger import Ledger, query_ledger
from tallystream.reading.totals import Totals
from tallystream.storage.keys import Layout
from tests.harness import Harness
from tests.waiting import until

if TYPE_CHECKING:
    from tests.servers import Server


def test_an_empty_ledger_balances(server: Server) -> None:
    """If nothing is stored, every figure of the ledger is 0."""
    with Totals(server.url) as totals:
        books = totals.run(query_ledger(Layout()))
    assert (books.appended, books.counted, books.waiting, books.pending, books.unaccounted) == (0, 0, 0, 0, 0)


def test_fields_that_others_call_as_we_do(server: Server) -> None:
    """An entry of another client with some fields of a packed entry is dead-lettered, and the ledger agrees."""
    strangers = (
        {"d": "x"},
        {"d": "1"},
        {"p": "x"},
        {"q": "7"},
        {"p": "x", "q": "y"},
        {"n": "3"},
        {"b": "x"},
        {"v": "1"},
    )
    with Harness(server.url) as harness, Totals(server.url) as totals:
        for fields in strangers:
            harness.client.xadd(harness.layout.keys[0].stream, fields)
        harness.drain()
        books = totals.run(query_ledger(harness.layout))
    assert (books.dead, books.unaccounted) == (len(strangers), 0)


def test_the_summary_is_what_status_prints(server: Server) -> None:
    """The summary has the lag, pending entries and dead letters by stream and in all, and events by outcome."""
    with Harness(server.url) as harness, Producer(server.url) as producer, Totals(server.url) as totals:
        for n in range(100):
            producer.emit("view", f"article:{n}")
        producer.flush()
        harness.client.xadd(harness.layout.keys[0].stream, {"nonsense": "x"})
        waiting = totals.ledger()
        harness.drain()
        summary = totals.ledger()
    assert waiting.lag == sum(row.lag for row in waiting.partitions) > 0
    assert waiting.unaccounted is None
    assert [row.stream for row in summary.partitions] == [keys.stream for keys in harness.layout.keys]
    assert summary.ledger == {
        "appended": 101, "counted": 100, "rejected": 0, "duplicate": 0, "late": 0, "dead": 1, "trimmed": 0,
        "retracted": 0,
    }  # fmt: skip
    assert (summary.lag, summary.pending, summary.dead, summary.unaccounted) == (0, 0, 1, 0)


def test_the_ledger_balances_whenever_one_looks(server: Server) -> None:
    """While events are emitted and counted, the number of unaccounted events is always `None` or 0."""
    stop = threading.Event()
    with Harness(server.url) as harness, Producer(server.url, linger=0.001) as producer, Totals(server.url) as totals:
        consumers = [harness.consumer(partition) for partition in range(harness.layout.partitions)]

        def count() -> None:
            while not stop.is_set():
                for consumer in consumers:
                    consumer.run_once()

        worker = threading.Thread(target=count)
        worker.start()
        try:
            for look in range(300):
                producer.emit("view", f"article:{look % 7}")
                if look % 3 == 0:
                    producer.flush()
                assert totals.run(query_ledger(harness.layout)).unaccounted in {None, 0}
            producer.flush()
            until(lambda: totals.run(query_ledger(harness.layout)).unaccounted == 0, what="the ledger to agree")
        finally:
            stop.set()
            worker.join()


def test_the_ledger_is_read_while_the_memory_is_full(server: Server) -> None:
    """The ledger can be read from a server that rejects writes and MULTI because its memory is full."""
    with Harness(server.url) as harness, Producer(server.url) as producer, Totals(server.url) as totals:
        producer.emit("view", "a")
        producer.flush()
        harness.drain()
        harness.client.config_set("maxmemory", 1)
        try:
            books = totals.run(query_ledger(harness.layout))
            again = asyncio.run(_read_ledger(server.url, harness.layout))
        finally:
            harness.client.config_set("maxmemory", 0)
    assert (books.counted, books.unaccounted) == (again.counted, again.unaccounted) == (1, 0)


async def _read_ledger(url: str, layout: Layout) -> Ledger:
    async with aio.Totals(url) as totals:
        return await totals.run(query_ledger(layout))


def test_a_stream_without_its_group_cannot_tell_its_lag(server: Server) -> None:
    """If the stream has entries but no consumer group, the lag and the number of unaccounted events are `None`."""
    with Totals(server.url) as totals, Producer(server.url) as producer:
        producer.emit("view", "article:1")
        producer.flush()
        books = totals.run(query_ledger(totals.deployment.layout))
    assert (books.appended, books.waiting, books.unaccounted) == (1, None, None)
