"""After a long silence the server has removed a producer's record: no entry counts twice, and no unsent one is lost."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tallystream import Producer
from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.errors import SpoolError
from tallystream.producing.appender import _APPEND, Appender, new_queues
from tallystream.producing.buffer import BufferSettings
from tallystream.producing.gate import newest_ids
from tallystream.producing.partition_queue import SealedEntry
from tallystream.producing.send_queue import SendQueue
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.settings import SpoolSettings
from tallystream.wire.packer import EntryBuilder
from tests.harness import Harness
from tests.proxy import Proxy
from tests.silence import pass_days
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def harness(server):
    """A test harness of one partition on an empty server."""
    with Harness(server.url, partitions=1) as harness:
        yield harness


def begun(harness: Harness, client=None, on_rename=None) -> Appender:
    """Return an appender that has read where the streams are, as a producer's has."""
    queues = new_queues(harness.layout, newest_ids(harness.client, harness.layout, spool=False))
    epoch = harness.deployment.epoch
    return Appender(client or harness.client, harness.layout, epoch, queues=queues, on_rename=on_rename)


def push(appender: Appender, *subjects: str, partitions: int = 1) -> None:
    """Queue an entry with one view of each subject, in each of the first partitions."""
    for subject in subjects:
        pack = EntryBuilder()
        pack.add("view", subject, 1, 60.0, None, None)
        payload = pack.build()
        for partition in range(partitions):
            appender.push(partition, SealedEntry(1, pack.events, pack.size, payload))


def finish(appender: Appender) -> None:
    """Send until nothing waits."""
    while appender.oldest_cycle is not None:
        appender.send()


def counted(harness: Harness) -> dict[str, int]:
    """Count all entries; return the total of each subject but `other`."""
    harness.finish()
    return {subject: total for (_, subject), total in harness.totals().items() if subject != "other"}


def records(harness: Harness) -> list[bytes]:
    """Return the names of the producers that the gate has a record of."""
    return [name for name in harness.client.hkeys(harness.layout.keys[0].sequences) if not name.startswith(b"!")]


@pytest.mark.parametrize("kept", [8 * 2**20, 300])
def test_a_producer_that_was_silent_for_long_sends_nothing_again(harness, monkeypatch, kept):
    """After 33 days without an append, the producer's next entries are appended, and none of the confirmed ones."""
    monkeypatch.setattr("tallystream.producing.appender.KEEP_BYTES", kept)
    appender = begun(harness)
    push(appender, "a", "b", "c")
    finish(appender)
    assert pass_days(harness, 33) == 1
    push(appender, "d", "e")
    finish(appender)
    push(appender, "f")
    finish(appender)
    assert counted(harness) == dict.fromkeys("abcdef", 1)
    assert (appender.rewound, appender.lost, appender.unknown, appender.resent) == (0, 0, 0, 0)


def test_an_idle_check_after_a_long_silence_sends_nothing_again(harness, monkeypatch):
    """A producer that looks after its confirmed entries does not take a removed record for a loss."""
    appender = begun(harness)
    push(appender, "a", "b")
    finish(appender)
    pass_days(harness, 33)
    monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 0.0)
    for _ in range(3):
        appender.send()
    push(appender, "c")
    finish(appender)
    assert counted(harness) == dict.fromkeys("abc", 1)
    assert (appender.rewound, appender.lost, appender.unknown) == (0, 0, 0)


def test_a_first_entry_long_after_the_start(harness):
    """A producer that sends its first entry to a partition 40 days after its start loses nothing."""
    appender = begun(harness)
    pass_days(harness, 40)
    push(appender, "a", "b")
    finish(appender)
    assert counted(harness) == dict.fromkeys("ab", 1)
    assert (appender.rewound, appender.lost, appender.unknown) == (0, 0, 0)


def test_a_new_producer_in_an_old_deployment(harness):
    """A producer that starts after others were forgotten appends in its first call."""
    pass_days(harness, 40)
    appender = begun(harness)
    push(appender, "a")
    assert len(appender.send()[0]) == 1


