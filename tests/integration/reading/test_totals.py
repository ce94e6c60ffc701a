"""Totals are read exactly, with few commands, and with a statement of how complete they are."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from tallystream import ConfigurationError, EventError, FlushTimeout, Producer
from tallystream.reading.totals import Totals
from tallystream.storage.keys import Layout
from tallystream.storage.sentinels import open_partitions
from tests.harness import Harness


@pytest.fixture
def harness(server):
    """Return a harness on an empty server."""
    with Harness(server.url) as harness:
        yield harness


@pytest.fixture
def totals(harness):
    """Return a reader of the same server."""
    with Totals(harness.url) as totals:
        yield totals


def emit(harness: Harness, *events: tuple[str, str, int]) -> None:
    """Append events, each a metric, a subject and an amount."""
    with Producer(harness.url) as producer:
        for metric, subject, amount in events:
            producer.emit(metric, subject, amount)


def test_a_counter_that_was_never_counted_is_0(totals):
    """A counter without events is 0, not an error."""
    assert totals.get("article:1", "view").value == 0
    assert totals.get_many([("a", "view"), ("b", "like")]).values == {("a", "view"): 0, ("b", "like"): 0}
    assert totals.of("article:1").counters == {"like": 0, "view": 0, "vote": 0}


def test_one_many_and_all(harness, totals):
    """A total can be read alone, together with totals of other partitions, and with all metrics of its subject."""
    emit(
        harness, *(("view", f"article:{n}", n) for n in range(50)), ("like", "article:7", -2), ("view", "caf\u00e9", 3)
    )
    harness.drain()
    assert totals.get("article:7", "view").value == 7
    assert totals.get("cafe\u0301", "view").value == 3
    wanted = [(f"article:{n}", "view") for n in range(50)]
    assert totals.get_many(wanted).values == {counter: n for n, counter in enumerate(wanted)}
    assert totals.get_many([]).values == {}
    assert totals.of("article:7").counters == {"like": -2, "view": 7, "vote": 0}


def test_any_client_can_read(harness):
    """A total is a string key with a whole number, so any client can read it with GET."""
    emit(harness, ("view", "article:1", 5))
    harness.drain()
    assert harness.client.get(harness.layout.keys_of("article:1").total("view", "article:1")) == b"5"


def test_large_totals_are_exact(harness, totals):
    """Totals up to 2^53 - 1 are read exactly."""
    emit(harness, ("view", "article:1", 2**53 - 1), ("like", "article:1", -(10**15)))
    harness.drain()
    assert totals.of("article:1").counters == {"like": -(10**15), "view": 2**53 - 1, "vote": 0}


def test_a_reading_says_how_good_it_is(harness, totals):
    """A reading states the number of entries that are not in it yet, and the stream ID up to which it is complete."""
    emit(harness, ("view", "article:1", 1))
    keys = harness.layout.keys_of("article:1")
    last = harness.client.xrevrange(keys.stream, count=1)[0][0].decode()
    before = totals.read([("article:1", "view")])
    assert before.lag == 1
    assert all(position.as_of == "0-0" for position in before.positions.values())
    harness.drain()
    after = totals.read([("article:1", "view")])
    assert (after.lag, after.values) == (0, {("article:1", "view"): 1})
    assert [position.as_of for position in after.positions.values()] == [last]


def test_a_pending_entry_is_not_complete(harness, totals):
    """`as_of` does not include an entry that is delivered to a worker but not applied."""
    emit(harness, ("view", "article:1", 1))
    partition = next(i for i, keys in enumerate(harness.layout.keys) if keys == harness.layout.keys_of("article:1"))
    (entry,) = harness.fetch(partition)(10, 0)
    (position,) = totals.read([("article:1", "view")]).positions.values()
    assert (position.pending, position.lag) == (1, 1)
    assert position.as_of < entry.id


def test_reading_ones_own_writes(harness, totals):
    """A read after a stream ID returns once that entry is counted, and fails at its timeout if it is not."""
    emit(harness, ("view", "article:1", 1))
    keys = harness.layout.keys_of("article:1")
    last = harness.client.xrevrange(keys.stream, count=1)[0][0].decode()
    with pytest.raises(FlushTimeout, match=last):
        totals.read([("article:1", "view")], after=last, timeout=0.05)
    found = []
    reader = threading.Thread(target=lambda: found.append(totals.read([("article:1", "view")], after=last)))
    reader.start()
    harness.drain()
    reader.join()
    assert found[0].values == {("article:1", "view"): 1}


@pytest.mark.parametrize(("subject", "metric", "field"), [("", "view", "subject"), ("a", "a b", "metric")])
def test_a_counter_that_cannot_exist(totals, subject, metric, field):
    """A subject or metric that no event can have is rejected with the name of the field."""
    with pytest.raises(EventError) as refused:
        totals.get(subject, metric)
    assert refused.value.field == field


def test_all_metrics_without_a_worker(server):
    """Before a worker has published the rules, one total is 0, and reading all metrics raises a configuration error."""
    with Totals(server.url) as totals:
        assert totals.get("article:1", "view").value == 0
        with pytest.raises(ConfigurationError, match="start a worker"):
            totals.of("article:1")


def test_a_deployment_that_is_stored_at_this_moment_was_not_deleted(server):
    """Between the opening of the partitions and the storing of the deployment, nothing is stored yet."""
    with closing(server.client()) as client, Totals(server.url) as totals:
        open_partitions(client, Layout())
        assert not totals.deployment.is_stored


def test_another_number_of_partitions(harness):
    """A reader that expects another number of partitions than is stored raises a configuration error."""
    with Totals(harness.url, partitions=8) as totals, pytest.raises(ConfigurationError, match="created with 4"):
        totals.get("article:1", "view")


def test_nothing_runs_keys(harness, totals):
    """Appending, counting and reading use no command that iterates over the keys of the server."""
    harness.client.config_resetstat()
    emit(harness, *(("view", f"article:{n}", 1) for n in range(50)))
    harness.drain()
    totals.of("article:1")
    totals.get_many([(f"article:{n}", "view") for n in range(50)])
    used = {name.partition("|")[0].removeprefix("cmdstat_") for name in harness.client.info("commandstats")}
    assert used.isdisjoint({"keys", "scan", "sort", "hscan", "randomkey"})
    assert {"evalsha", "mget"} <= used
