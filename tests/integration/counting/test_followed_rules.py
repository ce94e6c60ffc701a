"""When rules change, every partition has one place from which on its entries are counted by the new rules."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream import Event, Producer
from tallystream.deployment import Deployment
from tallystream.errors import GenerationSwitched, StreamError
from tallystream.producing.decider import Decider
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import MAX_AHEAD
from tallystream.wire.stream_id import parse_id
from tallystream_worker.dead_letters import store
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.runtime.publication import publish_again
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.counting.loop import CountingLoop

OLD = Rules({"view": Metric(ids=None)})
NEW = Rules({"view": Metric(windows=("day",), ids=None), "like": Metric(ids=None)})


def settings_for(url: str, rules: Rules) -> Settings:
    """Return the settings of a worker."""
    return Settings(RedisSettings(url), rules=rules)


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Provide a deployment of one partition, in which the old rules are published."""
    with Harness(server.url, rules=OLD, partitions=1) as harness:
        open_deployment(settings_for(harness.url, OLD))
        yield harness


def ahead() -> float:
    """Return a time of an event that every added window counts at any hour.

    Seconds since 1970. A window that is added counts from the bucket on that is current in `MAX_AHEAD` seconds. After
    23:00 this is the day of tomorrow.
    """
    return time.time() + MAX_AHEAD - 1


def emit(harness: Harness, metric: str = "view") -> None:
    """Append one event."""
    with Producer(harness.url) as producer:
        producer.emit(metric, "a", at=ahead())
        producer.flush(10)


def follower(harness: Harness, name: str) -> CountingLoop:
    """Return the loop of a worker that starts now."""

    def latest(_: int) -> tuple[Rules, int]:
        return Deployment.load(harness.client).numbered_rules_of(1)

    harness.rules = Deployment.load(harness.client).rules
    return harness.consumer(0, name, latest=latest)


def in_the_day(harness: Harness) -> int:
    """Return the sum of the subject in the stored buckets of days: of the events that were counted by the new rules."""
    client = harness.client
    found = [key for keys in harness.layout.keys for key in client.scan_iter(match=f"{keys.counters}day:view:*")]
    return sum(int(client.hget(key, "a") or 0) for key in found)


def test_an_older_worker_counts_by_the_new_rules(harness):
    """After an entry was counted by new rules, a worker that began with older ones counts by the new ones, too."""
    older = follower(harness, "older")
    emit(harness)
    older.run_once()
    open_deployment(settings_for(harness.url, NEW))
    emit(harness)
    older.run_once()  # no entry was counted by the new rules yet
    newer = follower(harness, "newer")
    emit(harness)
    newer.run_once()
    emit(harness)
    older.run_once()
    assert in_the_day(harness) == 2
    assert harness.totals() == {("view", "a"): 4}
    assert harness.dead() == []


def test_the_place_of_the_change_is_recorded(harness):
    """The record of a partition has the first entry that may be counted by the new rules, and the last one at hand."""
    older = follower(harness, "older")
    emit(harness)
    older.run_once()
    open_deployment(settings_for(harness.url, NEW))
    (keys,) = harness.layout.keys
    assert harness.client.hgetall(keys.adopted) == {}
    emit(harness)
    emit(harness)
    (before, *_), (pending, _), (last, _) = harness.client.xrange(keys.stream)
    older.fetch(1, 0)  # delivered to a worker that counts it later
    newer = follower(harness, "newer")
    newer.run_once()
    (place,) = harness.client.hgetall(keys.adopted).values()
    assert place == pending + b" " + last
    assert parse_id(before.decode()) < parse_id(pending.decode())
    follower(harness, "older").run_once()
    assert len(harness.client.hgetall(keys.adopted)) == 1


