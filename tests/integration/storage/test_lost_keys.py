"""A key that was deleted or evicted is never taken for one that never existed: it is refused by name, or audited."""

from __future__ import annotations

import time
from contextlib import closing
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, ConsumerGroupMissing, KeyLost, StreamError
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import GROUP
from tallystream.storage.sentinels import lost_key
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.maintenance.losses import settle_losses
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.reopen import Reopened, reopen
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.health import HealthProbe
from tallystream_worker.runtime.publication import publish_again
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.rewind import copy_of, go_back
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tests.servers import Server

RULES = Rules(
    {
        "view": Metric(windows=("day",), top=2, unique="day", ids="day"),
        "like": Metric(once="forever"),
        "call": Metric(limit=5, per="day", ids=None),
    }
)
SENTINELS = ["sequences", "ledger", "live"]
COUNTERS = ["total:view:s", "top:view", "day:view:", "top:day:view:", "unique:view:", "up:like:s", "once:like:"]


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Yield a harness of one partition with all rules; nothing is appended."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        yield harness


def entry(number: int = 0) -> SealedEntry:
    """Return an entry with events of every rule."""
    pack, now = EntryBuilder(), time.time()
    pack.add("view", "s", 1, now, "a", f"i{number}")
    pack.add("like", "s", 1, now, f"a{number}", None)
    pack.add("call", "s", 1, now, None, None)
    pack.add("view", f"t{number}", 1, now, None, None)
    return SealedEntry(1, pack.events, pack.size, pack.build())


def append(appender: Appender, *numbers: int) -> None:
    """Append an entry for each number, and check that all are confirmed."""
    for number in numbers:
        appender.push(0, entry(number))
    assert appender.send()[1] is None
    assert appender.oldest_cycle is None


def found(harness: Harness, beginning: str) -> str:
    """Return the name of the only key that begins so after the prefix of the counters."""
    (name,) = harness.client.scan_iter(match=f"{harness.layout.keys[0].counters}{beginning}*")
    return name.decode()


@pytest.mark.parametrize("name", ["sequences", "ledger"])
def test_nothing_is_appended_without_a_sentinel(harness, name):
    """A producer keeps its entries while a key is missing; when the key is back, each entry is appended once."""
    keys = harness.layout.keys[0]
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    append(appender, 1, 2, 3)
    key = getattr(keys, name)
    harness.client.rename(key, "kept")
    for each in (appender, Appender(harness.client, harness.layout, harness.deployment.epoch)):
        each.push(0, entry(4))
        error = each.send()[1]
        assert isinstance(error, KeyLost)
        assert (error.key, each.rewound) == (key, 0)
        assert harness.client.xlen(keys.stream) == 3
        harness.client.delete(key)  # nothing was written to it either
    harness.client.rename("kept", key)
    appender.queues[0].resume_at = 0.0
    assert appender.send() == ([appender.queues[0].kept[-1]], None)
    assert harness.client.xlen(keys.stream) == 4


def test_an_idle_producer_does_not_take_lost_sequences_for_lost_entries(harness, monkeypatch):
    """The check of an idle producer finds no record, and sends nothing again, because the sequences are gone."""
    monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 0.0)
    keys = harness.layout.keys[0]
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    append(appender, 1, 2)
    harness.client.delete(keys.sequences)
    errors = [appender.send()[1] for _ in range(3)]
    assert isinstance(errors[-1], KeyLost)
    assert (appender.rewound, appender.oldest_cycle, harness.client.xlen(keys.stream)) == (0, None, 2)


def test_an_idle_producer_notices_that_a_partition_is_repaired(harness, monkeypatch):
    """After the lost sequences are back, a producer with nothing to send reports no lost key any more."""
    monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 0.0)
    monkeypatch.setattr("tallystream.producing.appender._PAUSE_DAMAGED", 0.0)
    keys = harness.layout.keys[0]
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    append(appender, 1, 2)
    harness.client.rename(keys.sequences, "kept")
    until(lambda: isinstance(appender.send()[1], KeyLost), what="a lost key")
    appender._rollbacks.confirmed_at = 0.0  # long ago, so that the sequences are not checked any more
    assert appender.due == 0
    assert isinstance(appender.send()[1], KeyLost)
    harness.client.rename("kept", keys.sequences)
    assert appender.due == 0
    until(lambda: appender.send()[1] is None, what="no lost key")
    assert (appender.lost, appender.oldest_cycle, harness.client.xlen(keys.stream)) == (0, None, 2)


