"""Tests of the services of a worker: each pass can be run by hand, and each service follows a repartition."""

from __future__ import annotations

import sys
import threading
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, NothingDeclared
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.deployment_hash import SNAPSHOT_EVERY
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import ArchiveError, Store
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.runtime.app import Worker, open_deployment
from tallystream_worker.runtime.lost_data import wait_for_data
from tallystream_worker.settings.settings import (
    ArchiveSettings,
    AuditSettings,
    RedisSettings,
    Settings,
    SnapshotSettings,
    VerifySettings,
)
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tallystream_worker.process.periodic import PeriodicService

IN_ORDER = [
    "follow", "rules", "stragglers", "trim", "losses", "reaper", "clock", "eviction", "hot-subjects", "alerts-evaluate",
    "alerts-deliver", "archive", "snapshot", "audit", "verify",
]  # fmt: skip


@pytest.fixture
def chosen(server, tmp_path: Path) -> Settings:
    """Return settings with which a worker has every service."""
    return Settings(
        RedisSettings(server.url, partitions=2),
        rules=Rules({"view": Metric()}, alert=(Alert("hot", "view", above=10),)),
        archive=ArchiveSettings(str(tmp_path / "archive")),
        snapshot=SnapshotSettings(str(tmp_path / "snapshot.sqlite"), every=0.5),
        audit=AuditSettings("1s"),
        verify=VerifySettings("1s"),
    )


@pytest.fixture
def lines() -> LogCapture:
    """Return the captured log lines of the worker."""
    return LogCapture()


@contextmanager
def made(settings: Settings, lines: LogCapture) -> Iterator[tuple[Worker, dict[str, PeriodicService]]]:
    """Provide a worker that is not started, and its services by name; stop the services at the end."""
    worker = Worker(settings, structlog.wrap_logger(None, processors=[lines]))
    try:
        yield worker, {service.health.name: service for service in worker.services}
    finally:
        assert worker.stop()


def emit(url: str, events: int) -> None:
    """Emit events of one subject."""
    with Producer(url) as producer:
        producer.emit("view", "article:1", events)
        producer.flush(10)


def delivered(lines: LogCapture) -> list[str]:
    """Return the outcomes of the notifications in the log."""
    return [line["state"] for line in lines.entries if line["event"] == "alert.changed"]


def test_a_pass_of_each_service_can_be_made_by_hand(server, chosen, lines, tmp_path):
    """Without threads, a worker counts, trims, delivers, archives, takes snapshots and audits, pass by pass."""
    with made(chosen, lines) as (worker, services):
        assert list(services) == IN_ORDER
        assert [each.name for each in worker.service_health] == IN_ORDER
        emit(server.url, 11)
        for partition in worker.follower.pool.services:
            partition.run_once()
        for name, service in services.items():
            if name != "archive":
                service.run_once()
        until(services["archive"].run_once, what="a file of entries that have settled")
        assert [*(tmp_path / "archive").glob("**/*.parquet")]
        assert server.client().hget("tally:meta", "audit").split()[2] == b"0"
        assert server.client().hget("tally:meta", SNAPSHOT_EVERY) == b"0.5"
    assert delivered(lines) == ["firing"]
    assert server.client().hget("tally:meta", SNAPSHOT_EVERY) is None
    assert not [line for line in lines.entries if line["log_level"] == "error"]


def test_every_service_goes_on_in_another_log(server, chosen, lines, tmp_path):
    """After a repartition, waiting notifications of the old topic are delivered, and new events are handled."""
    client = server.client()
    with made(chosen, lines) as (worker, services):
        emit(server.url, 11)
        for partition in worker.follower.pool.services:
            partition.run_once()
        for name in ("archive", "snapshot"):
            services[name].run_once()
        unpinned = replace(chosen, redis=replace(chosen.redis, partitions=0))
        repartition(unpinned, Deployment.create_or_load(client), 3, archive=chosen.archive.url)
        services["follow"].run_once()  # starts the threads of the new pool
        assert worker.layout.partitions == 3
        emit(server.url, -11)
        until(lambda: services["alerts-deliver"].run_once() or len(delivered(lines)) >= 2, what="both notifications")
        assert set(delivered(lines)) == {"firing", "resolved"}
        services["snapshot"].run_once()
        assert client.hget(worker.layout.meta, SNAPSHOT_EVERY) == b"0.5"
        assert client.hget("tally:meta", SNAPSHOT_EVERY) is None
        until(services["archive"].run_once, what="a file of the new log")
        assert [*(tmp_path / "archive" / "log=2").glob("**/*.parquet")]
        for name in ("trim", "losses", "reaper", "eviction", "hot-subjects", "stragglers", "audit", "verify"):
            services[name].run_once()
    assert not [line for line in lines.entries if line["log_level"] == "error"]


