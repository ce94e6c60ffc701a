"""The NDJSON parser turns lines into events, and gives reasons for bad lines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream_worker.ingest import MAX_LINE_BYTES, BadLine, Line, Mapping, ParsedLine
from tallystream_worker.ingest.formats.ndjson_lines import parse


def one(text: bytes | str) -> ParsedLine | BadLine:
    """Return the outcome of a single line."""
    (outcome,) = parse([Line(7, 90, text.encode() if isinstance(text, str) else text)], Mapping(metric="like"))
    return outcome


def test_a_line_is_an_event():
    """Every field of a line is in its event, unchanged."""
    row = {"metric": "vote", "subject": "post:1", "amount": -1, "actor": "u1", "at": 1431857103.5, "id": "x"}
    assert one(json.dumps(row)) == ParsedLine(7, 90, ("vote", "post:1", -1, "u1", 1431857103.5, "x"))


def test_only_the_subject_must_be_there():
    """A line with only a subject has the default metric, the amount 1, and no actor, time or id."""
    assert one('{"subject": "a"}').event == ("like", "a", 1, None, None, None)
    assert isinstance(one('{"metric": "like"}'), BadLine)


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        ("1431857103", 1431857103.0),
        ("1431857103.25", 1431857103.25),
        ('"2015-05-17T10:05:03Z"', 1431857103.0),
        ('"2015-05-17T12:05:03.250+02:00"', 1431857103.25),
        ("null", None),
    ],
)
def test_a_time_is_seconds_or_rfc_3339(at, seconds):
    """`at` may be seconds since 1970 or an RFC 3339 text with its zone."""
    assert one(f'{{"subject": "a", "at": {at}}}').event[4] == seconds


@pytest.mark.parametrize(
    "text",
    [
        '{"subject": "a", "extra": 1}',
        '{"subject": "a", "subject": "b"}',
        '{"subject": "a", "\\u0073ubject": "b"}',
        '{"subject": "a", "amount": 1.0}',
        '{"subject": "a", "amount": 1e3}',
        '{"subject": "a", "amount": true}',
        '{"subject": "a", "amount": "1"}',
        '{"subject": "a", "amount": 05}',
        '{"subject": "a", "at": 1e400}',
        '{"subject": "a", "at": ' + "9" * 400 + "}",
        '{"subject": "a", "at": "2015-05-17T10:05:03"}',
        '{"subject": "a", "at": "yesterday"}',
        '{"subject": null}',
        '{"subject": "\\ud800"}',
        '{"subject": "a"} {"subject": "b"}',
        '{"subject": ' + "[" * 60_000,
        "[" * 60_000,
        '["a"]',
        "{",
        "",
        b'{"subject": "\xff"}',
        b'\xef\xbb\xbf{"subject": "a"}',
    ],
)
def test_a_mistake_is_a_bad_line(text):
    """Unknown fields, repeated keys, wrong types and broken JSON are bad lines with a printable reason."""
    outcome = one(text)
    assert isinstance(outcome, BadLine)
    assert (outcome.number, outcome.reason.isprintable(), outcome.reason != "") == (7, True, True)


@pytest.mark.parametrize("text", ['{"subject": "\\"id\\" \\"id\\""}', '{"subject": "id", "actor": "id", "id": "id"}'])
def test_a_key_may_occur_twice_as_a_value(text):
    """Values that equal keys do not count as repeated keys."""
    assert isinstance(one(text), ParsedLine)


def test_a_reason_shows_nothing_raw():
    """A reason contains the name of an unknown key with escapes, so that it cannot control a terminal."""
    outcome = one('{"subject": "a", "\\u001b[31m\\u202e": 1}')
    assert outcome.reason == r"Object contains unknown field `\x1b[31m\u202e`"


def test_an_endless_line_is_bad():
    """A line of more than 64 KiB is a bad line; one of exactly 64 KiB is not."""
    text = '{"subject": "a"}'.ljust(MAX_LINE_BYTES)
    assert isinstance(one(text), ParsedLine)
    assert one(text + " ") == BadLine(7, "longer than 65,536 bytes")


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3)
FIELDS = st.sampled_from(["metric", "subject", "amount", "actor", "at", "id", "other"])


@given(st.binary() | st.dictionaries(FIELDS, ANYTHING).map(lambda row: json.dumps(row).encode()))
def test_no_bytes_raise(text):
    """Any bytes are an event or a bad line with a printable reason."""
    outcome = one(text)
    assert isinstance(outcome, ParsedLine) or outcome.reason.isprintable()


@given(st.lists(st.tuples(FIELDS.filter(lambda name: name != "other"), st.text(max_size=3)), min_size=1))
def test_a_repeated_key_is_always_found(pairs):
    """An object is an event only if no key occurs twice in it."""
    text = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs) + "}"
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        assert isinstance(one(text), BadLine)
