"""An archived entry folds to the same batch as the original entry."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystream.errors import CodecError, EventError
from tallystream.wire.codec import Group, Payload, Reset, Single, decode, encode, retraction_marks, stated_events
from tallystream_worker.archive.rows import Rows, entries_of
from tallystream_worker.counting.entry import Entry

names = st.text(st.characters(codec="utf-8"), max_size=6)
amounts = st.integers(-(2**53) + 1, 2**53 - 1)
counts = st.integers(1, 50)
groups = st.builds(
    Group,
    st.sampled_from(["view", "like", ""]),
    st.integers(0, 4_223_371_680),
    st.lists(names, max_size=5),
    st.dictionaries(names, counts, max_size=5),
    st.dictionaries(names, st.tuples(st.integers(-(2**62), 2**62), counts), max_size=5),
)
moments = st.integers(0, 253_402_300_799_999)
singles = st.builds(Single, names, names, amounts, moments, st.none() | names, st.none() | names)
resets = st.builds(Reset, names, names)
payloads = st.builds(Payload, st.lists(groups, max_size=3), st.lists(singles, max_size=4)) | st.builds(
    Payload, st.just([]), st.just([]), st.lists(resets, min_size=1, max_size=3)
)


@st.composite
def packed(draw):
    """Draw the fields of an entry in the wire format: through the sequence gate, decided, or written by hand."""
    payload = draw(payloads)
    body = {b"v": b"1", b"n": str(payload.events).encode(), b"b": encode(payload)}
    origin = draw(
        st.sampled_from(
            [
                {},
                {b"d": b"1"},
                {b"d": b"2"},
                {b"p": b"abc", b"q": b"17"},
                {b"p": b"copy", b"q": b"17"},
                {b"p": b"copy", b"q": b"17", b"r": b"0,12"},
                {b"p": b"\xff", b"q": b"x"},
            ]
        )
    )
    return (
        body
        | origin
        | draw(st.sampled_from([{}, {}, {b"t": b"1763000000123"}, {b"t": b"9763000000123"}, {b"t": b"x"}]))
    )


plain = st.fixed_dictionaries(
    {b"metric": st.just(b"view"), b"subject": st.sampled_from([b"a", "e\u0301".encode(), b"\x00"])},
    optional={
        b"amount": st.sampled_from([b"5", b"-3", b"1.5"]),
        b"at": st.sampled_from([b"1763900000.123", b"7", b"x"]),
        b"id": st.just(b"i"),
    },
)
rubbish = st.dictionaries(st.binary(max_size=4), st.binary(max_size=8), min_size=1, max_size=4)
contents = packed() | plain | rubbish


def meaning(entry: Entry) -> tuple:
    """Return everything of an entry that the fold can use."""
    origin = (entry.fields.get(b"d"), b"p" in entry.fields and b"q" in entry.fields)
    times = (entry.received, entry.id_time, retraction_marks(entry.fields))
    try:
        payload = decode(entry.fields, entry.received)
    except (CodecError, EventError):
        return entry.id, times, origin, stated_events(entry.fields), dict(entry.fields)
    sums: Counter = Counter()
    for group in payload.groups:
        place = (group.metric, group.minute)
        sums.update((*place, subject, "units") for subject in group.ones)
        for subject, n in group.counts.items():
            sums[*place, subject, "units"] += n
        for subject, (amount, n) in group.sums.items():
            sums[*place, subject, "amount"] += amount
            sums[*place, subject, "events"] += n
    # Drop sums of 0, which groups with amounts of 0 leave.
    sums = Counter({name: value for name, value in sums.items() if value})
    # Events with the same metric and time keep their order, which decides between votes of one actor.
    singles = sorted(payload.singles, key=lambda single: (single.metric, single.at))
    return entry.id, times, origin, payload.events, sums, singles, Counter(payload.resets)


@settings(max_examples=150, deadline=None)
@given(st.lists(contents, max_size=8), st.booleans())
def test_entries_come_back_with_the_same_meaning(drawn, close):
    """Entries are restored in order, with the same ID, times, origin and events; unreadable ones with equal bytes."""
    step = 1 if close else 86_400_000
    entries = [Entry(f"{1763900000000 + n // 2 * step}-{n % 2}", fields) for n, fields in enumerate(drawn)]
    rows = Rows()
    for entry in entries:
        rows.add(entry)
    table = rows.table()
    assert [meaning(entry) for entry in entries_of(table)] == [meaning(entry) for entry in entries]
    assert (rows.entries, rows.events) == (len(entries), sum(table.column("events").to_pylist()))


def test_the_amounts_of_a_table_are_the_totals():
    """The sum of `amount` by subject is the total of a plain metric, for any grouping of the events."""
    payload = Payload(
        [Group("view", 1, ["a", "a", "b"], {"a": 3}, {"a": (-7, 2)})], [Single("view", "b", 5, 0, "u", None)]
    )
    rows = Rows()
    rows.add(Entry("1-0", {b"v": b"1", b"n": b"9", b"b": encode(payload)}))
    totals: Counter = Counter()
    for row in rows.table().to_pylist():
        totals[row["subject"]] += row["amount"]
    assert totals == {"a": -2, "b": 6}
    assert rows.events == 9
