"""The appender: entries are appended once and in order, even if replies are lost or the server loses entries."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from tallystream.deployment import Deployment
from tallystream.errors import KeyLost
from tallystream.producing.appender import _APPEND, Appender
from tallystream.producing.partition_queue import SealedEntry
from tallystream.storage.keys import BEGUN, Layout
from tallystream.storage.sentinels import open_partitions
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.proxy import Proxy
from tests.rewind import copy_of, go_back
from tests.waiting import until


@pytest.fixture
def harness(server):
    """A test harness on an empty server."""
    with Harness(server.url) as harness:
        yield harness


def entry(subject: str = "a", events: int = 1) -> SealedEntry:
    """Return a sealed entry with `events` views of a subject."""
    pack = EntryBuilder()
    for _ in range(events):
        pack.add("view", subject, 1, 60.0, None, None)
    return SealedEntry(1, pack.events, pack.size, pack.build())


def written(harness: Harness, partition: int = 0) -> list[tuple[bytes, int]]:
    """Return the producer and the sequence of every entry in a partition's stream."""
    rows = harness.client.xrange(harness.layout.keys[partition].stream)
    return [(fields[b"p"], int(fields[b"q"])) for _, fields in rows]


def test_entries_are_appended_in_order(harness):
    """Entries are appended to each partition with the sequences 1, 2, 3, ..., and the ledger counts their events."""
    appender = Appender(harness.client, harness.layout)
    for number in range(40):  # more than one burst
        for partition in range(2):
            appender.push(partition, entry(events=number + 1))
    confirmed = []
    while appender.oldest_cycle is not None:
        entries, error = appender.send()
        assert error is None
        confirmed += entries
    assert len(confirmed) == 80
    for partition in range(2):
        assert [q for _, q in written(harness, partition)] == list(range(1, 41))
        assert len({p for p, _ in written(harness, partition)}) == 1
        assert (
            appender.last_ids[partition]
            == harness.client.xrevrange(harness.layout.keys[partition].stream)[0][0].decode()
        )
    assert harness.ledger() == {"appended": 2 * sum(range(1, 41))}
    assert appender.send() == ([], None)


@pytest.mark.parametrize("entries", [1, 5])
def test_a_lost_reply_appends_once(harness, entries):
    """If the server appends entries and its reply is lost, sending them again confirms them and appends nothing."""
    with Proxy(harness.url) as proxy:
        appender = Appender(harness.connect(proxy.url), harness.layout)
        for _ in range(entries):
            appender.push(0, entry())
        proxy.lose_reply_to(_APPEND.sha.encode())
        with pytest.raises(RedisConnectionError):
            appender.send()
        assert proxy.lost.wait(5)
        assert len(written(harness)) == entries
        confirmed, error = appender.send()
        assert (len(confirmed), error, appender.resent) == (entries, None, entries)
        assert appender.last_ids[0] == harness.client.xrevrange(harness.layout.keys[0].stream)[0][0].decode()
        appender.push(0, entry())
        assert (len(appender.send()[0]), appender.rewound) == (1, 0)
    assert [q for _, q in written(harness)] == list(range(1, entries + 2))
    assert len({p for p, _ in written(harness)}) == 1
    assert harness.ledger() == {"appended": entries + 1}


@pytest.mark.parametrize("reply_bytes", [1, 20, 45, 90, 200, 400])
def test_a_pipeline_cut_at_a_byte(harness, reply_bytes):
    """If a connection breaks within the replies, each entry is in the stream once after the next attempts."""
    with Proxy(harness.url) as proxy:
        client = harness.connect(proxy.url)
        appender = Appender(client, harness.layout)
        appender.push(0, entry())
        assert len(appender.send()[0]) == 1
        for _ in range(20):
            appender.push(0, entry())
        proxy.cut_after(reply_bytes)
        with pytest.raises(RedisError):
            appender.send()
        while appender.oldest_cycle is not None:
            appender.send()
    assert [q for _, q in written(harness)] == list(range(1, 22))
    assert harness.ledger() == {"appended": 21}


