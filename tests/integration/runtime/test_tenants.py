"""Tests of several namespaces on one server: they share nothing, and one worker can count for all."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from redis.exceptions import NoPermissionError

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, EventError
from tallystream.producing.producer import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.options import Tenants
from tallystream_worker.process import logs
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.metrics import ByNamespace, WorkerMetrics
from tallystream_worker.server.acl import generate, hashed, render
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.postgresql import emptied
from tests.secured import binary_of, free_port, started
from tests.waiting import until

if TYPE_CHECKING:
    from tests.servers import Server

PROGRAM = Path(sys.executable).with_name("tallystream")
SHOP = Rules({"view": Metric(), "call": Metric(limit=2, per="total")})
BLOG = Rules({"view": Metric(windows=("day",)), "clap": Metric()})


def empty_database(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    """Return the URL of an empty database of a kind."""
    if kind == "sqlite":
        return str(folder / "snapshot.sqlite")
    return emptied(request.getfixturevalue("postgresql"))


def tenant(url: str, namespace: str, rules: Rules, partitions: int = 2) -> Settings:
    """Return the settings of one namespace."""
    return Settings(redis=RedisSettings(url, namespace, partitions), rules=rules)


def test_two_namespaces_share_nothing(server: Server) -> None:
    """Two namespaces have separate counters, rules, limits, dead letters, ledgers, epochs and partitions."""
    shop, blog = tenant(server.url, "shop", SHOP), tenant(server.url, "blog", BLOG, partitions=3)
    log = logs.configure(quiet=True)
    with (
        counting(shop, log),
        counting(blog, log),
        Producer(server.url, namespace="shop") as of_shop,
        Producer(server.url, namespace="blog") as of_blog,
        contextlib.closing(Totals(server.url, namespace="shop")) as in_shop,
        contextlib.closing(Totals(server.url, namespace="blog")) as in_blog,
    ):
        of_shop.emit("view", "article:1", 5)
        of_blog.emit("view", "article:1", 7)
        of_shop.flush(10, wait="counted")
        of_blog.flush(10, wait="counted")
        assert (in_shop.get("article:1", "view").value, in_blog.get("article:1", "view").value) == (5, 7)

        with pytest.raises(EventError, match="clap is not declared"):
            of_shop.emit("clap", "article:1")
        verdicts = [of_shop.decide("call", "key:1").accepted for _ in range(3)]
        assert verdicts == [True, True, False]

        client = server.client()
        client.xadd(in_blog.deployment.layout.keys_of("x").stream, {"metric": "nothing", "subject": "x"})
        until(lambda: in_blog.run(query_ledger(in_blog.deployment.layout)).events["dead"] == 1, what="the dead letter")
        ledger = {
            name: totals.run(query_ledger(totals.deployment.layout))
            for name, totals in (("shop", in_shop), ("blog", in_blog))
        }
        assert [ledger[name].events["dead"] for name in ledger] == [0, 1]
        assert [ledger[name].unaccounted for name in ledger] == [0, 0]
        assert [ledger[name].events["appended"] for name in ledger] == [1 + 3, 1 + 1]

        deployments = Deployment.find(client, "shop"), Deployment.find(client, "blog")
        assert [deployment.layout.partitions for deployment in deployments if deployment] == [2, 3]
        assert len({deployment.epoch for deployment in deployments if deployment}) == 2
        assert {key.partition(b":")[0] for key in client.scan_iter(count=1000)} == {b"shop", b"blog"}


@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_users_of_one_namespace_cannot_touch_another(kind: str, tmp_path: Path) -> None:
    """With ACL files, worker and producer of a namespace work, and have no access to keys of another."""
    port, passwords = free_port(), {"shop": generate(), "blog": generate()}
    lines = [render(name, hashed(secret)).splitlines() for name, secret in passwords.items()]
    (tmp_path / "users.acl").write_text("\n".join([*lines[0], *lines[1][1:]]) + "\n")

    def url(name: str, user: str) -> str:
        return f"redis://{name}-{user}:{passwords[name][user]}@127.0.0.1:{port}"

    arguments = ("--aclfile", str(tmp_path / "users.acl"), "--port", str(port), "--bind", "127.0.0.1")
    log = logs.configure(quiet=True)
    with (
        started(binary_of(kind), tmp_path, url("shop", "reader"), *arguments),
        counting(tenant(url("shop", "worker"), "shop", SHOP), log),
        counting(tenant(url("blog", "worker"), "blog", BLOG), log),
        Producer(url("shop", "producer"), namespace="shop") as of_shop,
    ):
        of_shop.emit("view", "article:1")
        of_shop.flush(10, wait="counted")
        for user in passwords["shop"]:
            with contextlib.closing(connect(url("shop", user))) as client:
                for command in (("HGETALL", "blog:meta"), ("XADD", "blog:{p0.425}:stream", "*", "a", "b")):
                    with pytest.raises(NoPermissionError):
                        client.execute_command(*command)
                assert client.hgetall("shop:meta")


def configured(folder: Path, name: str, metric: str, namespace: str = "") -> Path:
    """Write a configuration, and return its path."""
    file = folder / f"{name}.toml"
    file.write_text(f'[redis]\nnamespace = "{namespace or name}"\npartitions = 2\n[metric.{metric}]\n')
    return file


def test_one_worker_serves_several(server: Server, tmp_path: Path) -> None:
    """`worker --config A --config B` counts both by their own rules, and labels its metrics by namespace."""
    port = free_port()
    files = [configured(tmp_path, "shop", "view"), configured(tmp_path, "blog", "clap")]
    command = [PROGRAM, "worker", "--redis", server.url, "--name", "w", "--metrics-port", str(port)]
    for file in files:
        command += ["--config", str(file)]

    def get(path: str) -> str:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer,
        ):
            return answer.read().decode()
        return ""

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as worker:
        try:
            until(lambda: get("/readyz"), timeout=60, what="the worker to be ready")
            for name, metric in (("shop", "view"), ("blog", "clap")):
                with Producer(server.url, namespace=name) as producer:
                    producer.emit(metric, "article:1", 3)
                    producer.flush(20, wait="counted")
                with contextlib.closing(Totals(server.url, namespace=name)) as totals:
                    assert totals.of("article:1").counters == {metric: 3}
            for name in ("shop", "blog"):
                # A worker counts a batch first, and adds it to its metrics after that.
                counted = re.compile(rf'^tallystream_batches_total{{namespace="{name}"}} [1-9]', re.MULTILINE)
                until(lambda counted=counted: counted.search(get("/metrics")), what=f"the metrics of {name}")
                assert f'tallystream_partition_up{{namespace="{name}",partition="1"}} 1.0' in get("/metrics")
            assert get("/metrics").count("# TYPE tallystream_batches_total ") == 1
            server.client().delete("blog:{p0.425}:stream")
            until(lambda: not get("/readyz"), timeout=20, what="the worker to say that a namespace is not counted")
        finally:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0, worker.stderr and worker.stderr.read()


def test_a_namespace_is_served_once(tmp_path: Path) -> None:
    """Two files of one namespace are an error; without a file, one worker has the default settings."""
    files = (configured(tmp_path, "a", "view"), configured(tmp_path, "b", "view", namespace="a"))
    with pytest.raises(ConfigurationError, match="several files have the namespace 'a'"):
        Tenants("redis://127.0.0.1:1", files).settings()
    assert [each.redis.namespace for each in Tenants("redis://127.0.0.1:1", files[:1]).settings()] == ["a"]


def test_metrics_of_one_namespace_have_no_label() -> None:
    """The label `namespace` exists only with more than one namespace."""
    registries = {"a": CollectorRegistry(), "b": CollectorRegistry()}
    for registry in registries.values():
        WorkerMetrics(registry)
    merged = CollectorRegistry()
    merged.register(ByNamespace(registries))
    assert 'tallystream_batches_total{namespace="b"} 0.0' in generate_latest(merged).decode()
    assert "tallystream_batches_total 0.0" in generate_latest(registries["a"]).decode()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_one_archive_and_one_database_serve_several(kind: str, server: Server, tmp_path: Path, request) -> None:
    """Namespaces with the same archive and database are archived, copied, audited and restored separately."""
    place = empty_database(kind, tmp_path, request)
    folder = tmp_path / "archive"
    log = logs.configure(quiet=True)
    deployments = {}
    for name, rules, amount in (("tally", BLOG, 1), ("shop", SHOP, 5), ("blog", BLOG, 7)):
        with counting(tenant(server.url, name, rules), log), Producer(server.url, namespace=name) as producer:
            producer.emit("view", "article:1", amount)
            producer.flush(10, wait="counted")
        deployments[name] = found = Deployment.find(server.client(), name)
        Archive(server.client(), Store(str(folder), name), found).run_once(settled=0)
        with contextlib.closing(Database(place, name)) as database:
            Snapshotter(server.client(), database, found).run_once()
    server.clear()
    for name, amount in (("tally", 1), ("shop", 5), ("blog", 7)):
        store = Store(str(folder), name)
        with contextlib.closing(Database(place, name)) as database:
            restore(server.client(), database, partial(entries, store))
        with contextlib.closing(Totals(server.url, namespace=name)) as totals:
            assert totals.get("article:1", "view").value == amount
        found = Deployment.find(server.client(), name)
        assert found.epoch == deployments[name].epoch
        report = audit(server.client(), found, found.rules, sources=Sources(archive=store))
        assert (report.differences, report.unproved) == ([], 0)
    with (
        contextlib.closing(Database(place, "nobody")) as database,
        pytest.raises(SnapshotError, match="of the namespace 'tally'"),
    ):
        restore(server.client(), database)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_place_stays_whose_it_was(kind: str, server: Server, tmp_path: Path, request) -> None:
    """An archive and a snapshot that a namespace began at the root of a place are continued there."""
    place, folder = empty_database(kind, tmp_path, request), tmp_path / "archive"
    log = logs.configure(quiet=True)
    with counting(tenant(server.url, "shop", SHOP), log), Producer(server.url, namespace="shop") as producer:
        producer.emit("view", "article:1", 5)
        producer.flush(10, wait="counted")
    deployment = Deployment.find(server.client(), "shop")
    # As an earlier release did, without namespaces in one place.
    Archive(server.client(), Store(str(folder)), deployment).run_once(settled=0)
    with contextlib.closing(Database(place)) as database:
        Snapshotter(server.client(), database, deployment).run_once()
    for name, of in (("shop", "shop"), ("tally", None)):
        manifest = Store(str(folder), name).manifest()
        assert (manifest or {}).get("namespace") == of
        with contextlib.closing(Database(place, name)) as database:
            assert database.facts().get("namespace") == of
