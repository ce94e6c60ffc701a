"""The entries that a snapshot does not contain are stored, and read again unchanged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tallystream_worker.counting.entry import Entry
from tallystream_worker.snapshot.uncounted import decode_uncounted, encode_uncounted, origin


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.sets(st.integers(1, 60), min_size=1), max_size=4))
def test_sequences_come_back(sent):
    """The producers and sequences of any entries are those that are read again."""
    pairs = {(name, number) for name, numbers in sent.items() for number in numbers if name.encode() != b"copy"}
    entries = [Entry("1-1", {b"p": name.encode(), b"q": b"%d" % number}) for name, number in sorted(pairs)]
    assert decode_uncounted(encode_uncounted(entries)) == pairs


def test_ranges_are_short():
    """Consecutive sequences of a producer take one range, and no entries take no text."""
    entries = [Entry("1-1", {b"p": b"a", b"q": b"%d" % number}) for number in (1, 2, 3, 7)]
    assert encode_uncounted(entries) == '{"a":[[1,3],[7,7]]}'
    assert (encode_uncounted([]), decode_uncounted("")) == ("", set())


def test_entries_without_a_producer_have_no_origin():
    """A plain entry, a copy and a decided entry have no origin, and are left out."""
    others = [{b"metric": b"view"}, {b"p": b"copy", b"q": b"1"}, {b"p": b"a", b"q": b""}]
    assert [origin(fields) for fields in others] == [None] * 3
    assert encode_uncounted(Entry("1-1", fields) for fields in others) == ""
