"""Tests of the ACL users: each role can do its work with its own user, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from structlog.testing import LogCapture

from tallystream.client.connect import connect
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream.storage.keys import Layout
from tallystream_worker.maintenance.losses import losses_service
from tallystream_worker.maintenance.reaper import reaper_service
from tallystream_worker.maintenance.trim import trim_service
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.server.acl import generate, hashed, render, users
from tallystream_worker.service.server import serving
from tallystream_worker.settings.settings import ArchiveSettings, AuditSettings, SnapshotSettings
from tests.http_service import settings_for
from tests.paths import ROOT
from tests.secured import binary_of, free_port, started
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

FILE = ROOT / "config" / "users.acl"


class Secured:
    """A server with the ACL users of tallystream."""

    def __init__(self, port: int, passwords: dict[str, str]) -> None:
        self._port = port
        self._passwords = passwords

    def url(self, user: str) -> str:
        """Return the URL with which a user connects."""
        return f"redis://tally-{user}:{self._passwords[user]}@127.0.0.1:{self._port}"

    def _watch(self, *command: str) -> Any:
        with contextlib.closing(connect(f"redis://watcher:x@127.0.0.1:{self._port}")) as watcher:
            return watcher.execute_command(*command)

    def clear(self) -> None:
        """Remove every key, and empty the log of denied commands."""
        self._watch("FLUSHALL")
        self._watch("ACL", "LOG", "RESET")

    def denied(self) -> set[tuple[str, str]]:
        """Return the users and commands that were denied since the last call."""
        entries = map(_fields, self._watch("ACL", "LOG"))
        denied = {(entry[b"username"].decode(), entry[b"object"].decode()) for entry in entries}
        self._watch("ACL", "LOG", "RESET")
        return denied

    @contextlib.contextmanager
    def client(self, user: str) -> Iterator[redis.Redis]:
        """Provide a client of a user."""
        with contextlib.closing(connect(self.url(user))) as client:
            yield client


@pytest.fixture(scope="module", params=["valkey", "redis"])
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Provide a server of each kind that was started with the ACL file only."""
    folder = tmp_path_factory.mktemp("acl")
    passwords = generate()
    (folder / "users.acl").write_text(
        render("tally", hashed(passwords)) + "user watcher on nopass resetkeys +acl|log +ping +hello +flushall\n"
    )
    server = Secured(free_port(), passwords)
    arguments = ("--aclfile", str(folder / "users.acl"), "--port", str(server._port), "--bind", "127.0.0.1")
    with started(binary_of(request.param), folder, server.url("reader"), *arguments):
        yield server


@pytest.fixture
def server(secured: Secured) -> Iterator[Secured]:
    """Provide the server without keys; a denied command fails the test unless the test has read it."""
    secured.clear()
    yield secured
    assert secured.denied() == set()


def _fields(entry: Any) -> dict[bytes, bytes]:
    return entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))


def command_line(url: str, *arguments: str) -> str:
    """Run a command with the URL of a user, and return its output."""
    ran = _run(url, *arguments)
    assert ran.returncode == 0, (arguments, ran.stderr, ran.stdout)
    return ran.stdout


def command_fails(url: str, *arguments: str) -> int:
    """Run a command as a user, and return its exit status."""
    return _run(url, *arguments).returncode