def refusing_once(partition: int) -> tuple[list[int], Callable[..., None]]:
    """Return a function for `on_rename` that fails once, for one partition, and a list that is empty after that."""
    refused = [partition]

    def record(partition: int, *_: object) -> None:
        if refused == [partition]:
            refused.clear()
            raise SpoolError("the disk is full")

    return refused, record


@pytest.mark.parametrize("first", [True, False], ids=["first entry", "later entry"])
def test_an_entry_without_a_reply_is_not_sent_again_after_a_long_silence(harness, first):
    """If the reply to an append is lost and the server forgets the producer, the entry is not appended again."""
    with Proxy(harness.url) as proxy:
        appender = begun(harness, harness.connect(proxy.url))
        if not first:
            push(appender, "a")
            finish(appender)
        push(appender, "b")
        proxy.lose_reply_to(_APPEND.sha.encode())
        with pytest.raises(RedisConnectionError):
            appender.send()
        assert proxy.lost.wait(5)
        assert pass_days(harness, 33) == 1
        push(appender, "c")
        finish(appender)
        assert (appender.unknown, appender.lost, appender.rewound) == (1, 0, 0)
    assert counted(harness) == ({} if first else {"a": 1}) | {"b": 1, "c": 1}


def test_given_up_entries_are_reported_although_another_queue_fails(server):
    """If the new name of a queue cannot be recorded, the entries that another gave up are returned by the next send."""
    refused, record = refusing_once(1)
    with Harness(server.url, partitions=2) as harness, Proxy(harness.url) as proxy:
        appender = begun(harness, harness.connect(proxy.url), record)
        push(appender, "a", partitions=2)
        proxy.lose_reply_to(_APPEND.sha.encode())
        with pytest.raises(RedisConnectionError):
            appender.send()
        assert proxy.lost.wait(5)
        assert pass_days(harness, 33) == 2
        assert appender.send() == ([], None)
        with pytest.raises(SpoolError):
            appender.send()
        assert refused == []
        push(appender, "b", partitions=2)
        given_up, _ = appender.send()
        assert sum(entry.events for entry in given_up) == 2
        assert (appender.unknown, appender.answered) == (2, 2)
        finish(appender)
        assert appender.answered == 4


def test_a_rollback_whose_new_name_cannot_be_recorded(harness):
    """A rollback under a new name changes nothing until the name is recorded; then its losses are counted once."""
    refused, record = refusing_once(0)
    appender = begun(harness, on_rename=record)
    push(appender, "a", "b")
    finish(appender)
    pass_days(harness, 30)
    backup = copy(harness)
    push(appender, "c", "d")
    finish(appender)
    put_back(harness, backup)
    pass_days(harness, 2)  # the record of the backup is removed
    push(appender, "e")
    appender.send()
    with pytest.raises(SpoolError):
        appender.send()
    assert refused == []
    assert (appender.rewound, appender.queues[0].confirmed) == (0, 4)
    finish(appender)
    assert counted(harness) == dict.fromkeys("abcde", 1)
    assert (appender.rewound, appender.lost, appender.unknown) == (1, 0, 0)


def test_an_entry_that_was_refused_is_sent_after_a_long_silence(harness):
    """An entry that the gate refused (the stream was full) is appended, even if the record was removed meanwhile."""
    appender = begun(harness)
    push(appender, "a")
    finish(appender)
    keys = harness.layout.keys[0]
    harness.client.hset(keys.sequences, "!limit", 1)
    push(appender, "b")
    appender.send()
    assert appender.backlogged == 1
    pass_days(harness, 33)
    harness.client.hdel(keys.sequences, "!limit")
    until(lambda: appender.send() and appender.oldest_cycle is None)
    assert counted(harness) == dict.fromkeys("ab", 1)
    assert (appender.lost, appender.unknown) == (0, 0)


