"""Tests of the deployment files: Kubernetes and systemd accept them, and they agree with the code."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from docs._generate import prometheus_rule
from tallystream.storage.keys import DEFAULT_PARTITIONS
from tallystream_worker.cli.commands.acl import acl as write_secrets
from tallystream_worker.cli.main import app
from tallystream_worker.cli.options import Where
from tallystream_worker.server import acl
from tallystream_worker.settings.load import SECTIONS, load
from tallystream_worker.settings.settings import WorkerSettings
from tests.paths import ROOT
from tests.servers import missing

if TYPE_CHECKING:
    from pathlib import Path

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="of the dev group: uv sync")

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
API = ("1.31", kubernetes_validate.latest_version())
CUSTOM = {
    "ScaledObject": ("keda.sh/v1alpha1", {"scaleTargetRef", "triggers"}),
    "ServiceMonitor": ("monitoring.coreos.com/v1", {"selector", "endpoints"}),
    "PrometheusRule": ("monitoring.coreos.com/v1", {"groups"}),
}
"""Kinds of operators, with their API version and the required fields of `spec`."""


def documents() -> list[dict[str, Any]]:
    """Return every manifest except the kustomization."""
    paths = [path for path in sorted(KUBERNETES.glob("*.yaml")) if path.name != "kustomization.yaml"]
    return [found for path in paths for found in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def named(kind: str, name: str) -> dict[str, Any]:
    """Return the manifest of a kind and a name."""
    (found,) = [each for each in documents() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> list[dict[str, Any]]:
    """Return the pod specs of the Deployments."""
    return [each["spec"]["template"]["spec"] for each in documents() if each["kind"] == "Deployment"]


def ids(each: dict[str, Any]) -> str:
    """Return the test id of a manifest."""
    return f"{each['kind']}-{each['metadata']['name']}"


@pytest.mark.parametrize("manifest", [each for each in documents() if each["kind"] not in CUSTOM], ids=ids)
def test_the_api_takes_every_manifest(manifest: dict[str, Any]) -> None:
    """Kubernetes' own kinds are valid by the schemas of an older and the latest release, without unknown fields."""
    for version in API:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("manifest", [each for each in documents() if each["kind"] in CUSTOM], ids=ids)
def test_operators_take_the_rest(manifest: dict[str, Any]) -> None:
    """Each kind of an operator has its API version and the required fields."""
    version, needed = CUSTOM[manifest["kind"]]
    assert manifest["apiVersion"] == version
    assert needed <= manifest["spec"].keys()


def test_the_kustomization_has_every_file() -> None:
    """`kubectl apply -k` applies every manifest of the folder once."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text(encoding="utf-8"))
    there = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(kustomization["resources"]) == sorted(there)
    assert len({ids(each) for each in documents()}) == len(documents())


def test_pods_are_locked_down() -> None:
    """No pod runs as root, writes to its root file system, gains a privilege, or lacks a memory limit."""
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            locked = container["securityContext"]
            assert locked["readOnlyRootFilesystem"]
            assert locked["allowPrivilegeEscalation"] is False
            assert locked["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert {"livenessProbe", "readinessProbe"} <= container.keys()


def test_pods_have_time_to_stop() -> None:
    """Kubernetes and systemd wait longer than `stop_timeout` before they kill a process."""
    configured = load(KUBERNETES / "tallystream.toml", {}).worker.stop_timeout
    for pod in pods():
        assert pod["terminationGracePeriodSeconds"] >= configured + 12 + 5  # alerts.service: a running delivery
    for unit in UNITS:
        (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
        assert int(seconds) >= WorkerSettings().stop_timeout + 12 + 5


def test_commands_and_settings_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command, option and environment variable in the files exists in the program."""
    commands = [container["args"] for pod in pods() for container in pod["containers"]]
    variables = {each["name"] for pod in pods() for container in pod["containers"] for each in container["env"]}
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8")
        (command,) = re.findall(r"^ExecStart=/usr/bin/tallystream (.*)$", text, re.MULTILINE)
        commands.append(shlex.split(command.replace("%i", "1").replace("%H", "host")))
        variables |= set(re.findall(r"\b(TALLYSTREAM_[A-Z_]+)=", text))
    for command in commands:
        app.parse_args(command, exit_on_error=False, print_error=False)
    known = {f"TALLYSTREAM_{section}_{name}".upper() for section, kind in SECTIONS.items() for name in vars(kind())}
    passwords = {f"TALLYSTREAM_{user.name}_PASSWORD".upper() for user in acl.users()}
    assert variables - known - passwords == set()
    for name in variables & known:
        monkeypatch.delenv(name, raising=False)
    assert load(KUBERNETES / "tallystream.toml", {}).redis.expected is None


