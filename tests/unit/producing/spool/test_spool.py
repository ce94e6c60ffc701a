"""The spool on disk, without a server: every whole record is read back, wherever the last file was cut."""

from __future__ import annotations

import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystream.errors import BufferFull, ConfigurationError, SpoolError
from tallystream.producing.buffer import BufferSettings
from tallystream.producing.partition_queue import SealedEntry
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.recovery import orphaned_segments
from tallystream.producing.spool.segments import SegmentedLog
from tallystream.producing.spool.settings import SpoolSettings
from tallystream.storage.keys import Layout

PARTITIONS = 3


def spool_in(folder: Path, journal: SegmentedLog | None = None, **limits) -> Spool:
    """Return a spool whose entries are full at 5 events."""
    where = SpoolSettings(folder, limits.pop("most_bytes", 2**20), "os", "tally")
    return Spool(BufferSettings(entry_events=5, when_full="raise", **limits), where, journal)


def emit(spool: Spool, first: int, count: int) -> None:
    """Write `count` distinct events to a spool, numbered from `first`."""
    for number in range(first, first + count):
        assert spool.put(-1, "view", f"s:{number}", 1, 60.0, None, f"i:{number}")


def sealed(spool: Spool) -> list[tuple[int, bytes]]:
    """Seal all events of a spool; return the partition and the payload of each entry."""
    entries = []
    while True:
        cycle, packs = spool.seal()
        entries += [(partition, pack.build()) for partition, pack in packs]
        spool.settle([], cycle)
        if spool.is_delivered:
            return entries


def dead(folder: Path, spool: Spool) -> SegmentedLog:
    """Release the lock of a spool and leave its files, as a dead process does; return the segments, claimed again."""
    spool.abandon()
    (journal,) = orphaned_segments(folder)
    return journal


def test_what_was_spread_is_cut_the_same_again(tmp_path):
    """Spread events go to one partition after another; a spool that is taken over makes the same entries of them."""
    spool = spool_in(tmp_path)
    spool.open(Layout(PARTITIONS))
    spool.spread = frozenset({"view"})
    for number in range(40):
        spool.put(-1, "view", "hot", 1, 60.0, None, None)
        spool.put(-1, "view", "hot", 1, 60.0, None, f"i:{number}" if number % 7 == 0 else None)
    entries = []
    for _ in range(7):
        _, packs = spool.seal()
        entries += [(partition, pack.build()) for partition, pack in packs]
    assert {partition for partition, _ in entries} == set(range(PARTITIONS))
    journal = dead(tmp_path, spool)
    again = spool_in(tmp_path, journal)
    again.open(Layout(PARTITIONS))
    assert sealed(again)[: len(entries)] == entries


def test_what_was_cut_is_cut_the_same_again(tmp_path):
    """A spool that is taken over makes the entries that its owner had sealed: same bytes, names and sequences."""
    spool = spool_in(tmp_path)
    emit(spool, 0, 3)  # before the partitions are known
    spool.open(Layout(PARTITIONS))
    emit(spool, 3, 20)
    before = []
    for _ in range(2):
        before += [(partition, pack.build()) for partition, pack in spool.seal()[1]]
    names = spool.names
    emit(spool, 23, 4)
    again = spool_in(tmp_path, dead(tmp_path, spool))
    again.open(Layout(PARTITIONS))
    assert (again.names, again.sequences_before_plans) == (names, [0] * PARTITIONS)
    assert again.emitted == 27
    after = sealed(again)
    assert after[: len(before)] == before
    assert sum(payload.count(b"s:") for _, payload in after) == 27
    again.release()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(min_value=0), events=st.integers(min_value=1, max_value=30), seals=st.integers(0, 4))
