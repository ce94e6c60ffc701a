"""Tests of monitoring: metrics that Prometheus accepts, alert rules, and a dashboard with existing metrics."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tallystream.producing.producer import Producer
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.metrics import WorkerMetrics, serve_metrics
from tallystream_worker.service.server import serving
from tallystream_worker.settings.settings import RetentionSettings
from tests.http_service import settings_for
from tests.paths import ROOT
from tests.servers import missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

CONFIG = ROOT / "config"
DASHBOARD = CONFIG / "grafana" / "dashboards" / "tallystream.json"
NAME = re.compile(r"\btallystream_\w+")
ELSEWHERE = {
    "tallystream_snapshot_timestamp_seconds",
    "tallystream_snapshot_interval_seconds",
    "tallystream_alerts_firing",
    "tallystream_alert_outbox_entries",
    "tallystream_audit_differences",
    "tallystream_verify_faults",
    "tallystream_key_lost",
}
"""Metrics that exist only with snapshots, alerts or audits, or on the page of a worker."""


def tool(name: str) -> str:
    """Return the path of a program of Prometheus, or skip the test."""
    return shutil.which(name) or missing(f"no {name} on PATH", unless="CI")


@pytest.fixture
def page(server: Server) -> Iterator[str]:
    """Return the metrics of a service and a worker in one process that have counted events."""
    registry = CollectorRegistry()
    settings = settings_for(server.url, read_timeout=5)
    with (
        counting(settings, logs.configure(quiet=True), [WorkerMetrics(registry)]),
        serving(settings, registry) as url,
        Producer(server.url) as producer,
    ):
        for n in range(50):
            producer.emit("view", f"article:{n % 7}", actor=f"u{n}")
            producer.emit("vote", "article:1", actor="u1")
        producer.flush(10, wait="counted")
        server.client().xadd("tally:{p0.425}:stream", {"no": "event"})
        until(lambda: server.client().hget("tally:{p0.425}:seq", "!dead"), what="a pass of the trimming")
        server.client().hset("tally:{p0.425}:seq", "!limit", 1000)
        until(lambda: "tallystream_batches_total 0.0" not in httpx.get(f"{url}/metrics").text)
        until(lambda: server.client().xlen("tally:{p0.425}:dead"), what="the dead letter")
        yield httpx.get(f"{url}/metrics").text


def names(page: str) -> set[str]:
    """Return the names of the samples of a page."""
    families = text_string_to_metric_families(page)
    return {sample.name for family in families for sample in family.samples} | {"tallystream_snapshot"}


def test_prometheus_has_nothing_to_say_against_the_metrics(page: str) -> None:
    """Names, units, types and help texts follow the conventions of Prometheus."""
    command = [tool("promtool"), "check", "metrics"]
    checked = subprocess.run(command, input=page, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_vitals_show(page: str) -> None:
    """The page has the workers, and the free room in memory and in the streams."""
    samples = {
        (sample.name.removeprefix("tallystream_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples[("workers",)] == 1
    assert samples[("redis_memory_used_bytes",)] > 100_000
    assert samples[("redis_memory_max_bytes",)] >= 0
    assert samples["stream_max_entries", "tally:{p0.425}:stream"] == 1000
    assert sum(value for (name, *_), value in samples.items() if name == "stream_entries") > 0
    assert samples["dead_max_bytes", "tally:{p0.425}:stream"] == RetentionSettings().dead_bytes
    assert 0 < samples["dead_bytes", "tally:{p0.425}:stream"] < 10_000
    assert samples["dead_bytes", "tally:{p1.1840}:stream"] == 0


def test_alert_rules_fire_when_they_should() -> None:
    """Each rule fires on its condition with its texts, and not otherwise."""
    tested = subprocess.run(
        [tool("promtool"), "test", "rules", "alerts_test.yml"], cwd=CONFIG, capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    rules = {rule["alert"] for group in _rules() for rule in group["rules"]}
    cases = yaml.safe_load((CONFIG / "alerts_test.yml").read_text())["tests"]
    fired = {check["alertname"] for case in cases for check in case["alert_rule_test"] if check["exp_alerts"]}
    assert fired == rules


def test_alert_rules_and_dashboard_ask_for_real_metrics(page: str) -> None:
    """Every metric in alert rules, dashboard and scaler query is exported."""
    exported = names(page) | ELSEWHERE
    asked = {name for group in _rules() for rule in group["rules"] for name in NAME.findall(rule["expr"])}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    scaler = yaml.safe_load((CONFIG.parent / "deploy" / "kubernetes" / "keda.yaml").read_text())
    expressions.append(scaler["spec"]["triggers"][0]["metadata"]["query"])
    asked |= {name for expression in expressions for name in NAME.findall(expression)}
    assert asked - exported == set()
    assert all(NAME.search(expression) for expression in expressions)


def test_the_dashboard_finds_its_data_source() -> None:
    """Every panel has the provisioned data source and a description, and overlaps no other panel."""
    sources = yaml.safe_load((CONFIG / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    dashboard = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == sources[0]["uid"]
        assert panel["description"]
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.slow
def test_prometheus_scrapes_service_and_worker(server: Server, tmp_path: Path) -> None:
    """A real Prometheus loads the shipped rules, scrapes both jobs, and answers the queries of the dashboard."""
    program = tool("prometheus")
    registry = CollectorRegistry()
    settings = settings_for(server.url, read_timeout=5)
    exporter = serve_metrics(registry, "127.0.0.1", 0)
    with (
        counting(settings, logs.configure(quiet=True), [WorkerMetrics(registry)]),
        serving(settings) as url,
        Producer(server.url) as producer,
    ):
        config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(CONFIG / "alerts.yml")]
        targets = {
            "tallystream": url.removeprefix("http://"),
            "tallystream-worker": f"127.0.0.1:{exporter.server_port}",
        }
        config["scrape_configs"] = [
            {"job_name": job["job_name"], "static_configs": [{"targets": [targets[job["job_name"]]]}]}
            for job in config["scrape_configs"]
        ]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as prometheus:

                def ask(query: str) -> list[dict[str, object]]:
                    try:
                        answer = prometheus.get("/api/v1/query", params={"query": query})
                    except httpx.TransportError:
                        return []
                    return answer.json()["data"]["result"] if answer.status_code == 200 else []

                until(lambda: len(ask("up == 1")) == 2, timeout=30, what="both jobs are scraped")

                def counted() -> bool:
                    producer.emit("view", "article:1")
                    return bool(ask('rate(tallystream_events_counted_total{metric="view"}[15s]) > 0'))

                until(counted, timeout=30, interval=0.2, what="counted events show as a rate")
                for panel in json.loads(DASHBOARD.read_text())["panels"]:
                    for target in panel["targets"]:
                        query = target["expr"].replace("$__rate_interval", "30s")
                        answer = prometheus.get("/api/v1/query", params={"query": query})
                        assert answer.json()["status"] == "success", answer.text
                groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
                assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
        finally:
            process.terminate()
            process.wait(20)
            exporter.shutdown()
            exporter.server_close()


def _rules() -> list[dict[str, list[dict[str, str]]]]:
    groups: list[dict[str, list[dict[str, str]]]] = yaml.safe_load((CONFIG / "alerts.yml").read_text())["groups"]
    return groups
