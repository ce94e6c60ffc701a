"""Parsing an access log in blocks gives the same result as parsing it line by line."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystream.errors import EventError
from tallystream.storage.keys import Layout
from tallystream_worker.ingest import BadLine, Mapping, Source
from tallystream_worker.ingest import source as source_module
from tallystream_worker.ingest.blocks import BlockReader
from tallystream_worker.ingest.formats.combined import parse
from tallystream_worker.ingest.packer import EventPacker

GOOD = b'%b - - [%b] "GET %b HTTP/1.1" 200 7 "%b" "Mozilla"'
good = st.builds(
    lambda *parts: GOOD % parts,
    st.sampled_from([b"10.0.0.1", b"10.0.0.2", b"-", b"h\xff", "h\u00e9".encode(), "he\u0301".encode(), b"h" * 300]),
    st.sampled_from(
        [
            b"17/May/2015:10:05:03 +0000",
            b"17/May/2015:10:05:59 +0000",
            b"17/May/2015:10:06:00 +0030",
            b"17/May/2015:10:05:60 +0000",
            b"31/Jun/2015:10:05:03 +0000",
            b"17/May/9998:10:05:03 +0000",
            b"01/Jan/1970:00:00:00 +0100",
        ]
    ),
    st.sampled_from(
        [b"/a", b"/b?c=d", rb"/say\"hi", b"/two words", "/\u00e9".encode(), b"/\xff", b"/\x01", b"/" * 1100]
    ),
    st.sampled_from([b"-", b"http://from/", b"cut off"]),
)
texts = st.lists(
    good | good.map(lambda line: line[:-9]) | st.sampled_from([b"", b" \r", b"nonsense", b"x" * 70_000]), max_size=40
).map(b"\n".join)


def one_by_one(text: bytes, mapping: Mapping) -> tuple[Counter, list]:
    """Parse a text line by line; return its events, and its bad lines with their reasons."""
    packer = EventPacker(Layout(3), None, [0, 0, 0])
    return events_of(packer, parse(Source(io.BytesIO(text), "memory", len(text)), mapping))


def events_of(packer: EventPacker, outcomes) -> tuple[Counter, list]:
    """Return the valid events of outcomes, and the numbers and reasons of the other lines."""
    events, bad = Counter(), []
    for outcome in outcomes:
        if isinstance(outcome, BadLine):
            bad.append((outcome.number, outcome.reason))
            continue
        try:
            packer.pack(outcome.event, outcome.offset)
        except EventError as error:
            bad.append((outcome.number, str(error)))
            continue
        _, subject, _, actor, at, _ = outcome.event
        subject, partition = packer.route(subject)
        actor = None if actor is None else packer.check_actor(actor)
        events[partition, subject, actor, int(at * 1000) if actor else int(at) // 60] += 1
    return events, bad


@pytest.mark.parametrize("mapping", [Mapping(), Mapping(actor=None), Mapping(subject="host", actor="referrer")])
@given(text=texts, end=st.sampled_from([b"", b"\n"]), chunk=st.sampled_from([300, 7_000, 200_000]))
@settings(max_examples=60, deadline=None)
def test_blocks_say_what_their_lines_say(mapping, text, end, chunk):
    """For any text, parsing in blocks finds the same events and the same bad lines as line by line."""
    expected, bad = one_by_one(text + end, mapping)
    packer = EventPacker(Layout(3), None, [0, 0, 0])
    read = BlockReader(mapping, packer)
    found, found_bad = Counter(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "CHUNK", chunk)
        for block in Source(io.BytesIO(text + end), "memory", len(text)).blocks():
            visits, units, doubtful = read(block)
            for (partition, minute), columns in visits.items():
                for subject, actor, moment in zip(*columns, strict=True):
                    found[partition, subject, actor, minute * 60_000 + moment] += 1
            for (partition, minute), counts in units.items():
                for subject, events in counts.items():
                    found[partition, subject, None, minute] += events
            more, worse = events_of(packer, parse(doubtful, mapping))
            found += more
            found_bad += worse
    assert (found, sorted(found_bad)) == (expected, bad)


def test_an_ordinary_line_is_beyond_doubt():
    """No ordinary line of an access log is left to the slower parser, with and without an actor."""
    text = GOOD % (b"10.0.0.1", b"17/May/2015:10:05:03 +0000", b"/a", b"-")
    for mapping in (Mapping(), Mapping(actor=None)):
        read = BlockReader(mapping, EventPacker(Layout(3), None, [0, 0, 0]))
        (block,) = Source(io.BytesIO((text + b"\n") * 100), "memory", 1).blocks()
        found = read(block)
        assert found.doubtful == []
        assert len([*found.visits, *found.units]) == 1


@given(
    st.lists(st.binary(max_size=30), max_size=30).map(b"\n".join),
    st.integers(1, 40),
    st.integers(1, 50),
    st.integers(0, 5),
)
def test_blocks_end_where_segments_do(content, chunk, segment, first):
    """After `seek`, every byte from the first line on is in one block, and no block has lines of two segments."""
    if content.startswith(b"\x1f\x8b"):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_module, "CHUNK", chunk)
        source = Source(io.BytesIO(content), "memory", len(content))
        source.seek(first * segment)
        blocks = list(source.blocks(segment))
    begin = first * segment
    if begin and begin <= len(content):
        begin = content.find(b"\n", begin - 1) + 1 or len(content)
    assert b"".join(block.text for block in blocks) == content[begin:]
    for block in blocks:
        assert content[block.offset : block.end] == block.text
        assert block.number == 1 + content.count(b"\n", begin, block.offset)
        last = content.rfind(b"\n", 0, block.end - 1) + 1
        assert block.offset // segment == last // segment
