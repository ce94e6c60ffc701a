"""The walk over the entries of a partition finds every gap and every repeat of a producer's numbers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream_worker.counting.entry import Entry
from tallystream_worker.verify.sequence_walk import Link, SequenceWalk, link_of

PRODUCERS = [b"a", b"b", b"file:x"]


def walk(*numbers: tuple[bytes | None, int], is_whole: bool = True) -> tuple[SequenceWalk, list[bool | None]]:
    """Add an entry of 2 events for each producer and number; return the walk, and of each whether it is a repeat."""
    found, faults = SequenceWalk(is_whole=is_whole), []
    for at, (producer, number) in enumerate(numbers, start=1):
        fault = found.add(Link((at, 0), 2, producer, number, is_gated=producer is not None))
        faults.append(None if fault is None else fault.is_repeat)
    return found, faults


@pytest.mark.parametrize(
    ("numbers", "faults"),
    [
        ([(b"a", 1), (b"b", 1), (b"a", 2)], [None, None, None]),
        ([(b"a", 2)], [False]),  # the first entry is missing
        ([(b"a", 1), (b"a", 3)], [None, False]),
        ([(b"a", 1), (b"a", 1)], [None, True]),
        ([(b"a", 1), (b"a", 3), (b"a", 2)], [None, False, True]),
        ([(b"file:x", 40), (b"file:x", 90), (b"file:x", 90)], [None, None, True]),  # offsets only ascend
        ([(None, 0), (None, 0)], [None, None]),
    ],
)
def test_a_gap_and_a_repeat_are_faults(numbers, faults):
    """A missing number is a gap, and a number that came before is a repeat; entries without a producer have none."""
    assert walk(*numbers)[1] == faults


def test_without_the_first_entries_a_producer_may_begin_anywhere():
    """If the walk does not begin with the first entry, the first number of a producer proves nothing."""
    assert walk((b"a", 7), (b"a", 8), (b"a", 10), is_whole=False)[1] == [None, None, False]


def test_after_an_interruption_nothing_is_known():
    """After an interruption, each producer begins again, and the walk is not whole."""
    found, _ = walk((b"a", 1))
    found.interrupt()
    assert (found.is_whole, found.first) == (False, None)
    assert found.add(Link((9, 0), 1, b"a", 5)) is None
    assert (found.first, found.take(b"a"), found.take(b"a")) == ((9, 0), (5, (9, 0)), None)


@given(st.lists(st.sampled_from([*PRODUCERS, None]), max_size=40))
def test_entries_in_order_have_no_fault_and_are_counted(senders):
    """Producers that number their entries in order have no fault, however their entries are mixed."""
    numbers: Counter[bytes] = Counter()
    entries: list[tuple[bytes | None, int]] = []
    for sender in senders:
        if sender is not None:
            numbers[sender] += 1
        entries.append((sender, 0 if sender is None else numbers[sender]))
    found, faults = walk(*entries)
    assert set(faults) <= {None}
    assert (found.entries, found.events) == (len(entries), 2 * len(entries))
    assert (found.gated_entries, found.gated_events) == (numbers.total(), 2 * numbers.total())
    assert len(found.left()) == len(numbers)
    assert all(found.take(name)[0] == last for name, last in numbers.items())


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({b"v": b"1", b"p": b"a", b"q": b"3", b"n": b"4"}, (b"a", 3, 4)),
        ({b"v": b"1", b"p": b"copy", b"q": b"3", b"n": b"4"}, (None, 0, 4)),
        ({b"v": b"1", b"p": b"a", b"q": b"x", b"n": b"4"}, (None, 0, 4)),
        ({b"metric": b"view", b"subject": b"s"}, (None, 0, 1)),
    ],
)
def test_the_link_of_an_entry(fields, sent):
    """Only an entry of a producer has a number; a copy and a plain entry have none."""
    link = link_of(Entry("5-1", fields))
    assert (link.id, (link.producer, link.sequence, link.events)) == ((5, 1), sent)


def test_a_walk_states_from_where_it_is_complete():
    """It is complete from the first entry of all; or else from the first one that was added after the interruption."""
    found, _ = walk((b"a", 1), (b"a", 2))
    assert found.begins == (0, 0)
    found.interrupt()
    assert found.begins > (2**63, 0)
    found.add(Link((9, 0), 2, b"a", 5, is_gated=True))
    assert found.begins == (9, 0)
