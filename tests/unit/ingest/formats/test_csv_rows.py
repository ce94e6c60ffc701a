"""The CSV parser turns rows into events, and gives reasons for bad rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream_worker.ingest import BadLine, Line, Mapping, ParsedLine
from tallystream_worker.ingest.formats.csv_rows import parse


def rows(*texts: str | bytes) -> list[ParsedLine | BadLine]:
    """Return the outcomes of the rows of a file."""
    lines = [text.encode() if isinstance(text, str) else text for text in texts]
    return list(parse((Line(number, 0, text) for number, text in enumerate(lines, 1)), Mapping(metric="like")))


def one(cells: str | bytes, header: str = "subject,metric,amount,actor,at,id") -> ParsedLine | BadLine:
    """Return the outcome of one row under a header."""
    (outcome,) = rows(header, cells)
    return outcome


def test_the_header_names_the_fields():
    """Columns may be in any order; each cell is the field that the header names."""
    assert one("u1,2,post:1,vote", "actor,amount,subject,metric").event == (
        "vote",
        "post:1",
        2,
        "u1",
        None,
        None,
    )
    assert one("post:1,vote,-1,u1,1431857103.5,x").event == ("vote", "post:1", -1, "u1", 1431857103.5, "x")


def test_empty_cells_are_not_given():
    """An empty cell is the same as a missing column: the default metric, an amount of 1, no other field."""
    assert one("a,,,,,").event == one("a", "subject").event == ("like", "a", 1, None, None, None)


def test_quotes_and_line_ends_are_those_of_csv():
    """Quoted cells may contain commas and quotes; Windows line ends and a byte order mark are ignored."""
    first, second = rows(b"\xef\xbb\xbfsubject,actor\r", b'"a,b",c\r', b'"say ""hi""",\r')
    assert first.event[1:4] == ("a,b", 1, "c")
    assert second.event[1:4] == ('say "hi"', 1, None)


@pytest.mark.parametrize(
    ("at", "seconds"),
    [
        ("1431857103", 1431857103.0),
        ("1431857103.25", 1431857103.25),
        ("2015-05-17T10:05:03Z", 1431857103.0),
        ("2015-05-17 12:05:03+02:00", 1431857103.0),
    ],
)
def test_a_time_is_seconds_or_rfc_3339(at, seconds):
    """`at` may be seconds since 1970 or an RFC 3339 text with its zone."""
    assert one(f"a,{at}", "subject,at").event[4] == seconds


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ("a,like", "has 2 cells under 6 columns"),
        ("a,like,1,u1,,,", "has 7 cells under 6 columns"),
        ("a,like,1.0,,,", "amount: must be a whole number of at most 16 digits"),
        ("a,like,05,,,", "amount: must be a whole number of at most 16 digits"),
        ("a,like,\u0661,,,", "amount: must be a whole number of at most 16 digits"),
        ("a,like," + "9" * 5000 + ",,,", "amount: must be a whole number of at most 16 digits"),
        ("a,like,1,,yesterday,", "at: must be seconds since 1970, or like 2015-05-17T10:05:03Z"),
        ("a,like,1,,nan,", "at: must be seconds since 1970, or like 2015-05-17T10:05:03Z"),
        ("a,like,1,," + "9" * 400 + ",", "at: must be seconds since 1970, or like 2015-05-17T10:05:03Z"),
        ('"a,like,1,,,', "unexpected end of data"),
        ("a" * 65_537, "longer than 65,536 bytes"),
    ],
)
def test_a_mistake_is_a_bad_line(cells, reason):
    """A row with a wrong number of cells, a wrong type or broken quotes is a bad line with that reason."""
    assert one(cells) == BadLine(2, reason)


def test_a_bad_row_leaves_its_neighbours_alone():
    """The rows before and after a bad one are events."""
    first, second, third = rows("subject", "a", b"\xff", "b")
    assert (first.event[1], third.event[1]) == ("a", "b")
    assert second.number == 3


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("subject,colour", "names the unknown column 'colour'; use metric, subject"),
        ("subject,subject", "names a column twice"),
        ("metric,amount", "names no column 'subject'"),
    ],
)
def test_a_bad_header_ends_the_file(header, reason):
    """A file with an invalid header has one bad line, with the reason, and no event."""
    (outcome,) = rows(header, "a,b", "c,d")
    assert outcome.number == 1
    assert reason in outcome.reason


def test_an_empty_file_has_no_events():
    """A file without a line has no outcome."""
    assert rows() == []


HEADERS = st.permutations(["subject", "metric", "amount", "actor", "at", "id"]).map(",".join)


@given(HEADERS | st.text(), st.binary() | st.text(alphabet='a1",.:-T\r\n\x00é').map(str.encode))
def test_no_bytes_raise(header, text):
    """Any header and row give events and bad lines with a printable reason."""
    for outcome in rows(header.encode(errors="replace"), text):
        assert isinstance(outcome, ParsedLine) or outcome.reason.isprintable()