def test_secrets_have_what_is_asked_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tallystream acl` writes every key of the secret that the files use, and the user names agree."""
    monkeypatch.chdir(tmp_path)
    write_secrets(tmp_path / "secrets", where=Where(config=KUBERNETES / "tallystream.toml"))
    written = {line.partition("=")[0] for line in (tmp_path / "secrets/tallystream.env").read_text().splitlines()}
    users = set(re.findall(r"^user (\S+) on", (tmp_path / "secrets/users.acl").read_text(), re.MULTILINE))
    text = "".join(path.read_text(encoding="utf-8") for path in KUBERNETES.glob("*.yaml"))
    asked = set(re.findall(r"key: (TALLYSTREAM_\w+)", text))
    assert asked
    assert asked <= written
    assert set(re.findall(r"redis://([\w-]+):", text)) <= users


def test_parts_of_kubernetes_find_each_other() -> None:
    """Services, budgets, monitors, policies and the scaler select pods and ports that exist."""
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in documents() if each["kind"] == "Deployment"]
    ports = {port["name"] for pod in pods() for container in pod["containers"] for port in container["ports"]}
    for each in documents():
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            assert any(spec["selector"].items() <= found.items() for found in labels)
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        elif each["kind"] in ("PodDisruptionBudget", "NetworkPolicy"):
            chosen = spec.get("selector") or spec["podSelector"]
            assert any(chosen["matchLabels"].items() <= found.items() for found in labels)
        elif each["kind"] == "ServiceMonitor":
            services = [service for service in documents() if service["kind"] == "Service"]
            wanted = spec["selector"]["matchLabels"].items()
            assert any(wanted <= service["metadata"]["labels"].items() for service in services)
    scaled = named("ScaledObject", "tallystream-worker")["spec"]
    assert named("Deployment", scaled["scaleTargetRef"]["name"])
    assert scaled["maxReplicaCount"] <= DEFAULT_PARTITIONS


def test_alert_rules_are_those_of_the_configuration() -> None:
    """`prometheus-rule.yaml` is the present output of its generator for `config/alerts.yml`."""
    made = prometheus_rule.manifest(prometheus_rule.SOURCE.read_text(encoding="utf-8"))
    text = prometheus_rule.TARGET.read_text(encoding="utf-8")
    assert text == made, "run: python -m docs._generate.prometheus_rule"
    assert yaml.safe_load(text)["spec"] == yaml.safe_load(prometheus_rule.SOURCE.read_text(encoding="utf-8"))


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` reports nothing about the units."""
    tool = shutil.which("systemd-analyze") or missing("no systemd-analyze on PATH", unless="CI")
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/usr/bin/tallystream", f"{sys.exec_prefix}/bin/tallystream")
        (tmp_path / unit.name).write_text(text)
    command = [tool, "verify", *(str(tmp_path / unit.name) for unit in UNITS)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_are_hardened_and_come_back(unit: Path) -> None:
    """Each unit runs as its own user, cannot gain rights or write files, and is restarted when it ends."""
    lines = unit.read_text(encoding="utf-8").splitlines()
    locked = {"DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "Restart=always"}
    assert locked <= set(lines)
