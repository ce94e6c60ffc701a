"""Steps of a server's clock are logged and shown; while the clock is wrong, nothing is lost that could be kept."""

from __future__ import annotations

import time

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream.producing.producer import Producer
from tallystream.reading.clocks import query_clock_step
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.maintenance.clocks import ClockWatch
from tallystream_worker.maintenance.trim import trim
from tallystream_worker.settings.settings import RetentionSettings
from tests.harness import Harness
from tests.http_service import http_service
from tests.integration.cli.test_cli import Shell
from tests.integration.service.test_metrics import scrape

HOUR = 3600.0
WEEK = 7 * 86_400.0


@pytest.fixture
def harness(clocked):
    """Yield a harness of two partitions on an empty server with a clock."""
    with Harness(clocked.url, rules=Rules({"view": Metric(windows=("hour",))}), partitions=2) as wired:
        yield wired


def emit(harness: Harness, events: int = 10) -> None:
    """Append one entry to each partition, with `events` events in all, and count them."""
    with Producer(harness.url) as producer:
        for number in range(events):
            producer.emit("view", f"s{number}")
    harness.finish()


def test_a_step_is_logged_and_shown(clocked, harness, tmp_path):
    """A step of the clock is logged once with its size, and shown in `status` and metrics; so are IDs ahead of it."""
    capture = LogCapture()
    log = structlog.wrap_logger(None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0))
    watch = ClockWatch(harness.client, harness.deployment, log)
    watch.run_once()
    watch.run_once()
    assert capture.entries == []
    clocked.set(WEEK)
    emit(harness)
    watch.run_once()
    clocked.set(0)
    emit(harness)
    watch.run_once()
    watch.run_once()
    steps = [(each["seconds"], each["partitions"]) for each in capture.entries if each["event"] == "clock.stepped"]
    assert steps == [(pytest.approx(WEEK, abs=1), 2), (pytest.approx(-WEEK, abs=1), 2)]
    assert [each["event"] for each in capture.entries].count("stream.ids_ahead") == 2
    with Totals(clocked.url) as totals:
        step = totals.run(query_clock_step(harness.layout))
        assert step is not None
        assert (step.seconds, step.at) == (pytest.approx(-WEEK, abs=1), pytest.approx(time.time(), abs=60))
        ledger = totals.ledger()
    for partition in ledger.partitions:
        assert partition.ids_ahead_seconds == pytest.approx(WEEK, abs=60)
    with http_service(clocked.url) as http:
        samples = scrape(http)
    assert samples["clock_step_seconds", ()] == pytest.approx(-WEEK, abs=1)
    for keys in harness.layout.keys:
        assert samples["stream_ids_ahead_seconds", (keys.stream,)] == pytest.approx(WEEK, abs=60)
    printed = Shell(clocked.url, tmp_path)("status").stdout
    assert "clock: the server's clock was set back by 604,800.0 s at " in printed
    assert "clock: stream IDs are up to 604,7" in printed
    clocked.set(WEEK + HOUR)
    watch.run_once()
    assert [each["event"] for each in capture.entries].count("stream.ids_in_time") == 2


def test_the_age_of_a_pending_entry_is_unknown_while_ids_are_ahead(clocked, harness):
    """An entry that is pending under an ID ahead of the clock has an unknown age, not an age of 0."""
    clocked.set(WEEK)
    emit(harness)
    clocked.set(0)
    with Producer(clocked.url) as producer:
        producer.emit("view", "s1")
    keys = harness.layout.keys_of("s1")
    harness.fetch(harness.layout.keys.index(keys), "slow")(10, 0)
    with Totals(clocked.url) as totals:
        (partition,) = (each for each in totals.ledger().partitions if each.stream == keys.stream)
    assert (partition.pending, partition.oldest_pending_seconds) == (1, None)


def test_a_clock_that_is_ahead_for_a_moment_trims_nothing(clocked, harness):
    """Entries are not removed for their age within an hour after the clock has advanced by ten minutes at once."""
    keys, kept = harness.layout.keys[0], RetentionSettings(age="1d")
    with harness.client.pipeline(transaction=False) as pipeline:
        now = int(time.time() * 1000)
        for number in range(1000):
            pipeline.xadd(keys.stream, {"metric": "view", "subject": "a"}, id=f"{now - 90_000 + number}-0")
        pipeline.execute()
    harness.finish()
    assert trim(harness.client, keys, kept).removed == 0
    for ahead in (0, 60, 1200, 4200, 7200):
        clocked.set(WEEK + ahead)
        assert trim(harness.client, keys, kept).removed == 0
    clocked.set(0)
    assert trim(harness.client, keys, kept).removed == 0
    clocked.set(2 * 86_400)  # the time has really come
    assert trim(harness.client, keys, kept).removed == 0
    for minutes in range(9, 60, 9):
        clocked.set(2 * 86_400 + 60 * minutes)
        assert trim(harness.client, keys, kept).removed == 0
    clocked.set(2 * 86_400 + HOUR + 5)
    assert trim(harness.client, keys, kept).removed > 800


def test_entries_are_archived_while_ids_are_ahead(clocked, harness, tmp_path):
    """Entries with IDs ahead of the clock are archived when they are 2 seconds old, not when the clock reaches them."""
    clocked.set(WEEK)
    emit(harness)
    clocked.set(0)
    emit(harness)
    archive = Archive(harness.client, Store(str(tmp_path / "archive")), harness.deployment)
    clocked.set(10)
    first = archive.run_once()
    assert first == 0  # the first entries state nothing: they were read a moment ago
    for archivist in archive.archivists:
        archivist._read_up_to = (archivist._read_up_to[0], archivist._read_up_to[1] - 10)  # ten seconds pass
    assert archive.run_once() == 20
