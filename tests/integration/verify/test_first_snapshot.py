"""A snapshot that is configured, but was never taken, is a fault only if the data are older than a snapshot may be."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.deployment_hash import SNAPSHOT_EVERY
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.runtime.publication import publish_again
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tallystream_worker.verify.report import Verification

EVERY = 60
"""Seconds between two snapshots."""

MOST = 2 * EVERY + 300
"""Seconds that a snapshot may be old."""


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Provide one partition that has counted an event, and a record of the first rules."""
    with Harness(server.url, rules=Rules({"view": Metric(ids=None)}), partitions=1) as harness:
        publish_again(harness.client, Deployment.load(harness.client), 0)
        with Producer(server.url, linger=0) as producer:
            producer.emit("view", "a")
        harness.drain()
        yield harness


@pytest.fixture(params=["an empty database", "no file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Provide the file of a snapshot that was not taken yet: a database without a snapshot, or no file at all."""
    found = str(tmp_path / "snapshot.sqlite")
    if request.param != "no file":
        with closing(Database(found)) as database:
            database.facts()  # creates its tables, as the first pass of a worker does
    return found


def verified(harness: Harness, place: str) -> Verification:
    """Return the report of a verification with a snapshot, which is opened as the command opens it."""
    with closing(Database(place, is_there=True)) as database:
        return verify(harness.client, "tally", Sources(None, database))


def is_due(report: Verification) -> bool:
    """Return whether the report states the first snapshot as due, in place of a fault or a check that failed."""
    texts = [each.text for each in report.limits if each.check == "snapshot"]
    assert len(texts) <= 1
    wrong = "snapshot.missing" in report.findings or "snapshot" in {each.check for each in report.failed}
    assert wrong == (not texts)
    return bool(texts) and "the first one is due" in texts[0]


def age(harness: Harness, seconds: float, *, entries: bool = False) -> None:
    """Make the record of the first rules, or the entry of the stream, that many seconds old."""
    key = harness.layout.keys[0].stream if entries else harness.layout.rule_changes
    ((_, fields),) = harness.client.xrange(key)
    harness.client.delete(key)
    harness.client.xadd(key, fields, id=f"{int((time.time() - seconds) * 1000)}-0")


def test_a_first_snapshot_that_is_due_is_no_fault(harness: Harness, place: str) -> None:
    """In the first minutes, a missing snapshot is not proved, with or without a worker that takes snapshots."""
    report = verified(harness, place)
    assert (is_due(report), report.findings, report.failed) == (True, {}, [])
    harness.client.hset(harness.layout.meta, SNAPSHOT_EVERY, EVERY)
    age(harness, MOST - 60)
    assert is_due(verified(harness, place))


@pytest.mark.parametrize("entries", [False, True])
def test_a_snapshot_that_was_never_taken_is_a_fault(harness: Harness, place: str, entries: bool) -> None:
    """If the rules or the first entry are older than a snapshot may be, a missing snapshot is a fault."""
    harness.client.hset(harness.layout.meta, SNAPSHOT_EVERY, EVERY)
    age(harness, MOST + 10, entries=entries)
    assert not is_due(verified(harness, place))


def test_without_a_worker_that_takes_snapshots_the_first_is_due_for_five_minutes(harness: Harness, place: str) -> None:
    """If no worker states an interval, a missing snapshot is a fault after 5 minutes."""
    age(harness, 310)
    assert not is_due(verified(harness, place))


def test_a_snapshot_that_is_gone_is_a_fault_at_once(harness: Harness, place: str) -> None:
    """A snapshot that was complete, and whose rows or file are gone, is a fault, however young the data are."""
    with closing(Database(f"{place}.taken")) as database:
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
    assert not is_due(verified(harness, place))


def test_data_of_unknown_age_need_a_snapshot(harness: Harness, place: str) -> None:
    """If the record of the changes of the rules is lost, a missing snapshot is a fault."""
    assert read_changes(harness.client, harness.layout)
    harness.client.delete(harness.layout.rule_changes)
    assert not is_due(verified(harness, place))
