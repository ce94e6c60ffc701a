"""A source yields the lines of a file with their numbers and offsets: plain, gzip or from a pipe."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream_worker.ingest import MAX_LINE_BYTES, Source, SourceError, open_source

ECHO = """
from tallystream_worker.ingest import open_source
with open_source("-") as source:
    for line in source:
        print(line.number, line.offset, line.text.decode(), source.total, flush=True)
"""


def lines(content: bytes) -> list[tuple[int, int, bytes]]:
    """Return the lines of a file with this content."""
    return [tuple(line) for line in Source(io.BytesIO(content), "memory", len(content))]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_have_numbers_and_offsets(tmp_path, pack):
    """Plain and compressed files give the same lines; at the end `bytes_read` is the size on disk."""
    path = tmp_path / "file"
    path.write_bytes(pack(b"one\n\n  \r\ntwo\r\nlast"))
    with open_source(path) as source:
        assert [tuple(line) for line in source] == [(1, 0, b"one"), (4, 9, b"two\r"), (5, 14, b"last")]
        assert source.bytes_read == source.total == path.stat().st_size


def test_progress_grows_with_the_lines(tmp_path):
    """After the first line of a large compressed file, `bytes_read` is less than half of `total`."""
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(b"first\n" + os.urandom(4_000_000), 1))
    with open_source(path) as source:
        assert next(iter(source)).text == b"first"
        assert 0 < source.bytes_read < source.total / 2


def test_gzip_members_are_read_on():
    """A gzip file of several members, as log rotation makes it, is read to its end."""
    assert lines(gzip.compress(b"a\nb") + gzip.compress(b"c\n")) == [(1, 0, b"a"), (2, 2, b"bc")]


@pytest.mark.parametrize("content", [b"", b"\n", b"\x1f", b"\x1f\x8b"[:1] + b"\n", gzip.compress(b"", mtime=0)])
def test_hardly_anything_is_no_trouble(content):
    """An empty file, a file of one byte and an empty gzip file have at most one line."""
    assert len(lines(content)) <= 1


def test_an_endless_line_needs_no_memory(tmp_path):
    """A line of 64 MiB is cut off in little memory, but still too long; the next line is intact."""
    path = tmp_path / "file.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b"first\n")
        for _ in range(64):
            file.write(b"x" * 2**20)
        file.write(b"\nlast\n")
    tracemalloc.start()
    try:
        with open_source(path) as source:
            first, endless, last = source
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (first.text, last.text) == (b"first", b"last")
    assert MAX_LINE_BYTES < len(endless.text) < 2**20
    assert (last.number, last.offset) == (3, 6 + 64 * 2**20 + 1)
    assert peak < 4 * 2**20


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-8] + b"\0" * 8])
def test_a_damaged_file_is_named(tmp_path, damage):
    """A gzip file that is cut off or has a wrong checksum raises an error that names it, after its good lines."""
    path = tmp_path / "file.gz"
    path.write_bytes(damage(gzip.compress(b"good\n" * 300_000 + os.urandom(2**20))))
    seen = []
    with (
        open_source(path) as source,
        pytest.raises(SourceError, match=rf"cannot read {path} beyond byte [\d,]+: "),
    ):
        seen.extend(source)
    assert [line.text for line in seen[:2]] == [b"good", b"good"]


def test_a_file_that_is_not_there_is_named(tmp_path):
    """Opening a missing file or a folder raises an error that gives the reason."""
    with pytest.raises(SourceError, match="nothing: No such file or directory"):
        open_source(tmp_path / "nothing")
    with pytest.raises(SourceError, match="Is a directory"):
        open_source(tmp_path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_minus_is_standard_input(pack):
    """`-` reads standard input, plain or compressed; its size is not known."""
    run = subprocess.run([sys.executable, "-c", ECHO], input=pack(b"a\nb\n"), capture_output=True, check=True)
    assert run.stdout == b"1 0 a None\n2 2 b None\n"


def test_a_line_in_a_pipe_is_there_at_once():
    """A line from a pipe is yielded before the pipe is closed or a chunk is full."""
    with subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"1 0 a None\n"
        process.stdin.close()


@given(st.binary())
def test_no_bytes_raise_or_vanish(content):
    """Any bytes that are not gzip are yielded as lines, each with its right offset and number."""
    if content.startswith(b"\x1f\x8b"):
        return
    found = lines(content)
    for number, offset, text in found:
        assert content[offset : offset + len(text)] == text
        assert content.count(b"\n", 0, offset) == number - 1
    assert [text for _, _, text in found] == [text for text in content.split(b"\n") if text and not text.isspace()]