def _run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "tallystream"), *arguments],
        env=os.environ | {"TALLYSTREAM_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_part_works_with_its_own_user(server: Secured) -> None:
    """Events are appended, decided, counted, dead-lettered, read and posted by their users without a denial."""
    log = logs.configure(quiet=True)
    with counting(settings_for(server.url("worker")), log), Producer(server.url("producer")) as producer:
        for number in range(20):
            producer.emit("view", f"article:{number}", actor=f"u{number}")
            producer.emit("share", f"article:{number}", id=f"s{number}", at=1_763_900_000)
        producer.emit("vote", "post:1", actor="u1")
        producer.flush(10, wait="counted")
        assert producer.decide("api-call", "key:1").accepted
        with server.client("producer") as plain:
            plain.xadd(STREAM, {"metric": "no such metric", "subject": "a"})
        producer.emit("view", "article:0")
        producer.flush(10, wait="counted")
    with contextlib.closing(Totals(server.url("reader"))) as totals:
        assert totals.get("article:0", "view").value == 2
        assert totals.get("post:1", "vote").value == 1
    with serving(settings_for(server.url("reader"))) as url:
        for path in (
            "/v1/counters/article:1", "/v1/counters/article:1/view?window=hour", "/v1/counters/article:1/view?over=7d",
            "/v1/counters?subject=article:1", "/v1/top/view", "/v1/top/view?window=day", "/v1/limits/api-call/key:1",
            "/v1/votes/vote/post:1", "/v1/uniques/view/article:1?over=7d", "/readyz", "/metrics",
        ):  # fmt: skip
            assert httpx.get(url + path).status_code == 200, path
        assert "tallystream_redis_up 1" in httpx.get(f"{url}/metrics").text
    with serving(settings_for(server.url("producer"))) as url:
        event = {"metric": "view", "subject": "article:1"}
        assert httpx.post(f"{url}/v1/events", json=event).status_code == 202
        assert httpx.post(f"{url}/v1/decide", json=event).status_code == 200
        assert httpx.get(f"{url}/v1/counters/article:1").status_code == 200


def test_every_command_works_with_its_user(server: Secured, tmp_path: Path) -> None:
    """Each command works with the user that the documentation names, without a denial."""
    lines = tmp_path / "events.ndjson"
    lines.write_text(json.dumps({"metric": "view", "subject": "a"}) + "\n")
    log = logs.configure(quiet=True)
    with counting(settings_for(server.url("worker")), log):
        command_line(server.url("producer"), "emit", "view", "a", "--wait")
        command_line(server.url("producer"), "ingest", str(lines), "--format", "ndjson", "--wait")
        assert json.loads(command_line(server.url("reader"), "get", "a", "view", "--json"))["counters"] == {"view": 2}
        command_line(server.url("reader"), "top", "view", "--json")
        command_line(server.url("reader"), "status", "--json")
        command_line(server.url("admin"), "reset", "a", "view", "--json")
        for reading in ("get a --json", "top view --json", "status --json"):
            command_line(server.url("admin"), *reading.split())


def test_maintenance_works_with_the_workers_user(server: Secured) -> None:
    """Trimming, accounting for losses and removing idle names need only the rights of the worker."""
    settings, log = settings_for(server.url("worker")), logs.configure(quiet=True)
    with counting(settings, log, consumer="gone"), Producer(server.url("producer")) as producer:
        producer.emit("view", "a")
        producer.flush(10, wait="counted")
    deployment = open_deployment(settings)
    services = [
        trim_service(settings, deployment, log),
        losses_service(settings, deployment, log),
        reaper_service(settings, deployment, "stays", log),
    ]
    for service in services:
        service.run_once()
    with server.client("producer") as client, server.client("worker") as thief:
        for keys in deployment.layout.keys:
            client.xadd(keys.stream, {"metric": "view", "subject": "a"})
            thief.xtrim(keys.stream, maxlen=0, approximate=False)
    for service in services:
        service.run_once()  # entries trimmed before they were counted go into the ledger
        service.stop(0)
    with server.client("reader") as client:  # also the figure of the server
        lags = [group["lag"] for keys in deployment.layout.keys for group in client.xinfo_groups(keys.stream)]
    assert lags == [0] * deployment.layout.partitions


def test_a_worker_that_copies_works_with_the_copier(server: Secured, tmp_path: Path) -> None:
    """A worker that archives, takes snapshots and audits needs only the rights of the copier."""
    settings = replace(
        settings_for(server.url("copier")),
        archive=ArchiveSettings(str(tmp_path / "archive"), every=0.1),
        snapshot=SnapshotSettings(str(tmp_path / "snapshot.sqlite"), every=0.1),
        audit=AuditSettings(every="1s"),
    )
    log = LogCapture()
    with (
        counting(settings, structlog.wrap_logger(None, processors=[log])),
        Producer(server.url("producer")) as producer,
    ):
        emit_everything(producer)
        with server.client("reader") as client:
            until(lambda: client.hget("tally:meta", "snapshot"), 20, what="a snapshot")
            until(lambda: client.hget("tally:meta", "audit"), 20, what="an audit")
        until(lambda: [*(tmp_path / "archive").glob("**/*.parquet")], 20, what="a file of the archive")
    assert [entry for entry in log.entries if entry["log_level"] == "error"] == []


def emit_everything(producer: Producer) -> None:
    """Emit events for every rule of the default metrics, and wait until they are counted."""
    for number in range(20):
        producer.emit("view", f"article:{number}", actor=f"u{number}")
        producer.emit("share", f"article:{number}", id=f"s{number}", at=1_763_900_000)
        producer.emit("vote", f"post:{number}", actor=f"u{number}")
    producer.flush(10, wait="counted")
    assert producer.decide("api-call", "key:1").accepted


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_copies_work_with_the_copier(server: Secured, tmp_path: Path) -> None:
    """Archive, snapshot, drill, audit and verify work with the copier; a restore needs the admin."""
    archive, snapshot = str(tmp_path / "archive"), str(tmp_path / "snapshot.sqlite")
    with (
        counting(settings_for(server.url("worker")), logs.configure(quiet=True)),
        Producer(server.url("producer")) as producer,
    ):
        emit_everything(producer)
        for command in (
            f"archive {archive} --once", f"snapshot {snapshot} --once", f"snapshot {snapshot} --once --whole",
            f"drill {snapshot}", "audit", f"audit --archive {archive}",
            f"verify --archive {archive} --snapshot {snapshot}",
        ):  # fmt: skip
            command_line(server.url("copier"), *command.split(), "--json")
    assert server.denied() == set()
    server.clear()
    command_line(server.url("admin"), "restore", snapshot, "--archive", archive, "--json")
    assert json.loads(command_line(server.url("reader"), "get", "article:1", "view", "--json"))["counters"] == {
        "view": 1
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_operators_work_with_the_admin(server: Secured, tmp_path: Path) -> None:
    """Retries of dead letters, rebuilds, retractions and resets work with the admin."""
    spool = str(tmp_path / "spool")
    with (
        counting(settings_for(server.url("worker")), logs.configure(quiet=True)),
        Producer(server.url("producer"), spool=spool) as producer,
    ):
        emit_everything(producer)
        with server.client("producer") as plain:
            for _ in range(2):
                plain.xadd(STREAM, {"metric": "no such metric", "subject": "a"})
        with server.client("reader") as client:
            until(lambda: client.xlen("tally:{p0.425}:dead") == 2, what="the dead letter")
        for command in ("dead list --json", "dead show --json", "replay"):
            command_line(server.url("admin"), *command.split())
        assert command_fails(server.url("admin"), "dead", "retry", "--all") == 1  # it is dead-lettered again
        for command in (
            "dead drop --all", "rebuild", "rebuild --undo", "rebuild --drop", "retract --actor u1 --dry-run",
            "retract --actor u1", "reset article:2 view",
        ):  # fmt: skip
            command_line(server.url("admin"), *command.split(), "--json")
    command_line(server.url("producer"), "spool", spool, "--send", "--json")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_lost_keys_are_repaired_by_the_admin(server: Secured) -> None:
    """Every repair of `reopen` works with the admin: of lost hashes, streams, live generations and partitions."""
    with (
        counting(settings_for(server.url("worker")), logs.configure(quiet=True)),
        Producer(server.url("producer")) as producer,
    ):
        emit_everything(producer)
    prefix = "tally:{p0.425}:"
    losses: list[tuple[str, list[str], str]] = [
        ("reopen --json", ["tally:meta"], "mended"),
        ("reopen --json", [f"{prefix}live", f"{prefix}stream"], "mended"),
        ("reopen --json --force", [f"{prefix}seq"], "opened"),
        ("rebuild --json", [], ""),
        ("reopen --json --force", [f"{prefix}ledger"], "opened"),
        ("rebuild --drop --json", [], ""),
        ("rebuild --partitions 3 --accept-loss --json", [], ""),
        ("reopen --json", ["tally:meta", f"{prefix}l2:meta"], "mended"),
        ("reopen --json", [f"{prefix}l2:stream"], "mended"),
        ("reopen --json --force", [f"{prefix}l2:ledger"], "opened"),
    ]
    for command, names, how in losses:
        if "tally:meta" in names:  # a topic is live for `reopen` if a worker has used it
            with counting(settings_for(server.url("worker")), logs.configure(quiet=True)):
                pass
        with server.client("admin") as client:
            for name in names:
                assert client.delete(name) == 1, (command, name)
        printed = command_line(server.url("admin"), *command.split())
        if how:
            assert json.loads(printed)[how] != [], (command, names)
    assert server.denied() == set()


def test_live_updates_work_with_the_reader(server: Secured) -> None:
    """Live updates need only the rights of the reader."""
    with counting(settings_for(server.url("worker")), logs.configure(quiet=True)):
        command_line(server.url("producer"), "emit", "view", "a", "--wait")
        with (
            serving(settings_for(server.url("reader"))) as url,
            httpx.stream("GET", f"{url}/v1/live?metric=view", timeout=10) as answer,
        ):
            assert answer.status_code == 200
            assert next(answer.iter_lines()) is not None
            command_line(server.url("producer"), "emit", "view", "a", "--wait")


STREAM = "tally:{p0.425}:stream"
EVERYBODY = ("reader", "producer", "worker", "copier", "admin")
COUNTING = ("reader", "producer", "worker")
ALL_BUT_ADMIN = (*COUNTING, "copier")
FORBIDDEN = {
    "FLUSHALL": EVERYBODY, "FLUSHDB": EVERYBODY, "KEYS *": EVERYBODY, "CONFIG GET *": EVERYBODY,
    "CONFIG SET maxmemory 1": EVERYBODY, "SHUTDOWN NOSAVE": EVERYBODY, "ACL LIST": EVERYBODY,
    "ACL SETUSER x on nopass +@all": EVERYBODY, "MONITOR": EVERYBODY,
    "CLIENT LIST": EVERYBODY, "CLIENT KILL TYPE normal": EVERYBODY, "REPLICAOF NO ONE": EVERYBODY,
    "SAVE": EVERYBODY, "BGREWRITEAOF": EVERYBODY, "SCRIPT FLUSH": EVERYBODY, "FUNCTION FLUSH": EVERYBODY,
    "MODULE LIST": EVERYBODY, "SLOWLOG GET": EVERYBODY, "SWAPDB 0 1": EVERYBODY, "SORT tally:meta": EVERYBODY,
    "MIGRATE 127.0.0.1 1 tally:meta 0 10": EVERYBODY, "PUBLISH a b": EVERYBODY, "SUBSCRIBE a": EVERYBODY,
    "SELECT 1": ALL_BUT_ADMIN, "EVAL return 0": EVERYBODY,
    "GET other:meta": EVERYBODY, "GET tallyx:meta": EVERYBODY, "SET a 1": EVERYBODY,
    "XADD other:{p0.425}:stream * a b": EVERYBODY,
    "HSET tally:metadata a b": EVERYBODY, "XADD tally:stream * a b": EVERYBODY,
    "RENAME tally:meta other": EVERYBODY, "COPY tally:meta other": EVERYBODY,
    "XADD " + STREAM + " * a b": ("reader",), "XTRIM " + STREAM + " MAXLEN 0": ("reader", "producer"),
    "XDEL " + STREAM + " 1-1": ("reader", "producer"), "DEL " + STREAM: ("reader", "producer"),
    "UNLINK tally:meta": ("reader", "producer"), "XACK " + STREAM + " tally 1-1": ("reader", "producer"),
    "XREADGROUP GROUP tally a STREAMS " + STREAM + " >": ("reader", "producer"),
    "XGROUP DESTROY " + STREAM + " tally": ALL_BUT_ADMIN,
    "XGROUP SETID " + STREAM + " tally 0": ("reader", "producer"),
    "XGROUP CREATE " + STREAM + " other 0": ("reader", "producer"),
    "HSET tally:meta layout 9": ("reader",),
    "HINCRBY tally:{p0.425}:ledger appended 1": ("reader",), "HDEL tally:meta layout": ("reader",),
    "SET tally:{p0.425}:total:view:a 9": ("reader",), "PEXPIREAT tally:meta 1": ("reader",),
    "EVALSHA 0000000000000000000000000000000000000000 1 tally:meta": ("reader",), "SCRIPT LOAD x": ("reader",),
    "SCAN 0": COUNTING, "RENAME tally:meta tally:{p0.425}:x": ALL_BUT_ADMIN,
}  # fmt: skip


@pytest.mark.parametrize("command", FORBIDDEN)
def test_nobody_can_do_more(secured: Secured, command: str) -> None:
    """A user is denied other keys, other commands, and the administration of the server."""
    words = command.split()
    if words[0] == "EVAL":
        words = ["EVAL", "return 0", "0"]
    for user in FORBIDDEN[command]:
        with secured.client(user) as client, pytest.raises(NoPermissionError):
            client.execute_command(*words)


def test_the_default_user_and_wrong_passwords_are_off(secured: Secured) -> None:
    """No client can connect without a user name or with a wrong password."""
    for url in (f"redis://127.0.0.1:{secured._port}", f"redis://tally-admin:wrong@127.0.0.1:{secured._port}"):
        with contextlib.closing(connect(url)) as client, pytest.raises(AuthenticationError):
            client.ping()


def test_a_script_has_no_more_rights_than_its_caller(secured: Secured) -> None:
    """A loaded script has only the keys and commands of its caller."""
    with secured.client("worker") as client:
        for body in ("redis.call('FLUSHALL')", "redis.call('SET', 'other', 1)", "redis.call('KEYS', '*')"):
            sha = client.execute_command("SCRIPT", "LOAD", body)
            with pytest.raises(ResponseError, match=r"permission|can't run|can't access"):
                client.execute_command("EVALSHA", sha, 0)


def test_the_file_in_the_repository_has_the_same_rights() -> None:
    """`config/users.acl` has the output of `tallystream acl` with placeholders for the password hashes."""
    places = {user.name: f"{user.name.upper()}_PASSWORD_SHA256" for user in users()}
    lines = [line for line in FILE.read_text().splitlines(keepends=True) if not line.startswith("#")]
    assert "".join(lines) == render("tally", places)
    assert [line[:4] for line in lines] == ["user"] * 6


def test_the_command_makes_users_and_secrets(tmp_path: Path) -> None:
    """`tallystream acl` writes hashes for the server and secrets for their owner, and overwrites neither file."""
    folder = tmp_path / "secrets"
    run = [str(Path(sys.executable).parent / "tallystream"), "acl", str(folder)]
    assert subprocess.run(run, capture_output=True, check=False).returncode == 0
    secrets, acl = folder / "tallystream.env", (folder / "users.acl").read_text()
    assert secrets.stat().st_mode & 0o077 == 0
    values = dict(line.split("=", 1) for line in secrets.read_text().splitlines() if not line.startswith("#"))
    assert len(set(values.values())) == 8
    assert not any(value in acl for value in values.values())
    for name, digest in hashed({u.name: values[f"TALLYSTREAM_{u.name.upper()}_PASSWORD"] for u in users()}).items():
        assert f"user tally-{name} on #{digest} " in acl
    again = subprocess.run(run, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "lock out" in again.stderr
    assert secrets.read_text().count(values["TALLYSTREAM_ADMIN_PASSWORD"]) == 1


def test_everything_is_moved_by_an_operator_and_followed_by_the_others(server: Secured) -> None:
    """The admin repartitions; worker, producer and reader follow, each with its own rights."""
    log = logs.configure(quiet=True)
    with counting(settings_for(server.url("worker")), log), Producer(server.url("producer")) as producer:
        producer.emit("view", "article:1")
        producer.flush(10, wait="counted")
        command_line(server.url("admin"), "rebuild", "--partitions", "6")
        producer.emit("view", "article:1")
        with server.client("producer") as plain:  # to a stream of the previous topic
            home = Layout().keys_of("article:2").stream
            plain.xadd(home, {"metric": "view", "subject": "article:2"})
        producer.flush(10, wait="counted")
        with contextlib.closing(Totals(server.url("reader"))) as totals:
            assert totals.get("article:1", "view").value == 2
            until(lambda: totals.get("article:2", "view").value == 1, what="what came late")
        command_line(server.url("admin"), "rebuild", "--drop")