@pytest.mark.parametrize("name", SENTINELS)
def test_nothing_is_counted_without_a_sentinel(harness, name):
    """A batch and a decision name the missing key and change nothing."""
    keys = harness.layout.keys[0]
    appender = Appender(harness.client, harness.layout)
    append(appender, 1)
    harness.drain()
    append(appender, 2)
    totals = harness.totals()
    harness.client.delete(getattr(keys, name))
    consumer = harness.consumer()
    decide = Decider(harness.client, Deployment.load(harness.client))
    for attempt in (consumer.run_once, lambda: decide(Event("view", "s")), consumer.fetch.ensure_group):
        with pytest.raises(KeyLost, match=getattr(keys, name)):
            attempt()
    assert harness.totals() == totals
    assert not harness.client.exists(getattr(keys, name))


@pytest.mark.parametrize("beginning", ["seen:view", "limit:call"])
def test_nothing_is_counted_without_the_state_of_a_period(harness, beginning):
    """Events of a period whose ids or limits are gone are not counted: they could count a second time."""
    appender = Appender(harness.client, harness.layout)
    append(appender, 1)
    harness.drain()
    append(appender, 1)
    key = found(harness, beginning)
    harness.client.delete(key)
    totals = harness.totals()
    with pytest.raises(KeyLost, match=key):
        harness.drain()
    assert harness.totals() == totals


@pytest.mark.parametrize("name", SENTINELS)
def test_a_worker_names_the_lost_key_and_continues_when_it_is_back(harness, server, monkeypatch, name):
    """The partition pauses, also without new entries; the reason and a metric state it, until the key is back."""
    monkeypatch.setattr("tallystream_worker.runtime.partition_worker._CHECK", 0.01)
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture])
    settings = Settings(RedisSettings(server.url, partitions=1), rules=RULES)
    append(Appender(harness.client, harness.layout), 1)
    key = getattr(harness.layout.keys[0], name)
    with counting(settings, log) as worker:
        probe = HealthProbe(worker)
        until(lambda: harness.totals() == totals_after(1))
        harness.client.rename(key, "kept")
        until(lambda: worker.health[0].lost_key == key)
        paused = [each["problem"] for each in capture.entries if each["event"] == "partition.paused"]
        assert paused == [str(KeyLost(key))]
        samples = {sample.name: sample.value for family in probe.collect() for sample in family.samples}
        assert (samples["tallystream_key_lost"], samples["tallystream_partition_up"]) == (1, 0)
        harness.client.rename("kept", key)
        until(lambda: worker.health[0].problem is None)
        assert worker.health[0].lost_key is None


def test_a_worker_that_starts_counts_the_other_partitions(server):
    """If one partition has lost a key before a worker starts, the worker names the key, and counts the others."""
    settings = Settings(RedisSettings(server.url, partitions=2), rules=RULES)
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
        for partition in (0, 1):
            appender.push(partition, entry(partition))
        assert appender.send()[1] is None
        key = harness.layout.keys[0].sequences
        harness.client.delete(key)
        with counting(settings, structlog.get_logger()) as worker:
            until(lambda: worker.health[0].lost_key == key)
            until(lambda: harness.client.xpending(harness.layout.keys[1].stream, GROUP)["pending"] == 0)
            until(lambda: harness.client.hget(harness.layout.keys[1].ledger, "counted"))


def test_nothing_is_counted_through_a_new_group(harness):
    """A worker does not create the group again after entries were counted."""
    keys = harness.layout.keys[0]
    append(Appender(harness.client, harness.layout), 1)
    harness.drain()
    harness.client.xgroup_destroy(keys.stream, keys.group)
    with pytest.raises(ConsumerGroupMissing, match="tallystream rebuild"):
        harness.fetch(0).ensure_group()


