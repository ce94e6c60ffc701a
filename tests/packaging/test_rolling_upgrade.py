"""In a rolling upgrade, workers and producers of an earlier release and of this one work on the same data at once.

Both releases have the same layout, so no data is converted; the tests check that they agree about all of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.storage.keys import LAYOUT
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.settings.settings import DEFAULT_RULES
from tests.paths import ROOT
from tests.servers import missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]

BEFORE = ("ca22033d9f",)
"""Commits that represent earlier releases with the same layout."""

EARLIER = {1: "29f7697d15", 2: "2a11b75705", 3: "c3842f5af9", 4: "2264bac866", 5: "fac3b9bc9e"}
"""By earlier layout, the last commit with it."""

OLD, NEW = "before", "this"
RETRY = [Path(sys.executable).with_name("tallystream"), "dead", "retry", "--all"]
ROUNDS = 150
SUBJECTS = 20

PRODUCER = """
import sys, time
from tallystream import Producer
with Producer(sys.argv[1]) as producer:
    for number in range(int(sys.argv[2])):
        for subject in range(int(sys.argv[3])):
            producer.emit("view", f"article:{subject}")
            producer.emit("vote", f"article:{subject}", actor=f"{sys.argv[4]}{number}")
        producer.flush(30)
"""
WHERE = "import tallystream, tallystream_worker as w; print(tallystream.__file__, w.__file__)"
WORKER = "import sys; from tallystream_worker.cli.main import main; sys.argv[0] = 'tallystream'; sys.exit(main())"


@pytest.fixture(scope="module", params=BEFORE)
def before(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a folder with the sources of an earlier release that has the same layout."""
    return sources(request.param, tmp_path_factory.mktemp("before"))