def test_a_resend_of_older_entries_is_known(harness):
    """`append.lua` replies `already` to every sequence up to the last, and writes none of them again."""
    keys = harness.layout.keys[0]
    names = [keys.stream, keys.sequences, keys.ledger]
    first = _APPEND(harness.client, names, ["1", "p", 1, 1, b"x"])
    second = _APPEND(harness.client, names, ["1", "p", 2, 1, b"x"])
    assert (first[0], second[0]) == (b"appended", b"appended")
    assert _APPEND(harness.client, names, ["1", "p", 1, 1, b"x"]) == [b"already", b""]
    assert _APPEND(harness.client, names, ["1", "p", 2, 1, b"x"]) == [b"already", second[1]]
    assert len(written(harness)) == 2


def test_a_gap_writes_nothing(harness):
    """`append.lua` replies `gap` and the last sequence to one that does not follow it, and writes nothing."""
    keys = harness.layout.keys[0]
    names = [keys.stream, keys.sequences, keys.ledger]
    assert _APPEND(harness.client, names, ["1", "p", 2, 1, b"x"]) == [b"gap", b"0"]
    _APPEND(harness.client, names, ["1", "p", 1, 1, b"x"])
    assert _APPEND(harness.client, names, ["1", "p", 3, 1, b"x"]) == [b"gap", b"1"]
    assert written(harness) == [(b"p", 1)]
    assert harness.ledger() == {"appended": 1}


def test_producers_do_not_share_sequences(harness):
    """The entries of each producer have sequences from 1 on."""
    for _ in range(2):
        appender = Appender(harness.client, harness.layout)
        appender.push(0, entry())
        assert len(appender.send()[0]) == 1
    assert [q for _, q in written(harness)] == [1, 1]


def forget(harness: Harness, sequence: int) -> None:
    """Remove all but the first `sequence` entries of partition 0, as a failover does; it has one producer."""
    keys = harness.layout.keys[0]
    rows = harness.client.xrange(keys.stream)
    for id_, _ in rows[sequence:]:
        harness.client.xdel(keys.stream, id_)
    (name,) = set(harness.client.hkeys(keys.sequences)) - {BEGUN.encode()}
    if sequence:
        harness.client.hset(keys.sequences, name, f"{sequence} {rows[sequence - 1][0].decode()}")
    else:
        harness.client.hdel(keys.sequences, name)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_what_a_server_forgot_is_sent_again(harness, left):
    """Confirmed entries that a server lost are sent again as the same entries, and none is lost."""
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    for _ in range(5):
        appender.push(0, entry())
    assert len(appender.send()[0]) == 5
    before = written(harness)
    forget(harness, left)
    appender.push(0, entry())
    confirmed = []
    while appender.oldest_cycle is not None:
        confirmed += appender.send()[0]
    assert len(confirmed) == 1  # the others were confirmed before
    assert written(harness) == [*before, (before[0][0], 6)]
    assert (appender.rewound, appender.lost, appender.resent) == (1, 0, 0)


def test_an_idle_producer_looks_after_what_was_confirmed(harness, monkeypatch):
    """An appender with nothing to send detects after an interval that the server lost entries, and sends them again."""
    monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 0.01)
    appender = Appender(harness.client, harness.layout)
    for _ in range(3):
        appender.push(0, entry())
    appender.send()
    forget(harness, 1)
    assert 0 <= appender.due <= 0.01  # 0 if this took longer than the interval

    def is_back():
        appender.send()
        return len(written(harness)) == 3

    until(is_back)
    assert [q for _, q in written(harness)] == [1, 2, 3]
    assert (appender.rewound, appender.lost) == (1, 0)


def test_what_is_not_held_any_more_is_counted_as_lost(harness, monkeypatch):
    """If a server lost more entries than are kept, the kept ones are sent again with their sequences.

    `lost` has the number of the others, also after the same data is put back once more.
    """
    monkeypatch.setattr("tallystream.producing.appender.KEEP_BYTES", 4 * 900)
    appender = Appender(harness.client, harness.layout)
    for _ in range(20):
        appender.push(0, entry())
    appender.send()
    kept = len(appender.queues[0].kept)
    assert 1 <= kept <= 3
    forget(harness, 2)
    appender.push(0, entry())
    while appender.oldest_cycle is not None:
        appender.send()
    assert (appender.rewound, appender.lost) == (1, 18 - kept)
    assert [q for _, q in written(harness)] == [1, 2, *range(21 - kept, 22)]
    assert len({p for p, _ in written(harness)}) == 1
    forget(harness, 2)
    appender.check_soon()
    until(lambda: appender.send() == ([], None) and appender.due != 0, what="the second time")
    assert (appender.rewound, appender.lost) == (2, 19 - kept)  # one more is not kept any more
    assert [q for _, q in written(harness)] == [1, 2, *range(22 - len(appender.queues[0].kept), 22)]


