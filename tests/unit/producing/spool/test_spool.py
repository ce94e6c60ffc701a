"""The spool on disk, apart from any server: what is read back is what was written, wherever the tail is cut."""

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
    """Return a spool with small entries."""
    where = SpoolSettings(folder, limits.pop("most_bytes", 2**20), "os", "tally")
    return Spool(BufferSettings(entry_events=5, when_full="raise", **limits), where, journal)


def emit(spool: Spool, first: int, count: int) -> None:
    """Take events that can be told apart."""
    for number in range(first, first + count):
        assert spool.put(-1, "view", f"s:{number}", 1, 60.0, None, f"i:{number}")


def sealed(spool: Spool) -> list[tuple[int, bytes]]:
    """Seal everything; return partition and payload of each entry."""
    entries = []
    while True:
        cycle, packs = spool.seal()
        entries += [(partition, pack.build()) for partition, pack in packs]
        spool.settle([], cycle)
        if spool.is_delivered:
            return entries


def dead(folder: Path, spool: Spool) -> SegmentedLog:
    """Let a spool's process die: its lock is gone, its files stay. Return what takes it over."""
    spool.abandon()
    (journal,) = orphaned_segments(folder)
    return journal


def test_what_was_spread_is_cut_the_same_again(tmp_path):
    """Spread events go round, entry by entry; whoever takes over sends the same, whatever it knows of the rules."""
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
    """Whoever takes over a spool sends the entries that its owner had sealed: same bytes, names and numbers."""
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
    assert (again.names, again.confirmed_sequences) == (names, [0] * PARTITIONS)
    assert again.emitted == 27
    after = sealed(again)
    assert after[: len(before)] == before
    assert sum(payload.count(b"s:") for _, payload in after) == 27
    again.release()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(min_value=0), events=st.integers(min_value=1, max_value=30), seals=st.integers(0, 4))
def test_a_tail_cut_at_any_byte(cut, events, seals):
    """Of a file that ends in mid-record, everything before that record is read, and new ones follow on it."""
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
    """After a lane was renamed, whoever takes over goes on under the new name, from the sequence where it began."""
    spool = spool_in(tmp_path)
    spool.open(Layout(1))
    emit(spool, 0, 15)
    for _ in range(3):
        spool.seal()
    spool.rename(0, "second", 1)  # the server has the first entry under the old name, and none of the others
    again = spool_in(tmp_path, dead(tmp_path, spool))
    again.open(Layout(1))
    assert (again.names, again.confirmed_sequences) == (["second"], [0])
    assert [payload.count(b"s:") for _, payload in sealed(again)] == [5, 5]
    again.release()


def test_files_that_are_confirmed_are_removed(tmp_path, monkeypatch):
    """The spool keeps no more than the files that hold something unconfirmed, and is taken over from there."""
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
    (confirmed,) = again.confirmed_sequences
    payloads = [payload for _, payload in sealed(again)]
    assert confirmed + len(payloads) == 40
    assert 5 <= len(payloads) <= 12
    assert payloads[-1].count(b"s:") == 5
    again.release()


def test_the_living_are_left_alone(tmp_path):
    """A spool whose owner lives is nobody else's, in another process or in the same one."""
    spool = spool_in(tmp_path)
    emit(spool, 0, 1)
    assert list(orphaned_segments(tmp_path)) == []
    spool.release()
    (journal,) = orphaned_segments(tmp_path)
    journal.close()


def test_a_journal_begins_while_others_look_for_the_dead(tmp_path):
    """Who looks whether a newborn journal belongs to a dead process does not keep its owner from having it."""
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
    """At its limit in bytes the spool takes nothing more, and says what is full."""
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
    """What was spooled for another namespace, or cut for another number of partitions, is not sent here."""
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
    """A spool that is damaged far from its end is left for a person to look at, and not delivered in part."""
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
    """A spool that is a file, or lies in one, is refused at construction with what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"spool .*file/spool cannot be written .*: set a writable folder"):
        SpoolSettings(tmp_path / "file" / "spool", 2**20, "os", "tally")
    with pytest.raises(ConfigurationError, match="spool_bytes must be at least"):
        SpoolSettings(tmp_path, 1, "os", "tally")
    with pytest.raises(ConfigurationError, match="spool_sync must be os or disk"):
        SpoolSettings(tmp_path, 2**20, "tape", "tally")
