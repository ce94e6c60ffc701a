"""The ledger's `trimmed` has exactly the events of entries that vanished before they were counted."""

from __future__ import annotations

import pytest

from tallystream import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.storage.keys import GROUP
from tallystream_worker.maintenance.losses import Loss, settle_losses
from tests.harness import Harness


@pytest.fixture
def harness(server):
    """Yield a harness of one partition on an empty server."""
    with Harness(server.url, partitions=1) as harness:
        yield harness


def emit(harness: Harness, entries: int, events: int = 7) -> int:
    """Append packed entries of `events` events each; return the number of all events."""
    with Producer(harness.url) as producer:
        for entry in range(entries):
            for number in range(events):
                producer.emit("view", f"{entry}.{number}")
            producer.flush()
    return entries * events


def unaccounted(harness: Harness) -> int | None:
    """Return the events that the ledger does not account for; `None` if it is not known."""
    with Totals(harness.url) as totals:
        return totals.run(query_ledger(harness.layout)).unaccounted


def settle(harness: Harness) -> Loss | None:
    """Count all entries, then settle the losses; return the loss."""
    harness.drain(claim_idle=0)
    return settle_losses(harness.client, harness.layout.keys[0])


def test_a_stream_trimmed_under_the_consumer(harness):
    """Exactly the events of unread and pending entries that XTRIM removed are settled as lost."""
    emit(harness, 3)
    harness.drain()
    emit(harness, 5)
    harness.fetch(0, "dead")(2, 0)
    harness.client.xtrim(harness.layout.keys[0].stream, maxlen=0, approximate=False)
    assert unaccounted(harness) is None
    assert settle(harness) == Loss(5, 35, proved=True)
    assert settle(harness) is None
    assert (harness.ledger()["trimmed"], unaccounted(harness), harness.waiting()) == (35, 0, 0)
    emit(harness, 1)
    harness.drain()
    assert (harness.ledger()["counted"], unaccounted(harness)) == (28, 0)


def test_a_worker_that_may_not_set_the_group_settles_all_the_same(harness):
    """A user without the right to XGROUP SETID settles the loss, too; a user with it also corrects the lag."""
    emit(harness, 1)
    harness.drain()
    emit(harness, 3)
    harness.client.xtrim(harness.layout.keys[0].stream, maxlen=0, approximate=False)
    harness.client.execute_command("ACL", "SETUSER", "careful", "on", ">x", "~*", "+@all", "-xgroup|setid")
    careful = harness.connect(harness.url.replace("://", "://careful:x@"))
    try:
        assert settle_losses(careful, harness.layout.keys[0]) == Loss(3, 21, proved=True)
        assert (unaccounted(harness), harness.waiting()) == (None, 3)
        emit(harness, 1)
        harness.drain()
        assert harness.ledger()["trimmed"] == 21
        assert settle_losses(harness.client, harness.layout.keys[0]) is None
        assert (harness.ledger()["trimmed"], unaccounted(harness), harness.waiting()) == (21, 0, 0)
    finally:
        careful.close()
        harness.client.execute_command("ACL", "DELUSER", "careful")


def test_deleted_entries_are_lost(harness):
    """The events of unread entries that XDEL removed, the last one included, are lost; the others are counted."""
    emit(harness, 6)
    stream = harness.layout.keys[0].stream
    ids = [id_ for id_, _ in harness.client.xrange(stream)]
    harness.client.xdel(stream, ids[1], ids[5])
    assert settle(harness) == Loss(2, 14, proved=True)
    assert (harness.ledger()["counted"], unaccounted(harness), harness.waiting()) == (28, 0, 0)


def test_plain_entries_are_lost_as_well(harness):
    """Each vanished plain entry adds one event to `appended` and `trimmed`; packed entries add their events."""
    stream = harness.layout.keys[0].stream
    for _ in range(3):
        harness.client.xadd(stream, {"metric": "view", "subject": "a"})
    harness.drain()
    for _ in range(4):
        harness.client.xadd(stream, {"metric": "view", "subject": "a"})
    emit(harness, 2)
    harness.client.xtrim(stream, maxlen=0, approximate=False)
    assert settle(harness) == Loss(6, 18, proved=True)
    ledger = harness.ledger()
    assert (ledger["appended"], ledger["counted"], ledger["trimmed"]) == (21, 3, 18)


def test_a_trim_of_what_was_counted_is_no_loss(harness):
    """Trimming counted entries is no loss, and proves no loss of events that go missing later."""
    emit(harness, 3)
    harness.drain()
    stream = harness.layout.keys[0].stream
    harness.client.xtrim(stream, maxlen=0, approximate=False)
    assert settle(harness) is None
    emit(harness, 2)
    entries = harness.fetch(0)(10, 0)
    harness.client.xack(stream, GROUP, *(entry.id for entry in entries))
    assert settle_losses(harness.client, harness.layout.keys[0]) == Loss(len(entries), 14, proved=False)
    assert (harness.ledger().get("trimmed", 0), unaccounted(harness)) == (0, 14)


def test_a_fault_of_ours_is_not_called_trimmed(harness):
    """Events of entries that were acknowledged without being counted stay unaccounted: no entry has vanished."""
    emit(harness, 4)
    entries = harness.fetch(0)(2, 0)
    harness.client.xack(harness.layout.keys[0].stream, GROUP, *(entry.id for entry in entries))
    assert settle(harness) == Loss(2, 14, proved=False)
    assert (harness.ledger().get("trimmed", 0), unaccounted(harness)) == (0, 14)


def test_nothing_is_settled_while_something_waits(harness):
    """While an entry is pending or unread, no loss is settled."""
    emit(harness, 3)
    assert settle_losses(harness.client, harness.layout.keys[0]) is None
    harness.fetch(0)(10, 0)
    stream = harness.layout.keys[0].stream
    first = harness.client.xrange(stream, count=1)[0][0]
    harness.client.xdel(stream, first)
    assert settle_losses(harness.client, harness.layout.keys[0]) is None
    assert "trimmed" not in harness.ledger()


def test_a_balanced_ledger_is_left_alone(harness):
    """Settling losses of a partition whose ledger balances changes nothing."""
    emit(harness, 3)
    harness.client.xadd(harness.layout.keys[0].stream, {"nonsense": "x"})
    harness.drain()
    before = harness.ledger()
    assert settle_losses(harness.client, harness.layout.keys[0]) is None
    assert harness.ledger() == before
