"""The archive contains every entry of the streams once, even after crashes, and its sums are the totals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import duckdb
import pytest
from redis.exceptions import ResponseError

from tallystream import Producer
from tallystream.errors import ConfigurationError, KeyLost, StreamError
from tallystream.storage.keys import RESTORED
from tallystream_worker.archive.archiver import ARCHIVE_GROUP, PartitionArchiver
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import ArchiveError, Store, _write_whole, day_of
from tallystream_worker.counting.entry import Entry
from tallystream_worker.process import failpoints
from tallystream_worker.process.failpoints import ARCHIVE_PLACES, VARIABLE
from tests.harness import Harness
from tests.paths import ROOT
from tests.unit.archive.test_rows import meaning

PROGRAM = Path(sys.executable).with_name("tallystream")
DAY = 86_400_000


@pytest.fixture
def harness(server):
    """Provide a harness on an empty server, with two partitions."""
    with Harness(server.url, partitions=2) as wired:
        yield wired


@pytest.fixture
def folder(tmp_path):
    """Provide the path of the archive's folder."""
    return tmp_path / "archive"


def emit(harness: Harness, events: int = 600, seed: int = 1) -> Counter:
    """Emit events in small entries, and append plain and unreadable ones; return the expected totals."""
    chance = random.Random(seed)
    expected: Counter = Counter()
    with Producer(harness.url, entry_events=20) as producer:
        for _ in range(events):
            metric, subject = chance.choice(["view", "like"]), f"article:{chance.randint(1, 40)}"
            amount = chance.choice([1, 1, 1, 5, -2])
            producer.emit(metric, subject, amount, actor=chance.choice([None, None, "u1"]))
            expected[metric, subject] += amount
    keys = harness.layout.keys_of("article:1")
    for _ in range(5):
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "article:1", "amount": "3"})
        harness.client.xadd(keys.stream, {"v": "99", "b": "from the future"})
    expected["view", "article:1"] += 15
    return expected


def stream(harness: Harness, partition: int) -> list[tuple]:
    """Return the meaning of each entry of a stream."""
    found = harness.client.xrange(harness.layout.keys[partition].stream)
    return [meaning(Entry(id_.decode(), fields)) for id_, fields in found]


def archived(folder: Path, partition: int, after: str = "0-0", before: str | None = None) -> list[tuple]:
    """Return the meaning of each archived entry of a partition."""
    return [meaning(entry) for entry in entries(Store(str(folder)), partition, after, before)]


def check(harness: Harness, folder: Path) -> None:
    """Assert that the archive has the same entries as the streams."""
    for partition in range(harness.layout.partitions):
        assert archived(folder, partition) == stream(harness, partition)


def open_archive(harness: Harness, folder: Path) -> Archive:
    """Return a new `Archive`, as a new process has it."""
    return Archive(harness.connect(), Store(str(folder)), harness.deployment)


def test_everything_is_archived_once(harness, folder):
    """Several rounds write each entry once, in order; a round without new entries writes no file."""
    archive = open_archive(harness, folder)
    for seed in range(3):
        emit(harness, 200, seed)
        assert archive.run_once(settled=0) == 200 + 10
        check(harness, folder)
    assert archive.run_once(settled=0) == 0
    for keys in harness.layout.keys:
        (group,) = (g for g in harness.client.xinfo_groups(keys.stream) if g["name"] == ARCHIVE_GROUP.encode())
        assert (group["pending"], group["lag"]) == (0, 0)


def test_sums_by_duckdb_are_the_totals(harness, folder):
    """The queries of docs/archive.md can read the files, and the first one returns the totals."""
    expected = emit(harness)
    harness.drain()
    open_archive(harness, folder).run_once(settled=0)
    page = (ROOT / "docs" / "archive.md").read_text()
    queries = [part.partition("```")[0] for part in page.split("```sql")[1:]]
    queries = [query for query in queries if "COPY" not in query]  # another test runs this one
    assert len(queries) == 3
    answers = [duckdb.sql(query.replace("./archive", str(folder))).fetchall() for query in queries]
    totals = {("view", subject): int(amount) for subject, amount in answers[0]}
    assert totals == {name: value for name, value in harness.totals().items() if name[0] == "view"}
    assert totals == {name: value for name, value in expected.items() if name[0] == "view"}
    assert sum(events for *_, events in answers[1]) == 600 + 5
    assert answers[2]