@pytest.mark.parametrize("is_counted", [True, False])
@pytest.mark.parametrize("goes_on", [True, False])
def test_a_deleted_stream_is_not_taken_for_a_new_one(harness, is_counted, goes_on):
    """The ledger shows more entries than the stream had, so a worker names the stream, also if other clients continue.

    A producer appends nothing to a new stream: its lost entries would have no place there.
    """
    keys = harness.layout.keys[0]
    appender = Appender(harness.client, harness.layout)
    append(appender, 1, 2)
    if is_counted:
        harness.drain()
    harness.client.delete(keys.stream)
    appender.push(0, entry(3))
    _, error = appender.send()
    assert isinstance(error, KeyLost)
    assert error.key == keys.stream
    assert not harness.client.exists(keys.stream)
    if goes_on:
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "plain"})
    with pytest.raises(KeyLost, match="restore --force") as raised:
        harness.fetch(0).ensure_group()
    assert raised.value.key == keys.stream


def test_a_deployment_has_at_least_one_partition(server):
    """0 is refused like every other number of partitions that is not 1 to 1,024; nothing is stored."""
    server.clear()
    for stored in (False, True):
        for number in (0, -1, 1025):
            with pytest.raises(ConfigurationError, match="partitions must be 1 to 1,024"):
                Deployment.create_or_load(server.client(), number)
        assert server.client().exists("tally:meta") == stored
        Deployment.create_or_load(server.client(), 1)


def test_a_deployment_is_not_created_over_the_data_of_another(harness):
    """Without the meta hash, neither a producer nor a worker makes a new deployment of the partitions."""
    append(Appender(harness.client, harness.layout), 1)
    harness.drain()
    harness.client.delete(harness.layout.root)
    with pytest.raises(KeyLost, match=harness.layout.root):
        Deployment.create_or_load(harness.client, 1)
    assert not harness.client.exists(harness.layout.root)
    harness.client.flushall()
    assert Deployment.create_or_load(harness.client, 1).is_stored


@pytest.mark.parametrize("beginning", COUNTERS)
def test_an_audit_names_a_counter_that_was_deleted(harness, beginning):
    """Any other key of counters is a difference of the next audit."""
    append(Appender(harness.client, harness.layout), 1)
    harness.drain()
    key = found(harness, beginning)
    harness.client.delete(key)
    report = audit(harness.client, Deployment.load(harness.client), harness.rules)
    name = key.removeprefix(harness.layout.keys[0].counters)
    assert any(each.counter.partition(" -> ")[0] == name for each in report.differences)


def test_all_sentinels_at_once_are_not_taken_for_a_new_partition(harness):
    """If all three are gone, the consumer group shows that the partition is not new."""
    keys = harness.layout.keys[0]
    append(Appender(harness.client, harness.layout), 1)
    harness.drain()
    harness.client.delete(keys.sequences, keys.ledger, keys.live)
    appender = Appender(harness.client, harness.layout)
    appender.push(0, entry(2))
    assert isinstance(appender.send()[1], KeyLost)
    assert harness.client.xlen(keys.stream) == 1


PARTS = ["stream", "sequences", "ledger", "live", "rest"]
LOSSES = [
    lost
    for length in range(1, len(PARTS) + 1)
    for lost in combinations(PARTS, length)
    if lost != ("rest",)  # the counters, which an audit compares
]


