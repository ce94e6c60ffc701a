"""The rules that are live when a restore begins stay live; an entry is counted by the rules that counted it before."""

from __future__ import annotations

import os
import random
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.producing.decider import Decider
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.metrics import publish as publish_text
from tallystream.storage.rule_changes import read_changes
from tallystream.wire.event import Event
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.generation import build
from tallystream_worker.process.partition_names import partition_names
from tallystream_worker.rebuild.rebuild import propose
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.live_rules import LIVE_RULES
from tallystream_worker.snapshot.partition_restore import PartitionRestore
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.snapshot.restore import Restored

SEEDS = int(os.environ.get("TALLYSTREAM_EXAMPLES", "3"))
SUBJECTS = "abcdefgh"
OLD = Rules({"view": Metric(ids=None, limit=2, per="total")})
NEW = Rules(
    {
        "view": Metric(ids=None, limit=5, per="total"),
        "clap": Metric(ids=None, windows=("hour",), top=3),
    }
)
OTHERS = [
    OLD,
    NEW,
    Rules({"view": Metric(ids=None, windows=("hour", "day"))}),
    Rules({"view": Metric(ids=None, limit=3, per="day"), "clap": Metric(once="forever")}),
    Rules({"clap": Metric(ids=None)}),
]


class World:
    """A deployment with published rules, and a database for its snapshots."""

    def __init__(self, harness: Harness, database: Database) -> None:
        self.harness, self.client, self.database = harness, harness.client, database
        self.publish(OLD)

    def publish(self, rules: Rules) -> None:
        """Publish rules as a worker does at its start, instead of those before."""
        open_deployment(
            Settings(RedisSettings(self.harness.url), rules=rules), removing=list(self.harness.rules.metric)
        )
        self.harness.rules = rules

    def emit(self, metric: str, *, count: bool = True) -> None:
        """Append an event for each subject, and count it."""
        for subject in SUBJECTS:
            keys = self.harness.layout.keys_of(subject)
            self.client.xadd(keys.stream, {"metric": metric, "subject": subject, "actor": "u1"})
        if count:
            self.harness.drain()

    def snapshot(self) -> None:
        """Take a snapshot."""
        Snapshotter(self.client, self.database, Deployment.load(self.client)).run_once()

    def restore(self, **options: Any) -> Restored:
        """Restore the snapshot to the server, which is not empty, and use what is live then."""
        done = restore(self.client, self.database, force=True, **options)
        self.harness.layout = Deployment.load(self.client).layout
        return done

    def state(self) -> tuple[Any, ...]:
        """Return the totals, the ledger, the rules and their changes."""
        deployment = Deployment.load(self.client)
        ledger = {name: n for name, n in self.harness.ledger().items() if name.partition("@")[0] not in HIDDEN}
        with closing(Totals(self.harness.url)) as totals:
            assert totals.run(query_ledger(deployment.layout)).unaccounted == 0
        return (
            {name: total for name, total in self.harness.totals().items() if total},
            ledger,
            deployment.rules,
            deployment.revision,
            read_changes(self.client, deployment.layout),
        )

    def places(self) -> list[dict[bytes, bytes]]:
        """Return the places of the rules in each partition."""
        return [self.client.hgetall(keys.adopted) for keys in self.harness.layout.keys]


HIDDEN = ("unlisted", "total", "rules")