def test_a_hole_without_later_entries_is_counted_once(harness, monkeypatch):
    """If a server lost entries of which none is kept, they are counted as lost once, and the next entry follows."""
    monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 0.0)
    appender = Appender(harness.client, harness.layout)
    for _ in range(5):
        appender.push(0, entry())
    appender.send()
    appender.queues[0].forget()
    forget(harness, 2)
    appender.push(0, entry())
    for _ in range(5):
        appender.send()
    assert (appender.rewound, appender.lost) == (1, 3)
    assert [q for _, q in written(harness)] == [1, 2, 6]


def test_another_life_does_not_get_what_was_confirmed_in_the_last(harness, caplog):
    """After the server was emptied and has another epoch, only entries that were never confirmed are sent to it.

    The others are counted as lost, and a warning states their number.
    """
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    for partition in (0, 0, 1):
        appender.push(partition, entry())
    assert len(appender.send()[0]) == 3
    harness.client.flushall()
    for partition in (0, 1):
        appender.push(partition, entry("b"))
    assert isinstance(appender.send()[1], KeyLost)
    assert Deployment.create_or_load(harness.client, 4).epoch != harness.deployment.epoch
    while appender.oldest_cycle is not None:
        appender.send()
    for partition in (0, 1):
        (payload,) = [fields[b"b"] for _, fields in harness.client.xrange(harness.layout.keys[partition].stream)]
        assert payload == entry("b").payload
    assert (appender.rewound, appender.lost) == (2, 3)
    assert "lost=2" in caplog.text


def test_an_entry_without_a_reply_is_not_in_the_restored_data_twice(harness, tmp_path):
    """A new deployment gets the entries that were sent without a reply; a restore of the old data counts them once."""
    subject = next(each for each in "abcdefgh" if harness.layout.keys_of(each).stream == harness.layout.keys[0].stream)
    with Proxy(harness.url) as proxy, closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        appender = Appender(harness.connect(proxy.url), harness.layout, harness.deployment.epoch)
        appender.push(0, entry(subject))
        appender.send()
        for _ in range(2):
            appender.push(0, entry(subject))
        proxy.lose_reply_to(_APPEND.sha.encode())
        with pytest.raises(RedisConnectionError):
            appender.send()
        assert proxy.lost.wait(5)
        harness.drain()
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        harness.client.flushall()
        Deployment.create_or_load(harness.client, 4)

        def is_sent():
            appender.send()
            return appender.oldest_cycle is None

        appender.push(0, entry(subject))
        until(is_sent, what="the entries to be sent to the new deployment")
        assert [sequence for _, sequence in written(harness)] == [2, 3, 4]
        restore(harness.client, database, force=True)
        appender.push(0, entry(subject))
        until(is_sent, what="the last entry to be sent to the restored data")
        harness.drain()
    assert (harness.totals(), appender.lost) == ({("view", subject): 5}, 1)


def test_a_full_stream_takes_nothing_and_is_asked_again(harness):
    """A stream at its limit refuses entries without a write, other partitions accept theirs, and no entry is lost."""
    keys = harness.layout.keys[0]
    harness.client.hset(keys.sequences, "!limit", 2)
    appender = Appender(harness.client, harness.layout)
    for partition in (0, 0, 0, 0, 1):
        appender.push(partition, entry())
    assert (len(appender.send()[0]), appender.backlogged) == (3, 1)
    assert (len(written(harness)), harness.ledger()["appended"]) == (2, 3)
    assert 0 < appender.due < 1
    assert appender.send() == ([], None)  # the full stream is not tried again at once
    harness.client.hset(keys.sequences, "!limit", 4)
    until(lambda: appender.send()[0])
    assert [q for _, q in written(harness)] == [1, 2, 3, 4]


def test_a_server_that_lost_its_scripts(harness):
    """After SCRIPT FLUSH the script is loaded again, and every entry is appended once."""
    appender = Appender(harness.client, harness.layout)
    appender.push(0, entry())
    appender.send()
    harness.client.script_flush()
    for partition in range(2):
        appender.push(partition, entry())
    assert appender.send() == ([], None)
    assert len(appender.send()[0]) == 2
    assert len(written(harness)) == 2