@pytest.mark.parametrize("lost", LOSSES, ids="-".join)
def test_keys_that_are_lost_together_are_not_taken_for_a_new_partition(harness, server, tmp_path, lost):
    """Whatever else a partition has lost with a sentinel or its stream, also everything, nothing looks right.

    Workers and rebuilds refuse, an audit does too, and a verification finds it. After a restore, every event is counted
    once, although one producer sends again what the stream has lost, and another one ended before the loss.
    """
    with closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        keys, deployment = harness.layout.keys[0], Deployment.load(harness.client)
        appenders = [Appender(harness.client, harness.layout, deployment.epoch) for _ in range(2)]
        for number, appender in enumerate([*appenders, appenders[0]], start=1):
            append(appender, number)
        harness.drain()
        archive = Store(str(tmp_path / "archive"))
        Archive(harness.client, archive, deployment).run_once(settled=0)
        Snapshotter(harness.client, database, deployment).run_once()
        delete(harness, keys, lost)

        appenders[0].push(0, entry(4))
        appenders[0].send()
        if {"sequences", "ledger"} & {*lost}:
            assert harness.client.xlen(keys.stream) == (0 if "stream" in lost else 3)
        if lost != ("stream",):
            with pytest.raises(KeyLost):
                Decider(harness.client, deployment)(Event("view", "s"))
        with pytest.raises((KeyLost, ConsumerGroupMissing)):
            harness.fetch(0).ensure_group()
        with pytest.raises((KeyLost, ConsumerGroupMissing), match="restore --force"):
            audit(harness.client, deployment, RULES, sources=Sources(archive, database))
        settings = Settings(RedisSettings(server.url, partitions=1), rules=RULES)
        with (
            pytest.raises(KeyLost, match="restore --force"),
            Rebuild(settings, deployment, propose(harness.client, deployment, RULES), archive=archive.url) as rebuild,
        ):
            rebuild.begin()
        found = verify(harness.client, "tally", Sources(archive, database)).findings
        assert any("restore --force" in f"{found[name].kind.remedy} {found[name].details}" for name in found)

        restore(harness.client, database, partial(entries, archive), force=True)
        until(lambda: appenders[0].send() == ([], None) and appenders[0].oldest_cycle is None)
        harness.drain()
        assert harness.totals() == totals_after(4)


@pytest.mark.parametrize("generation", [1, 2])
def test_counting_continues_without_a_partition_that_has_lost_all_keys(harness, server, generation):
    """After `reopen`, producers send again what they keep, and each event counts once; nothing else is opened.

    Before, a verification finds the lost keys, and does not take their generation for the first.
    """
    keys = harness.layout.keys[0]
    appender = counted_with(harness, server, generation)
    assert reopened(harness) == Reopened([], [])
    harness.client.delete(*harness.client.scan_iter(f"{keys.prefix}*"))
    report = verify(harness.client, "tally", Sources())
    assert "keys.lost" in report.findings
    assert "deployment.generations_differ" not in report.findings
    appender.push(0, entry(4))
    assert isinstance(appender.send()[1], KeyLost)
    assert reopened(harness) == Reopened([], [keys.stream])
    continues(harness, appender)


@pytest.mark.parametrize("generation", [1, 2])
def test_an_interrupted_reopening_is_continued(harness, server, generation):
    """Whichever command was the last one before an interruption, the next `reopen` continues."""
    keys = harness.layout.keys[0]
    appender = counted_with(harness, server, generation)
    later = Deployment.load(harness.client).layout.keys[0]
    kept = copy_of(harness.client)
    done = 0
    while True:
        go_back(harness.client, kept)
        harness.client.delete(*harness.client.scan_iter(f"{keys.prefix}*"))
        client = Interrupted(harness.client, after=done)
        try:
            reopen(client, Deployment.find(harness.client))
        except ConnectionError:
            done += 1
        else:
            break
        reopened(harness)
        assert lost_key(harness.client, keys) is None
        assert harness.client.exists(later.begun) == harness.client.exists(later.stream) == generation - 1
    assert done > 3
    appender.push(0, entry(4))
    continues(harness, appender)


