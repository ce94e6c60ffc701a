"""Every parser of foreign bytes returns a result or a declared error for broken input, in bounded time and memory.

In the fast suites, each parser is tested for about a second; `make fuzz SECONDS=600` continues with new seeds, and
prints each of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import tracemalloc
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tallystream.errors import CodecError, ConfigurationError, EventError
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.codec import Group, Payload, Single, decode, encode
from tallystream_worker.ingest import BadLine, Line, ParsedLine
from tallystream_worker.ingest.formats import combined, csv_rows, ndjson_lines
from tallystream_worker.service.bodies.events import read_event
from tallystream_worker.settings.load import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS = float(os.environ.get("TALLYSTREAM_FUZZ_SECONDS", "0"))
"""Seconds for which each target is tested; 0 for one round of examples."""

RECEIVED = 1_763_900_000_000
RULES = Rules({"view": Metric("")})

words = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(["view", "a", "", "article:1", "x" * 2000])
whole = st.integers(-(2**64), 2**64) | st.sampled_from([0, 1, 2**53, 2**63, -(2**63) - 1, 2**64 - 1])
packable = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | words | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(words, inner, max_size=4),
    max_leaves=20,
)
shaped = st.lists(
    st.lists(st.tuples(words, packable, st.lists(words, max_size=3), packable, packable), max_size=3), max_size=4
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw an encoded payload with some bytes changed, cut off, repeated or inserted."""
    group = Group("view", 29_400_000, ["a", "b"], {"c": 3}, {"d": (7, 2)})
    text = bytearray(encode(Payload([group] * draw(st.integers(1, 3)), [Single("vote", "a", 1, RECEIVED, "u", None)])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(text) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "header"]))
        if kind == "flip" and text:
            text[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del text[place:]
        elif kind == "insert":
            text[place:place] = draw(st.binary(max_size=8))
        elif kind == "repeat":
            text[place:place] = text[place : place + 40]
        else:
            size = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x01\x00\x00"]))
            text[place:place] = draw(st.sampled_from([b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"])) + size
    return bytes(text)


def feed(strategy: st.SearchStrategy[Any], target: Callable[[Any], None], examples: int = 150) -> None:
    """Call a target with examples of a strategy, one round or for `SECONDS`; an example may take a second at most."""
    began = time.monotonic()
    first = int(os.environ.get("TALLYSTREAM_SEED", "0")) or random.randrange(1, 2**32)
    while True:
        print(f"TALLYSTREAM_SEED={first}")  # noqa: T201  # shown when it fails

        @seed(first)
        @settings(
            max_examples=examples, deadline=timedelta(seconds=1), database=None, suppress_health_check=list(HealthCheck)
        )
        @given(drawn=strategy)
        def once(drawn: Any) -> None:
            target(drawn)

        once()
        if time.monotonic() - began >= SECONDS:
            return
        first += 1


def read_entry(fields: dict[bytes, bytes]) -> None:
    """Decode an entry and encode its payload again; ignore a declared error."""
    try:
        payload = decode(fields, RECEIVED)
    except (CodecError, EventError):
        return
    assert payload.events >= 0
    encode(payload)


def packed(text: bytes, n: int = 1) -> dict[bytes, bytes]:
    """Return the fields of a packed entry."""
    return {b"v": b"1", b"p": b"x", b"q": b"1", b"n": str(n).encode(), b"b": text}


def test_packed_entries_of_any_bytes() -> None:
    """Any bytes, and damaged or malformed payloads, are decoded or refused with a declared error."""
    texts = damaged() | st.binary(max_size=200) | (packable | shaped).map(msgspec.msgpack.encode)
    feed(st.builds(packed, texts, st.integers(-1, 10**9)), read_entry, 300)


def test_plain_entries_of_any_bytes() -> None:
    """Plain fields with any bytes are decoded to an event or refused with a declared error."""
    names = st.sampled_from([b"metric", b"subject", b"amount", b"actor", b"at", b"id", b"v", b"colour"])
    values = (
        st.binary(max_size=30)
        | words.map(str.encode)
        | whole.map(lambda n: str(n).encode())
        | st.floats().map(lambda number: repr(number).encode())
    )
    feed(st.dictionaries(names, values), read_entry, 300)


READERS = {"combined": combined.parse, "csv": csv_rows.parse, "ndjson": ndjson_lines.parse}
SAMPLES = {
    "combined": b'1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET /a HTTP/1.1" 200 1 "-" "Mozilla (\\"x\\")"',
    "csv": b'subject,metric,amount,actor,at,id\na,view,1,u1,1431857103.5,"x ""y"""',
    "ndjson": b'{"subject": "a", "amount": 2, "at": "2026-01-31T12:00:00Z", "id": "x"}',
}


@pytest.mark.parametrize("kind", READERS)
def test_lines_of_files(kind: str) -> None:
    """Lines of any bytes are parsed or reported as bad, with a printable reason of at most 300 characters."""
    whole_file = SAMPLES[kind].split(b"\n")

    def parse(lines: list[bytes]) -> None:
        given_lines = [Line(number, 0, text) for number, text in enumerate(lines, 1)]
        for outcome in READERS[kind](given_lines):
            assert isinstance(outcome, (ParsedLine, BadLine))
            if isinstance(outcome, BadLine):
                assert outcome.reason.isprintable()
                assert len(outcome.reason) <= 300

    def mutated(text: bytes, place: int, put: bytes, cut: int) -> bytes:
        place %= len(text) + 1
        return (text[:place] + put + text[place + cut :]).replace(b"\n", b"")

    near = st.builds(
        mutated, st.sampled_from(whole_file), st.integers(0, 200), st.binary(max_size=9), st.integers(0, 9)
    )
    hard = st.sampled_from([b'"' * 5000, b"[" * 50_000, b"\\" * 5000, b"1" * 65_000, b"a " * 5000, b'"\\" ' * 2000])
    lines = near | hard | st.sampled_from(whole_file) | st.binary(max_size=60).map(lambda t: t.replace(b"\n", b""))
    feed(st.lists(lines, max_size=5), parse)


def test_events_in_json() -> None:
    """Any bytes in place of an event's JSON are decoded to an event or refused with a declared error."""
    values = st.recursive(
        st.none() | st.booleans() | whole | st.floats() | words,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
        max_leaves=8,
    )
    names = st.sampled_from(["metric", "subject", "amount", "actor", "at", "id", "colour"])
    objects = st.dictionaries(names, values).map(lambda event: json.dumps(event).encode())

    def read(text: bytes) -> None:
        with contextlib.suppress(EventError):
            read_event(text, RULES)

    feed(objects | st.binary(max_size=60) | objects.map(lambda text: text[: len(text) // 2]), read, 300)


def test_settings(tmp_path: Path) -> None:
    """A configuration of any bytes is read, or refused with an error that names the file."""
    file = tmp_path / "tallystream.toml"
    sections = st.sampled_from(["redis", "worker", "serve", "metric.view", "metric.a.b", "ratio.r", "colour", "metric"])
    settings_ = st.sampled_from(
        [
            "url",
            "port",
            "namespace",
            "partitions",
            "windows",
            "top",
            "limit",
            "per",
            "once",
            "retention",
            "of",
            "by",
            "hosts",
        ]
    )
    values = st.sampled_from(
        [
            "1",
            "-1",
            "1e999",
            "nan",
            '"x"',
            '""',
            "[]",
            '["day"]',
            "{}",
            "true",
            "9" * 400,
            '"' + "x" * 3000 + '"',
            "[[[",
        ]
    ) | words.map(json.dumps)
    line = st.tuples(settings_, values).map(lambda pair: f"{pair[0]} = {pair[1]}")
    section = st.tuples(sections, st.lists(line, max_size=4)).map(lambda pair: "\n".join([f"[{pair[0]}]", *pair[1]]))
    texts = st.lists(section, max_size=4).map(lambda parts: "\n".join(parts).encode()) | st.binary(max_size=100)

    def read(text: bytes) -> None:
        file.write_bytes(text)
        said = str(file)
        try:
            load(file, {})
        except ConfigurationError as error:
            said = str(error)
        assert str(file) in said

    feed(texts, read)


@pytest.mark.parametrize(
    "text",
    [
        b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
        b"\x91" * 60_000,
        b"\x92\x91\x95\xa4view\x01\xdd\xff\xff\xff\xff", b"\x92\x91\x95\xa4view\x01\x90\xdf\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_a_claim_of_four_billion_items_takes_no_memory(text: bytes) -> None:
    """A header with a length of four billion items is refused without an allocation for it."""
    fields = packed(text)
    for _ in range(20):
        with pytest.raises(CodecError):
            decode(fields, RECEIVED)
    tracemalloc.start()
    try:
        for _ in range(300):
            read_entry(fields)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000
    assert peak < 2_000_000


def test_broken_input_leaves_nothing_behind() -> None:
    """Parsing thousands of broken entries and lines does not increase the memory in use."""
    draw = random.Random(7)
    broken = [draw.randbytes(draw.randrange(80)) for _ in range(500)]

    def round_of_all() -> None:
        for text in broken:
            read_entry(packed(text))
            read_entry({b"metric": text, b"subject": text})
            for parse in READERS.values():
                list(parse([Line(1, 0, b"subject"), Line(2, 0, text)]))

    round_of_all()
    tracemalloc.start()
    try:
        round_of_all()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(8):
            round_of_all()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
