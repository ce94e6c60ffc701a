"""The record of changes of the rules is in the snapshot and in the archive, and a repartition keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.rules.changes import changes_of
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.generation import build
from tallystream_worker.rebuild.rebuild import propose
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = [Rules({"view": Metric(ids=None, windows=windows)}) for windows in ((), ("hour",), ("hour", "day"))]


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Provide a deployment whose rules have changed twice, with entries counted by each."""
    with Harness(server.url, rules=RULES[0], partitions=2) as harness:
        for rules in RULES:
            publish(harness, rules)
            count(harness)
        yield harness


def publish(harness: Harness, rules: Rules) -> None:
    """Publish rules as a worker does at its start."""
    open_deployment(Settings(RedisSettings(harness.url), rules=rules))
    harness.rules = rules


def count(harness: Harness) -> None:
    """Append one event to each partition, and count it."""
    with Producer(harness.url) as producer:
        for subject in "abcdefghij":
            producer.emit("view", subject)
        producer.flush(10)
    harness.drain()


def records(harness: Harness) -> tuple[Any, list[dict[bytes, bytes]]]:
    """Return the recorded changes, and the places of each partition."""
    layout = Deployment.load(harness.client).layout
    return read_changes(harness.client, layout), [harness.client.hgetall(keys.adopted) for keys in layout.keys]


def test_a_restore_brings_the_record_back(harness, tmp_path):
    """After the data was lost and restored, the changes, their times, their places and the number are the same."""
    before, places = records(harness)
    assert [len(each) for each in places] == [2, 2]
    deployment = Deployment.load(harness.client)
    database = Database(str(tmp_path / "copy.sqlite"))
    snapshots = Snapshotter(harness.client, database, deployment)
    snapshots.run_once()
    assert not snapshots.run_once().whole
    harness.client.flushall()
    restore(harness.client, Database(str(tmp_path / "copy.sqlite")))
    assert records(harness) == (before, places)
    assert Deployment.load(harness.client).numbered_rules_of(1) == (RULES[2], 3)
    count(harness)
    publish(harness, RULES[0])
    assert [change.number for change in changes_of(records(harness)[0])] == [1, 2, 3, 4]


@pytest.mark.parametrize("way", ["restore", "rebuild", "repartition"])
def test_the_next_change_has_a_place(harness, tmp_path, way):
    """A change of the rules has a place in every partition, also if it is the first after a restore or a switch."""
    chosen = Settings(RedisSettings(harness.url), rules=RULES[2])
    deployment = Deployment.load(harness.client)
    if way == "restore":
        database = Database(str(tmp_path / "copy.sqlite"))
        Snapshotter(harness.client, database, deployment).run_once()
        restore(harness.client, database, force=True)
    elif way == "rebuild":
        generation = propose(harness.client, deployment, RULES[2])
        build(chosen, Deployment.load(harness.client), generation, "")
    else:
        repartition(chosen, deployment, 3)
    publish(harness, RULES[0])
    harness.layout = Deployment.load(harness.client).layout
    count(harness)
    number = str(Deployment.load(harness.client).revision).encode()
    assert [number in places for places in records(harness)[1]] == [True] * harness.layout.partitions


def test_a_snapshot_has_no_change_after_its_rules(harness, tmp_path):
    """A change that is newer than the rules of the snapshot is not in it; its number is not used again."""
    deployment = Deployment.load(harness.client)
    publish(harness, RULES[0])
    database = Database(str(tmp_path / "copy.sqlite"))
    Snapshotter(harness.client, database, deployment).run_once()
    harness.client.flushall()
    restore(harness.client, database)
    changes = changes_of(records(harness)[0])
    assert [change.rules for change in changes] == [*RULES, RULES[-1]]
    assert (changes[-1].number, changes[-1].differences) == (5, [])  # 4 is the number of the lost rules


def test_a_repartition_keeps_the_record(harness):
    """The new topic has the changes of the old one; only the last one has a number of partitions, that of the topic.

    A later change gets the next number.
    """
    before, _ = records(harness)
    for _, fields in before:
        fields.pop(b"partitions")
    before[-1][1][b"partitions"] = b"3"
    deployment = Deployment.load(harness.client)
    repartition(Settings(RedisSettings(harness.url), rules=RULES[2]), deployment, 3)
    topic.drop(harness.client, Deployment.load(harness.client))
    assert records(harness) == (before, [{}] * 3)
    publish(harness, RULES[0])
    now = changes_of(records(harness)[0])
    assert [change.number for change in now] == [1, 2, 3, 4]
    assert now[3].differences == ["view: window hour removed", "view: window day removed"]
    assert not harness.client.exists(harness.layout.rule_changes)


def test_the_archive_keeps_every_change(harness, tmp_path):
    """The archive has each change, also those that the server no longer has."""
    store = Store(str(tmp_path / "archive"))
    archive = Archive(harness.client, store, Deployment.load(harness.client))
    archive.run_once(settled=0)
    before, _ = records(harness)
    assert list(store.rules()) == [name.decode() for name, _ in before]
    harness.client.delete(harness.layout.rule_changes)
    publish(harness, RULES[0])
    archive.run_once(settled=0)
    assert [int(change["number"]) for change in store.rules().values()] == [1, 2, 3, 4]
