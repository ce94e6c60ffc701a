"""A spool whose disk refuses a write: nothing changes in memory, and a later attempt or process continues correctly."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tallystream.errors import SpoolError
from tallystream.producing.spool import records, segments
from tallystream.producing.spool.segments import SegmentedLog
from tallystream.storage.keys import Layout
from tests.unit.producing.spool.test_spool import PARTITIONS, dead, emit, sealed, spool_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.producing.spool.buffer import Spool


@contextmanager
def full_disk(most: int = 10) -> Iterator[None]:
    """Within the block, no file of this process grows beyond `most` bytes; a write over them is cut or refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def descriptors() -> set[str]:
    """Return the files that this process has open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]  # the listed folder is closed again
    return {f"{link.name}: {link.readlink()}" for link in links}


def numbers(spool: Spool) -> list[int]:
    """Seal all events of a spool, and return their numbers of two digits in order."""
    payloads = [payload for _, payload in sealed(spool)]
    return [number for number in range(10, 100) if any(f"i:{number}".encode() in payload for payload in payloads)]


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_plan_is_sealed_again_after_a_refused_write(tmp_path, is_dead):
    """If the plan of moved events cannot be written, its sequences are those that the next attempt writes."""
    spool = spool_in(tmp_path)
    spool.open(Layout(1))
    emit(spool, 10, 15)
    for _ in range(3):
        spool.seal()
    spool.move(Layout(1, topic=2), [0], [0])
    for _ in range(2):
        with full_disk(), pytest.raises(SpoolError, match="are kept, but cannot be sent"):
            spool.seal()
        assert len(spool.seal()[1]) == 1
    spool.seal()
    if is_dead:
        spool = spool_in(tmp_path, dead(tmp_path, spool))
        spool.open(Layout(1, topic=2))
    spool.move(Layout(1, topic=3), [1], [0])  # topic 2 has the first entry alone
    assert numbers(spool) == list(range(15, 25))
    spool.release()


def test_queues_begin_only_when_their_names_are_written(tmp_path):
    """If the names of new queues cannot be written, there are none; a process that takes over has the later ones."""
    spool = spool_in(tmp_path)
    emit(spool, 10, 5)
    with full_disk(), pytest.raises(SpoolError, match="are kept, but cannot be sent"):
        spool.open(Layout(PARTITIONS))
    assert (spool.names, spool.topic) == ([], None)
    spool.open(Layout(PARTITIONS))
    names = spool.names
    spool.seal()
    again = spool_in(tmp_path, dead(tmp_path, spool))
    assert again.names == names
    again.open(Layout(PARTITIONS))
    assert numbers(again) == list(range(10, 15))
    again.release()


def test_every_file_begins_with_the_names(tmp_path, monkeypatch):
    """If a new file cannot be begun with the state of the queues, no event is written to it."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 300)
    spool = spool_in(tmp_path)
    spool.open(Layout(1))
    names = spool.names
    emit(spool, 10, 1)
    number = 11
    for _ in range(3):
        while not spool._segments.is_due:
            emit(spool, number, 1)
            number += 1
        with full_disk(), pytest.raises(SpoolError, match="the event was not added"):
            emit(spool, 99, 1)
        emit(spool, number, 1)  # begins the next file
        number += 1
        packs = [None]
        while packs:
            cycle, packs = spool.seal()
        spool.settle([], cycle)
    emit(spool, number, 2)
    assert [path.name for path in tmp_path.glob("*/*.log")] == [f"{spool._segments.start:020d}.log"]
    again = spool_in(tmp_path, dead(tmp_path, spool))
    assert again.names == names
    again.open(Layout(1))
    assert numbers(again)[-2:] == [number, number + 1]
    again.release()


