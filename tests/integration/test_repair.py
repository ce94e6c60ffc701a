"""Each row of `docs/repair.md`: the event is made, its commands run while a worker runs, and totals are right."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream.storage.keys import Layout
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.load import load
from tallystream_worker.settings.settings import ArchiveSettings, SnapshotSettings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.findings import KINDS
from tests.paths import ROOT
from tests.rewind import copy_of, go_back, lose
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = Path(sys.executable).with_name("tallystream")
PAGE = (ROOT / "docs" / "repair.md").read_text(encoding="utf-8")
RULES: Final = """
[metric.view]
windows = ["hour"]
[metric.call]
limit = 20
per = "total"
[metric.vote]
once = "forever"
"""
SUBJECTS = [f"article:{number}" for number in range(8)]


def _rows() -> dict[str, list[str]]:
    """Return the other columns of each row of the tables, by the event."""
    table = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in PAGE.splitlines() if line[:2] == "| "]
    return {event: rest for event, *rest in table if event not in ("what happened", "---")}


ROWS = _rows()


class World:
    """A server with a worker, a producer, an archive and a snapshot, and the truth: the right totals."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self.url, self.folder = url, folder
        self.client: Any = stack.enter_context(closing(connect(url)))
        self._worker = stack.enter_context(ExitStack())
        self.placeholders: dict[str, str] = {}
        self.truth: dict[str, dict[str, int]] = {
            metric: dict.fromkeys(SUBJECTS, 0) for metric in ("view", "call", "vote")
        }
        self.configure()
        self.is_counting = False
        self.start()
        self.producer = Producer(url)

    def configure(self, rules: str = RULES) -> None:
        """Write the configuration."""
        (self.folder / "tallystream.toml").write_text(
            f'[redis]\nurl = "{self.url}"\n[archive]\nurl = "archive"\n[snapshot]\nurl = "tally.sqlite"\n{rules}',
            encoding="utf-8",
        )

    def start(self, *, archives: bool = False, snapshots: bool = False, **options: Any) -> None:
        """Start the worker; without `archives` and `snapshots`, the test copies itself, and knows what copies contain.

        With `snapshots`, the worker takes one as often as it can.
        """
        settings = load(self.folder / "tallystream.toml", {})
        archive = replace(settings.archive, url=str(self.folder / "archive")) if archives else ArchiveSettings()
        copy = SnapshotSettings(str(self.folder / "tally.sqlite"), every=0.2) if snapshots else SnapshotSettings()
        settings = replace(settings, archive=archive, snapshot=copy)
        self._worker.enter_context(counting(settings, logs.configure(quiet=True), **options))
        self.is_counting = True

    def stop(self) -> None:
        """Stop the worker."""
        self._worker.close()
        self.is_counting = False

    def emit(self, times: int = 3) -> None:
        """Emit events, count them in the truth, and wait until they are counted."""
        for number, subject in enumerate(SUBJECTS):
            for turn in range(times + number):
                self.producer.emit("view", subject, actor=f"user:{turn}")
                self.producer.emit("call", subject)
            self.producer.emit("vote", subject, actor="user:1")
            self.truth["view"][subject] += times + number
            self.truth["call"][subject] = min(20, self.truth["call"][subject] + times + number)
            self.truth["vote"][subject] = max(1, self.truth["vote"][subject])
        self.producer.flush(30, wait="counted")

    def copy(self) -> None:
        """Archive every entry, and take a snapshot."""
        deployment = Deployment.load(self.client)
        store = Store(str(self.folder / "archive"), log=deployment.layout.topic)
        Archive(self.client, store, deployment).run_once(settled=0)
        with closing(Database(str(self.folder / "tally.sqlite"))) as database:
            Snapshotter(self.client, database, deployment).run_once()

    def forget_producer(self) -> None:
        """End the producer, so that nothing is sent again."""
        self.producer.close()
        self.producer = Producer(self.url)

    def run(self, *command: str, status: int = 0) -> str:
        """Run a command; return what it printed. Its exit status must be `status`."""
        done = self._run(*command)
        assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def findings(self) -> set[str]:
        """Return the names of the findings of a verification of all but the snapshot."""
        done = self._run("verify", "--snapshot", "", "--json")
        assert done.stdout, done.stderr
        found = json.loads(done.stdout)
        return {each["name"] for each in found["findings"]}

    def totals(self) -> dict[str, dict[str, int]]:
        """Return the totals of all metrics and subjects."""
        with Totals(self.url) as totals:
            return {
                metric: {subject: totals.get(subject, metric).value for subject in SUBJECTS} for metric in self.truth
            }

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
        return subprocess.run(
            [PROGRAM, *command],
            cwd=self.folder, env=environment | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip

    def repair(self, commands: str) -> None:
        """Run the commands of a row."""
        for command in re.findall(r"`([^`]+)`", commands):
            program, *rest = (self.placeholders.get(word, word) for word in shlex.split(command))
            if program == "redis-cli":
                self.client.execute_command(*rest)
            else:
                assert program == "tallystream"
                self.run(*rest)


@pytest.fixture
def world(server, tmp_path, monkeypatch) -> Iterator[World]:
    """Provide counted events, which are archived and in a snapshot."""
    monkeypatch.setattr("tallystream_worker.runtime.partition_worker.BLOCK", 0.05)  # the worker is stopped often
    with ExitStack() as stack:
        found = World(server.url, tmp_path, stack)
        found.emit()
        found.copy()
        yield found
        found.producer.close()


def emptied(world: World) -> None:
    """The server is emptied."""
    world.client.flushall()


def _rewound(world: World) -> None:
    """The server goes back to data that lack events which the snapshot has, and the producer does not send again."""
    kept = copy_of(world.client)
    world.emit()
    world.stop()
    world.copy()
    world.forget_producer()
    go_back(world.client, kept)
    assert "lost" in world.run("snapshot", "--once", status=1)


def promoted(world: World) -> None:
    """A replica lacks the last events; the loss is accepted."""
    before = {metric: dict(values) for metric, values in world.truth.items()}
    _rewound(world)
    world.truth = before


def counter_deleted(world: World) -> None:
    """A counter is deleted, and another one is changed."""
    keys = Deployment.load(world.client).layout
    world.client.delete(keys.keys_of("article:1").total("view", "article:1"))
    world.client.incrby(keys.keys_of("article:2").total("call", "article:2"), 5)


def stream_deleted(world: World) -> None:
    """A stream is deleted."""
    world.client.delete(Deployment.load(world.client).layout.keys_of("article:1").stream)


def partition_emptied(world: World) -> None:
    """A partition loses all its keys."""
    lose(world.client, Deployment.load(world.client).layout.keys_of("article:1").prefix)


def _without_a_snapshot(world: World) -> None:
    """There is no snapshot, and the producer has ended."""
    world.stop()
    world.forget_producer()
    for file in world.folder.glob("tally.sqlite*"):
        file.unlink()


def _begins_again(world: World) -> None:
    """The partition of a subject has the right totals if they are 0."""
    layout = Layout()
    for subject in SUBJECTS:
        if layout.keys_of(subject) is layout.keys_of("article:1"):
            for values in world.truth.values():
                values[subject] = 0


def partition_without_a_snapshot(world: World) -> None:
    """A partition loses all its keys, there is no snapshot, and its producer has ended."""
    _without_a_snapshot(world)
    partition_emptied(world)
    _begins_again(world)


def stream_without_a_snapshot(world: World) -> None:
    """A stream whose entries were counted is deleted, and there is no snapshot."""
    _without_a_snapshot(world)
    stream_deleted(world)


def live_without_a_snapshot(world: World) -> None:
    """The key of a live generation is deleted, and there is no snapshot."""
    _without_a_snapshot(world)
    world.client.delete(Deployment.load(world.client).layout.keys_of("article:1").live)


def sentinel_without_a_snapshot(world: World) -> None:
    """The sequences of a partition are deleted, and there is no snapshot."""
    _without_a_snapshot(world)
    world.client.delete(Deployment.load(world.client).layout.keys_of("article:1").sequences)
    _begins_again(world)


def meta_without_a_snapshot(world: World) -> None:
    """The description of the deployment is deleted while a worker runs, and there is no snapshot."""
    _without_a_snapshot(world)
    world.start(archives=True)
    meta_deleted(world)


def later_meta_without_a_snapshot(world: World) -> None:
    """After a repartition, the description of the new topic is deleted while a worker runs; there is no snapshot."""
    _without_a_snapshot(world)
    world.start(archives=True)
    world.run("rebuild", "--partitions", "3", "--archive", "archive")
    world.emit()
    world.client.delete(Deployment.load(world.client).layout.meta)


def meta_and_partition_without_a_snapshot(world: World) -> None:
    """The description and all keys of a partition are deleted, and there is no snapshot."""
    _without_a_snapshot(world)
    world.start(archives=True)
    partition_emptied(world)
    meta_deleted(world)
    _begins_again(world)


def meta_deleted(world: World) -> None:
    """The description of the deployment is deleted."""
    world.client.delete("tally:meta")


def rule_record_deleted(world: World) -> None:
    """The record of the changes of the rules is deleted."""
    assert world.client.delete(Deployment.load(world.client).layout.rule_changes) == 1


def evicted(world: World) -> None:
    """The server evicts keys, also ours."""
    client, before = world.client, world.client.dbsize()
    too_much = itertools.count(1000, 1000)  # bytes; buffers of the server are not counted, and their size changes

    def keys_are_gone() -> bool:
        memory = client.info("memory")
        client.config_set("maxmemory", memory["used_memory"] - memory["mem_not_counted_for_evict"] - next(too_much))
        client.set("filler", "x")
        return client.dbsize() < before - 10

    world.stop()
    client.config_set("maxmemory-policy", "allkeys-random")
    try:
        until(keys_are_gone, what="an eviction of ten keys")
    finally:
        client.config_set("maxmemory", 0)
        client.delete("filler")


def rule_changed(world: World) -> None:
    """A limit is lowered, and raised again in the configuration only."""
    world.stop()
    world.configure(RULES.replace("limit = 20", "limit = 2"))
    world.start()
    world.emit(5)
    assert "limit" in world.run("rules", "--history")
    world.configure()


def metric_removed(world: World) -> None:
    """A worker is started with a configuration that lacks a metric, which it removes."""
    world.stop()
    world.configure(RULES.replace('[metric.vote]\nonce = "forever"\n', ""))
    world.start(removing=["vote"])
    until(lambda: "vote" not in Deployment.load(world.client).rules.metric, what="the metric to be removed")
    stream = Deployment.load(world.client).layout.keys_of("article:3").stream
    world.client.xadd(stream, {"metric": "vote", "subject": "article:3", "actor": "u"})
    world.truth["vote"]["article:3"] += 1
    until(lambda: "not declared" in world.run("dead"), what="a dead letter")
    world.forget_producer()  # a producer reads the rules again after at most 10 seconds; a new one does at once
    world.configure()


def wrong_events(world: World) -> None:
    """An application sends each view twice for some minutes; they are replaced by those that it should have sent."""
    for subject in SUBJECTS:
        for _ in range(world.truth["view"][subject]):
            world.producer.emit("view", subject)
    world.producer.flush(30, wait="counted")
    now = int(time.time()) // 60 * 60
    right = [
        json.dumps({"metric": "view", "subject": subject, "at": now})
        for subject, views in world.truth["view"].items()
        for _ in range(views)
    ]
    (world.folder / "right.ndjson").write_text("\n".join(right) + "\n", encoding="utf-8")
    world.placeholders = {
        "METRIC": "view", "FROM": str(now - 3600), "TO": str(now + 3600), "RIGHT.ndjson": "right.ndjson"
    }  # fmt: skip


def actor_must_go(world: World) -> None:
    """The views of an actor are taken back."""
    world.placeholders = {"ACTOR": "bot:1"}
    for subject in SUBJECTS:
        world.producer.emit("view", subject, actor="bot:1")
    world.producer.flush(30, wait="counted")
    assert world.totals() != world.truth


def restored_beside(world: World) -> None:
    """A snapshot is restored while the worker runs."""
    world.emit()
    world.run("restore", "--force")


EVENTS: Final[dict[str, Callable[[World], None]]] = {
    "The server was emptied, or replaced by an empty one": emptied,
    "Older data was restored on the server": _rewound,
    "The server lost the end of its append-only file": _rewound,
    "A replica that lagged was promoted": promoted,
    "A counter was deleted or changed": counter_deleted,
    "A stream was deleted": stream_deleted,
    "A partition lost all its keys, for example because a node of a cluster came back empty": partition_emptied,
    "A partition lost all its keys, and there is no snapshot": partition_without_a_snapshot,
    "A stream was deleted, and there is no snapshot": stream_without_a_snapshot,
    "The key `live` of a partition was deleted, and there is no snapshot": live_without_a_snapshot,
    "The key `seq` or `ledger` of a partition was deleted, and there is no snapshot": sentinel_without_a_snapshot,
    "The hash `tally:meta` was deleted": meta_deleted,
    "The hash `tally:meta` and all keys of a partition were lost, and there is no snapshot": (
        meta_and_partition_without_a_snapshot
    ),
    "The hash `tally:meta` was deleted, and there is no snapshot": meta_without_a_snapshot,
    "The record of the changes of the rules, `tally:{tally:meta}:rules`, was deleted": rule_record_deleted,
    "After a change of the number of partitions, the hash of the new streams (such as `tally:{p0.425}:l2:meta`) was "
    "deleted, and there is no snapshot": later_meta_without_a_snapshot,
    "Keys were evicted": evicted,
    "A rule was changed by mistake": rule_changed,
    "A metric was removed by mistake": metric_removed,
    "The application sent wrong events": wrong_events,
    "The events of an actor must go": actor_must_go,
    "A worker ran during a restore": restored_beside,
}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("event", EVENTS)
def test_the_commands_of_a_row_repair_its_event(world, event):
    """After the event, `verify` has the findings of the row. After the commands, it has none, and totals are right.

    One finding is allowed if a note of the row states that lost events are in files of the archive.
    """
    signs, stop, commands, lost = ROWS[event]
    world.stop()
    world.start(archives=stop != "archiving", snapshots=True)
    EVENTS[event](world)
    if named := set(re.findall(r"`([a-z.]+)`", signs)) & KINDS.keys():
        assert named <= world.findings()
    if not world.is_counting and EVENTS[event] is not evicted:  # without `tally:meta`, no worker starts
        world.start(archives=stop != "archiving", snapshots=True)
    world.repair(commands)
    world.stop()
    world.start()
    world.emit(2)
    world.copy()
    if not re.search(r"note 1|note 2|notes \[[12]", lost):
        world.run("verify")
    assert world.findings() <= {"archive.set_aside"}
    assert world.totals() == world.truth


def test_every_row_has_a_test():
    """The rows of the page are those that are tested here."""
    assert ROWS.keys() == EVENTS.keys()
