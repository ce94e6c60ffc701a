"""A replay yields events that give the same counters when they are ingested again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.rebuild.replay import Left, ReplaySelection, replay
from tests.harness import Harness

RULES = Rules({"view": Metric(windows=("hour",)), "vote": Metric(once="forever"), "like": Metric(ids="day")})
PROGRAM = Path(sys.executable).parent / "tallystream"
AT = 1_763_900_000


@pytest.fixture
def harness(server):
    """Provide counted events of several shapes."""
    with Harness(server.url, rules=RULES, partitions=2) as wired, Producer(server.url) as producer:
        for number in range(40):
            producer.emit("view", f"s{number % 3}", 1 + number % 2, at=AT + 60 * number)
            producer.emit("vote", f"s{number % 3}", actor=f"u{number % 4}", at=AT + number)
            producer.emit("like", "s1", -2, id=f"i{number % 30}", at=AT + number)
        producer.flush(10)
        wired.finish()
        yield wired


def events(harness: Harness, **wanted) -> list[dict]:
    """Return the events of a replay of the harness's streams."""
    return list(
        replay(harness.client, Deployment.create_or_load(harness.client).layout, ReplaySelection(**wanted), Left())
    )


def test_a_replay_that_is_ingested_counts_the_same(harness, server, tmp_path):
    """NDJSON and Parquet of a replay, ingested into an empty server, give the same totals and number of events."""
    totals, ledger = harness.totals(), harness.ledger()
    for name in ("all.ndjson", "all.parquet"):
        file = tmp_path / name
        command = [PROGRAM, "replay", "--redis", server.url, "--format", file.suffix[1:], "-o", file]
        subprocess.run([str(each) for each in command], check=True, timeout=60)
    for name in ("all.ndjson", "all.parquet"):
        server.clear()
        with Harness(server.url, rules=RULES, partitions=2) as empty:
            command = [PROGRAM, "ingest", "--redis", server.url, tmp_path / name]
            environment = os.environ | {"TALLYSTREAM_REDIS_PARTITIONS": "2"}
            subprocess.run([str(each) for each in command], check=True, timeout=60, env=environment)
            empty.finish()
            assert empty.totals() == totals
            assert empty.ledger() == ledger


def test_the_archive_of_an_emptied_server_is_replayed_alone(harness, server, tmp_path):
    """A replay of the archive of other data prints no event of the server: ingested there, each event counts once."""
    totals, url = harness.totals(), str(tmp_path / "archive")
    Archive(harness.client, Store(url), harness.deployment).run_once(settled=0)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=4) as empty, Producer(server.url) as producer:
        producer.emit("view", "s1", 1000)
        producer.flush(10)
        empty.finish()
        file = str(tmp_path / "all.ndjson")
        done = subprocess.run(
            [PROGRAM, "replay", "--redis", server.url, "--archive", url, "-o", file],
            check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert "archive of other data" in done.stderr
        environment = os.environ | {"TALLYSTREAM_REDIS_PARTITIONS": "4"}
        subprocess.run([PROGRAM, "ingest", "--redis", server.url, file], check=True, timeout=60, env=environment)
        empty.finish()
        totals["view", "s1"] += 1000
        assert empty.totals() == totals


def test_a_range_is_replayed(harness):
    """A replay yields only events of the selected metric, subject and time."""
    chosen = events(harness, begin=AT, end=AT + 600, metrics=frozenset({"view"}), subjects=frozenset({"s1"}))
    assert {event["metric"] for event in chosen} == {"view"}
    assert {event["subject"] for event in chosen} == {"s1"}
    assert all(AT <= event["at"] < AT + 600 for event in chosen)
    assert 0 < len(chosen) < 10


@pytest.mark.usefixtures("harness")
def test_a_reader_that_goes_away_is_no_error(server):
    """`tallystream replay | head -1` prints one event and no traceback."""
    shell = f"{PROGRAM} replay --redis {server.url} | head -1"
    ran = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ran.stdout)["metric"] in RULES.metric
    assert "Traceback" not in ran.stderr
