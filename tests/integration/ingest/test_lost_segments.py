"""An ingest ends only when the server has all segments of its files: lost ones are read again, also finished ones."""

from __future__ import annotations

import gzip
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallystream_worker.ingest import Mapping
from tallystream_worker.ingest import job as jobs
from tallystream_worker.ingest.formats import parquet_rows
from tallystream_worker.ingest.job import jobs_of
from tallystream_worker.ingest.pool import IngestFailed, IngestRun
from tallystream_worker.settings.settings import RedisSettings
from tests.harness import Harness
from tests.rewind import copy_of, go_back

EVENTS = 60
SEGMENT = 500


@pytest.fixture
def harness(server, monkeypatch):
    """Yield a harness on an empty server; segments of files are small."""
    monkeypatch.setattr(jobs, "SEGMENT", SEGMENT)
    monkeypatch.setattr(jobs, "SEGMENT_ROWS", 20)
    monkeypatch.setattr(parquet_rows, "SEGMENT_ROWS", 20)
    with Harness(server.url) as harness:
        yield harness


def lines(first, last):
    """Return events of separate subjects as lines of NDJSON."""
    return "".join(json.dumps({"metric": "view", "subject": f"a:{n}"}) + "\n" for n in range(first, last))


def written(folder, kind):
    """Write 60 events to a file of several segments; return its path and its format."""
    path = folder / f"events.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"subject": [f"a:{n}" for n in range(EVENTS)]}), path)
        return path, "parquet"
    text = lines(0, EVENTS).encode()
    path.write_bytes(gzip.compress(text) if kind == "gz" else text)
    return path, "ndjson"


def run_of(harness, path, format_="ndjson", report=lambda _: True, processes=1):
    """Return the run of an ingest of one file that has not begun."""
    parts = jobs_of(str(path), format_, Mapping())
    return IngestRun(parts, RedisSettings(url=harness.url), processes, threading.Event(), report)


def counted(harness):
    """Count all entries in the streams; return the totals by subject."""
    harness.drain()
    return {subject: total for (_, subject), total in harness.totals().items()}


@pytest.mark.parametrize("kind", ["ndjson", "gz", "parquet"])
def test_finished_segments_are_read_again(harness, tmp_path, kind):
    """If a server loses a finished segment while a later one is read, every event of the file is counted once."""
    path, format_ = written(tmp_path, kind)
    before, lost = copy_of(harness.client), []

    def report(progress):
        if progress.events >= EVENTS / 3 and not lost:
            lost.append(go_back(harness.client, before))

    run = run_of(harness, path, format_, report)
    run.run()
    assert lost
    while run.run_lost():
        pass
    assert counted(harness) == {f"a:{n}": 1 for n in range(EVENTS)}
    assert (run.total.bad, run_of(harness, path, format_).lost()) == (0, [])


def test_a_run_of_known_events_is_checked_too(harness, tmp_path):
    """A run that found its events on the server appends them if the server loses them before the run ends."""
    path, _ = written(tmp_path, "ndjson")
    before = copy_of(harness.client)
    run_of(harness, path).run()
    run = run_of(harness, path)
    run.run()
    assert (run.total.events, run.total.known, run.lost()) == (0, EVENTS, [])
    go_back(harness.client, before)
    assert [run.run_lost(), run.run_lost()] == [True, False]
    assert (run.total.events, run.total.known) == (EVENTS, 0)
    assert counted(harness) == {f"a:{n}": 1 for n in range(EVENTS)}


def test_only_what_is_lost_is_read_again(harness, tmp_path):
    """Files that the server still has are not read again; several processes read the lost ones."""
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.ndjson")
        paths[-1].write_text(lines(number * 5, number * 5 + 5))
    parts = [part for path in paths for part in jobs_of(str(path), "ndjson", Mapping())]
    run_of(harness, paths[0]).run()
    before = copy_of(harness.client)
    run = IngestRun(parts, RedisSettings(url=harness.url), 2, threading.Event(), lambda _: True)
    run.run()
    go_back(harness.client, before)
    assert run.lost() == [1, 2, 3]
    assert [run.run_lost(), run.run_lost()] == [True, False]
    assert (run.total.events, run.total.known) == (15, 5)
    assert counted(harness) == {f"a:{n}": 1 for n in range(20)}


def test_an_emptied_server_gets_the_file_again(server, tmp_path):
    """If the server is emptied after the last event, a new deployment with as many partitions gets the file."""
    with Harness(server.url, partitions=8) as harness:
        path, _ = written(tmp_path, "ndjson")
        run = run_of(harness, path)
        run.run()
        harness.client.flushall()
        assert [run.run_lost(), run.run_lost()] == [True, False]
        assert harness.client.hget(harness.layout.meta, "partitions") == b"8"
        assert harness.ledger()["appended"] == EVENTS


def test_a_lost_identity_is_stored_again(harness, tmp_path):
    """If the server has lost only the identity of a file, the file is still known when it has grown."""
    path, _ = written(tmp_path, "ndjson")
    run = run_of(harness, path)
    run.run()
    before = harness.client.hgetall(harness.layout.files)
    harness.client.delete(harness.layout.files)
    assert not run.run_lost()
    assert harness.client.hgetall(harness.layout.files) == before
    path.write_text(lines(0, EVENTS + 1))
    grown = run_of(harness, path)
    grown.run()
    assert (grown.total.events, grown.total.known) == (1, EVENTS)


def test_a_server_that_loses_the_file_again_and_again(harness, tmp_path):
    """If the server loses a file again each time it is read, the run ends with an error that names the file."""
    path, _ = written(tmp_path, "ndjson")
    before = copy_of(harness.client)
    run = run_of(harness, path)
    run.run()

    def lose_and_run():
        while True:
            go_back(harness.client, before)
            assert run.run_lost()

    with pytest.raises(IngestFailed, match=r"events\.ndjson.* 6 times.*run the same command again"):
        lose_and_run()