def test_a_day_has_files_of_its_own(harness, folder):
    """Each entry is in a file of the UTC day of its ID, even if one round contains several days."""
    keys = harness.layout.keys[0]
    midnight = 20_000 * DAY
    for milliseconds in (midnight - 1, midnight, midnight + DAY):
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "article:4"}, id=f"{milliseconds}-0")
    open_archive(harness, folder).run_once(settled=0)
    days = sorted(path.parent.parent.name for path in folder.rglob("*.parquet"))
    assert days == [f"day={day_of((milliseconds, 0))}" for milliseconds in (midnight - 1, midnight, midnight + DAY)]
    check(harness, folder)


def test_a_deleted_stream_is_not_created_again(harness, folder):
    """If the stream was deleted, the archive names it and does not create an empty one, which would hide the loss."""
    emit(harness)
    key = harness.layout.keys[0].stream
    harness.client.delete(key)
    with pytest.raises(KeyLost, match=key):
        open_archive(harness, folder).run_once(settled=0)
    assert not harness.client.exists(key)


def test_a_file_without_events_does_not_end_a_pass(harness, folder):
    """After the entries of a day that have no events, the entries of later days are archived in the same pass."""
    stream_key = harness.layout.keys[0].stream
    harness.client.xadd(stream_key, {"v": "?", "n": "0"}, id=f"{20_000 * DAY}-0")
    harness.client.xadd(stream_key, {"metric": "view", "subject": "article:4"}, id=f"{20_001 * DAY}-0")
    open_archive(harness, folder).run_once(settled=0)
    assert len(list(folder.rglob("*.parquet"))) == 2
    assert archived(folder, 0) == stream(harness, 0)


def test_a_pass_ends_although_entries_arrive_all_the_time(harness, folder, monkeypatch):
    """Each file is followed by a new entry; the pass leaves it for the next one, which writes one more file."""
    emit(harness, 50)
    put, stream_name = Store.put, harness.layout.keys_of("article:1").stream

    def busy(store: Store, *arguments: object, **options: object) -> None:
        put(store, *arguments, **options)
        harness.client.xadd(stream_name, {"metric": "view", "subject": "article:1"})
        assert len(list(folder.rglob("*.parquet"))) < 10

    monkeypatch.setattr(Store, "put", busy)
    archive = Archive(harness.client, Store(str(folder)), harness.deployment)
    archive.run_once(settled=0)
    written = len(list(folder.rglob("*.parquet")))
    assert archive.run_once(settled=0) == 2
    assert len(list(folder.rglob("*.parquet"))) == written + 1


def test_a_range_is_read(harness, folder):
    """The archive can be read from one ID to another, both excluded."""
    emit(harness)
    open_archive(harness, folder).run_once(settled=0)
    everything = stream(harness, 0)
    after, before = everything[3][0], everything[-4][0]
    assert archived(folder, 0, after, before) == everything[4:-4]


def test_a_missing_file_is_noticed(harness, folder):
    """A missing file is an error for a reader that needs its entries, and no error for others."""
    archive = open_archive(harness, folder)
    for seed in range(3):
        emit(harness, 60, seed)
        archive.run_once(settled=0)
    first, second, third = sorted(folder.rglob("partition=p0*/*.parquet"))
    second.unlink()
    with pytest.raises(ArchiveError, match="missing"):
        archived(folder, 0)
    last = second.stem.partition("_")[2]
    assert archived(folder, 0, last)
    second.touch()
    with pytest.raises(ArchiveError, match="cannot be read"):
        archived(folder, 0)
    assert first.exists()
    assert third.exists()