@pytest.fixture
def world(server, tmp_path) -> Iterator[World]:
    """Provide a deployment with two partitions and the rules `OLD`."""
    with (
        Harness(server.url, rules=OLD, partitions=2) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        yield World(harness, database)


def test_rules_of_other_data_that_are_unknown_end_no_restore(world, monkeypatch):
    """If this release cannot read the rules that an interrupted restore has noted, and that are of other data, it ends.

    It then states that the rules before it are not known.
    """
    world.emit("view")
    world.snapshot()
    before = world.state()
    with monkeypatch.context() as patch:
        patch.setattr(PartitionRestore, "open", interrupted)
        with pytest.raises(OSError, match="interrupted"):
            world.restore()
    root = world.harness.layout.root
    noted = msgspec.json.decode(world.client.hget(root, LIVE_RULES))
    world.client.hset(root, LIVE_RULES, msgspec.json.encode(noted | {"epoch": "other", "published": "{"}))
    done = world.restore()
    assert (done.former, done.rules) == (None, OLD)
    assert world.state()[:3] == before[:3]


def interrupted(*_: Any) -> None:
    """End a restore, as an interruption does."""
    raise OSError("interrupted")


def test_a_metric_that_was_declared_after_the_snapshot_stays(world):
    """Its events are counted, producers accept it, and the rules have the same number, changes and places."""
    world.emit("view")
    world.snapshot()
    world.publish(NEW)
    world.emit("clap")
    world.emit("view")
    before, places = world.state(), world.places()
    assert world.restore().kept
    assert (world.state(), world.places()) == (before, places)
    assert world.harness.dead() == []
    with Producer(world.harness.url) as producer:
        producer.emit("clap", "a")
        producer.flush(10)
    world.harness.drain()
    assert world.harness.totals()["clap", "a"] == 2


def test_events_are_counted_by_the_rules_that_counted_them(world):
    """An event that a limit rejected before the limit was raised is rejected again, and a later one is counted."""
    world.snapshot()
    for _ in range(3):
        world.emit("view")
    world.publish(NEW)
    for _ in range(3):
        world.emit("view")
    before = world.state()
    assert before[0]["view", "a"] == 4
    world.restore()
    assert world.state() == before


@pytest.mark.parametrize("limit", [1, 5])
def test_decided_events_keep_their_outcome(world, limit):
    """What `decide` accepted or rejected while entries waited stays so, although the limit was changed then."""
    world.emit("view")
    world.snapshot()
    world.emit("view", count=False)
    decider = Decider(world.client, Deployment.load(world.client))
    assert [decider(Event("view", "a")).accepted for _ in range(3)] == [True, False, False]
    world.publish(Rules({"view": Metric(ids=None, limit=limit, per="total")}))
    world.emit("view")
    before = world.state()
    world.restore()
    assert world.state() == before


def test_a_partition_that_had_counted_nothing_follows_each_change(world):
    """If a partition had no event at the snapshot, its later events are counted by the rules of their time too."""
    world.snapshot()
    for rules, events in ((NEW, 4), (Rules({"view": Metric(ids=None, limit=3, per="total")}), 1)):
        soon = time.time() * 1000 + 2
        until(lambda soon=soon: time.time() * 1000 > soon, what="2 ms, because a change has its time as its place")
        world.publish(rules)
        until(lambda soon=soon: time.time() * 1000 > soon + 4, what="another 2 ms")
        for _ in range(events):
            world.emit("view")
    before = world.state()
    assert before[0]["view", "a"] == 4
    world.restore()
    assert world.state() == before


def test_rules_that_were_published_but_not_followed_at_the_snapshot(world):
    """If a partition followed the rules of the snapshot only after it, the events before are counted as before."""
    world.emit("view")
    late = Decider(world.client, Deployment.load(world.client))
    world.publish(Rules({"view": Metric(ids=None, limit=1, per="total")}))
    world.snapshot()
    assert all(late(Event("view", subject)).accepted for subject in SUBJECTS)
    world.emit("view")
    before = world.state()
    assert before[0]["view", "a"] == 2
    world.restore()
    assert world.state() == before


def test_entries_that_wait_are_counted_by_the_live_rules(world):
    """Entries that nothing has counted by the live rules yet are counted by these, and not by those before."""
    world.emit("view")
    world.snapshot()
    world.emit("view")
    world.publish(NEW)
    world.emit("clap", count=False)
    world.restore()
    assert world.harness.waiting() == 0
    assert world.harness.totals()["clap", "a"] == 1
    assert world.harness.dead() == []
    assert [b"2" in places for places in world.places()] == [True, True]
    world.publish(OTHERS[2])
    world.emit("view")
    assert [b"3" in places for places in world.places()] == [True, True]


@pytest.mark.parametrize("is_emptied", [True, False])
def test_without_newer_rules_those_of_the_snapshot_are_used(world, is_emptied):
    """On an emptied server, the rules of the snapshot are live again; so are they if the server has older data."""
    older = {key: world.client.dump(key) for key in world.client.keys("*")}
    world.publish(NEW)
    world.emit("clap")
    world.snapshot()
    before = world.state()
    world.publish(OTHERS[2])
    world.emit("view")
    world.client.flushall()
    if not is_emptied:
        for key, value in older.items():
            world.client.restore(key, 0, value)
    assert not world.restore().kept
    after = world.state()
    assert (after[0], after[2]) == (before[0], NEW)
    assert after[3] == before[3]


def test_a_repeated_restore_keeps_the_rules(world, monkeypatch):
    """After a restore that was interrupted when the old rules and places were gone, the next one uses them too."""
    world.emit("view")
    world.snapshot()
    world.publish(NEW)
    world.emit("clap")
    world.emit("view")
    before, places = world.state(), world.places()

    def fail(*_: object) -> None:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(PartitionRestore, "open", fail)
        with pytest.raises(OSError, match="interrupted"):
            world.restore()
    assert world.restore().kept
    assert (world.state(), world.places()) == (before, places)
    assert not world.client.hexists("tally:meta", LIVE_RULES)


def test_rules_stay_although_the_description_is_lost(world):
    """If `tally:meta` was deleted, the rules of the last recorded change are live after the restore."""
    world.emit("view")
    world.snapshot()
    world.publish(NEW)
    world.emit("clap")
    before, places = world.state(), world.places()
    world.client.delete("tally:meta")
    assert world.restore().kept
    assert (world.state(), world.places()) == (before, places)


def test_a_metric_that_was_removed_stays_removed(world):
    """A metric that was removed after the snapshot is not declared after the restore, and its later events are dead."""
    world.emit("view")
    world.snapshot()
    world.emit("view")
    world.publish(OTHERS[4])
    world.emit("view")
    before = world.state()
    assert before[1]["dead"] == len(SUBJECTS)
    world.restore()
    assert world.state() == before


@pytest.mark.parametrize("undone", [True, False])
def test_rules_of_another_generation_stay(world, undone):
    """Rules that a rebuild has made live after the snapshot stay live, and so do those that an undo brings back."""
    world.emit("view")
    if not undone:
        world.snapshot()
    chosen = Settings(RedisSettings(world.harness.url), rules=NEW)
    generation = propose(world.client, Deployment.load(world.client), NEW)
    build(chosen, Deployment.load(world.client), generation, "")
    world.harness.rules, world.harness.layout = NEW, Deployment.load(world.client).layout
    world.emit("view")
    if undone:
        world.snapshot()
        build(chosen, Deployment.load(world.client), 1, "", begun=True)
        world.harness.rules, world.harness.layout = OLD, Deployment.load(world.client).layout
    for _ in range(3):
        world.emit("view")
    before = world.state()
    world.restore()
    after = world.state()
    assert after[2] == before[2] == (OLD if undone else NEW)
    assert after[3] >= before[3]
    assert after[0]["view", "a"] == (2 if undone else 5)
    assert [change[1][b"rules"] for change in after[4]][-1] == publish_text(after[2])
    world.publish(OTHERS[2])
    world.emit("view")
    assert [str(after[3] + 1).encode() in places for places in world.places()] == [True, True]


def test_rules_that_turn_spread_off_do_not_stay(server, tmp_path):
    """If the live rules of a later topic turn `spread` off, those of the snapshot become live."""
    spread = Rules({"view": Metric(ids=None, spread=True)})
    with (
        Harness(server.url, rules=spread, partitions=2) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        open_deployment(Settings(RedisSettings(harness.url), rules=spread))
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        gathered = Rules({"view": Metric(ids=None)})
        chosen = Settings(RedisSettings(harness.url), rules=gathered)
        repartition(chosen, Deployment.load(harness.client), 2, rules=gathered)
        assert not Deployment.load(harness.client).rules.metric["view"].spread
        done = restore(harness.client, database, force=True, accept_loss=True)
        assert (done.kept, Deployment.load(harness.client).rules) == (False, spread)


def test_the_rules_of_a_later_topic_stay(world):
    """A restore of an earlier topic keeps the rules of the later one, for the entries since they were published."""
    world.emit("view")
    world.snapshot()
    world.emit("view")
    world.publish(NEW)
    world.emit("clap")
    repartition(Settings(RedisSettings(world.harness.url), rules=NEW), Deployment.load(world.client), 3)
    assert world.restore(accept_loss=True).kept
    totals, _, rules, _, _ = world.state()
    assert (rules, totals["clap", "a"], totals["view", "a"]) == (NEW, 1, 2)


def test_a_partition_that_lost_its_keys_follows_the_rules_too(world, tmp_path):
    """In a partition that has lost its keys, entries since the moment of a change are counted by the new rules."""
    world.emit("view")
    world.snapshot()
    time.sleep(0.002)
    world.publish(NEW)
    time.sleep(0.002)
    store = Store(str(tmp_path / "archive"))
    world.emit("clap")
    before = world.state()
    Archive(world.client, store, Deployment.load(world.client)).run_once(settled=0)
    for name, below in list(partition_names(world.client, world.harness.layout.keys[1])):
        if below not in (b"files", b"meta", b"rules"):
            world.client.delete(name)
    world.restore(archived=partial(entries, store))
    after = world.state()
    assert (after[0], after[2]) == (before[0], before[2])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_was_changed_everything_is_as_before(world, seed):
    """After random changes of rules, events, snapshots and restores, a restore changes no figure and no rule."""
    chance = random.Random(seed)
    world.emit("view")
    world.snapshot()
    for _ in range(12):
        move = chance.choice(["publish", "view", "view", "clap", "snapshot", "restore"])
        if move == "publish":
            world.publish(chance.choice(OTHERS))
        elif move == "snapshot":
            world.snapshot()
        elif move == "restore":
            before, places = world.state(), world.places()
            world.restore()
            assert world.state() == before
            assert all(old.items() <= new.items() for old, new in zip(places, world.places(), strict=True))
        else:
            world.emit(move)