@pytest.mark.parametrize("key", ["stream", "sequences", "ledger"])
def test_a_key_of_another_type_is_an_error_before_any_write(harness, key):
    """If a key of a partition has another type, nothing is written there, and other partitions accept their entries."""
    keys = harness.layout.keys[0]
    others = [getattr(keys, other) for other in ("sequences", "ledger") if other != key]
    before = [harness.client.hgetall(other) for other in others]
    harness.client.delete(getattr(keys, key))
    harness.client.set(getattr(keys, key), "x")
    appender = Appender(harness.client, harness.layout)
    for partition in (0, 0, 1):
        appender.push(partition, entry())
    confirmed, error = appender.send()
    assert len(confirmed) == 1
    assert isinstance(error, ResponseError)
    assert str(error).startswith("WRONGTYPE")
    assert [harness.client.hgetall(other) for other in others] == before
    assert key == "stream" or written(harness) == []


def test_a_full_server_refuses_and_recovers(harness):
    """A server without free memory refuses the append before any write, and accepts it when there is memory."""
    appender = Appender(harness.client, harness.layout)
    appender.push(0, entry())
    harness.client.config_set("maxmemory", 1)
    try:
        confirmed, error = appender.send()
        assert (confirmed, type(error)) == ([], OutOfMemoryError)
        assert (written(harness), harness.ledger()) == ([], {})
    finally:
        harness.client.config_set("maxmemory", 0)
    assert len(appender.send()[0]) == 1
    assert len(written(harness)) == 1


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("is_opened", [False, True])
def test_entries_are_kept_while_no_deployment_is_stored(harness, monkeypatch, is_opened, is_late):
    """An idle appender that finds an empty server waits. When the old data is back, lost entries are sent again.

    It waits also if another process has opened the partitions, but has not stored a deployment. It sends lost entries
    also if the data comes back so late that the appender does not check its last entries any more.
    """
    monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 0.0)
    monkeypatch.setattr("tallystream.producing.appender._PAUSE_DAMAGED", 0.0)
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    appender.push(0, entry())
    appender.send()
    earlier = copy_of(harness.client)
    for _ in range(2):
        appender.push(0, entry())
    appender.send()
    harness.client.flushall()
    if is_opened:
        open_partitions(harness.client, harness.layout)
    for _ in range(10):
        appender.send()
    assert (appender.rewound, len(appender.queues[0].kept)) == (0, 3)
    if is_late:
        monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 1000.0)
        for _ in range(3):
            appender.send()
    go_back(harness.client, earlier)

    def is_back():
        appender.send()
        return len(written(harness)) == 3

    until(is_back)
    assert (appender.rewound, appender.lost, appender.epoch) == (1, 0, harness.deployment.epoch)


def test_entries_of_the_present_data_are_kept_when_the_epoch_changes(harness):
    """An appender that begins in one deployment, and continues in the next without reading it, follows the next.

    A failover of the next deployment loses entries; those that it had confirmed are sent again, and those of the first
    deployment are not.
    """
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    appender.push(1, entry("old"))
    assert len(appender.send()[0]) == 1
    harness.client.flushall()
    epoch = Deployment.create_or_load(harness.client, 4).epoch
    appender.push(0, entry())
    assert len(appender.send()[0]) == 1
    earlier = copy_of(harness.client)
    appender.push(0, entry())
    assert len(appender.send()[0]) == 1
    go_back(harness.client, earlier)
    for partition in (0, 1):
        appender.push(partition, entry("new"))
    while appender.oldest_cycle is not None:
        appender.send()
    assert [sequence for _, sequence in written(harness)] == [1, 2, 3]
    assert [sequence for _, sequence in written(harness, 1)] == [1]
    assert (appender.epoch, appender.lost) == (epoch, 1)


def test_a_move_finds_lost_sequences_whatever_the_epoch(harness):
    """A topic whose sequences are lost is not left, also if the appender has not noticed that the epoch changed."""
    appender = Appender(harness.client, harness.layout, harness.deployment.epoch)
    harness.client.flushall()
    Deployment.create_or_load(harness.client, 4)
    appender.push(0, entry())
    assert len(appender.send()[0]) == 1
    key = harness.layout.keys[0].sequences
    harness.client.delete(key)
    deployment = Deployment.find(harness.client)
    moved = replace(deployment, layout=Layout(4, topic=2), earlier={1: 4})
    with pytest.raises(KeyLost, match=key):
        appender.lasts(moved)