def written(spool: Path, *kinds: tuple[int, object]) -> SegmentedLog:
    """Return segments with these records after a state without names."""
    log = SegmentedLog.create(spool)
    log.rotate(records.STATE, records.encode(records.QueueState("tally", 0, [], [])))
    for kind, what in kinds:
        log.write(kind, what if isinstance(what, bytes) else records.encode(what))
    return log


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (records.PLAN, records.EntryPlan(0, 50, [(0, 1, 5)])),
        (records.RENAME, records.QueueRename(0, "new", 1)),
        (records.SWITCH, records.TopicSwitch(2, ["new"], [0], [0])),
    ],
)
def test_plans_without_the_names_of_their_queues(tmp_path, kind, what):
    """Segments in which a plan, a rename or a move precedes the names of the queues are refused with the position."""
    log = written(tmp_path, (records.EVENT, ("view", "s", 1, 60.0, None, None)), (kind, what))
    with pytest.raises(SpoolError, match=r"is damaged at position \d+: .* names .* inspect it; it is not delivered"):
        spool_in(tmp_path, log)
    log.close()


def test_a_record_of_another_form(tmp_path):
    """Segments with a record that is whole, but cannot be read, are refused with the position."""
    log = written(tmp_path, (records.PLAN, b"\x93\x00"))
    with pytest.raises(SpoolError, match=r"is damaged at position \d+: .* inspect it; it is not delivered"):
        spool_in(tmp_path, log)
    log.close()


def test_files_that_cannot_be_read_are_released(tmp_path):
    """`release` closes the files, and ends their lock, even if another program has removed them."""
    before = descriptors()
    spool = spool_in(tmp_path)
    spool.open(Layout(1))
    emit(spool, 0, 3)
    (file,) = tmp_path.glob("*/*.log")
    file.unlink()
    spool.release()
    assert spool.is_released
    assert descriptors() == before


@pytest.mark.parametrize("is_planned", [False, True])
def test_events_that_are_damaged_meanwhile(tmp_path, is_planned):
    """If another program damages the file of a live process, its events are not sent in part, and the file stays."""
    spool = spool_in(tmp_path)
    spool.open(Layout(1))
    emit(spool, 10, 5)
    if is_planned:
        spool.seal()
        spool.move(Layout(1, topic=2), [0], [0])
    (file,) = tmp_path.glob("*/*.log")
    text = file.read_bytes()
    file.write_bytes(text.replace(b"i:13" if is_planned else b"i:10", b"----"))
    for _ in range(2):
        with pytest.raises(SpoolError, match=r"is damaged at position .*, but cannot be sent; inspect it"):
            spool.seal()
    spool.release()
    assert file.exists()


def test_segments_that_cannot_be_created(tmp_path):
    """If the reserve of new segments cannot be written, no file, folder or descriptor stays."""
    before = descriptors()
    with full_disk(), pytest.raises(SpoolError, match="cannot be written"):
        SegmentedLog.create(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert descriptors() == before


def test_a_file_that_cannot_be_begun(tmp_path, monkeypatch):
    """If a new file cannot be forced to disk, its descriptor is closed, and the next attempt begins it again."""

    def refuse(_folder: Path) -> None:
        raise OSError(5, "Input/output error")

    log = SegmentedLog.create(tmp_path, in_sync=True)
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(segments, "_sync_folder", refuse)
        with pytest.raises(SpoolError, match="Input/output error"):
            log.rotate(records.STATE, b"state")
    assert descriptors() == before
    assert log.is_due
    log.rotate(records.STATE, b"state")
    log.write(records.EVENT, b"event")
    assert [body for _, body, _ in log.read(0, log.end)] == [b"state", b"event"]
    log.close(remove=True)


def test_a_part_of_a_record_that_cannot_be_cut_off(tmp_path, monkeypatch):
    """Records after an incomplete one that stayed in its file are read, also by the process that takes over."""

    def refuse(_descriptor: int, _length: int) -> None:
        raise OSError(5, "Input/output error")

    log = SegmentedLog.create(tmp_path)
    log.rotate(records.STATE, b"state")
    log.write(records.EVENT, b"first")
    with monkeypatch.context() as patch, full_disk(log.end + 12):
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(SpoolError, match="is full"):
            log.write(records.EVENT, b"x" * 100)
    assert log.is_due
    log.rotate(records.STATE, b"state")
    log.write(records.EVENT, b"2")
    bodies = [b"state", b"first", b"state", b"2"]
    assert [body for _, body, _ in log.read(0, log.end)] == bodies
    log.close()
    claimed = SegmentedLog.claim(log.folder)
    assert claimed is not None
    assert claimed.end == log.end
    assert [body for _, body, _ in claimed.read(0, claimed.end)] == bodies
    claimed.close(remove=True)
