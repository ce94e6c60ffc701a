"""The services of docker-compose.yml count every event once, survive a killed worker, and are removed completely."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.paths import ROOT
from tests.secured import free_port
from tests.servers import missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(900)]

PROJECT = "tallystream-test"


class Compose:
    """The compose project in a copy of the repository, with separate secrets."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self._environment = os.environ | {"TALLYSTREAM_PORT": str(port), "COMPOSE_PROJECT_NAME": PROJECT}

    def __call__(self, *arguments: str) -> str:
        """Run `docker compose` and return its standard output."""
        return run("docker", "compose", *arguments, cwd=self.folder, env=self._environment)

    @property
    def secrets(self) -> dict[str, str]:
        """The generated passwords and tokens, by variable."""
        lines = (self.folder / ".env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def run(*command: str, **settings: Any) -> str:
    """Run a program and return its standard output; if it fails, fail the test with its standard error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **settings)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Compose:
    """Provide the project; skip the test if no container engine answers."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "version"], capture_output=True, check=False).returncode
    ):
        missing("no container engine answers", unless="TALLYSTREAM_REQUIRE_CONTAINERS")
    folder = tmp_path_factory.mktemp("compose")
    for name in ("producer", "worker", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("docker-compose.yml", "Dockerfile", ".dockerignore"):
        shutil.copy(ROOT / name, folder)
    tallystream = shutil.which("tallystream") or str(ROOT / ".venv/bin/tallystream")
    run(tallystream, "acl", str(folder / "secrets"))
    (folder / ".env").symlink_to("secrets/tallystream.env")
    return Compose(folder, free_port())


@pytest.fixture
def running(compose: Compose) -> Iterator[Compose]:
    """Provide the project with Redis, the workers and the read service up and healthy."""
    try:
        compose("up", "--detach", "--build", "--wait", "redis", "worker", "serve")
        yield compose
    except AssertionError:
        print(compose("logs", "--tail", "30"))  # noqa: T201  # shown if the test fails
        raise
    finally:
        compose("down", "--volumes", "--remove-orphans")


def test_the_whole_file_is_valid(compose: Compose) -> None:
    """Every service is valid, has limits and a health check, listens on the loopback address, and has no secret."""
    services = json.loads(compose("config", "--format", "json"))["services"]
    assert set(services) == {"redis", "worker", "serve", "prometheus", "grafana"}
    for name, service in services.items():
        assert {"healthcheck", "mem_limit", "cpus"} <= service.keys(), name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name
        for volume in service.get("volumes", []):
            assert volume["type"] == "volume" or Path(volume["source"]).exists(), volume
    text = (ROOT / "docker-compose.yml").read_text()
    assert not any(secret in text for secret in compose.secrets.values())


def test_without_secrets_nothing_starts(compose: Compose, tmp_path: Path) -> None:
    """Without generated passwords, compose fails and names the command that generates them."""
    (tmp_path / "docker-compose.yml").write_text((ROOT / "docker-compose.yml").read_text())
    done = subprocess.run(
        ["docker", "compose", "config"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "make secrets" in done.stderr
    assert compose.secrets


def test_it_counts_and_leaves_nothing(running: Compose) -> None:
    """Events count once although a worker is killed; services stop with status 0; `down --volumes` leaves nothing."""
    headers = {"Authorization": f"Bearer {running.secrets['TALLYSTREAM_SERVE_WRITE_TOKEN']}"}
    with httpx.Client(base_url=running.url, headers=headers, timeout=10) as http:
        assert httpx.get(f"{running.url}/v1/counters/a").status_code == 401

        def post(times: int) -> None:
            for _ in range(times):
                events = [{"metric": "view", "subject": f"article:{number}"} for number in range(100)]
                assert http.post("/v1/events", json=events).status_code == 202

        def total() -> int:
            return http.get("/v1/counters/article:7/view").json()["value"]

        post(10)
        workers = running("ps", "--quiet", "worker").split()
        assert len(workers) == 2
        for container in [*workers, *running("ps", "--quiet", "serve").split()]:
            assert run("docker", "exec", container, "id", "-u").strip() == "65532"
        run("docker", "kill", "--signal", "KILL", workers[0])
        post(10)
        run("docker", "start", workers[0])
        until(lambda: total() == 20, timeout=90, interval=0.2, what="every event counted once")
        assert "tallystream_unaccounted_events 0.0" in http.get("/metrics").text
        running("up", "--detach", "--wait", "redis", "worker", "serve")  # waits for the killed worker too
    running("stop", "serve", "worker", "redis")
    states = [json.loads(line) for line in running("ps", "--all", "--format", "json").splitlines()]
    assert {(state["Service"], state["ExitCode"]) for state in states} == {("worker", 0), ("serve", 0), ("redis", 0)}
    running("down", "--volumes", "--remove-orphans")
    label = f"label=com.docker.compose.project={PROJECT}"
    for kind in ("container ls --all", "volume ls", "network ls"):
        assert run("docker", *kind.split(), "--quiet", "--filter", label) == ""
