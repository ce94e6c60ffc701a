"""Each line of a file counts once, however often the file is read, and whatever fails between reading and counting."""

from __future__ import annotations

import gzip
import json
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystream.deployment import Deployment
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.ingest import Mapping, SourceError, packer, sender
from tallystream_worker.ingest import job as jobs
from tallystream_worker.ingest import source as source_module
from tallystream_worker.ingest.formats import parquet_rows
from tallystream_worker.ingest.job import jobs_of, run, size_of
from tallystream_worker.ingest.pool import IngestRun
from tallystream_worker.ingest.progress import IngestProgress
from tallystream_worker.settings.settings import RedisSettings
from tests.harness import Harness
from tests.proxy import Proxy


@pytest.fixture
def harness(server):
    """Yield a harness on an empty server."""
    with Harness(server.url) as harness:
        yield harness


def line(subject, metric="view", **more):
    """Return an event as a line of NDJSON."""
    return json.dumps({"metric": metric, "subject": subject} | more) + "\n"


def ingest(harness, path, format_="ndjson", url=None, **more):
    """Ingest a file, job by job; return the progress of all jobs together."""
    total = IngestProgress()
    for job in jobs_of(str(path), format_, Mapping(), **more):
        total.add(run(job, RedisSettings(url=url or harness.url)))
    return total


def counted(harness):
    """Count all entries in the streams; return the totals by subject."""
    harness.drain()
    return {subject: total for (_, subject), total in harness.totals().items()}


def test_a_file_is_known_again(harness, tmp_path):
    """A file that is read again, renamed or compressed adds nothing; a file that has grown adds only its new lines."""
    text = "".join(line(f"a:{number % 5}") for number in range(100))
    path = tmp_path / "log.ndjson"
    path.write_text(text)
    first = ingest(harness, path)
    assert (first.events, first.known, first.bad) == (100, 0, 0)
    assert (ingest(harness, path).events, ingest(harness, path).known) == (0, 100)
    renamed = path.rename(tmp_path / "log.ndjson.1")
    assert ingest(harness, renamed).events == 0
    packed = tmp_path / "log.ndjson.1.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert ingest(harness, packed).events == 0
    grown = tmp_path / "grown"
    grown.write_text(text + line("new"))
    assert (ingest(harness, grown).events, ingest(harness, grown).events) == (1, 0)
    assert counted(harness) == {f"a:{number}": 20 for number in range(5)} | {"new": 1}
    assert harness.ledger()["appended"] == harness.ledger()["counted"] == 101


def test_other_files_are_other_sources(harness, tmp_path):
    """A file with another beginning, or with another salt, is another source and is counted."""
    for number in range(3):
        path = tmp_path / str(number)
        path.write_text(line("a", at=number) + line("b"))
        assert ingest(harness, path).events == 2
    assert ingest(harness, path, salt="again").events == 2
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert ingest(harness, empty).events == 0
    assert counted(harness) == {"a": 4, "b": 4}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example empties the server
