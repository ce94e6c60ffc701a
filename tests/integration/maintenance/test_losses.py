"""Losses: what vanished before it was counted is in the books, event by event, and nothing else is."""

from __future__ import annotations

import pytest

from tallystream import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.storage.keys import GROUP
from tallystream_worker.maintenance.losses import Loss, settle_losses
from tests.harness import Rig


@pytest.fixture
def rig(server):
    """The parts, wired to an empty server, with one partition."""
    with Rig(server.url, partitions=1) as rig:
        yield rig


def emit(rig: Rig, entries: int, events: int = 7) -> int:
    """Append packed entries of `events` events each; return the events."""
    with Producer(rig.url) as producer:
        for entry in range(entries):
            for number in range(events):
                producer.emit("view", f"{entry}.{number}")
            producer.flush()
    return entries * events


def unaccounted(rig: Rig) -> int | None:
    """Return what the books say."""
    with Totals(rig.url) as totals:
        return totals.run(query_ledger(rig.layout)).unaccounted


def settle(rig: Rig) -> Loss | None:
    """Settle losses as the keeper does, once everything that is there is counted."""
    rig.drain(claim_idle=0)
    return settle_losses(rig.client, rig.layout.keys[0])


def test_a_stream_trimmed_under_the_consumer(rig):
    """Unread and pending entries that XTRIM MAXLEN 0 took are lost with all their events: none more, none less."""
    emit(rig, 3)
    rig.drain()
    emit(rig, 5)
    rig.fetch(0, "dead")(2, 0)
    rig.client.xtrim(rig.layout.keys[0].stream, maxlen=0, approximate=False)
    assert unaccounted(rig) is None
    assert settle(rig) == Loss(5, 35, proved=True)
    assert settle(rig) is None
    assert (rig.ledger()["trimmed"], unaccounted(rig), rig.waiting()) == (35, 0, 0)
    emit(rig, 1)
    rig.drain()
    assert (rig.ledger()["counted"], unaccounted(rig)) == (28, 0)


def test_a_worker_that_may_not_set_the_group_settles_all_the_same(rig):
    """Without the right to XGROUP SETID the loss is in the ledger all the same; who has it brings the lag to 0."""
    emit(rig, 1)
    rig.drain()
    emit(rig, 3)
    rig.client.xtrim(rig.layout.keys[0].stream, maxlen=0, approximate=False)
    rig.client.execute_command("ACL", "SETUSER", "careful", "on", ">x", "~*", "+@all", "-xgroup|setid")
    careful = rig.connect()
    careful.execute_command("AUTH", "careful", "x")
    try:
        assert settle_losses(careful, rig.layout.keys[0]) == Loss(3, 21, proved=True)
        assert (unaccounted(rig), rig.waiting()) == (None, 3)
        emit(rig, 1)
        rig.drain()
        assert rig.ledger()["trimmed"] == 21
        assert settle_losses(rig.client, rig.layout.keys[0]) is None
        assert (rig.ledger()["trimmed"], unaccounted(rig), rig.waiting()) == (21, 0, 0)
    finally:
        careful.close()
        rig.client.execute_command("ACL", "DELUSER", "careful")


def test_deleted_entries_are_lost(rig):
    """XDEL of unread entries among others, the last included, is counted in events; the rest counts."""
    emit(rig, 6)
    stream = rig.layout.keys[0].stream
    ids = [id_ for id_, _ in rig.client.xrange(stream)]
    rig.client.xdel(stream, ids[1], ids[5])
    assert settle(rig) == Loss(2, 14, proved=True)
    assert (rig.ledger()["counted"], unaccounted(rig), rig.waiting()) == (28, 0, 0)


def test_plain_entries_are_lost_as_well(rig):
    """A vanished plain entry is one event appended and trimmed, although nobody saw it; packed ones are told apart."""
    stream = rig.layout.keys[0].stream
    for _ in range(3):
        rig.client.xadd(stream, {"metric": "view", "subject": "a"})
    rig.drain()
    for _ in range(4):
        rig.client.xadd(stream, {"metric": "view", "subject": "a"})
    emit(rig, 2)
    rig.client.xtrim(stream, maxlen=0, approximate=False)
    assert settle(rig) == Loss(6, 18, proved=True)
    ledger = rig.ledger()
    assert (ledger["appended"], ledger["counted"], ledger["trimmed"]) == (21, 3, 18)


def test_a_trim_of_what_was_counted_is_no_loss(rig):
    """Somebody who trims history loses nothing, and it is no evidence for what goes missing later."""
    emit(rig, 3)
    rig.drain()
    stream = rig.layout.keys[0].stream
    rig.client.xtrim(stream, maxlen=0, approximate=False)
    assert settle(rig) is None
    emit(rig, 2)
    entries = rig.fetch(0)(10, 0)
    rig.client.xack(stream, GROUP, *(entry.id for entry in entries))
    assert settle_losses(rig.client, rig.layout.keys[0]) == Loss(2, 14, proved=False)
    assert (rig.ledger().get("trimmed", 0), unaccounted(rig)) == (0, 14)


def test_a_fault_of_ours_is_not_called_trimmed(rig):
    """Entries that are acknowledged and not counted stay unaccounted: they have not vanished."""
    emit(rig, 4)
    entries = rig.fetch(0)(2, 0)
    rig.client.xack(rig.layout.keys[0].stream, GROUP, *(entry.id for entry in entries))
    assert settle(rig) == Loss(2, 14, proved=False)
    assert (rig.ledger().get("trimmed", 0), unaccounted(rig)) == (0, 14)


def test_nothing_is_settled_while_something_waits(rig):
    """As long as an entry is pending or unread, nothing is called lost."""
    emit(rig, 3)
    assert settle_losses(rig.client, rig.layout.keys[0]) is None
    rig.fetch(0)(10, 0)
    stream = rig.layout.keys[0].stream
    first = rig.client.xrange(stream, count=1)[0][0]
    rig.client.xdel(stream, first)
    assert settle_losses(rig.client, rig.layout.keys[0]) is None
    assert "trimmed" not in rig.ledger()


def test_books_in_balance_are_left_alone(rig):
    """A pass over a healthy partition moves no event."""
    emit(rig, 3)
    rig.client.xadd(rig.layout.keys[0].stream, {"nonsense": "x"})
    rig.drain()
    before = rig.ledger()
    assert settle_losses(rig.client, rig.layout.keys[0]) is None
    assert rig.ledger() == before