def copy(harness: Harness) -> dict[str, bytes | None]:
    """Return a copy of the partition's stream, sequences, ledger and live generation; `None` for a missing key."""
    keys = harness.layout.keys[0]
    return {key: harness.client.dump(key) for key in (keys.stream, keys.sequences, keys.ledger, keys.live)}


def put_back(harness: Harness, backup: dict[str, bytes | None]) -> None:
    """Replace the partition's keys by those of a backup."""
    for key, value in backup.items():
        if value is None:
            harness.client.delete(key)
        else:
            harness.client.restore(key, 0, value, replace=True)


@pytest.mark.parametrize("days", [0, 2, 33])
def test_a_backup_that_is_put_back(harness, days):
    """If a backup is put back whose record of the producer is removed later, only what the backup lacks is sent."""
    appender = begun(harness)
    push(appender, "a", "b")
    finish(appender)
    pass_days(harness, 30)
    backup = copy(harness)
    push(appender, "c", "d")
    finish(appender)
    put_back(harness, backup)
    pass_days(harness, days)
    push(appender, "e")
    finish(appender)
    lost = {"c", "d"} if days == 33 else set()  # after 33 days, the gate cannot prove that the backup lacks them
    assert counted(harness) == dict.fromkeys(set("abcde") - lost, 1)


def test_a_backup_from_before_a_producer(harness):
    """In an old deployment, a producer whose record is lost with a backup's restore sends its entries again."""
    pass_days(harness, 40)
    backup = copy(harness)
    appender = begun(harness)
    push(appender, "a", "b")
    finish(appender)
    put_back(harness, backup)
    push(appender, "c")
    finish(appender)
    assert counted(harness) == dict.fromkeys("abc", 1)
    assert (appender.rewound, appender.lost) == (1, 0)


class LossyClient:
    """A client whose next pipeline breaks: the server executes only its first commands, and the replies are lost.

    Attributes:
        executed: The number of commands that the server executes; `None` if the pipeline does not break.
    """

    def __init__(self, client) -> None:
        self._client = client
        self.executed: int | None = None

    def __getattr__(self, name: str):
        return getattr(self._client, name)

    def pipeline(self, **settings):
        """Return a pipeline that breaks if `executed` is set."""
        pipeline = self._client.pipeline(**settings)
        if self.executed is not None:
            count, self.executed, execute = self.executed, None, pipeline.execute

            def broken(**_):
                del pipeline.command_stack[count:]
                execute(raise_on_error=False)
                raise RedisConnectionError("the replies are lost")

            pipeline.execute = broken
        return pipeline


@pytest.mark.parametrize("restores", [False, True], ids=["no restore", "with restores"])
@pytest.mark.parametrize("seed", range(12))
def test_any_history(harness, monkeypatch, seed, restores):
    """Whatever breaks, however long the silences are and whatever is restored, no entry is in the stream twice.

    Without a restore, an entry is missing only if `unknown` counts it.
    """
    monkeypatch.setattr("tallystream.producing.rollback_watch._INTERVAL", 0.0)
    monkeypatch.setattr("tallystream.producing.appender.KEEP_BYTES", 900)
    draw = random.Random(seed)
    client = LossyClient(harness.client)
    appender = begun(harness, client)
    appender.send()
    backups, pushed = [copy(harness)], 0
    for _ in range(60):
        step = draw.choice(
            ["push", "push", "send", "send", "break", "days", *(["back up", "restore"] if restores else [])]
        )
        if step == "push":
            count = draw.randint(1, 4)
            push(appender, *(f"s{pushed + n}" for n in range(count)))
            pushed += count
        elif step == "send":
            appender.send()
        elif step == "break":
            client.executed = draw.randint(0, 5)
            with contextlib.suppress(RedisConnectionError):
                appender.send()
            client.executed = None
        elif step == "days":
            pass_days(harness, draw.choice([1, 5, 29, 31, 40]))
        elif step == "back up":
            backups.append(copy(harness))
        else:
            put_back(harness, draw.choice(backups))  # it may be newer than the data that it replaces
    finish(appender)
    found = counted(harness)
    assert set(found.values()) <= {1}
    if not restores:
        assert pushed - len(found) <= appender.unknown
        assert (appender.lost, appender.rewound) == (0, 0)