@given(
    subjects=st.lists(st.sampled_from(["a", "b", "cc", "article:1", "é"]), max_size=60),
    segment=st.integers(20, 400),
    packed=st.booleans(),
    grown=st.integers(0, 60),
)
def test_parts_of_any_size(fresh_rig, subjects, segment, packed, grown):
    """A file that grows and is read in segments of any size, last segment first, counts each line once."""
    harness = fresh_rig()
    expected = Counter(subjects)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "SEGMENT", segment)
        path = Path(folder) / "file"
        for part in (subjects[:grown], subjects, subjects):
            text = "".join(map(line, part)).encode()
            path.write_bytes(gzip.compress(text) if packed else text)
            for job in reversed(jobs_of(str(path), "ndjson", Mapping())):
                run(job, RedisSettings(url=harness.url))
    assert counted(harness) == expected


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pages=st.lists(st.sampled_from(["/a", "/b", "/c?d", "/\u00e9", "nonsense", ""]), max_size=60),
    sizes=st.lists(st.tuples(st.integers(100, 900), st.integers(1, 9), st.integers(1, 4)), min_size=2, max_size=4),
    segment=st.integers(200, 3000),
    grown=st.integers(0, 60),
)
def test_an_access_log_in_blocks_of_any_size(fresh_rig, pages, sizes, segment, grown):
    """An access log that grows, read with interruptions in blocks and entries of any sizes, counts each line once."""
    harness = fresh_rig()
    lines = [
        f'10.0.0.{number % 3} - - [17/May/2015:10:{number % 60:02}:00 +0000] "GET {page} HTTP/1.1" 200 1 "-" "-"\n'
        if page.startswith("/")
        else f"{page}\n"
        for number, page in enumerate(pages)
    ]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "SEGMENT", segment)
        patch.setattr(sender, "BURST", 1)
        path = Path(folder) / "access.log"
        for nth, (chunk, entry_events, reports) in enumerate(sizes):
            patch.setattr(source_module, "CHUNK", chunk)
            patch.setattr(packer, "_ENTRY_EVENTS", entry_events)
            path.write_text("".join(lines[:grown] if nth == 0 else lines))
            for job in jobs_of(str(path), "combined", Mapping()):
                left = iter(range(reports if nth < len(sizes) - 1 else 10**6))
                run(job, RedisSettings(url=harness.url), lambda _, left=left: next(left, None) is not None)
    assert counted(harness) == Counter(page for page in pages if page.startswith("/"))


@pytest.fixture
def fresh_rig(server):
    """Yield a function that empties the server and returns a new harness."""
    made = []

    def make():
        for harness in made:
            harness.__exit__()
        made.clear()
        server.clear()
        made.append(Harness(server.url))
        return made[-1]

    yield make
    for harness in made:
        harness.__exit__()


def test_a_csv_in_parts_keeps_its_header(harness, tmp_path, monkeypatch):
    """Every segment of a CSV file is parsed with the header of the file."""
    monkeypatch.setattr(jobs, "SEGMENT", 100)
    path = tmp_path / "events.csv"
    path.write_text("subject,amount\n" + "".join(f"a:{number % 3},{number}\n" for number in range(100)))
    assert len(jobs_of(str(path), "csv", Mapping())) > 5
    progress = ingest(harness, path, "csv")
    assert (progress.events, progress.bad) == (100, 0)
    assert counted(harness) == {f"a:{rest}": sum(range(rest, 100, 3)) for rest in range(3)}


def test_a_lost_reply_counts_nothing_twice(harness, tmp_path):
    """If the connection breaks before the reply to an append, the chunks are sent again and appended once."""
    path = tmp_path / "file"
    path.write_text("".join(line(f"a:{number}", actor=f"u{number}") for number in range(20_000)))
    with Proxy(harness.url) as proxy:
        cut = threading.Timer(0.15, proxy.cut)
        cut.start()
        progress = ingest(harness, path, url=proxy.url)
        cut.join()
    assert (progress.events, progress.bad) == (20_000, 0)
    assert counted(harness) == {f"a:{number}": 1 for number in range(20_000)}


def test_two_runs_at_once(harness, tmp_path):
    """Three concurrent runs of the same file count each line once."""
    path = tmp_path / "file"
    path.write_text("".join(line(f"a:{number % 1000}", actor=f"u{number}") for number in range(30_000)))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: ingest(harness, path), range(3)))
    assert sum(progress.events for progress in found) >= 30_000 - max(progress.known for progress in found)
    assert counted(harness) == {f"a:{number}": 30 for number in range(1000)}
    assert harness.ledger()["appended"] == 30_000