@pytest.fixture(scope="module", params=EARLIER)
def earlier_layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a folder with the sources of the last release with an earlier layout."""
    return sources(EARLIER[request.param], tmp_path_factory.mktemp(f"layout-{request.param}"))


def sources(commit: str, folder: Path) -> Path:
    """Write the packages of a commit into a folder, and return it."""
    git = shutil.which("git") or missing("no git on PATH", unless="CI")
    archive = folder / "before.tar"
    taken = subprocess.run(
        [git, "archive", "-o", archive, commit, "producer", "worker"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if taken.returncode:
        missing(f"{commit} is not in the history here ({taken.stderr.strip()})", unless="CI")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    where = subprocess.run(
        [sys.executable, "-c", WHERE], env=_paths(folder), capture_output=True, text=True, check=True
    )
    assert all(Path(line).is_relative_to(folder) for line in where.stdout.split())
    return folder


def _paths(before: Path) -> dict[str, str]:
    """Return an environment in which Python imports the earlier release instead of the installed one."""
    return dict(os.environ) | {"PYTHONPATH": f"{before / 'producer'}{os.pathsep}{before / 'worker'}"}


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Provide a function that starts a program of either release; programs that still run are killed at the end.

    The earlier release is that of the fixture `before`, or of `earlier_layout` if the test asks for it.
    """
    name = "earlier_layout" if "earlier_layout" in request.fixturenames else "before"
    folder: Path = request.getfixturevalue(name)
    started: list[subprocess.Popen[bytes]] = []

    def start(release: str, code: str, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = _paths(folder) if release == OLD else None
        started.append(subprocess.Popen(command, cwd=folder, env=environment, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("before")
def test_both_releases_count_together(run, fresh_server) -> None:
    """With producers and workers of both releases, in turns and at once, every event counts once.

    An older worker dead-letters entries of newer producers that it cannot read; a retry by the new release counts them.
    """
    url = fresh_server().url
    rounds, names = 0, (f"worker-{number}" for number in count())

    def emit(*releases: str) -> None:
        nonlocal rounds
        producers = [run(each, PRODUCER, url, ROUNDS, SUBJECTS, f"{rounds + n}:") for n, each in enumerate(releases)]
        assert [each.wait(120) for each in producers] == [0] * len(producers)
        rounds += len(releases)

    def worker(release: str) -> subprocess.Popen[bytes]:
        name = next(names)  # a new name each time, because the group keeps its consumers
        process = run(release, WORKER, "worker", "--redis", url, "--name", name)
        with contextlib.closing(connect(url)) as client:
            until(
                lambda: (deployment := Deployment.find(client)).is_stored and _reads(client, deployment, name),
                60,
                0.05,
                f"{name} to count",
            )
        return process

    def stop(process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        assert process.wait(30) == 0

    first = worker(OLD)
    emit(OLD)
    second = worker(NEW)
    emit(OLD, NEW)
    stop(first)
    emit(OLD, NEW)
    first = worker(OLD)  # and back
    stop(second)
    emit(OLD, NEW)
    second = worker(NEW)
    stop(first)
    with Totals(url) as totals:
        until(
            lambda: totals.run(query_ledger(totals.deployment.layout)).waiting == 0,
            60,
            0.05,
            "everything to be counted",
        )
        retried = subprocess.run([*RETRY, "--redis", url], capture_output=True, text=True, check=False)
        assert retried.stdout.endswith("dead lettered again 0\n"), retried
        books = totals.run(query_ledger(totals.deployment.layout))
        assert (books.appended, books.unaccounted, books.dead) == (rounds * ROUNDS * SUBJECTS * 2, 0, 0)
        assert books.events["trimmed"] == 0
        for metric in ("view", "vote"):
            found = totals.get_many((f"article:{subject}", metric) for subject in range(SUBJECTS)).values
            assert set(found.values()) == {rounds * ROUNDS}
    with contextlib.closing(connect(url)) as client:
        assert audit(client, Deployment.create_or_load(client), DEFAULT_RULES).differences == []
    stop(second)


COMMANDS = (["worker"], ["status"], ["emit", "view", "a"], ["replay"], ["get", "a"], ["audit"], ["rebuild"])
"""Commands that read or write the stored data, each in its own way."""


@pytest.mark.usefixtures("earlier_layout")
def test_each_release_refuses_the_layout_of_the_other(run, fresh_server, tmp_path, request) -> None:
    """Every command of a release refuses data of another layout, states what to do, and changes nothing."""
    url, old = fresh_server().url, request.node.callspec.params["earlier_layout"]
    for writer, reader, remedy in (
        (OLD, NEW, f"layout version {old}, but this release reads and writes {LAYOUT}: use the release that wrote it"),
        (NEW, OLD, f"layout version {LAYOUT}, but this release reads and writes {old}"),
    ):
        with contextlib.closing(connect(url)) as client:
            client.flushall()
        assert run(writer, WORKER, "emit", "view", "a", "--redis", url).wait(60) == 0
        with contextlib.closing(connect(url)) as client:
            stored = {key: client.dump(key) for key in client.scan_iter("*")}
            assert len(stored) > 1
            for command in COMMANDS:
                log = tmp_path / "log"
                with log.open("w") as output:
                    process = run(reader, WORKER, *command, "--redis", url, stderr=output)
                    assert process.wait(60) == 1, (command, log.read_text())
                # The program breaks lines at the width of the terminal.
                assert remedy in " ".join(log.read_text().split()), command
                assert "Traceback" not in log.read_text()
            assert {key: client.dump(key) for key in client.scan_iter("*")} == stored


@pytest.mark.usefixtures("earlier_layout")
def test_events_of_an_earlier_layout_are_counted_again(run, fresh_server, tmp_path) -> None:
    """Events that the earlier release replays into a file, and this one ingests, are all counted."""
    server, file = fresh_server(), tmp_path / "events.ndjson"
    assert run(OLD, WORKER, "emit", "view", "a", "--amount", "3", "--redis", server.url).wait(60) == 0
    assert run(OLD, WORKER, "emit", "vote", "a", "--actor", "u1", "--redis", server.url).wait(60) == 0
    assert run(OLD, WORKER, "replay", "-o", file, "--redis", server.url).wait(60) == 0
    with contextlib.closing(connect(server.url)) as client:
        client.flushall()
    worker = run(NEW, WORKER, "worker", "--redis", server.url)
    with contextlib.closing(connect(server.url)) as client:
        until(lambda: Deployment.find(client).is_stored, 60, 0.05, "the worker to begin")
    assert run(NEW, WORKER, "ingest", file, "--wait", "--redis", server.url).wait(60) == 0
    with Totals(server.url) as totals:
        assert totals.get_many([("a", "view"), ("a", "vote")]).values == {("a", "view"): 3, ("a", "vote"): 1}
    worker.terminate()
    assert worker.wait(30) == 0


def _reads(client, deployment, name: str) -> bool:
    """Return whether a worker is a consumer of every partition."""
    readers = [
        {row["name"].decode() for row in client.xinfo_consumers(keys.stream, keys.group)}
        for keys in deployment.layout.keys
        if client.exists(keys.stream)
    ]
    return len(readers) == deployment.layout.partitions and all(name in row for row in readers)