class Interrupted:
    """A client whose server is gone after a number of commands."""

    def __init__(self, client: redis.Redis, after: int) -> None:
        self._client, self._left = client, after

    def __getattr__(self, name: str):
        if self._left == 0:
            raise ConnectionError
        self._left -= 1
        return getattr(self._client, name)


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("name", ["sequences", "topic_ledger", "all"])
def test_a_partition_that_cannot_be_mended_begins_again(harness, server, generation, name):
    """Without the sequences or the ledger, or if only counters are left, `reopen` changes nothing unless forced."""
    appender = counted_with(harness, server, generation)
    keys = Deployment.load(harness.client).layout.keys[0]
    sentinels = [keys.sequences, keys.topic_ledger, keys.live, keys.stream]
    harness.client.delete(*(sentinels if name == "all" else [getattr(keys, name)]))
    before = copy_of(harness.client)
    with pytest.raises(StreamError, match=r"is lost, .* tallystream reopen --force"):
        reopened(harness)
    assert copy_of(harness.client) == before
    appender.push(0, entry(4))
    assert isinstance(appender.send()[1], KeyLost)
    assert reopened(harness, force=True) == Reopened([], [keys.stream])
    continues(harness, appender)


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("name", ["sequences", "topic_ledger", "live", "stream", "all"])
def test_the_error_names_the_command_that_works(harness, server, generation, name):
    """Without a snapshot, the command that the error of a lost key names lets the partition count again."""
    appender = counted_with(harness, server, generation)
    keys = Deployment.load(harness.client).layout.keys[0]
    names = harness.client.scan_iter(f"{keys.prefix}*") if name == "all" else [getattr(keys, name)]
    harness.client.delete(*names)
    told = str(KeyLost(lost_key(harness.client, keys) or keys.stream)).rpartition("Only if there is no snapshot, ")[2]
    if name in ("sequences", "all"):  # the text has both commands, each with its case
        case = "all its keys" if name == "all" else "has keys left"
        (told,) = [part for part in told.rpartition(": ")[2].split("; ") if case in part]
    assert "tallystream reopen" in told
    assert reopened(harness, force="reopen --force" in told) != Reopened([], [])
    assert lost_key(harness.client, keys) is None
    appender.push(0, entry(4))
    until(lambda: appender.send() == ([], None) and appender.oldest_cycle is None)
    harness.layout = Deployment.load(harness.client).layout
    harness.fetch(0).ensure_group()
    harness.drain()
    assert harness.totals()["view", "t4"] == 1


@pytest.mark.parametrize("generation", [1, 2])
def test_the_key_of_the_live_generation_is_mended(harness, server, generation):
    """If only this key is lost, `reopen` writes it again, and nothing is lost."""
    appender = counted_with(harness, server, generation)
    keys = Deployment.load(harness.client).layout.keys[0]
    live = harness.client.get(keys.live)
    harness.client.delete(keys.live)
    assert reopened(harness) == Reopened([keys.live], [])
    assert harness.client.get(keys.live) == live
    append(appender, 4)
    harness.layout = Deployment.load(harness.client).layout
    harness.drain()
    assert harness.totals() == totals_after(4)
    assert verify(harness.client, "tally", Sources()).findings == {}


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("waiting", [0, 2])
@pytest.mark.parametrize("goes_on", [0, 1])
def test_a_lost_stream_is_mended(harness, server, generation, waiting, goes_on):
    """After `reopen`, the counters are as before; only entries that waited are lost, and the ledger states how many."""
    appender = counted_with(harness, server, generation)
    harness.layout = Deployment.load(harness.client).layout
    keys = harness.layout.keys[0]
    append(appender, *range(10, 10 + waiting))
    harness.client.delete(keys.stream)
    if goes_on:  # another client creates the stream
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "plain"})
        append(appender, 20)
    assert reopened(harness) == Reopened([keys.stream], [])
    append(appender, 4)
    harness.drain()
    loss = settle_losses(harness.client, keys)
    assert (loss.events if loss else 0) == 4 * waiting
    kept = [1, 2, 3, 4, *range(20, 20 + goes_on)]
    expected = {("view", "s"): len(kept), ("like", "s"): len(kept), ("call", "s"): min(5, len(kept))}
    expected |= {("view", f"t{number}"): 1 for number in kept} | ({("view", "plain"): 1} if goes_on else {})
    assert harness.totals() == expected
    append(appender, 30)
    harness.drain()
    assert verify(harness.client, "tally", Sources()).findings == {}


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("records", [False, True])
def test_keys_that_are_lost_together_are_mended_by_one_call(harness, server, generation, records):
    """One call of `reopen` repairs the live generation, the stream, and the records of dropped dead letters."""
    appender = counted_with(harness, server, generation)
    harness.layout = Deployment.load(harness.client).layout
    keys = harness.layout.keys[0]
    names = [keys.live, keys.stream]
    if records:
        harness.client.hset(keys.topic_ledger, "entries:dropped", 1)
        names.append(keys.dropped)
    harness.client.delete(*names)
    assert reopened(harness) == Reopened(names, [])
    assert reopened(harness) == Reopened([], [])
    append(appender, 4)
    harness.drain()
    settle_losses(harness.client, keys)
    assert harness.totals() == totals_after(4)
    assert verify(harness.client, "tally", Sources()).findings == {}


