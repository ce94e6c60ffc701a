"""Appending: once, in order, whatever becomes of the reply."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from tallystream.producing.appender import _APPEND, Appender
from tallystream.producing.partition_queue import Entry
from tallystream.wire.packer import Pack
from tests.harness import Rig
from tests.proxy import Proxy
from tests.waiting import until


@pytest.fixture
def rig(server):
    """The parts, wired to an empty server."""
    with Rig(server.url) as rig:
        yield rig


def entry(subject: str = "a", events: int = 1) -> Entry:
    """Return a sealed entry."""
    pack = Pack()
    for _ in range(events):
        pack.add("view", subject, 1, 60.0, None, None)
    return Entry(1, pack.events, pack.size, pack.seal())


def written(rig: Rig, partition: int = 0) -> list[tuple[bytes, int]]:
    """Return producer and sequence of every entry of a partition."""
    rows = rig.client.xrange(rig.layout.keys[partition].stream)
    return [(fields[b"p"], int(fields[b"q"])) for _, fields in rows]


def test_entries_are_appended_in_order(rig):
    """Entries of every partition arrive numbered 1, 2, 3, and the ledger has their events."""
    appender = Appender(rig.client, rig.layout)
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
        assert [q for _, q in written(rig, partition)] == list(range(1, 41))
        assert len({p for p, _ in written(rig, partition)}) == 1
        assert appender.last_ids[partition] == rig.client.xrevrange(rig.layout.keys[partition].stream)[0][0].decode()
    assert rig.ledger() == {"appended": 2 * sum(range(1, 41))}
    assert appender.send() == ([], None)


@pytest.mark.parametrize("entries", [1, 5])
def test_a_lost_reply_appends_once(rig, entries):
    """When the server appends and the reply is lost, sending again appends nothing and confirms."""
    with Proxy(rig.url) as proxy:
        appender = Appender(rig.connect(proxy.url), rig.layout)
        for _ in range(entries):
            appender.push(0, entry())
        proxy.lose_reply_to(_APPEND.sha.encode())
        with pytest.raises(RedisConnectionError):
            appender.send()
        assert proxy.lost.wait(5)
        assert len(written(rig)) == entries
        confirmed, error = appender.send()
        assert (len(confirmed), error, appender.resent) == (entries, None, entries)
        assert appender.last_ids[0] == rig.client.xrevrange(rig.layout.keys[0].stream)[0][0].decode()
        appender.push(0, entry())
        assert (len(appender.send()[0]), appender.rewound) == (1, 0)
    assert [q for _, q in written(rig)] == list(range(1, entries + 2))
    assert len({p for p, _ in written(rig)}) == 1
    assert rig.ledger() == {"appended": entries + 1}


@pytest.mark.parametrize("reply_bytes", [1, 20, 45, 90, 200, 400])
def test_a_pipeline_cut_at_a_byte(rig, reply_bytes):
    """A connection that breaks in the middle of the replies leaves each entry in the stream once after the next try."""
    with Proxy(rig.url) as proxy:
        client = rig.connect(proxy.url)
        appender = Appender(client, rig.layout)
        appender.push(0, entry())
        assert len(appender.send()[0]) == 1
        for _ in range(20):
            appender.push(0, entry())
        proxy.cut_after(reply_bytes)
        with pytest.raises(RedisError):
            appender.send()
        while appender.oldest_cycle is not None:
            appender.send()
    assert [q for _, q in written(rig)] == list(range(1, 22))
    assert rig.ledger() == {"appended": 21}


def test_a_resend_of_older_entries_is_known(rig):
    """The gate knows every sequence up to the last, and writes none of them again."""
    keys = rig.layout.keys[0]
    names = [keys.stream, keys.sequences, keys.ledger]
    first = _APPEND(rig.client, names, ["1", "p", 1, 1, b"x"])
    second = _APPEND(rig.client, names, ["1", "p", 2, 1, b"x"])
    assert (first[0], second[0]) == (b"appended", b"appended")
    assert _APPEND(rig.client, names, ["1", "p", 1, 1, b"x"]) == [b"already", b""]
    assert _APPEND(rig.client, names, ["1", "p", 2, 1, b"x"]) == [b"already", second[1]]
    assert len(written(rig)) == 2


def test_a_gap_writes_nothing(rig):
    """A sequence that does not follow on the last is refused with the last, and nothing is written."""
    keys = rig.layout.keys[0]
    names = [keys.stream, keys.sequences, keys.ledger]
    assert _APPEND(rig.client, names, ["1", "p", 2, 1, b"x"]) == [b"gap", b"0"]
    _APPEND(rig.client, names, ["1", "p", 1, 1, b"x"])
    assert _APPEND(rig.client, names, ["1", "p", 3, 1, b"x"]) == [b"gap", b"1"]
    assert written(rig) == [(b"p", 1)]
    assert rig.ledger() == {"appended": 1}


def test_producers_do_not_share_sequences(rig):
    """Each producer counts its own entries."""
    for _ in range(2):
        appender = Appender(rig.client, rig.layout)
        appender.push(0, entry())
        assert len(appender.send()[0]) == 1
    assert [q for _, q in written(rig)] == [1, 1]


def forget(rig: Rig, sequence: int) -> None:
    """Take partition 0 back to where it had the first `sequence` entries of its only producer."""
    keys = rig.layout.keys[0]
    rows = rig.client.xrange(keys.stream)
    for id_, _ in rows[sequence:]:
        rig.client.xdel(keys.stream, id_)
    (name,) = rig.client.hkeys(keys.sequences)
    if sequence:
        rig.client.hset(keys.sequences, name, f"{sequence} {rows[sequence - 1][0].decode()}")
    else:
        rig.client.delete(keys.sequences)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_what_a_server_forgot_is_sent_again(rig, left):
    """A server that forgot entries that it had confirmed gets them again as the same entries, and none is lost."""
    appender = Appender(rig.client, rig.layout, rig.meta.epoch)
    for _ in range(5):
        appender.push(0, entry())
    assert len(appender.send()[0]) == 5
    before = written(rig)
    forget(rig, left)
    appender.push(0, entry())
    confirmed = []
    while appender.oldest_cycle is not None:
        confirmed += appender.send()[0]
    assert len(confirmed) == 1  # the others were confirmed before
    assert written(rig) == [*before, (before[0][0], 6)]
    assert (appender.rewound, appender.lost, appender.resent) == (1, 0, 0)


def test_an_idle_producer_looks_after_what_was_confirmed(rig, monkeypatch):
    """A producer that has nothing to send finds out all the same that the server forgot, and sends again."""
    monkeypatch.setattr("tallystream.producing.appender._LOOK", 0.01)
    appender = Appender(rig.client, rig.layout)
    for _ in range(3):
        appender.push(0, entry())
    appender.send()
    forget(rig, 1)
    assert 0 < appender.due <= 0.01

    def is_back():
        appender.send()
        return len(written(rig)) == 3

    until(is_back)
    assert [q for _, q in written(rig)] == [1, 2, 3]
    assert (appender.rewound, appender.lost) == (1, 0)


def test_what_is_not_held_any_more_is_counted_as_lost(rig, monkeypatch):
    """Where a server forgot more than is kept, the rest is sent under a new name, and the loss is said."""
    monkeypatch.setattr("tallystream.producing.appender.KEEP_BYTES", 4 * 900)
    appender = Appender(rig.client, rig.layout)
    for _ in range(20):
        appender.push(0, entry())
    appender.send()
    kept = len(appender.lanes[0].kept)
    assert 1 <= kept <= 3
    forget(rig, 2)
    appender.push(0, entry())
    while appender.oldest_cycle is not None:
        appender.send()
    assert (appender.rewound, appender.lost) == (1, 18 - kept)
    assert [q for _, q in written(rig)] == [1, 2, *range(1, kept + 2)]
    assert len({p for p, _ in written(rig)}) == 2


def test_another_life_does_not_get_what_was_confirmed_in_the_last(rig):
    """A server that was flushed and begun anew gets what was never confirmed, and nothing else."""
    appender = Appender(rig.client, rig.layout, rig.meta.epoch)
    for partition in (0, 0, 1):
        appender.push(partition, entry())
    assert len(appender.send()[0]) == 3
    rig.client.flushall()
    for partition in (0, 1):
        appender.push(partition, entry("b"))
    while appender.oldest_cycle is not None:
        appender.send()
    for partition in (0, 1):
        (payload,) = [fields[b"b"] for _, fields in rig.client.xrange(rig.layout.keys[partition].stream)]
        assert payload == entry("b").payload


def test_a_full_stream_takes_nothing_and_is_asked_again(rig):
    """A stream at its limit refuses before any write; other partitions go on, and nothing is lost."""
    keys = rig.layout.keys[0]
    rig.client.hset(keys.sequences, "!limit", 2)
    appender = Appender(rig.client, rig.layout)
    for partition in (0, 0, 0, 0, 1):
        appender.push(partition, entry())
    assert (len(appender.send()[0]), appender.backlogged) == (3, 1)
    assert (len(written(rig)), rig.ledger()["appended"]) == (2, 3)
    assert 0 < appender.due < 1
    assert appender.send() == ([], None)  # it is left alone for a moment
    rig.client.hset(keys.sequences, "!limit", 4)
    until(lambda: appender.send()[0])
    assert [q for _, q in written(rig)] == [1, 2, 3, 4]


def test_a_server_that_lost_its_scripts(rig):
    """After SCRIPT FLUSH the script is loaded again, and everything is appended once."""
    appender = Appender(rig.client, rig.layout)
    appender.push(0, entry())
    appender.send()
    rig.client.script_flush()
    for partition in range(2):
        appender.push(partition, entry())
    assert appender.send() == ([], None)
    assert len(appender.send()[0]) == 2
    assert len(written(rig)) == 2


@pytest.mark.parametrize("key", ["stream", "sequences", "ledger"])
def test_a_key_of_another_type_is_an_error_before_any_write(rig, key):
    """Where one of the keys holds something else, nothing is written, and other partitions go on."""
    keys = rig.layout.keys[0]
    rig.client.delete(getattr(keys, key))
    rig.client.set(getattr(keys, key), "x")
    appender = Appender(rig.client, rig.layout)
    for partition in (0, 0, 1):
        appender.push(partition, entry())
    confirmed, error = appender.send()
    assert len(confirmed) == 1
    assert isinstance(error, ResponseError)
    assert str(error).startswith("WRONGTYPE")
    others = {"stream", "sequences", "ledger"} - {key}
    assert not any(rig.client.exists(getattr(keys, other)) for other in others if other != "stream")
    assert key == "stream" or written(rig) == []


def test_a_full_server_refuses_and_recovers(rig):
    """A server without memory refuses the append before any effect, and takes it once there is room."""
    appender = Appender(rig.client, rig.layout)
    appender.push(0, entry())
    rig.client.config_set("maxmemory", 1)
    try:
        confirmed, error = appender.send()
        assert (confirmed, type(error)) == ([], OutOfMemoryError)
        assert (written(rig), rig.ledger()) == ([], {})
    finally:
        rig.client.config_set("maxmemory", 0)
    assert len(appender.send()[0]) == 1
    assert len(written(rig)) == 1
