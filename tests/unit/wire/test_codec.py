"""The codec decodes every entry that it encodes, and rejects every invalid entry with an error of tallystream."""

from __future__ import annotations

import contextlib
import resource
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystream.errors import CodecError, EventError, UnknownVersion
from tallystream.wire.codec import MAX_EVENTS, ActorColumns, Payload, decode, encode, stated_events, was_sequenced
from tallystream.wire.event import MAX_AMOUNT
from tallystream.wire.packer import EntryBuilder

RECEIVED = 1_763_900_000_000
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
events = st.tuples(
    st.sampled_from(["view", "like"]),
    st.sampled_from(["a", "b", "\u00e9", "{}"]) | texts,
    st.sampled_from([1, 1, 1, 0, -1, 2**40, -(2**40), 2**40 - 1]) | st.integers(-MAX_AMOUNT, MAX_AMOUNT),
    st.sampled_from([0.0, 59.999, 60.0, 1_763_900_000.5]),
    st.none() | texts,
    st.none() | texts,
)


def packed(payload: bytes, n: object = 1) -> dict[bytes, bytes]:
    """Return the fields of a packed entry as Redis returns them."""
    return {b"v": b"1", b"p": b"p1", b"q": b"1", b"n": str(n).encode(), b"b": payload}


def unpacked(payload: Payload) -> tuple[Counter, Counter, list]:
    """Return sums and numbers of events by metric, subject and minute, and the singles."""
    sums, numbers = Counter(), Counter()
    for group in payload.groups:
        for subject in group.ones:
            sums[group.metric, subject, group.minute] += 1
            numbers[group.metric, subject, group.minute] += 1
        for subject, n in group.counts.items():
            sums[group.metric, subject, group.minute] += n
            numbers[group.metric, subject, group.minute] += n
        for subject, (amount, n) in group.sums.items():
            sums[group.metric, subject, group.minute] += amount
            numbers[group.metric, subject, group.minute] += n
    return sums, numbers, list(payload.singles)