def test_a_rewound_server_is_caught_up_with(harness, tmp_path):
    """If the server has lost the last appended entry and its offset, the next run appends exactly its events again."""
    path = tmp_path / "file"
    text = "".join(line("a") for _ in range(50))
    path.write_text(text)
    ingest(harness, path)
    before = harness.client.dump(harness.layout.keys_of("a").sequences)
    path.write_text(text + line("a") * 7)
    ingest(harness, path)
    keys = harness.layout.keys_of("a")
    (last, _), *_ = harness.client.xrevrange(keys.stream, count=1)
    harness.client.xdel(keys.stream, last)
    harness.client.restore(keys.sequences, 0, before, replace=True)
    assert ingest(harness, path).events == 7
    assert counted(harness) == {"a": 57}


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a Parquet file and returns its path."""

    def write(name="events.parquet", rows_in_group=5000, **columns):
        path = tmp_path / name
        pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
        return path

    return write


@pytest.mark.parametrize("segment", [2**20, 7000])
def test_parquet(harness, table, monkeypatch, segment):
    """Each row of a Parquet file is counted once, by its metric, subject and amount; a second run adds nothing."""
    monkeypatch.setattr(parquet_rows, "SEGMENT_ROWS", segment)
    monkeypatch.setattr(jobs, "SEGMENT_ROWS", segment)
    rows = 20_000
    path = table(
        subject=pa.array([f"a:{row % 700}" for row in range(rows)]).dictionary_encode(),
        metric=["like" if row % 4 == 0 else None for row in range(rows)],
        amount=pa.array([row % 3 for row in range(rows)], pa.int32()),
        actor=["u" if row % 100 == 0 else None for row in range(rows)],
        at=pa.array([datetime(2025, 1, 1, row % 24, tzinfo=UTC) for row in range(rows)]),
    )
    expected: Counter[tuple[str, str]] = Counter()
    for row in range(rows):
        expected["like" if row % 4 == 0 else "view", f"a:{row % 700}"] += row % 3
    progress = ingest(harness, path, "parquet")
    assert (progress.events, progress.bad, progress.read) == (rows, 0, rows)
    assert (ingest(harness, path, "parquet").events, ingest(harness, path, "parquet").known) == (0, rows)
    harness.drain()
    assert harness.totals() == dict(expected)
    assert harness.ledger()["appended"] == harness.ledger()["counted"] == rows


def test_rows_that_are_no_events(harness, table):
    """Bad rows are reported with row and field, and the other rows are counted."""
    path = table(
        subject=["good", None, "bad\n", "good", "good", "good", "good"],
        amount=pa.array([1, 1, 1, 2**60, 1, 1, 2**45], pa.int64()),
        at=pa.array([0.5, 1.0, 2.0, 3.0, -1.0, None, 5.0]),
    )
    progress = ingest(harness, path, "parquet")
    assert (progress.events, progress.bad) == (3, 4)
    assert sorted((row["line"], row["reason"].split(":")[0]) for row in progress.examples) == [
        (2, "subject"), (3, "subject"), (4, "amount"), (5, "at"),
    ]  # fmt: skip
    assert counted(harness) == {"good": 2 + 2**45}


def test_rows_of_units_are_judged_one_by_one(server, table):
    """If all amounts are 1, spellings of a subject are merged, and rows that a rule rejects are reported one by one."""
    path = table(
        subject=["e\u0301", "\u00e9", "bad\n", "\u00e9", "a", "a", "a", "a"],
        metric=["view", "view", "view", "view", "view", "vote", "call", "nothing"],
        at=[0.5, 1.0, 2.0, 61.0, 9e9, 3.0, 3.0, 3.0],
    )
    rules = Rules({"view": Metric(), "vote": Metric(once="forever"), "call": Metric(limit=9, per="total")})
    with Harness(server.url, rules=rules) as harness:
        progress = ingest(harness, path, "parquet")
        assert (progress.events, progress.bad) == (4, 4)
        assert sorted((row["line"], row["reason"].split(":")[0]) for row in progress.examples) == [
            (3, "subject"), (5, "at"), (6, "actor"), (8, "metric"),
        ]  # fmt: skip
        assert (ingest(harness, path, "parquet").events, ingest(harness, path, "parquet").known) == (0, 4)
        harness.drain()
        assert harness.totals() == {("view", "\u00e9"): 3}
        assert harness.ledger()["late"] == 1  # a limit of 1970 is not kept


def test_a_bad_row_leaves_the_rows_beside_it(server, table):
    """A row that a rule rejects is reported alone; rows of the same subject and minute are counted."""
    path = table(
        metric=["call", "call", "call", "sketch", "sketch", "sketch", "sketch"],
        subject=["a", "a", "a", "b", "b", "b", "b"],
        amount=[1, 5, 1, 7, -1, 3, -1],
        at=[1e9] * 7,
    )
    rules = Rules({"call": Metric(limit=9, per="total"), "sketch": Metric(exact=False)})
    with Harness(server.url, rules=rules) as harness:
        progress = ingest(harness, path, "parquet")
        assert (progress.events, progress.bad) == (4, 3)
        assert sorted((row["line"], row["reason"].split(":")[0]) for row in progress.examples) == [
            (2, "amount"), (5, "amount"),
        ]  # fmt: skip
        assert (ingest(harness, path, "parquet").events, ingest(harness, path, "parquet").known) == (0, 4)
        harness.drain()
        assert harness.ledger()["late"] == 2  # a limit of 2001 is not kept
        assert harness.ledger()["counted"] == 2


def test_rows_with_actors_fill_many_entries(server, table):
    """A file whose rows all have an actor and the same partition counts every row once."""
    path = table(subject=["a"] * 20_000, actor=[f"{row}:{'u' * 200}" for row in range(20_000)], at=[1.0] * 20_000)
    with Harness(server.url, partitions=1) as harness:
        assert ingest(harness, path, "parquet").events == 20_000
        assert (ingest(harness, path, "parquet").events, ingest(harness, path, "parquet").known) == (0, 20_000)
        assert counted(harness) == {"a": 20_000}


def test_parquet_that_holds_no_events(table, tmp_path):
    """A missing file, an unknown column, a missing `subject` or broken Parquet is an error before any row is read."""
    with pytest.raises(SourceError, match="'price'"):
        jobs_of(str(table(subject=["a"], price=[1])), "parquet", Mapping())
    with pytest.raises(SourceError, match="no column 'subject'"):
        jobs_of(str(table(metric=["view"])), "parquet", Mapping())
    broken = tmp_path / "broken"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match="broken"):
        jobs_of(str(broken), "parquet", Mapping())
    with pytest.raises(SourceError, match="nowhere"):
        jobs_of("nowhere", "parquet", Mapping())


def test_segments_number_lines_and_bytes_of_their_file(harness, tmp_path, monkeypatch):
    """With several segments, bad lines have their number in the file, and the bytes read add up to its size."""
    monkeypatch.setattr(jobs, "SEGMENT", 500)
    path = tmp_path / "log.ndjson"
    text = [line("a") if number % 7 else "bad" * (number % 5 + 1) + "\n" for number in range(1, 71)]
    path.write_text("".join(text))
    parts = jobs_of(str(path), "ndjson", Mapping())
    assert len(parts) > 3
    seen = []
    stop = threading.Event()
    ingest_run = IngestRun(parts, RedisSettings(url=harness.url), 1, stop, lambda now: bool(seen.append(now.read)))
    ingest_run.run()
    done = ingest_run.total
    assert [example["line"] for example in done.examples] == [7 * n for n in range(1, 11)]
    assert {*done.examples[-1]} == {"file", "line", "reason"}
    assert (done.events, done.bad) == (60, 10)
    assert done.read == size_of(parts) == path.stat().st_size
    assert max(seen) <= done.read


def test_an_emptied_server_keeps_its_number_of_partitions(server, tmp_path, monkeypatch):
    """If the server is emptied during an ingest, the file goes to a new deployment with as many partitions."""
    path = tmp_path / "file"
    path.write_text("".join(line(f"a:{number}") for number in range(100)))
    append_text, emptied = jobs._append_text, []

    def empty_once(job, client, *others):
        if not emptied:
            emptied.append(client.flushall())
        append_text(job, client, *others)

    monkeypatch.setattr(jobs, "_append_text", empty_once)
    with Harness(server.url, partitions=8) as harness:
        assert ingest(harness, path).events == 100
        assert emptied
        deployment = Deployment.find(harness.client)
        assert (deployment.layout.partitions, deployment.epoch != harness.deployment.epoch) == (8, True)
        assert harness.ledger()["appended"] == 100
