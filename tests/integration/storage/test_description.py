"""No process creates a part of a description of a deployment that was deleted: it would hide that the rest is lost."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from tallystream.deployment import Deployment
from tallystream.errors import DeploymentChanged, KeyLost
from tallystream.reading.clocks import ClockStep
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.archive.rows import Rows
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import File, Store
from tallystream_worker.maintenance.clocks import ClockWatch
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.schedule import Scheduled
from tallystream_worker.repartition import topic
from tallystream_worker.settings.settings import AuditSettings, RedisSettings, Settings, VerifySettings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.schedule import ScheduledVerification
from tests.harness import Harness
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RULES = Rules({"view": Metric(spread=True, ids=None)})
RESULT = SimpleNamespace(counters=1, differences=[], findings={}, failed=[], said=dict)


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Yield a harness with a spread metric."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        yield harness


def deleting(harness: Harness, result: Any) -> Callable[..., Any]:
    """Return a function that deletes the description and returns `result`, whatever its arguments are."""

    def delete(*_: Any, **__: Any) -> Any:
        harness.client.delete(harness.layout.root)
        return result

    return delete


def archive(harness: Harness, folder: Path) -> None:
    """Find lost entries in the archive."""
    store = Store(str(folder))
    archive = Archive(harness.client, store, harness.deployment)
    store.put_lost(0, "0-0", "1-0", File((1, 0), (2, 0), "file"), Rows().table(), 3)
    deleting(harness, None)()
    archive._note_missing()


def close(harness: Harness, _: Path) -> None:
    """Number a closing."""
    deleting(harness, None)()
    topic.next_closing(harness.client, harness.deployment)


def clock(harness: Harness, _: Path) -> None:
    """Publish that a clock has stepped."""
    watch = ClockWatch(harness.client, harness.deployment, structlog.get_logger())
    deleting(harness, None)()
    watch._publish(ClockStep(time.time(), 9.0))


def audit(harness: Harness, _: Path) -> None:
    """Record an audit."""
    settings = Settings(RedisSettings(harness.url), audit=AuditSettings(every="1d"), rules=RULES)
    scheduled = Scheduled(settings, harness.client, structlog.get_logger(), threading.Event())
    scheduled._audit = deleting(harness, RESULT)
    scheduled.run_once()


def verify(harness: Harness, _: Path) -> None:
    """Record a verification."""
    settings = Settings(RedisSettings(harness.url), verify=VerifySettings(every="1d"), rules=RULES)
    scheduled = ScheduledVerification(settings, harness.client, structlog.get_logger(), threading.Event())
    scheduled._verify = deleting(harness, RESULT)
    scheduled.run_once()


def rebuild(harness: Harness, _: Path) -> None:
    """Switch to a generation whose rules spread a metric."""
    settings, deployment = Settings(RedisSettings(harness.url, partitions=1), rules=RULES), harness.deployment
    found = Deployment.load(harness.client)
    with Rebuild(settings, found, propose(harness.client, found, RULES)) as run:
        run._deployment = Deployment.load(harness.client)
        run.begin()
        run.catch_up()
        deleting(harness, deployment)()
        run.switch()


def snapshot(harness: Harness, folder: Path) -> None:
    """End a snapshot."""
    with closing(Database(str(folder / "snapshot.sqlite"))) as database:
        snapshotter = Snapshotter(harness.client, database, Deployment.load(harness.client))
        put = database.put
        database.put = lambda *arguments: (deleting(harness, None)(), put(*arguments))[1]
        snapshotter.run_once()


@pytest.mark.parametrize("action", [archive, close, clock, audit, verify, rebuild, snapshot])
def test_a_deleted_description_is_not_created_again(harness, tmp_path, action):
    """If the hash was deleted meanwhile, the action fails with this reason and creates nothing."""
    with pytest.raises((DeploymentChanged, KeyLost), match=harness.layout.root):
        action(harness, tmp_path)
    assert not harness.client.exists(harness.layout.root)


def test_every_field_is_written_by_a_script_that_checks_the_hash():
    """Only a repartition that begins a new topic writes to a description without a script."""
    found = set()
    for package in ("producer", "worker"):
        for file in (ROOT / package).rglob("*.py"):
            text = "".join(file.read_text(encoding="utf-8").split())
            if any(f".{call}({key}" in text for call in ("hset", "hsetnx", "hincrby") for key in _places(text)):
                found.add(file.name)
    assert found == {"topic.py"}


def _places(text: str) -> list[str]:
    """Return how a file names the hashes of a description."""
    owners = ("layout", "deployment.layout", "self._layout", "self._deployment.layout", "found.layout", "before")
    return [f"{owner}.{name}" for owner in owners for name in ("meta", "root") if f"{owner}.{name}" in text]
