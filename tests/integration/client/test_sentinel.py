"""Sentinel: after a failover, the producer, the worker and the readers use the new primary without a restart."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from tallystream import ConfigurationError, Producer, aio
from tallystream.client.connect import _SentinelUrl, connect
from tallystream.reading.totals import Totals
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.sentinel import watched
from tests.waiting import until


def answered(read):
    """Return the result of a read, or `None` if it raises a `RedisError` because the primary is being replaced."""
    from redis.exceptions import RedisError  # noqa: PLC0415

    try:
        return read()
    except RedisError:
        return None


@pytest.mark.slow  # a failover takes a few seconds
@pytest.mark.parametrize("durability", ["memory", "replica"])
def test_everything_goes_on_at_the_new_primary(fresh_server, tmp_path, durability):
    """A producer, a worker and readers that started before a failover count and read every event exactly once."""
    with watched(fresh_server, tmp_path) as servers:
        settings = Settings(redis=RedisSettings(url=servers.url))
        with (
            counting(settings, structlog.get_logger()) as pool,
            Producer(servers.url, durability=durability) as producer,
            Totals(servers.url) as totals,
            asyncio.Runner() as runner,
        ):
            read_service = aio.Totals(servers.url)
            for _ in range(100):
                producer.emit("view", "article:1")
            producer.flush(20, wait="counted")
            assert totals.get("article:1", "view").value == 100
            assert runner.run(read_service.get("article:1", "view")).value == 100
            servers.fail_over()
            for _ in range(50):
                producer.emit("view", "article:1")
            if durability == "replica":  # no replica is left until the old primary starts again
                until(lambda: producer.stats.unconfirmed, timeout=30, what="a burst that no replica has")
                servers.primary.start()
            producer.flush(60)
            until(lambda: answered(lambda: totals.get("article:1", "view").value) == 150, timeout=30, what="all 150")
            until(
                lambda: answered(lambda: runner.run(read_service.get("article:1", "view")).value) == 150,
                timeout=30,
                what="all 150, to the read service",
            )
            until(lambda: all(health.problem is None for health in pool.health), timeout=30, what="a healthy worker")
            assert producer.stats.dropped == producer.stats.lost_entries == 0
            runner.run(read_service.close())


@pytest.mark.parametrize(
    ("url", "hosts", "rest"),
    [
        ("redis+sentinel://a/m", [("a", 26379)], ("m", 0, None, None)),
        ("redis+sentinel://a:1,b:2,[::1]:3/m/5", [("a", 1), ("b", 2), ("::1", 3)], ("m", 5, None, None)),
        ("redis+sentinel://u:p%40s@a:1,b/m", [("a", 1), ("b", 26379)], ("m", 0, "u", "p@s")),
        ("redis+sentinel://:p@a/m", [("a", 26379)], ("m", 0, None, "p")),
    ],
)
def test_a_url_names_sentinels_and_a_primary(url, hosts, rest):
    """A Sentinel URL is parsed into hosts, name, database, user and password."""
    found = _SentinelUrl.parse(url)
    assert (found.hosts, (found.name, found.db, found.username, found.password)) == (hosts, rest)


@pytest.mark.parametrize("url", ["redis+sentinel://a:1", "redis+sentinel://a:x/m", "redis+sentinel:///m"])
def test_a_url_that_lacks_a_part_is_refused(url):
    """A Sentinel URL without hosts or a name, or with an invalid port, is refused; the error shows the right form."""
    with pytest.raises(ConfigurationError, match="redis\\+sentinel://HOST:PORT,HOST:PORT/NAME"):
        connect(url)