def counted_with(harness: Harness, server: Server, generation: int) -> Appender:
    """Count three entries in this generation, and return the producer of the last two; the first one has ended."""
    deployment = Deployment.load(harness.client)
    publish_again(harness.client, deployment, 0)
    gone, appender = (Appender(harness.client, harness.layout, deployment.epoch) for _ in range(2))
    append(gone, 1)
    append(appender, 2, 3)
    harness.drain()
    if generation == 2:
        deployment = Deployment.load(harness.client)
        settings = Settings(RedisSettings(server.url, partitions=1), rules=RULES)
        with Rebuild(settings, deployment, propose(harness.client, deployment, RULES)) as rebuild:
            rebuild.begin()
            rebuild.catch_up()
            rebuild.switch()
        drop(harness.client, Deployment.load(harness.client), 1)
    return appender


def reopened(harness: Harness, *, force: bool = False) -> Reopened:
    """Reopen what can be reopened."""
    return reopen(harness.client, Deployment.find(harness.client), force=force)


def continues(harness: Harness, appender: Appender) -> None:
    """Assert that an empty partition counts the entries that the producer keeps and the fourth one, which it has."""
    until(lambda: appender.send() == ([], None) and appender.oldest_cycle is None)
    harness.layout = Deployment.load(harness.client).layout
    harness.fetch(0).ensure_group()
    harness.drain()
    expected = totals_after(4) | {("view", "s"): 3, ("like", "s"): 3, ("call", "s"): 3}
    del expected["view", "t1"]
    assert harness.totals() == expected
    assert verify(harness.client, "tally", Sources()).findings == {}


def delete(harness: Harness, keys: PartitionKeys, parts: tuple[str, ...]) -> None:
    """Delete these keys of a partition; `rest` stands for all keys except the other four."""
    named = {part: getattr(keys, part).encode() for part in PARTS if part != "rest"}
    rest = set(harness.client.scan_iter(f"{keys.prefix}*")) - {*named.values()}
    for part in parts:
        harness.client.delete(*(rest if part == "rest" else [named[part]]))


@pytest.mark.parametrize("name", [*SENTINELS, "meta"])
def test_a_forced_restore_repairs_a_lost_key(harness, tmp_path, name):
    """After `restore --force`, every event is counted once, and a producer continues its sequence."""
    keys = harness.layout.keys[0]
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    append(appender, 1, 2)
    harness.drain()
    with closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        append(appender, 3)
        harness.client.delete(harness.layout.root if name == "meta" else getattr(keys, name))
        restore(harness.client, database, force=True)
    harness.drain()
    assert harness.totals() == totals_after(3)
    append(appender, 4)
    harness.drain()
    assert harness.totals() == totals_after(4)
    assert (appender.rewound, harness.waiting()) == (0, 0)


@pytest.mark.parametrize("name", ["seen:view", "limit:call"])
def test_a_rebuild_repairs_the_state_of_a_period(harness, server, name):
    """After the ids or the limits of a period were lost, a rebuild counts every event once."""
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    append(appender, 1, 2)
    harness.drain()
    harness.client.delete(found(harness, name))
    append(appender, 2)  # its ids are those of the entry before
    settings = Settings(RedisSettings(server.url, partitions=1), rules=RULES)
    deployment = Deployment.load(harness.client)
    with Rebuild(settings, deployment, propose(harness.client, deployment, RULES)) as rebuild:
        rebuild.begin()
        rebuild.catch_up()
        rebuild.switch()
    with Totals(server.url) as totals:
        assert [totals.get("s", metric).value for metric in RULES.metric] == [2, 2, 3]


def totals_after(entries: int) -> dict[tuple[str, str], int]:
    """Return the totals after the entries 1 to `entries`."""
    totals = {("view", "s"): entries, ("like", "s"): entries, ("call", "s"): min(5, entries)}
    return totals | {("view", f"t{number}"): 1 for number in range(1, entries + 1)}