def test_a_tail_cut_at_any_byte(cut, events, seals):
    """A file that ends in the middle of a record is read up to that record, and new records can be written after it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool = spool_in(folder)
        spool.open(Layout(PARTITIONS))
        ends = []
        for number in range(events):
            emit(spool, number, 1)
            ends.append(spool.size)
            if number % 7 == 6 and seals:
                spool.seal()
                seals -= 1
        spool.abandon()
        (file,) = folder.glob("*/*.log")
        cut %= file.stat().st_size + 1
        with file.open("r+b") as opened:
            opened.truncate(cut)
        (journal,) = orphaned_segments(folder)
        again = spool_in(folder, journal)
        assert again.emitted == sum(end <= cut for end in ends)
        again.open(Layout(PARTITIONS))
        emit(again, 1000, 1)
        assert sum(payload.count(b"s:") for _, payload in sealed(again)) == again.emitted
        again.release()


def test_a_new_name_is_remembered(tmp_path):
    """A spool that is taken over after a queue was renamed uses the new name, from sequence 1 on."""
    spool = spool_in(tmp_path)
    spool.open(Layout(1))
    emit(spool, 0, 15)
    for _ in range(3):
        spool.seal()
    spool.rename(0, "second", 1)  # the server has the first entry under the old name, and none of the others
    again = spool_in(tmp_path, dead(tmp_path, spool))
    again.open(Layout(1))
    assert (again.names, again.sequences_before_plans) == (["second"], [0])
    assert [payload.count(b"s:") for _, payload in sealed(again)] == [5, 5]
    again.release()


def test_files_that_are_confirmed_are_removed(tmp_path, monkeypatch):
    """The spool removes files whose events are all confirmed, and can be taken over from the remaining ones."""
    monkeypatch.setattr("tallystream.producing.spool.segments.SEGMENT_BYTES", 300)
    spool = spool_in(tmp_path)
    spool.open(Layout(1))
    sizes = []
    for round_ in range(40):
        emit(spool, 5 * round_, 5)
        cycle, packs = spool.seal()
        if round_ < 35:
            spool.settle([SealedEntry(cycle, pack.events, 0, b"") for _, pack in packs], cycle)
        sizes.append(spool.size)
    assert max(sizes[:35]) < 1500
    assert len(list(tmp_path.glob("*/*.log"))) > 2
    again = spool_in(tmp_path, dead(tmp_path, spool))
    again.open(Layout(1))
    (confirmed,) = again.sequences_before_plans
    payloads = [payload for _, payload in sealed(again)]
    assert confirmed + len(payloads) == 40
    assert 5 <= len(payloads) <= 12
    assert payloads[-1].count(b"s:") == 5
    again.release()


def test_the_living_are_left_alone(tmp_path):
    """Segments of a live owner cannot be claimed, not even in the same process; released ones can."""
    spool = spool_in(tmp_path)
    emit(spool, 0, 1)
    assert list(orphaned_segments(tmp_path)) == []
    spool.release()
    (journal,) = orphaned_segments(tmp_path)
    journal.close()


def test_a_journal_begins_while_others_look_for_the_dead(tmp_path):
    """Segments can be created while other threads try to claim every folder, and none of those claims succeeds."""
    begun = threading.Event()

    def look() -> None:
        while not begun.is_set():
            assert all(SegmentedLog.claim(folder) is None for folder in tmp_path.iterdir())

    with ThreadPoolExecutor(2) as threads:
        looking = [threads.submit(look) for _ in range(2)]
        try:
            journals = [SegmentedLog.create(tmp_path) for _ in range(100)]
        finally:
            begun.set()
        for each in looking:
            each.result()
    for journal in journals:
        journal.close()
    assert len(journals) == 100


def test_a_full_spool_follows_the_policy(tmp_path):
    """A spool at its limit of bytes raises `BufferFull` with its size and its limit, and counts one dropped event."""
    spool = spool_in(tmp_path, most_bytes=2**20)

    def fill() -> None:
        for number in range(100_000):
            spool.put(-1, "view", f"{number:0>1000}", 1, 60.0, None, None)

    with pytest.raises(BufferFull, match=r"the spool has 1,0[0-9,]+ bytes, its limit is 1,048,576"):
        fill()
    assert 2**20 <= spool.size < 2**20 + 2000
    assert spool.dropped == 1
    spool.release()


def test_another_deployment_is_refused(tmp_path):
    """Spooled events of another namespace, or sealed for another number of partitions, are refused."""
    spool = spool_in(tmp_path)
    spool.open(Layout(PARTITIONS))
    emit(spool, 0, 1)
    journal = dead(tmp_path, spool)
    other = SpoolSettings(tmp_path, 2**20, "os", "other")
    with pytest.raises(SpoolError, match="has events of namespace tally, not other"):
        Spool(BufferSettings(), other, journal)
    again = spool_in(tmp_path, journal)
    with pytest.raises(SpoolError, match="sealed for 3 partitions, but there are 5"):
        again.open(Layout(5))
    again.release()


def test_damage_in_the_middle_is_not_passed_over(tmp_path):
    """A spool that is damaged far from its end is refused as a whole, and no part of it is delivered."""
    spool = spool_in(tmp_path, most_bytes=2**21)
    for number in range(200):
        spool.put(-1, "view", f"{number:0>1000}", 1, 60.0, None, None)
    spool.abandon()
    (file,) = tmp_path.glob("*/*.log")
    with file.open("r+b") as opened:
        opened.seek(5000)
        opened.write(b"\xff\xff")
    (journal,) = orphaned_segments(tmp_path)
    with pytest.raises(SpoolError, match="is damaged at position"):
        spool_in(tmp_path, journal)
    journal.close()
    shutil.rmtree(journal.folder)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    """Spool settings reject a folder below a file, too few bytes, and an unknown `spool_sync`."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"spool .*file/spool cannot be written .*: set a writable folder"):
        SpoolSettings(tmp_path / "file" / "spool", 2**20, "os", "tally")
    with pytest.raises(ConfigurationError, match="spool_bytes must be at least"):
        SpoolSettings(tmp_path, 1, "os", "tally")
    with pytest.raises(ConfigurationError, match="spool_sync must be os or disk"):
        SpoolSettings(tmp_path, 2**20, "tape", "tally")