def test_other_data_is_left_alone(server, chosen, lines):
    """If the server has the data of another deployment, no service changes it; those that copy fail."""
    client = server.client()
    with made(chosen, lines) as (worker, services):
        client.flushall()
        Deployment.create_or_load(client, 2)
        stored = set(client.keys())
        for name in ("follow", "rules", "stragglers", "trim", "losses", "reaper", "hot-subjects", "alerts-evaluate"):
            services[name].run_once()
        services["alerts-deliver"].run_once()
        for name in ("archive", "snapshot"):
            with pytest.raises(Exception, match="was replaced: this is not the data"):
                services[name].run_once()
        assert worker.follower.pool.foreign.is_set()
        assert set(client.keys()) == stored


def test_a_worker_that_cannot_have_its_services_does_not_start(server, chosen, lines):
    """An archive of another deployment is rejected before any event is counted."""
    open_deployment(chosen)
    with made(chosen, lines):
        pass
    server.client().flushall()
    with pytest.raises((ArchiveError, ConfigurationError), match=r"other data|another"):
        Worker(chosen, structlog.wrap_logger(None, processors=[lines]))


def told(settings: Settings, **options: bool) -> str:
    """Return why a worker does not start; its error must be that of a server without data."""
    with pytest.raises(NothingDeclared) as error:
        open_deployment(settings, **options)
    return str(error.value)


@pytest.mark.parametrize("has_producer", [False, True])
def test_a_worker_does_not_count_anew_while_a_backup_has_the_data(server, chosen, lines, *, has_producer):
    """On an emptied server, a worker creates nothing, and names the backup. It starts after a restore, or without one.

    This is also so if a producer has used the emptied server.
    """
    client = server.client()
    with made(chosen, lines) as (_, services), Producer(server.url) as producer:
        producer.emit("view", "a")
        producer.flush(10)
        services["snapshot"].run_once()
        Archive(client, Store(chosen.archive.url), Deployment.load(client)).run_once(settled=0)
    client.flushall()
    if has_producer:
        with Producer(server.url) as producer:
            producer.emit("view", "a")
            producer.flush(10)
    stored = set(client.keys())
    assert f"tallystream restore {chosen.snapshot.url} --force" in told(chosen)
    archive_only = replace(chosen, snapshot=SnapshotSettings())
    assert "The archive" in told(archive_only)
    assert "restart the workers" in told(replace(archive_only, archive=ArchiveSettings()), publishing=False)
    assert set(client.keys()) == stored
    with closing(Database(chosen.snapshot.url)) as database:
        restore(client, database, force=True)
    assert open_deployment(chosen).declared is not None
    client.flushall()
    assert open_deployment(replace(archive_only, archive=ArchiveSettings())).is_stored


def test_a_worker_does_not_count_anew_while_it_cannot_read_the_backup(server, chosen, tmp_path: Path):
    """If the snapshot cannot be read, it may have the data of the server: the worker creates nothing."""
    (tmp_path / "snapshot.sqlite").write_bytes(b"this is no database" * 100)
    assert "it is not known whether a backup has it" in told(chosen)
    assert server.client().keys() == []


@pytest.mark.parametrize("section", ["snapshot", "archive"])
def test_a_worker_creates_nothing_while_a_url_cannot_be_used(server, chosen, section):
    """If the URL of a backup cannot be used, the server's data may be there: the worker ends with the error.

    It does not wait, because no restore corrects the configuration.
    """
    wrong = replace(chosen, **{section: replace(getattr(chosen, section), url="nothing://x")})
    with pytest.raises(ConfigurationError, match=rf"^{section}\.url") as error:
        open_deployment(wrong)
    assert not isinstance(error.value, NothingDeclared)
    assert server.client().keys() == []
    wait_for_data([wrong], structlog.get_logger(), threading.Event())


def test_a_worker_creates_nothing_without_the_package_of_its_archive(server, chosen, monkeypatch):
    """If the package that reads the archive is not installed, the archive may have the server's data."""
    monkeypatch.setitem(sys.modules, "tallystream_worker.archive.store", None)  # an import raises `ImportError`
    with pytest.raises(ImportError):
        open_deployment(chosen)
    assert server.client().keys() == []


def test_a_wait_ends_although_another_namespace_cannot_start(server, chosen, lines):
    """A wrong URL of another namespace is no lost data: it does not prolong the wait for a restore."""
    client = server.client()
    with made(chosen, lines) as (_, services), Producer(server.url) as producer:
        producer.emit("view", "a")
        producer.flush(10)
        services["snapshot"].run_once()
    client.flushall()
    other = replace(
        chosen, redis=replace(chosen.redis, namespace="other"), snapshot=replace(chosen.snapshot, url="nothing://x")
    )
    log, stop = LogCapture(), threading.Event()
    logger = structlog.wrap_logger(None, processors=[log])
    waiting = threading.Thread(target=wait_for_data, args=([chosen, other], logger, stop))
    waiting.start()
    try:
        until(lambda: log.entries, timeout=10, what="the worker to wait")
        with closing(Database(chosen.snapshot.url)) as database:
            restore(client, database, force=True)
        waiting.join(15)
        assert not waiting.is_alive()
    finally:
        stop.set()
        waiting.join(15)