def test_a_damaged_file_is_no_other_file(harness, folder):
    """If a bit of the stored rows is wrong, a reader gets an error, or the rows that were written."""
    emit(harness, 60)
    open_archive(harness, folder).run_once(settled=0)
    file = min(folder.rglob("partition=p0*/*.parquet"))
    written, expected = file.read_bytes(), archived(folder, 0)
    end = len(written) - 8 - int.from_bytes(written[-8:-4], "little")  # the rest states where the columns are
    refused = 0
    for place in range(4, end, 7):
        file.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        try:
            assert archived(folder, 0) == expected, place
        except ArchiveError as error:
            assert file.name in str(error)  # noqa: PT017  # some bits change nothing
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("place", ARCHIVE_PLACES)
def test_a_killed_archivist(harness, folder, place):
    """After a kill before a file is complete or before its range is settled, each entry is still in one file."""
    emit(harness)
    command = [PROGRAM, "archive", folder, "--once", "--redis", harness.url]
    environment = os.environ | {"TALLYSTREAM_REDIS_PARTITIONS": "2"}
    killed = subprocess.run(command, env=environment | {VARIABLE: f"{place}:2"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    emit(harness, seed=2)
    again = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    check(harness, folder)


def test_two_archivists_write_the_same_files(harness, folder):
    """If two archivers run at the same time, each entry is in one file, because they claim its range first."""
    keys, store = harness.layout.keys[0], Store(str(folder))
    slow, fast = (PartitionArchiver(harness.connect(), store, keys, 0) for _ in range(2))
    slow.ensure_group()
    fast.ensure_group()
    for seed in range(4):
        emit(harness, 60, seed)
        read = slow._read

        def late(position, until, count, seed=seed, read=read):
            found = read(position, until, count)
            slow._read = read
            if seed % 2:  # the other archiver reads more, and finishes before this one claims
                emit(harness, 60, 100 + seed)
            fast.run_once(settled=0)
            return found

        slow._read = late
        slow.run_once(settled=0)
    while fast.run_once(settled=0) is not None:
        pass
    assert archived(folder, 0) == stream(harness, 0)
    files = list(Store(str(folder)).files(0))
    assert all(before.last < after.first for before, after in pairwise(files))


def test_a_file_that_several_archivers_write_at_once(tmp_path):
    """If several archivers write the same file at the same moment, each succeeds, and no temporary file is left."""
    writers, rounds = 4, 100
    barrier = threading.Barrier(writers)

    def write(_: int) -> None:
        for number in range(rounds):
            barrier.wait(30)
            _write_whole(tmp_path / f"{number}.parquet", b"entries")

    with ThreadPoolExecutor(writers) as threads:
        list(threads.map(write, range(writers)))
    assert {file.name for file in tmp_path.iterdir()} == {f"{number}.parquet" for number in range(rounds)}


def test_a_server_that_came_back_with_less(harness, folder):
    """If files are ahead of the group, archiving continues after them, and no entry is archived twice."""
    archive = open_archive(harness, folder)
    emit(harness, 60)
    archive.run_once(settled=0)
    before = archived(folder, 0)
    keys = harness.layout.keys[0]
    harness.client.xgroup_destroy(keys.stream, ARCHIVE_GROUP)
    harness.client.xgroup_create(keys.stream, ARCHIVE_GROUP, id=before[2][0])
    emit(harness, 60, 2)
    open_archive(harness, folder).run_once(settled=0)
    check(harness, folder)


@pytest.mark.parametrize("is_written", [False, True])
def test_a_range_of_a_lost_group_is_forgotten(harness, folder, monkeypatch, is_written):
    """If the group is gone while a range is open, its successor begins a new range, and each entry is archived.

    A restore replaces the stream without this group. The archiver that has claimed the range may be in the middle of
    its file, or have written it.
    """

    class StoppedError(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    emit(harness, 60)
    open_archive(harness, folder).run_once(settled=0)
    emit(harness, 60, 2)
    with monkeypatch.context() as broken:
        if is_written:
            broken.setattr("tallystream_worker.archive.archiver._SETTLE", stop)
        else:
            broken.setattr(Store, "put", stop)
        with pytest.raises(StoppedError):
            open_archive(harness, folder).run_once(settled=0)
    for keys in harness.layout.keys:
        harness.client.xgroup_destroy(keys.stream, ARCHIVE_GROUP)
    open_archive(harness, folder).run_once(settled=0)
    check(harness, folder)


@pytest.mark.parametrize("place", ["before-archive", "after-archive"])
@pytest.mark.parametrize("other", ["finished", "in the middle", "one of the same range"])
def test_an_archiver_whose_group_was_lost_leaves_no_file_that_overlaps(harness, folder, monkeypatch, place, other):
    """If another archiver writes the entries of a lost claim to other files, the slow archiver removes its own file."""
    emit(harness, 60)
    open_archive(harness, folder).run_once(settled=0)
    emit(harness, 60, 2)
    keys, store = harness.layout.keys[0], Store(str(folder))
    slow, fast = (PartitionArchiver(harness.connect(), store, keys, 0) for _ in range(2))
    claimed, written = threading.Event(), threading.Event()
    reached: list[str] = []

    def run() -> None:
        fast.ensure_group()
        fast.run_once(settled=0)

    running = threading.Thread(target=run, name="fast")

    def reach(at: str) -> None:
        if threading.current_thread() is running:
            if at == "before-archive" and other == "in the middle":
                claimed.set()
                written.wait(60)
        elif at == place and not reached:
            reached.append(at)
            harness.client.xgroup_destroy(keys.stream, ARCHIVE_GROUP)
            if other != "one of the same range":
                emit(harness, 60, 3)
            running.start()
            if other == "in the middle" and place == "before-archive":
                claimed.wait(60)
            else:
                written.set()
                running.join()

    monkeypatch.setattr(failpoints, "reach", reach)
    slow.ensure_group()
    slow.run_once(settled=0)
    written.set()
    running.join()
    monkeypatch.undo()
    open_archive(harness, folder).run_once(settled=0)
    check(harness, folder)
    files = list(store.files(0))
    assert all(before.last < after.first for before, after in pairwise(files))


def test_what_was_trimmed_is_not_passed_over(harness, folder):
    """If entries of a claimed range were trimmed, archiving fails and writes no file."""
    archive = open_archive(harness, folder)
    emit(harness, 100)
    archivist = archive.archivists[0]
    archivist.ensure_group()
    keys = harness.layout.keys[0]
    first, *_, last = (entry[0] for entry in stream(harness, 0))
    count = harness.client.xlen(keys.stream)
    harness.client.hset(keys.archive, mapping={"first": first, "last": last, "entries": count})
    harness.client.xtrim(keys.stream, maxlen=count - 2, approximate=False)
    with pytest.raises(StreamError, match="trimmed"):
        archivist.run_once(settled=0)


@pytest.mark.parametrize("other", ["3", "5"])
def test_a_file_of_another_format_is_refused(harness, folder, monkeypatch, other):
    """A file of an earlier or a later format is not read, and the error names both formats and what to do."""
    emit(harness)
    with monkeypatch.context() as patched:
        patched.setattr("tallystream_worker.archive.store.FORMAT", other)
        open_archive(harness, folder).run_once(settled=0)
        check(harness, folder)
    with pytest.raises(ArchiveError, match=f"has archive format {other}, but this release reads and writes 4: read it"):
        archived(folder, 0)
    with pytest.raises(ArchiveError, match=r"different format.*Name an empty folder"):
        open_archive(harness, folder)


def test_the_archive_of_other_data_is_refused(harness, folder):
    """An archive of another deployment or of another epoch is refused."""
    open_archive(harness, folder)
    store = Store(str(folder))
    store.claim("tally", 2, ("new life", harness.deployment.epoch))
    with pytest.raises(ArchiveError, match="other data"):
        open_archive(harness, folder)
    with pytest.raises(ArchiveError, match="partitions"):
        store.claim("tally", 4, ("new life",))
    with pytest.raises(ConfigurationError, match=r"archive\.url"):
        Store("nonsense://x")
    (folder.parent / "file").touch()
    with pytest.raises(ArchiveError, match="cannot be"):
        open_archive(harness, folder.parent / "file")


@pytest.mark.parametrize("name", ["first", "last", "entries"])
def test_a_claim_without_a_field_is_claimed_again(harness, folder, name):
    """If a field of an open claim was deleted, the next archiver claims its entries again, and archives each once."""
    archive = open_archive(harness, folder)
    emit(harness, 100)
    archivist, keys = archive.archivists[0], harness.layout.keys[0]
    archivist.ensure_group()
    names = [entry[0] for entry in stream(harness, 0)]
    harness.client.hset(keys.archive, mapping={"first": names[0], "last": names[-1], "entries": len(names)})
    harness.client.hdel(keys.archive, name)
    archivist.run_once(settled=0)
    assert [entry.id for entry in entries(Store(str(folder)), 0)] == names


def test_only_a_missing_stream_was_never_restored(harness, folder):
    """An error reply about a stream is raised, and does not mean that the stream was not restored."""
    keys = harness.layout.keys[0]
    archiver = PartitionArchiver(harness.connect(), Store(str(folder)), keys, 0)
    harness.client.hset(keys.sequences, RESTORED, "snapshot 5-0 0")
    harness.client.delete(keys.stream)
    assert archiver._restored() is None
    harness.client.set(keys.stream, "of another type")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        archiver._restored()
    harness.client.delete(keys.sequences)
    harness.client.set(keys.sequences, "of another type")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        archiver._restored()