def spooled(harness: Harness, folder, subjects: str) -> Spool:
    """Emit into a new spool and deliver, without closing it."""
    spool = Spool(BufferSettings(entry_events=1), SpoolSettings(folder, 2**20, "os", "tally"))
    send_queue = SendQueue(harness.client, Deployment.create_or_load(harness.client), spool, DurabilityCheck())
    for subject in subjects:
        spool.put(-1, "view", subject, 1, 60.0, None, None)
    while not spool.is_delivered:
        send_queue.step()
    return spool


@pytest.mark.parametrize("days", [31, 400])
def test_a_dead_spool_that_is_delivered_late(harness, tmp_path, days):
    """The spool of a dead process is delivered a month or a year later: what was delivered is not counted again."""
    spool = spooled(harness, tmp_path, "abc")
    for subject in "de":  # emitted, and the process dies before it plans them
        spool.put(-1, "view", subject, 1, 60.0, None, None)
    spool.abandon()
    assert pass_days(harness, days) == (days == 400)
    with Producer(harness.url, spool=tmp_path) as other:
        until(lambda: not any(path.is_dir() for path in tmp_path.iterdir()), what="delivery")
        assert (other.stats.lost_entries, other.stats.unknown_entries) == (0, 3 if days == 400 else 0)
    assert counted(harness) == dict.fromkeys("abcde", 1)


@pytest.mark.parametrize("days", [31, 400])
def test_a_spool_whose_process_was_silent(harness, tmp_path, days):
    """A live process with a spool continues after a month or a year of silence; each event counts once."""
    with Producer(harness.url, spool=tmp_path) as producer:
        producer.emit("view", "a")
        producer.flush(10)
        pass_days(harness, days)
        producer.emit("view", "b")
        producer.flush(10)
        assert (producer.stats.lost_entries, producer.stats.unknown_entries) == (0, 0)
    assert counted(harness) == {"a": 1, "b": 1}


def test_many_producers_that_come_and_go(harness):
    """The gate keeps the records of the last 30 days only, whatever the number of producers before."""
    for _ in range(40):
        for _ in range(5):
            appender = begun(harness)
            push(appender, "a")
            finish(appender)
        pass_days(harness, 1)
    assert len(records(harness)) <= 33 * 5
    assert counted(harness) == {"a": 200}


def test_the_gate_refuses_a_first_entry_that_may_be_a_repetition(harness):
    """`append.lua` replies `forgotten` and writes nothing if the producer may have had a record before the horizon."""
    keys = harness.layout.keys[0]
    names = [keys.stream, keys.sequences, keys.ledger]
    harness.client.hset(keys.sequences, "!reaped", "5-3 9-0")
    for since in ("0-0", "4-9", "5-2"):
        assert _APPEND(harness.client, names, ["1", "a" * 16, 1, 1, b"x", since]) == [b"forgotten"]
        assert _APPEND(harness.client, names, ["1", "a" * 16, 7, 1, b"x", since]) == [b"forgotten"]
    assert harness.client.xlen(keys.stream) == 0
    assert _APPEND(harness.client, names, ["1", "a" * 16, 7, 1, b"x", "5-3"]) == [b"gap", b"0"]
    for name in ("a" * 16, "b" * 16):
        assert _APPEND(harness.client, names, ["1", name, 1, 1, b"x", "5-3"])[0] == b"appended"
    assert _APPEND(harness.client, names, ["1", f"spool:{'a' * 16}", 1, 1, b"x", "0-0"])[0] == b"appended"
    assert _APPEND(harness.client, names, ["1", "chosen", 1, 1, b"x", "0-0"])[0] == b"appended"
