"""A rolling upgrade: the release before and this one, workers and producers of both, at once on the same data.

There has been one layout so far, so no data is converted; what is tried is that the two agree about everything in it.
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
from typing import TYPE_CHECKING

import pytest

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.settings.settings import DEFAULT_RULES
from tests.paths import ROOT
from tests.servers import missing
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]

BEFORE = ("0cd6d1cab2", "f4b89f1444")
"""Commits that stand for a release before. The first has groups, gates, a ledger and rules, and was made before
generations, alerts, maintenance, the spool, snapshots and clusters. The second is the last
one with flat packages."""

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
    """The sources of the release before."""
    git = shutil.which("git") or missing("no git on PATH", unless="CI")
    folder = tmp_path_factory.mktemp("before")
    archive = folder / "before.tar"
    taken = subprocess.run(
        [git, "archive", "-o", archive, request.param, "producer", "worker"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if taken.returncode:
        missing(f"{request.param} is not in the history here ({taken.stderr.strip()})", unless="CI")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    where = subprocess.run(
        [sys.executable, "-c", WHERE], env=_paths(folder), capture_output=True, text=True, check=True
    )
    assert all(Path(line).is_relative_to(folder) for line in where.stdout.split())
    return folder


def _paths(before: Path) -> dict[str, str]:
    """Return an environment in which the release before is found, in front of this one, which is installed."""
    return dict(os.environ) | {"PYTHONPATH": f"{before / 'producer'}{os.pathsep}{before / 'worker'}"}


@pytest.fixture
def run(before: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a program of the release before, or of this one; what is left is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(release: str, code: str, *arguments: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, cwd=before, env=_paths(before) if release == OLD else None))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_both_releases_count_together(run, fresh_server) -> None:
    """Producers and workers of both, one after the other and at once, forth and back: every event counts once.

    What an older worker cannot read of newer producers it parks; a retry by the new release counts it.
    """
    url = fresh_server().url
    rounds, names = 0, (f"worker-{number}" for number in count())

    def emit(*releases: str) -> None:
        nonlocal rounds
        producers = [run(each, PRODUCER, url, ROUNDS, SUBJECTS, f"{rounds + n}:") for n, each in enumerate(releases)]
        assert [each.wait(120) for each in producers] == [0] * len(producers)
        rounds += len(releases)

    def worker(release: str) -> subprocess.Popen[bytes]:
        name = next(names)  # a new one each time: the group remembers who was there
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
        assert retried.stdout.endswith("parked again 0\n"), retried
        books = totals.run(query_ledger(totals.deployment.layout))
        assert (books.appended, books.unaccounted, books.parked) == (rounds * ROUNDS * SUBJECTS * 2, 0, 0)
        assert books.events["trimmed"] == 0
        for metric in ("view", "vote"):
            found = totals.get_many((f"article:{subject}", metric) for subject in range(SUBJECTS)).values
            assert set(found.values()) == {rounds * ROUNDS}
    with contextlib.closing(connect(url)) as client:
        assert audit(client, Deployment.create_or_load(client), DEFAULT_RULES).differences == []
    stop(second)


def test_a_layout_of_the_future_is_refused(fresh_server) -> None:
    """Data of another layout is neither read nor written, and the message names both versions."""
    url = fresh_server().url
    with contextlib.closing(connect(url)) as client:
        deployment = Deployment.create_or_load(client)
        client.hset(deployment.layout.meta, "layout", "2")
        for look in (Deployment.create_or_load, Deployment.find):
            with pytest.raises(ConfigurationError, match="has layout version 2, but this release reads and writes 1"):
                look(client)
        program = Path(sys.executable).with_name("tallystream")
        for command in (["worker"], ["status"], ["emit", "view", "a"]):
            done = subprocess.run([program, *command, "--redis", url], capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert "layout version 2" in done.stderr
            assert "Traceback" not in done.stderr
        assert client.exists(*(keys.stream for keys in deployment.layout.keys)) == 0


def _reads(client, deployment, name: str) -> bool:
    """Tell whether a worker waits in every partition."""
    readers = [
        {row["name"].decode() for row in client.xinfo_consumers(keys.stream, keys.group)}
        for keys in deployment.layout.keys
        if client.exists(keys.stream)
    ]
    return len(readers) == deployment.layout.partitions and all(name in row for row in readers)
