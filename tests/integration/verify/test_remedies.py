"""The remedies of findings about the snapshot and the group mend them: afterwards, a verification finds neither."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from redis.exceptions import RedisError

from tallystream import Producer
from tallystream.client.error_text import text_of
from tallystream.deployment import Deployment
from tallystream.errors import GROUP_REMEDY, StreamError
from tallystream.rules.changes import changes_of
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.archive.service import Archive
from tallystream_worker.cli.repartition import to_partitions
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.runtime.publication import publish_again, publish_rules
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.findings import KINDS
from tallystream_worker.verify.mends import note_snapshot
from tallystream_worker.verify.report import Verification
from tests.http_service import http_service
from tests.integration.verify.test_verify import RULES, World, change_table, emit_each, names, rebuilt, world
from tests.rewind import copy_of, go_back
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["world"]  # the fixture


def commands_in(remedy: str) -> list[str]:
    """Return the commands that a remedy names, with their options, in their order."""
    return re.findall(r"tallystream [a-z]+(?: --[a-z-]+(?: [^\s;,(-][^\s;,(]*)?)*", remedy)


def run(world: World, command: str, snapshot: str, **variables: str) -> None:
    """Run a command, which must succeed, with the server of a world, a database of snapshots, and more variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    environment |= {"TALLYSTREAM_REDIS_URL": world.harness.url, "TALLYSTREAM_SNAPSHOT_URL": snapshot} | variables
    program, *rest = command.split()
    done = subprocess.run(
        [Path(sys.executable).with_name(program), *rest],
        env=environment, cwd=world.folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def of_other_data(world: World) -> None:
    """The database has the snapshot of another deployment."""
    change_table(world, "UPDATE facts SET value = 'x' WHERE name = 'epoch'")


def replaced(world: World) -> None:
    """The server was emptied, and a worker has begun with empty counters."""
    world.client.flushall()
    deployment = Deployment.create_or_load(world.client, 1)
    publish_rules(world.client, Settings(RedisSettings(world.harness.url), rules=RULES), deployment)
    world.harness.fetch(0, "harness").ensure_group()


def of_an_earlier_generation(world: World) -> None:
    """The counters were rebuilt, and no snapshot was taken since, for days."""
    rebuilt(world)
    change_table(world, "UPDATE positions SET taken = 1")


def of_an_earlier_topic(world: World) -> None:
    """The number of partitions was changed, and no snapshot was taken since, for days."""
    settings = Settings(RedisSettings(world.harness.url), rules=RULES)
    to_partitions(settings, Deployment.load(world.client), 2, "", accept_loss=False, json=True)
    change_table(world, "UPDATE positions SET taken = 1")


def ahead(world: World) -> None:
    """The server goes back to older data."""
    before = copy_of(world.client)
    world.emit()
    world.harness.drain("closer", claim_idle=0)
    world.copy()
    go_back(world.client, before)


def ahead_unseen(world: World) -> None:
    """The server goes back to older data, and gets events with later IDs than those that it lost."""
    ahead(world)
    world.emit()
    world.harness.drain("closer", claim_idle=0)


def passed_over(world: World) -> None:
    """An older copy of the snapshot was restored, and the stream lacks the later entries."""
    older = world.folder / "older.sqlite"
    with sqlite3.connect(world.database.place) as connection, closing(sqlite3.connect(older)) as other:
        connection.backup(other)
    world.emit()
    world.harness.drain("closer", claim_idle=0)
    world.copy()
    world.client.flushall()
    with closing(Database(str(older))) as database:
        restore(world.client, database)


def passed_over_of_a_later_topic(world: World) -> None:
    """A copy of the snapshot from before a repartition was restored, on a server that was not emptied."""
    older = world.folder / "older.sqlite"
    with sqlite3.connect(world.database.place) as connection, closing(sqlite3.connect(older)) as other:
        connection.backup(other)
    settings = Settings(RedisSettings(world.harness.url), rules=RULES)
    to_partitions(settings, Deployment.load(world.client), 2, "", accept_loss=False, json=True)
    Snapshotter(world.client, world.database, Deployment.load(world.client)).run_once()
    with closing(Database(str(older))) as database:
        restore(world.client, database, force=True, accept_loss=True)


def behind(world: World) -> None:
    """Entries after the snapshot are gone from the stream."""
    world.emit(10)
    world.harness.drain("closer", claim_idle=0)
    removed = world.client.xtrim(world.keys.stream, maxlen=2, approximate=False)
    world.client.hincrby(world.keys.ledger, "entries:retired", removed)


def changed(statement: str) -> Callable[[World], None]:
    """Return a function that changes the tables of the snapshot."""
    return lambda world: change_table(world, statement)


CASES: Final[dict[str, tuple[str, Callable[[World], None], int]]] = {
    "no complete snapshot": ("snapshot.missing", changed("DELETE FROM positions"), 0),
    "a server with new data": ("snapshot.other", replaced, 0),
    "a database of other data": ("snapshot.other", of_other_data, 1),
    "an earlier generation": ("snapshot.outdated", of_an_earlier_generation, 0),
    "an earlier topic": ("snapshot.outdated", of_an_earlier_topic, 0),
    "an old snapshot": ("snapshot.old", changed("UPDATE positions SET taken = 1"), 0),
    "older data, to restore": ("snapshot.ahead", ahead, 0),
    "older data, to accept": ("snapshot.ahead", ahead, 1),
    "older data and later events, to restore": ("snapshot.ahead", ahead_unseen, 0),
    "older data and later events, to accept": ("snapshot.ahead", ahead_unseen, 1),
    "an older file, to accept": ("snapshot.passed_over", passed_over, 0),
    "an older file, to go back": ("snapshot.passed_over", passed_over, 1),
    "an older file of an earlier topic, to accept": ("snapshot.passed_over", passed_over_of_a_later_topic, 0),
    "an older file of an earlier topic, to go back": ("snapshot.passed_over", passed_over_of_a_later_topic, 1),
    "removed entries": ("snapshot.behind", behind, 0),
    "a changed row": ("snapshot.damaged", changed("UPDATE totals SET value = value + 1"), 0),
    "a removed row": ("snapshot.differs", changed("DELETE FROM votes"), 0),
}
"""By what happened: the finding, how to cause it, and which command of its remedy to run."""


@pytest.mark.parametrize("case", CASES)
def test_the_remedy_of_a_snapshot_mends_it(world: World, tmp_path: Path, case: str) -> None:
    """Each command in the remedy of a finding about the snapshot exits with 0, and the finding is gone."""
    name, spoil, choice = CASES[case]
    spoil(world)
    report = world.verify(archive=False)
    assert name in names(report)
    remedy = report.remedy(report.findings[name])
    url = str(world.folder / "snapshot.sqlite")
    if spoil is of_other_data:
        assert "name another database" in remedy
        url = str(tmp_path / "another.sqlite")
        world.database.close()
        world.database = Database(url)
    run(world, [each for each in commands_in(remedy) if "verify" not in each][choice], url)
    report = world.verify(archive=False)
    assert not {each for each in names(report) if each.startswith("snapshot.")}
    assert not [each for each in report.failed if each.check == "snapshot"]


def test_each_remedy_of_a_snapshot_is_tried() -> None:
    """The cases of this file have every finding about the snapshot."""
    assert {name for name in KINDS if name.startswith("snapshot.")} == {name for name, *_ in CASES.values()}


def _untrimmed(world: World) -> None:
    del world


def _trimmed(world: World) -> None:
    removed = world.client.xtrim(world.keys.stream, maxlen=5, approximate=False)
    world.client.hincrby(world.keys.ledger, "entries:retired", removed)


@pytest.mark.parametrize(
    ("prepare", "has_archive", "command"),
    [
        (_untrimmed, True, "tallystream rebuild"),
        (_trimmed, True, "tallystream rebuild --archive"),
        (_trimmed, False, "tallystream restore --force"),
    ],
)
def test_a_missing_group_has_one_remedy(world: World, prepare: Callable[[World], None], has_archive, command) -> None:
    """The finding, the log of a worker, an audit, a snapshot and `/readyz` name the same commands.

    The finding names the one that works with this data, and it mends the group.
    """
    prepare(world)
    world.client.xgroup_destroy(world.keys.stream, world.keys.group)
    report = world.verify(archive=has_archive)
    assert "group.missing" in names(report)
    (_, remedied) = report.remedy(report.findings["group.missing"]).split("Otherwise: ")
    assert remedied.startswith(command)
    with pytest.raises(StreamError) as paused:
        world.harness.fetch(0).ensure_group()
    with pytest.raises(StreamError) as refused:
        audit(world.client, Deployment.load(world.client), RULES)
    with pytest.raises(RedisError) as failed:
        Snapshotter(world.client, world.database, Deployment.load(world.client)).run_once()
    told = [str(paused.value), str(refused.value), text_of(failed.value)]
    with http_service(world.harness.url) as http:
        told += http.get("/readyz").json()["reasons"]
    assert len(set(told)) == 1
    assert GROUP_REMEDY in told[0]
    url = str(world.folder / "snapshot.sqlite")
    run(world, commands_in(remedied)[0], url)
    assert "group.missing" not in names(world.verify(archive=has_archive))


def test_the_finding_that_explains_the_others_comes_first(world: World) -> None:
    """If older data was put back, the loss is the first finding, and the others name it instead of a rebuild."""
    ahead_unseen(world)
    world.client.incrby(world.keys.total("view", "a1"))
    report = world.verify()
    assert {"snapshot.ahead", "archive.ahead", "counters.differ"} <= names(report)
    first, *others = report.summary()["findings"]
    assert first["name"] == "snapshot.ahead"
    assert {each["remedy"].partition(",")[0] for each in others} == {"first mend snapshot.ahead"}


@pytest.mark.parametrize("has_snapshot", [True, False])
@pytest.mark.parametrize("key", ["stream", "sequences", "ledger", "live", "*"])
def test_a_lost_partition_has_one_repair(world: World, key: str, *, has_snapshot: bool) -> None:
    """If a partition loses a key or all keys, one finding names the one repair, and the others point to it.

    A check that the loss makes impossible names the finding too, and no error of the server.
    """
    lost = world.client.keys(f"{world.keys.prefix}*") if key == "*" else [getattr(world.keys, key)]
    world.client.delete(*lost)
    report = world.verify(archive=False, snapshot=has_snapshot)
    first, *others = report.in_order()
    assert first.name == ("log.missing" if key == "stream" else "keys.lost")
    forced = " --force" if key in ("sequences", "ledger") else ""
    command = "tallystream restore --force" if has_snapshot else f"tallystream reopen{forced}"
    assert report.remedy(first).partition(",")[0] == command
    assert "tallystream" not in f"{first.details}"
    assert all(report.remedy(each).startswith(f"first mend {first.name}") for each in others)
    assert {each.check for each in report.failed} == {"counters", *["snapshot"] * has_snapshot}
    assert all(each.text.endswith(f": see the fault {first.name}") for each in report.failed)
    run(world, command, str(world.folder / "snapshot.sqlite") if has_snapshot else "")
    assert not names(world.verify(archive=False, snapshot=has_snapshot)) & {"keys.lost", "log.missing"}


LOST_KEYS: Final[dict[str, tuple[Callable[[World], list[str]], str]]] = {
    "keys of counters": (lambda w: [w.keys.forgotten, w.keys.periods], "tallystream rebuild"),
    "the record of the rules": (lambda w: [w.layout.rule_changes], "tallystream reopen"),
    "two needed keys": (lambda w: [w.keys.topic_ledger, w.keys.live], "tallystream reopen --force"),
    "a needed key, the record and a key of counters": (
        lambda w: [w.keys.live, w.keys.forgotten, w.layout.rule_changes],
        "tallystream reopen; then: tallystream rebuild",
    ),
}  # fmt: skip
"""By which keys are lost: their names, and what brings them back without a snapshot and without an archive."""


@pytest.mark.parametrize("case", LOST_KEYS)
def test_the_remedy_of_lost_keys_mends_them(world: World, case: str) -> None:
    """The finding has no list of cases: it names the commands for the keys that are lost, and they bring these back."""
    lost, expected = LOST_KEYS[case]
    publish_again(world.client, Deployment.load(world.client), 0)
    world.client.delete(*lost(world))
    report = world.verify(archive=False, snapshot=False)
    assert report.remedy(report.findings["keys.lost"]) == expected
    for command in expected.split("; then: "):
        run(world, command, "")
    assert "keys.lost" not in names(world.verify(archive=False, snapshot=False))


@pytest.mark.parametrize("has_snapshot", [True, False])
def test_a_lost_description_has_one_remedy(world: World, *, has_snapshot: bool) -> None:
    """If the hash that describes the deployment is lost, the remedy depends on whether there is a snapshot."""
    world.client.delete(world.layout.root)
    report = world.verify(snapshot=has_snapshot)
    (finding,) = report.in_order()
    assert report.remedy(finding) == ("tallystream restore --force" if has_snapshot else "tallystream reopen")


@pytest.mark.parametrize(
    ("namespace", "epoch", "is_whole", "expected"),
    [
        ("tally", "own", True, True),
        ("tally", "lost", True, True),
        ("tally", "another", True, False),
        ("shop", "own", True, False),
        ("tally", "own", False, False),
    ],
)
def test_only_a_whole_snapshot_of_the_same_data_can_be_restored(
    world: World, namespace: str, epoch: str, expected: bool, *, is_whole: bool
) -> None:
    """Otherwise no remedy names it. If the server has lost the epoch of its data, each snapshot may be of this data."""
    epochs = {"own": Deployment.load(world.client).epoch, "lost": None, "another": "another"}
    if not is_whole:
        world.database.state({"partitions": str(world.layout.partitions + 1)})
    report = Verification(1.0)
    note_snapshot(report, world.database, namespace, epochs[epoch])
    assert report.has_snapshot is expected


def test_an_empty_snapshot_cannot_be_restored(tmp_path: Path) -> None:
    """A worker writes the first snapshot some time after it has created the file."""
    report = Verification(1.0)
    with closing(Database(str(tmp_path / "empty.sqlite"))) as database:
        note_snapshot(report, database, "tally", None)
    assert report.has_snapshot is False


@pytest.mark.parametrize("place", ["the snapshot", "the archive"])
@pytest.mark.parametrize("is_followed", [True, False])
def test_the_remedy_of_lost_rules_mends_them(world: World, place: str, *, is_followed: bool) -> None:
    """A command makes the changes again that the server has lost; then it has their rules, with a higher number.

    This is so whether or not a worker has given the older rules a higher number.
    """
    changed = Rules({**RULES.metric, "view": Metric(windows=("hour",), ids=None)})
    publish_again(world.client, Deployment.load(world.client), 0)
    earlier = {key: world.client.dump(key) for key in (world.layout.meta, world.layout.rule_changes)}
    settings = Settings(RedisSettings(world.harness.url), rules=changed)
    publish_rules(world.client, settings, Deployment.load(world.client))
    lost, archive = Deployment.load(world.client), str(world.folder / "archive")
    if place == "the archive":
        Archive(world.client, world.store, lost).run_once(settled=0)
    else:
        Snapshotter(world.client, world.database, lost).run_once()
    for key, value in earlier.items():
        world.client.restore(key, 0, value, replace=True)
    if is_followed:
        publish_again(world.client, Deployment.load(world.client), lost.revision)
    report = world.verify()
    assert "rules.missing" in names(report)
    commands = re.findall(r"tallystream (?:restore --force|reopen)", report.remedy(report.findings["rules.missing"]))
    assert len(commands) == 1
    (command,) = commands
    run(world, command, str(world.folder / "snapshot.sqlite"), TALLYSTREAM_ARCHIVE_URL=archive)
    found = Deployment.load(world.client)
    assert found.rules.metric["view"] == changed.metric["view"]
    assert found.revision >= lost.revision
    numbers = [change.number for change in changes_of(read_changes(world.client, world.layout))]
    assert lost.revision in numbers
    assert numbers[-1] == found.revision
    assert "rules.missing" not in names(world.verify())


def lose_and_send_again(world: World, number: int, back_up: Callable[[], object]) -> None:
    """Emit `number` times and call `back_up`; then put the earlier data back, and wait until all is sent again."""
    before = copy_of(world.client)
    with Producer(world.harness.url, linger=0) as producer:
        for each in range(number):
            emit_each(producer, each)
            producer.flush(10)
        back_up()
        length = world.client.xlen(world.keys.stream)
        go_back(world.client, before)
        emit_each(producer, number)
        producer.flush(10)
        until(lambda: world.client.xlen(world.keys.stream) > length, what="the entries to be sent again")


def test_entries_that_are_sent_again_are_no_fault(world: World) -> None:
    """If older data was put back, and the producer has sent all lost entries again, a verification finds nothing."""

    def take_a_snapshot() -> None:
        world.harness.drain("closer", claim_idle=0)
        Snapshotter(world.client, world.database, Deployment.load(world.client)).run_once()

    lose_and_send_again(world, 20, take_a_snapshot)
    world.harness.drain("closer", claim_idle=0)
    report = world.verify(archive=False)
    assert (names(report), report.failed) == (set(), [])
    assert [each for each in report.limits if "have sent all its entries again" in each.text]
    Snapshotter(world.client, world.database, Deployment.load(world.client)).run_once()
    assert [each for each in world.verify(archive=False).proofs if each.check == "snapshot"]


@pytest.mark.parametrize("place", ["in the middle", "at the end"])
def test_a_removed_file_is_written_again(world: World, place: str) -> None:
    """Without a copy of a removed file, the named steps archive its entries again, if the stream still has them."""
    files = world.files()
    files[1 if place == "in the middle" else -1].unlink()
    report = world.verify()
    name = "archive.lacks" if place == "in the middle" else "archive.gap"
    assert (
        "then: tallystream archive --once" in report.remedy(report.findings["archive.lacks"]) or place == "at the end"
    )
    command, *_ = commands_in(report.remedy(report.findings[name]))
    run(world, command, "", TALLYSTREAM_ARCHIVE_URL=world.store.url)
    if place == "in the middle":
        assert names(world.verify()) == {"archive.gap", "archive.lacks"}
        for file in files[2:]:
            file.rename(world.folder / file.name)
        run(world, command, "", TALLYSTREAM_ARCHIVE_URL=world.store.url)
    report = world.verify()
    assert (names(report), report.failed) == (set(), [])