def test_an_older_producer_decides_by_the_new_rules(harness):
    """A decision by older rules is made again by the new ones, and the first decision by new rules changes to them."""
    older = Decider(harness.client, Deployment.load(harness.client))
    older(Event("view", "a", at=ahead()))
    open_deployment(settings_for(harness.url, NEW))
    Decider(harness.client, Deployment.load(harness.client))(Event("view", "a", at=ahead()))
    older(Event("view", "a", at=ahead()))
    assert older.deployment.rules == NEW
    assert in_the_day(harness) == 2
    assert harness.client.get(harness.layout.keys[0].live) == b"1 2"


def test_a_metric_that_was_just_declared_is_counted(harness):
    """A worker that began before a metric was declared counts its events instead of dead-lettering them."""
    older = follower(harness, "older")
    open_deployment(settings_for(harness.url, NEW))
    emit(harness, "like")
    older.run_once()
    assert harness.dead() == []
    assert harness.totals() == {("like", "a"): 1}


def test_a_running_worker_follows_without_new_entries(harness):
    """A worker that runs follows rules that another one published, even if the other one never counts an entry."""
    log = structlog.wrap_logger(None, processors=[LogCapture()])
    with counting(settings_for(harness.url, OLD), log, consumer="running") as worker:
        emit(harness)
        until(lambda: harness.waiting() == 0, what="the entry to be counted")
        open_deployment(settings_for(harness.url, NEW))
        seen = Deployment.load(harness.client).revision
        worker.follower.run_once()
        emit(harness)
        until(lambda: harness.waiting() == 0, what="the entry to be counted")
        assert harness.client.get(harness.layout.keys[0].live) == f"1 {seen}".encode()
    assert in_the_day(harness) == 1


def test_a_retry_by_older_rules_is_refused(harness):
    """A retry of a dead letter by older rules changes nothing after the partition is counted by newer ones."""
    older = follower(harness, "older")
    harness.client.xadd(harness.layout.keys[0].stream, {"metric": "gone", "subject": "a"})
    older.run_once()
    before = Deployment.load(harness.client)
    open_deployment(settings_for(harness.url, NEW))
    emit(harness)
    follower(harness, "newer").run_once()
    (letter,) = store.letters(harness.client, harness.layout, 0)
    with pytest.raises(StreamError, match="the rules changed meanwhile; retry again"):
        retry(harness.client, before.layout, before.rules, letter, before.revision)
    now = Deployment.load(harness.client)
    assert retry(harness.client, now.layout, now.rules, letter, now.revision) is not None


def test_rules_that_a_failover_lost_do_not_stop_counting(harness):
    """If a partition is counted by rules that the server lost, the stored rules get a higher number and count it."""
    newer_number = Deployment.load(harness.client).revision + 1
    harness.client.set(harness.layout.keys[0].live, f"1 {newer_number}")
    emit(harness)
    with pytest.raises(GenerationSwitched, match=f"rules with the number {newer_number} count it"):
        follower(harness, "w").run_once()
    found = publish_again(harness.client, Deployment.load(harness.client), newer_number)
    assert (found.rules, found.revision) == (OLD, newer_number + 1)
    loop = follower(harness, "w")
    loop.fetch.recover()
    loop.run_once()
    assert harness.totals() == {("view", "a"): 1}


def test_a_worker_mends_rules_that_a_failover_lost(harness):
    """A worker counts on after the server lost the latest rules, and reports it."""
    lines = LogCapture()
    log = structlog.wrap_logger(None, processors=[lines], wrapper_class=structlog.make_filtering_bound_logger(0))
    with counting(settings_for(harness.url, OLD), log):
        emit(harness)
        until(lambda: harness.waiting() == 0, what="the first entry to be counted")
        newer_number = Deployment.load(harness.client).revision + 1
        harness.client.set(harness.layout.keys[0].live, f"1 {newer_number}")
        emit(harness)
        until(lambda: harness.waiting() == 0, what="the entry to be counted")
    assert [line["number"] for line in lines.entries if line["event"] == "rules.lost"] == [newer_number]