@given(st.lists(events, max_size=50))
def test_what_is_packed_comes_out(given_events):
    """Decoding a packed entry returns the same sums, numbers of events and singles that were added."""
    pack = EntryBuilder()
    sums, numbers, singles = Counter(), Counter(), []
    for metric, subject, amount, at, actor, id_ in given_events:
        pack.add(metric, subject, amount, at, actor, id_)
        if actor is not None or id_ is not None or abs(amount) >= 2**40:
            singles.append((metric, subject, amount, int(at * 1000), actor, id_))
        else:
            sums[metric, subject, int(at) // 60] += amount
            numbers[metric, subject, int(at) // 60] += 1
    if not given_events:
        return
    payload = decode(packed(pack.build(), pack.events), RECEIVED)
    found_sums, found_numbers, found_singles = unpacked(payload)
    assert payload.events == pack.events == len(given_events)
    assert (found_sums, found_numbers) == (sums, numbers)
    assert Counter(msgspec.structs.astuple(single) for single in found_singles) == Counter(singles)
    assert decode(packed(encode(payload), payload.events), RECEIVED) == payload


def test_a_million_events_of_one_subject():
    """An entry with the most events and the largest amounts that are summed can be decoded; only a total rejects it."""
    pack = EntryBuilder()
    pack.sums["view", 0] = {"a": ((2**40 - 1) * MAX_EVENTS, MAX_EVENTS)}
    pack.events = MAX_EVENTS
    assert decode(packed(pack.build(), MAX_EVENTS), RECEIVED).events == MAX_EVENTS


def test_plain_views_are_small():
    """A thousand views of different subjects, without actor and id, need less than 16 bytes each."""
    pack = EntryBuilder()
    for number in range(1000):
        pack.add("view", f"article:{number}", 1, 60.0, None, None)
    assert len(pack.build()) < 16_000
    assert len(pack.build()) <= pack.size + 50


@given(
    st.dictionaries(
        st.sampled_from([b"v", b"p", b"q", b"n", b"b", b"metric", b"subject", b"amount", b"x"]), st.binary()
    )
)
@settings(max_examples=300)
def test_any_fields_are_read_or_refused(fields):
    """Whatever the fields of an entry are, decoding returns a payload, or raises a CodecError or an EventError."""
    with contextlib.suppress(CodecError, EventError):
        decode(fields, RECEIVED)
    assert 0 <= stated_events(fields) <= MAX_EVENTS
    assert was_sequenced(fields) == (b"p" in fields and fields.get(b"q", b"").isdigit())


@pytest.mark.parametrize("columns", [(["a"], ["u", "v"], [0]), (["a"], ["u"], []), ([], ["u"], [])])
def test_columns_of_other_lengths_are_refused(columns):
    """Visits whose columns differ in length are rejected, whatever number of events the entry states."""
    payload = encode(Payload([], [], [], [ActorColumns("view", 1, *columns)]))
    for events in range(3):
        with pytest.raises(CodecError):
            decode(packed(payload, events), RECEIVED)


def test_who_does_not_know_visits_counts_none_of_their_entry():
    """A release that does not support visits finds fewer events than the entry states, and so dead-letters it."""
    pack = EntryBuilder()
    pack.add("view", "a", 1, 60.5, "u1", None)
    pack.add("view", "b", 1, 60.5, None, None)
    seen = msgspec.msgpack.decode(pack.build())[:3]
    assert msgspec.convert(seen, Payload).events == 1 < pack.events


shapes = st.recursive(
    st.none() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


@given(st.binary(max_size=200) | shapes.map(msgspec.msgpack.encode), st.integers(0, 3))
@settings(max_examples=300)
def test_any_payload_is_read_or_refused(payload, n):
    """Random bytes, and valid msgpack of the wrong shape, raise a CodecError and no other error."""
    try:
        assert decode(packed(payload, n), RECEIVED).events == n
    except CodecError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a", b"\x92\x90"])
def test_deep_nesting_is_refused(opener):
    """A hundred thousand nested arrays raise a CodecError, not a RecursionError."""
    with pytest.raises(CodecError):
        decode(packed(opener * 100_000), RECEIVED)
    nested = encode(Payload([], []))[:1] + opener * 100_000
    with pytest.raises(CodecError):
        decode(packed(nested), RECEIVED)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x92\xdd\xff\xff\xff\xff",  # groups: an array of 4 G items
        b"\x92\x90\xdd\xff\xff\xff\xff",  # singles
        b"\x92\x91\x95\xa1v\x00\xdd\xff\xff\xff\xff",  # ones
        b"\x92\x91\x95\xa1v\x00\x90\xdf\xff\xff\xff\xff",  # counts: a map of 4 G pairs
        b"\xdb\xff\xff\xff\xff",  # text of 4 GiB
    ],
)
def test_a_header_that_claims_too_much(payload):
    """An array that claims four billion items is rejected before memory is allocated for them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CodecError):
        decode(packed(payload), RECEIVED)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # KiB


@pytest.mark.parametrize("stated", [0, 1, 3, 10**9, "", "two", "-2", "2.0", "\u0662"])
def test_a_wrong_number_of_events_is_refused(stated):
    """An entry is rejected if its field n is not the number of events in its payload: the ledger depends on it."""
    pack = EntryBuilder()
    pack.add("view", "a", 1, 60.0, None, None)
    pack.add("view", "b", 1, 60.0, None, None)
    with pytest.raises(CodecError, match="field n"):
        decode(packed(pack.build(), stated), RECEIVED)


@pytest.mark.parametrize("version", [b"", b"0", b"2", b"99", b"1.0", b"\xff" * 1000])
def test_another_version_is_named(version):
    """An entry of another wire version raises UnknownVersion, so that it can be distinguished from a broken entry."""
    with pytest.raises(UnknownVersion) as refused:
        decode({b"v": version, b"n": b"1", b"b": b""}, RECEIVED)
    assert len(str(refused.value)) < 200


def test_a_missing_payload_is_named():
    """An entry without its payload is rejected, and the error names the missing field."""
    with pytest.raises(CodecError, match="field b is missing"):
        decode({b"v": b"1", b"n": b"1"}, RECEIVED)


def test_a_plain_entry():
    """A plain entry without a time, as typed into redis-cli, is an event at the time when the server received it."""
    (single,) = decode({b"metric": b"view", b"subject": b"e\xcc\x81"}, RECEIVED).singles
    assert msgspec.structs.astuple(single) == ("view", "\u00e9", 1, RECEIVED, None, None)
    fields = {b"metric": b"like", b"subject": b"a", b"amount": b"-3", b"actor": b"u", b"at": b"12.5", b"id": b"i"}
    (single,) = decode(fields, RECEIVED).singles
    assert msgspec.structs.astuple(single) == ("like", "a", -3, 12_500, "u", "i")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        *((b"amount", bad, "amount") for bad in (b"1.0", b"1e3", b"05", b"+1", b"true", b"NaN", b"", b" 1")),
        *((b"amount", str(bad).encode(), "amount") for bad in (2**53, 2**63, 10**400, "\u0661")),
        *((b"at", bad, "at") for bad in (b"-1", b"1e9", b"inf", b"", b"2025-01-01", b"999999999999")),
        (b"subject", b"", "subject"),
        (b"subject", b"\xff\xfe", "UTF-8"),
        (b"subject", b"a\x1b", "subject"),
        (b"metric", b"a b", "metric"),
        (b"actor", b"", "actor"),
        (b"id", b"i" * 257, "id"),
        (b"colour", b"red", "colour"),
    ],
)
def test_a_plain_entry_at_fault(field, value, message):
    """The fields of a plain entry are checked by the same rules as those of `emit`, and the error names the field."""
    with pytest.raises((CodecError, EventError), match=message):
        decode({b"metric": b"view", b"subject": b"a"} | {field: value}, RECEIVED)


@pytest.mark.parametrize("missing", [b"metric", b"subject"])
def test_a_plain_entry_without(missing):
    """A plain entry without a metric or a subject is rejected, and the error names the missing field."""
    fields = {b"metric": b"view", b"subject": b"a"}
    del fields[missing]
    with pytest.raises(CodecError, match=f"field {missing.decode()} is missing"):
        decode(fields, RECEIVED)
