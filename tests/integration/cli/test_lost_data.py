"""After the server was emptied, each command names the backup that has the data, and what brings it back."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pyarrow import fs

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import NothingDeclared
from tallystream.reading.totals import Totals
from tallystream.rules.retraction import Retraction
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.commands.restore import restore as restore_command
from tallystream_worker.cli.later_backup import find_losses
from tallystream_worker.cli.lost_data import backup_text
from tallystream_worker.cli.options import Where
from tallystream_worker.process import logs
from tallystream_worker.rebuild.retract import ends, propose_without
from tallystream_worker.repartition import topic
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.backups import read_archive
from tallystream_worker.runtime.lost_data import backup_of, refuse_lost_data
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.service.server import serving
from tallystream_worker.settings.settings import ArchiveSettings, RedisSettings, Settings, SnapshotSettings
from tallystream_worker.snapshot.restore import restore
from tests.harness import Harness
from tests.http_service import settings_for
from tests.integration.cli.test_cli import Shell
from tests.integration.repartition.test_migration import moved
from tests.rewind import copy_of, go_back

COMMANDS = (
    "status", "status --json", "get article:1 view", "top view", "audit", "rebuild", "dead", "rules", "replay",
    "retract --actor a", "reset view article:1", "reopen", "snapshot --once", "drill",
)  # fmt: skip


TOKENS = {"read_token": "reader-" + "r" * 20, "admin_token": "admin-" + "a" * 20}


@pytest.fixture
def counted(fresh_server, tmp_path, monkeypatch):
    """Provide commands against a server whose worker has counted an event, and has stopped."""
    monkeypatch.setattr("tallystream_worker.runtime.partition_worker.BLOCK", 0.05)  # the worker is stopped often
    server = fresh_server()
    with counting(Settings(redis=RedisSettings(url=server.url)), logs.configure(quiet=True)):
        shell = Shell(server.url, tmp_path)
        shell("emit", "view", "article:1", "--wait")
    return shell


def empty(shell: Shell) -> None:
    """Empty the server."""
    with closing(connect(shell.url)) as client:
        client.flushall()


@pytest.mark.parametrize("has_producer", [False, True])
def test_each_command_names_the_snapshot_of_an_emptied_server(counted: Shell, *, has_producer: bool) -> None:
    """Each command fails, and names the snapshot, its time and the command that restores it; that command works.

    This is also so if a producer has begun to use the emptied server.
    """
    (counted.folder / "tallystream.toml").write_text('[snapshot]\nurl = "tally.sqlite"\n', encoding="utf-8")
    counted("snapshot", "--once")
    empty(counted)
    if has_producer:
        with Producer(counted.url) as producer:
            producer.emit("view", "article:1")
            producer.flush(10)
    for command in ("status", "audit") if has_producer else COMMANDS:
        told = counted(*command.split(), status=1).stderr
        assert f"{counted.url} has no data of this deployment. The snapshot tally.sqlite has it up to 20" in told
        assert told.endswith("run: tallystream restore tally.sqlite --force\n")
    told = counted("verify", status=2).stderr
    assert "cannot verify" in told
    restored = counted(*shlex.split(told.rpartition("run: tallystream ")[2])).stdout
    assert ("are lost" in restored) == ("If entries were appended after" in restored)
    with closing(Totals(counted.url)) as totals:
        assert totals.get("article:1", "view").value == 1 + has_producer


def test_an_emptied_server_of_up_names_its_snapshot(tmp_path, monkeypatch) -> None:
    """On an emptied server of `tallystream up`, `/readyz` and a worker that only has its URL name the snapshot of `up`.

    The worker waits. This is so although a producer has begun to use the server.
    """
    monkeypatch.setattr("tallystream_worker.runtime.partition_worker.BLOCK", 0.05)  # the worker is stopped often
    with EmbeddedServer(tmp_path / "data") as server, closing(connect(server.url)) as client:
        settings = settings_for(server.url)
        with counting(settings, logs.configure(quiet=True)):
            shell = Shell(server.url, tmp_path)
            shell("emit", "view", "article:1", "--wait")
        shell("snapshot", "data/snapshot.sqlite", "--once")
        with serving(settings, backup=backup_text(settings)) as url:
            assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
            client.flushall()
            for begin in (lambda: None, lambda: shell("emit", "view", "article:1")):
                begin()
                (reason,) = httpx.get(f"{url}/readyz").json()["reasons"]
                assert f"{server.url} has no data of this deployment. The snapshot {tmp_path}/data/" in reason
                command = reason.rpartition("run: tallystream ")[2]
                with pytest.raises(NothingDeclared, match=f"so this worker waits.*{command}"):
                    refuse_lost_data(client, settings, creating=True)
            shell(*shlex.split(command))
            assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
        refuse_lost_data(client, settings, creating=True)


def test_each_command_names_the_archive_of_an_emptied_server(counted: Shell) -> None:
    """Without a snapshot, each command names the archive and how its events are counted again; this works."""
    (counted.folder / "tallystream.toml").write_text('[archive]\nurl = "archive"\n', encoding="utf-8")
    counted("archive", "--once")
    empty(counted)
    for command in COMMANDS[:-2]:
        told = counted(*command.split(), status=1).stderr
        assert "The archive archive has its events up to 20" in told
        assert "but there is no snapshot to restore" in told
    replay, ingest = (part.strip() for part in told.partition("and run: tallystream ")[2].split(", then: tallystream "))
    settings = Settings(redis=RedisSettings(url=counted.url))
    with counting(settings, logs.configure(quiet=True)):
        counted(*shlex.split(replay))
        counted(*shlex.split(ingest))
        with closing(Totals(counted.url)) as totals:
            assert totals.get("article:1", "view").value == 1


@pytest.mark.parametrize("backup", ["snapshot", "archive"])
def test_the_backup_is_named_without_secrets_and_not_to_everyone(counted: Shell, monkeypatch, backup: str) -> None:
    """No text has the user or the password of a backup's URL; an anonymous client of a service with tokens gets none.

    The texts are those of `/readyz` and of a worker that waits.
    """
    folder, secrets = counted.folder, ("KEY", "SECRET")
    counted(backup, str(folder / backup), "--once")
    local = SimpleNamespace(from_uri=lambda _: (fs.LocalFileSystem(), str(folder / backup)))
    monkeypatch.setattr(fs, "FileSystem", local)
    url = "s3://KEY:SECRET@bucket/path" if backup == "archive" else f"sqlite:///{folder}/snapshot"
    chosen = ArchiveSettings(url=url) if backup == "archive" else SnapshotSettings(url=url)
    settings = replace(settings_for(counted.url, **TOKENS), **{backup: chosen})
    empty(counted)
    with serving(settings, backup=backup_text(settings)) as service, closing(connect(counted.url)) as client:
        bodies = {
            token: httpx.get(f"{service}/readyz", headers={"Authorization": f"Bearer {token}"} if token else {}).text
            for token in ("", "unknown-token-of-somebody", *TOKENS.values())
        }
        with pytest.raises(NothingDeclared) as refused:
            refuse_lost_data(client, settings, creating=True)
        counted("emit", "view", "article:1")
        assert httpx.get(f"{service}/readyz").status_code == 503
    for text in (*bodies.values(), str(refused.value), read_archive(settings).place if backup == "archive" else ""):
        assert not any(secret in text for secret in secrets), text
    place = "s3://bucket/path" if backup == "archive" else f"{folder}/snapshot"
    for token, body in bodies.items():
        assert (place in body) == (token in TOKENS.values()), body
        assert (counted.url in body) == (token in TOKENS.values()), body
    assert place in str(refused.value)


@pytest.mark.parametrize("backup", ["snapshot", "archive", ""])
def test_status_names_the_backup_if_the_description_was_deleted(counted: Shell, backup: str) -> None:
    """If `tally:meta` was deleted, `status` and `get` name the backup that has the data; or that none has it."""
    url = "tally.sqlite" if backup == "snapshot" else "archive"
    if backup:
        (counted.folder / "tallystream.toml").write_text(f'[{backup}]\nurl = "{url}"\n', encoding="utf-8")
        counted(backup, "--once")
    with closing(connect(counted.url)) as client:
        client.delete("tally:meta")
    for command in ("status", "get article:1 view"):
        told = counted(*command.split(), status=1).stderr
        assert "tally:meta was deleted" in told
        assert "tallystream status" not in told
        has = "has its events up to 20" if backup == "archive" else "has it up to 20"
        assert (f"If the server has lost its data: the {backup} {url} {has}" in told) == bool(backup)
        assert ("none that is configured has it" in told) == (not backup)


def test_an_empty_server_without_a_backup_has_no_deployment(fresh_server, tmp_path) -> None:
    """If nothing shows that the server had data, each command prints that no deployment is stored."""
    shell = Shell(fresh_server().url, tmp_path)
    for command in COMMANDS[:-2]:
        told = shell(*command.split(), status=1).stderr
        assert ("nothing is stored" if command == "reopen" else "no deployment is stored") in told
    with closing(connect(shell.url)) as client:
        assert client.dbsize() == 0


def test_a_backup_whose_package_is_missing_is_passed_over(tmp_path, monkeypatch) -> None:
    """If no package is installed that reads the archive, it is passed over: the error states that there is no data."""
    monkeypatch.setitem(sys.modules, "tallystream_worker.archive.store", None)  # an import raises `ImportError`
    assert backup_of(Settings(archive=ArchiveSettings(str(tmp_path)))) == ""


def test_an_archive_without_its_package_gives_no_losses(counted: Shell, monkeypatch) -> None:
    """If no package is installed that reads the archive, `status` passes it over."""
    monkeypatch.setitem(sys.modules, "tallystream_worker.archive.store", None)  # an import raises `ImportError`
    settings = Settings(RedisSettings(counted.url), archive=ArchiveSettings(str(counted.folder)))
    with closing(Totals(counted.url)) as totals:
        assert find_losses(settings, totals) == []


def test_an_archive_of_a_later_topic_has_the_data(server, tmp_path) -> None:
    """If the archive was configured after a repartition, a worker still finds the data in it."""
    settings = Settings(RedisSettings(server.url), archive=ArchiveSettings(str(tmp_path)))
    with Harness(server.url, partitions=1) as harness, Producer(server.url) as producer:
        producer.emit("view", "article:1")
        producer.flush(10)
        harness.drain()
        moved(harness, 2)
        deployment = Deployment.load(harness.client)
        store = Store(str(tmp_path), log=deployment.layout.topic)
        Archive(harness.client, store, deployment).run_once(settled=0)
        assert "has its events up to 20" in backup_of(settings)


@pytest.mark.parametrize("backup", ["snapshot", "archive"])
def test_status_names_the_backup_with_later_entries(counted: Shell, backup: str) -> None:
    """If older data was put back, `status` fails, and names the backup that has later entries, and the command.

    After later events, the server may have the lost ones again: `status` then names `verify`, if the snapshot shows it.
    """
    url = "tally.sqlite" if backup == "snapshot" else "archive"
    (counted.folder / "tallystream.toml").write_text(f'[{backup}]\nurl = "{url}"\n', encoding="utf-8")
    with closing(connect(counted.url)) as client:
        counted(backup, "--once")
        older = copy_of(client)
        with counting(Settings(redis=RedisSettings(url=counted.url)), logs.configure(quiet=True)):
            counted("emit", "view", "article:1", "--wait")
        counted(backup, "--once")
        assert "lost" not in counted("status").stderr
        go_back(client, older)
        done = counted("status", status=1)
        assert "ledger: balances" in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("lost: ")]
        assert f"the {backup} {url} has entries of tally:" in line
        assert ("tallystream restore --force" if backup == "snapshot" else "tallystream archive --once") in line
        assert json.loads(counted("status", "--json", status=1).stdout)["lost"] == [line]
        with counting(Settings(redis=RedisSettings(url=counted.url)), logs.configure(quiet=True)):
            counted("emit", "view", "article:1", "--wait")
        told = counted("status").stderr
        assert ("tallystream verify" in told) == (backup == "snapshot")
        if backup == "snapshot":
            counted("restore", "--force")
            assert "lost" not in counted("status").stderr


def test_each_command_names_a_restore_of_another_file(counted: Shell) -> None:
    """After a restore of an older file, `restore`, `status` and `snapshot` first name what keeps the counters.

    After that command, they name no loss.
    """
    (counted.folder / "tallystream.toml").write_text('[snapshot]\nurl = "tally.sqlite"\n', encoding="utf-8")
    replacing = "tallystream snapshot --once --accept-loss"
    with closing(connect(counted.url)) as client:
        counted("snapshot", "older.sqlite", "--once")
        with counting(Settings(redis=RedisSettings(url=counted.url)), logs.configure(quiet=True)):
            counted("emit", "view", "article:1", "--wait")
        counted("snapshot", "--once")
        assert replacing not in counted("restore", "--force").stdout
        for keys in Deployment.load(client).layout.keys:
            client.xtrim(keys.stream, maxlen=0, approximate=False)
        told = counted("restore", "older.sqlite", "--force").stdout
        assert "The snapshot tally.sqlite, which the configuration names, was not restored" in told
        assert replacing in told
        (line,) = json.loads(counted("status", "--json", status=1).stdout)["lost"]
        assert re.match("passed over: another snapshot was restored at 20.*, after the snapshot tally.sqlite was", line)
        for told in (line, counted("snapshot", "--once", status=1).stderr):
            assert -1 < told.find(replacing) < told.find("tallystream restore --force")
        counted(*replacing.split()[1:])
        assert counted.json("status")["lost"] == []


@pytest.mark.parametrize("is_named", [False, True])
def test_a_snapshot_of_a_worker_after_a_restore_is_not_called_another_one(
    counted: Shell, monkeypatch, capsys, *, is_named: bool
) -> None:
    """If a worker takes a snapshot before the command ends, the command does not state that another one was restored.

    This is also so if a copy of the configured snapshot was restored.
    """
    file = counted.folder / "tally.sqlite"
    config = counted.folder / "tallystream.toml"
    config.write_text(f'[snapshot]\nurl = "{file}"\n', encoding="utf-8")
    counted("snapshot", "--once")
    named = shutil.copy(file, f"{counted.folder}/copy.sqlite") if is_named else None

    def then_take(*arguments: Any, **options: Any) -> Any:
        done = restore(*arguments, **options)
        counted("snapshot", "--once")
        return done

    monkeypatch.setattr("tallystream_worker.snapshot.restore.restore", then_take)
    assert restore_command(named, force=True, where=Where(redis=counted.url, config=config)) == 0
    assert "was not restored" not in capsys.readouterr().out


def test_status_states_one_order_if_both_backups_have_later_entries(counted: Shell) -> None:
    """If the archive and the snapshot have later entries, only the restore is named: it counts those of both."""
    (counted.folder / "tallystream.toml").write_text(
        '[snapshot]\nurl = "tally.sqlite"\n[archive]\nurl = "archive"\n', encoding="utf-8"
    )
    with closing(connect(counted.url)) as client:
        older = copy_of(client)
        for backup in ("snapshot", "archive"):  # the archive has one entry more
            with counting(Settings(redis=RedisSettings(url=counted.url)), logs.configure(quiet=True)):
                counted("emit", "view", "article:1", "--wait")
            counted(backup, "--once")
        value = counted("get", "article:1", "view", "--json").stdout
        go_back(client, older)
        lost = [line for line in counted("status", status=1).stderr.splitlines() if line.startswith("lost: ")]
        assert len(lost) == 2
        assert ["tallystream restore --force" in line for line in lost] == [True, False]
        assert not any("archive --once" in line for line in lost)
        counted("restore", "--force")
        assert json.loads(counted("get", "article:1", "view", "--json").stdout) | {"as_of": ""} == json.loads(value) | {
            "as_of": ""
        }
        assert "lost" not in counted("status").stderr


@pytest.mark.parametrize("has_entry", [False, True])
@pytest.mark.parametrize("is_plain", [False, True])
def test_status_fails_if_a_stream_was_deleted(fresh_server, tmp_path, *, is_plain: bool, has_entry: bool) -> None:
    """`status` fails, and names the stream, before a worker notices the loss, also if there is a new stream.

    It does not fail if a stream has entries, and no worker has counted there yet.
    """
    shell = Shell(fresh_server().url, tmp_path)
    with Harness(shell.url, partitions=1) as harness:
        keys = harness.layout.keys[0]
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
        shell("status")
        harness.client.delete(keys.stream)
        harness.fetch(0).ensure_group()
        if is_plain:
            harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
            harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
        else:
            with Producer(shell.url) as producer:
                for _ in range(2):
                    producer.emit("view", "a")
                    producer.flush(10)
        harness.drain()
        assert "ledger: balances" in shell("status").stderr
        harness.client.delete(keys.stream)
        if has_entry:
            harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"})
        told = shell("status", status=1).stderr
        assert f"{keys.stream} was deleted or evicted" in told
        assert "ledger: balances" not in told
        assert json.loads(shell("status", "--json", status=1).stdout)["obstacles"]


def test_status_names_a_missing_group_and_a_missing_stream(counted: Shell) -> None:
    """If the consumer group or the stream of a partition is missing, `status` names it, what mends it, and fails."""
    with closing(connect(counted.url)) as client:
        assert counted.json("status")["obstacles"] == []
        keys = Deployment.load(client).layout.keys_of("article:1")
        client.xgroup_destroy(keys.stream, keys.group)
        told = counted("status", status=1)
        (text,) = json.loads(counted("status", "--json", status=1).stdout)["obstacles"]
        assert text.startswith(f"{keys.stream}: consumer group '{keys.group}' is missing")
        assert "tallystream rebuild" in text
        assert text in told.stderr
        assert "unknown entries" not in told.stdout + told.stderr
        client.delete(keys.stream)
        (text,) = json.loads(counted("status", "--json", status=1).stdout)["obstacles"]
        assert text.startswith(f"{keys.stream} was deleted or evicted")
        assert text in counted("status", status=1).stderr


@pytest.mark.parametrize("lost", ["all", "stream"])
def test_a_command_names_the_keys_that_a_partition_has_lost(counted: Shell, lost: str) -> None:
    """Without all keys of a partition, or without its stream, a command names the key, and what mends the loss."""
    (counted.folder / "tallystream.toml").write_text('[snapshot]\nurl = "tally.sqlite"\n', encoding="utf-8")
    counted("snapshot", "--once")
    with closing(connect(counted.url)) as client:
        keys = Deployment.load(client).layout.keys_of("article:1")
        client.delete(*(client.scan_iter(f"{keys.prefix}*") if lost == "all" else [keys.stream]))
        key = keys.sequences if lost == "all" else keys.stream
        for command in ("drill", "retract --actor a", "retract --actor a --dry-run", "snapshot other.sqlite --once"):
            told = counted(*command.split(), status=1).stderr
            assert f"{key} was deleted or evicted" in told, command
            assert "tallystream restore --force" in told
        told = counted("snapshot", "--once", status=1).stderr
        assert keys.prefix in told
        assert "tallystream restore --force" in told


def test_a_refused_rebuild_states_how_to_continue_it_or_give_it_up(counted: Shell) -> None:
    """If an error leaves a rebuild, a retraction or a repartition unfinished, both commands are printed with it."""
    archive = ("--archive", "nothing://x")
    told = counted("rebuild", *archive, status=1).stderr
    again = "run the same tallystream {} command to continue, or give it up with: tallystream rebuild --drop\n"
    assert f"rebuild: generation 2 is being built: {again.format('rebuild')}" in told
    assert "archive.url" in told
    assert again.format("rebuild") in counted("status").stdout
    counted("rebuild", "--drop")
    with closing(connect(counted.url)) as client:
        deployment = Deployment.load(client)
        propose_without(client, deployment, Retraction(ends(client, deployment), subject="article:1"))  # interrupted
        assert f"rebuild: generation 3 is being built: {again.format('retract')}" in counted("status").stdout
        counted("retract", "--subject", "article:1")
        assert "is being built" not in counted("status").stdout
        counted("rebuild", "--drop")
        topic.propose(client, Deployment.load(client), 2)  # an interrupted repartition
    (counted.folder / "tallystream.toml").write_text('[archive]\nurl = "nothing://x"\n', encoding="utf-8")
    told = counted("rebuild", "--partitions", "4").stderr  # the present number
    assert f"repartition: topic 2 is being filled: {again.format('rebuild')}" in told
    told = counted("rebuild", "--partitions", "2", status=1).stderr
    assert f"repartition: topic 2 is being filled: {again.format('rebuild')}" in told
    counted("rebuild", "--drop")
    told = counted("rebuild", "--partitions", "2", status=1).stderr
    assert "is being filled" not in told  # it is given up


def test_a_damaged_record_of_a_dead_letter_is_named(counted: Shell) -> None:
    """If the record of a dropped dead letter is damaged, a rebuild names it, and leaves nothing unfinished."""
    with closing(connect(counted.url)) as client:
        keys = Deployment.load(client).layout.keys_of("article:1")
        client.hset(keys.dropped, "g 1-1", "AAAA")
        told = counted("rebuild", status=1).stderr
        assert "the record 'AAAA' of a dropped dead letter is damaged" in told
        client.hset(keys.dropped, "g 1-1", b"\xff")
        assert "is damaged" in counted("rebuild", status=1).stderr
        client.delete(keys.dropped)
        counted("rebuild")


def test_a_damaged_value_is_an_error_without_a_traceback(counted: Shell) -> None:
    """If another client has changed a value, a command fails with one line, which names the value and what to do."""
    with closing(connect(counted.url)) as client:
        keys = Deployment.load(client).layout.keys_of("article:1")
        meta = Deployment.load(client).layout.meta
        for key, name, value, told in (
            (meta, "partitions", b"x!", "the field partitions of the hash that describes the deployment"),
            (meta, "epoch", b"\xff", f"the field epoch of {meta} has the value '\\xff'"),
            (keys.live, None, b"1!2", f"{keys.live} has the value '1!2'"),
            (keys.ledger, "counted", b"x!", "ValueError: invalid literal"),
        ):
            kept = client.dump(key)
            client.hset(key, name, value) if name else client.set(key, value)
            line = counted("status", status=1).stderr.splitlines()[-1]
            assert line.startswith("tallystream: ")
            assert told in line
            assert ("tallystream reopen" if key != keys.ledger else "tallystream verify") in line
            if name == "partitions":
                assert told in counted("verify", status=2).stderr
            client.restore(key, 0, kept, replace=True)


def test_an_unfinished_restore_is_stated(counted: Shell) -> None:
    """If an error ends a restore after the counters were replaced, the command states that it is not finished."""
    with closing(connect(counted.url)) as client:
        keys = Deployment.load(client).layout.keys_of("article:1")
        letter = {"source": "1-1", "reason": "a", "events": 1, "attempts": 1, "metric": "view"}
        client.xadd(keys.dead, letter)
        counted("snapshot", "tally.sqlite", "--once", "--whole")
        client.hset(keys.dropped, "g 1-1", "AAAA")
        told = counted("restore", "tally.sqlite", "--force", status=1).stderr
        assert "is damaged" in told
        assert "the restore is not finished" in told
        client.delete(keys.dropped)
        assert "not finished" not in counted("restore", "tally.sqlite", "--force").stderr
