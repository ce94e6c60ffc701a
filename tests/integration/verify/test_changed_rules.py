"""After a change of rules, or a retry of dead letters, a verification finds nothing, and still finds each fault."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from tallystream.deployment import Deployment
from tallystream.producing.decider import Decider
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream_worker.cli.generation import build
from tallystream_worker.counting.adopt import adopt
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import drop, letters
from tallystream_worker.rebuild.drop import drop as drop_generation
from tallystream_worker.rebuild.rebuild import propose
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.restore import restore
from tests.harness import Harness
from tests.integration.verify.test_verify import RULES, World, limits, names

if TYPE_CHECKING:
    from collections.abc import Iterator

SEEDS = int(os.environ.get("TALLYSTREAM_EXAMPLES", "3"))
CHANGES = {
    "limit lowered": ("call", Metric(limit=3, per="day")),
    "limit raised": ("call", Metric(limit=50, per="day")),
    "limit removed": ("call", Metric()),
    "top lowered": ("view", Metric(windows=("hour", "day"), top=1, ids=None)),
    "top raised": ("view", Metric(windows=("hour", "day"), top=30, ids=None)),
    "top removed": ("view", Metric(windows=("hour", "day"), ids=None)),
    "window added": ("view", Metric(windows=("minute", "hour", "day"), top=3, ids=None)),
    "window removed": ("view", Metric(windows=("day",), top=3, ids=None)),
    "exact = false removed": ("page", Metric(top=3, ids=None)),
    "exact = false added": ("visit", Metric(exact=False, ids=None)),
    "max_subjects added": ("sale", Metric(max_subjects=1, ids="month")),
    "bloom": ("sale", Metric(ids="month", seen="bloom")),
    "once removed": ("vote", Metric(top=3)),
    "ids changed": ("sale", Metric(ids="day")),
    "unique changed": ("visit", Metric(unique="hour", ids=None)),
    "metric added": ("unknown", Metric(ids=None, windows=("day",))),
}


class ChangingWorld(World):
    """A world whose rules are published, and can be changed."""

    def publish(self, rules: Rules) -> None:
        """Publish rules as a worker does at its start."""
        removing = list(self.harness.rules.metric)
        open_deployment(Settings(RedisSettings(self.harness.url), rules=rules), removing=removing)
        self.harness.rules = rules

    def change(self, metric: str, rule: Metric) -> None:
        """Publish the present rules with another rule of a metric."""
        self.publish(replace(self.harness.rules, metric=self.harness.rules.metric | {metric: rule}))

    def follow(self) -> None:
        """Use the generation that is live now."""
        self.harness.layout = self.layout = Deployment.load(self.client).layout
        self.keys = self.layout.keys[0]

    def adopt(self) -> None:
        """Record that the published rules count, as a worker does now and then."""
        adopt(self.client, self.keys, self.harness.rules)

    def retry(self) -> int:
        """Retry every dead letter; return how many were counted."""
        deployment, counted = Deployment.load(self.client), 0
        for letter in list(letters(self.client, deployment.layout, 0)):
            done = retry(self.client, deployment.layout, deployment.rules, letter, deployment.revision)
            counted += done.counted if done else 0
        return counted

    def count(self, events: int = 10) -> None:
        """Emit events of each metric, and count them."""
        self.emit(events)
        self.harness.drain()

    def found(self, *, archive: bool = True, snapshot: bool = True) -> dict[str, list[str]]:
        """Return what a verification finds, and what it cannot check."""
        report = self.verify(archive=archive, snapshot=snapshot)
        failed = {"failed": [each.text for each in report.failed]} if report.failed else {}
        return {name: each.details for name, each in report.findings.items()} | failed


@pytest.fixture
def world(server, tmp_path) -> Iterator[ChangingWorld]:
    """Provide one partition with published rules, counted events, an archive and a snapshot."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        found = ChangingWorld(harness, tmp_path)
        found.publish(RULES)
        found.count()
        found.copy()
        found.count()
        yield found
        found.database.close()


def test_parts_of_rules_that_the_server_has_lost_are_not_called_changed(world):
    """After a failover of the node of the description, no other client is blamed for what a partition counted by."""
    meta, record = world.layout.meta, world.layout.rule_changes
    before = {name: world.client.dump(name) for name in (meta, record)}
    world.change("view", Metric(windows=("hour", "day"), top=30, ids=None))
    world.count()
    for name, value in before.items():
        world.client.restore(name, 0, value, replace=True)
    assert "fields.changed" not in world.found(archive=False, snapshot=False)


@pytest.mark.parametrize("adopted", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_rules_is_no_fault(world, change, adopted):
    """Until the next snapshot and the next rebuild, each figure is the one that the rules of its time give."""
    world.change(*CHANGES[change])
    assert world.found() == {}
    if adopted:
        world.adopt()
        assert world.found() == {}
    world.count()
    assert world.found() == {}
    assert world.found(archive=False, snapshot=False) == {}
    world.copy()
    assert world.found() == {}


def test_a_change_of_the_zone_is_no_fault(world):
    """Periods that were registered with their end in the zone before are registered; those without an end are not."""
    world.publish(replace(world.harness.rules, zone="Pacific/Auckland"))
    assert world.found() == {}
    world.adopt()
    assert world.found() == {}
    world.count()
    assert world.found() == {}
    world.copy()
    assert world.found() == {}
    world.publish(replace(world.harness.rules, zone="Asia/Kolkata"))
    assert world.found() == {}
    world.client.delete(world.keys.periods)
    assert world.found().keys() == {"periods.missing"}


def test_retried_dead_letters_are_no_fault(world):
    """Events that a retry has counted are not missed in the snapshot, nor are dropped ones."""
    world.client.xadd(world.keys.stream, {"metric": "unknown", "subject": "plain"})
    world.harness.drain()
    assert len(world.harness.dead()) == 3  # of a metric that is not declared
    drop(world.client, world.keys, list(letters(world.client, world.layout, 0))[:1])
    world.change("unknown", Metric(ids=None))
    assert world.retry() == 2
    world.client.xadd(world.keys.stream, {"metric": "other", "subject": "x"})
    world.count()
    assert world.found() == {}
    assert world.found(archive=False, snapshot=False) == {}
    world.copy()
    assert world.found() == {}


def wrong_total(world: ChangingWorld) -> None:
    """Change a total of a metric whose rules have changed."""
    world.client.incrby(world.keys.total("call", "k0"), 1)


def wrong_bucket(world: ChangingWorld) -> None:
    """Change a bucket of a metric whose rules have changed."""
    (key,) = world.client.scan_iter(f"{world.keys.counters}day:view:*".replace("{", "[{]").replace("}", "[}]"))
    world.client.hincrby(key, "a1", 1)


def wrong_limit(world: ChangingWorld) -> None:
    """Change the use of a limit that was lowered."""
    (key,) = world.client.scan_iter(f"{world.keys.counters}limit:call:*".replace("{", "[{]").replace("}", "[}]"))
    world.client.hincrby(key, "k1", 1)


FAULTS = {
    "total": (wrong_total, {"counters.differ"}),
    "bucket": (wrong_bucket, {"buckets.differ"}),
    "limit": (wrong_limit, {"limits.differ"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_after_a_change_of_rules_is_found(world, fault):
    """A wrong counter of a metric whose rules have changed is a finding, and the only one."""
    world.change(*CHANGES["limit lowered"])
    world.change(*CHANGES["top lowered"])
    world.count()
    change, expected = FAULTS[fault]
    change(world)
    report = world.verify()
    assert names(report) == expected
    assert [each.text for each in report.failed] == []


def test_a_leaderboard_is_not_both_right_and_wrong(world):
    """A leaderboard with a total that was changed with it by hand is not among those that agree."""
    before = next(each for each in world.verify().proofs if each.check == "leaderboards").figures["boards"]
    world.client.incrby(world.keys.total("view", "a1"), 1000)
    world.client.zincrby(world.keys.top("view"), 1000, "a1")
    report = world.verify()
    assert names(report) == {"counters.differ", "leaderboards.differ"}
    assert next(each for each in report.proofs if each.check == "leaderboards").figures["boards"] == before - 1


def test_a_report_states_which_entries_earlier_rules_counted(world):
    """The place and the changes are stated as not proved, with the command; after a rebuild, they are not."""
    world.change(*CHANGES["limit lowered"])
    world.count()
    report = world.verify()
    (text,) = [text for text in limits(report, "counters") if "earlier rules" in text]
    place = world.client.hget(world.keys.adopted, Deployment.load(world.client).revision).decode().partition(" ")[0]
    assert f"for the entries before {place}, which were counted by earlier rules (call: limit 5 -> 3)" in text
    assert "tallystream rebuild" in text
    assert report.status == 0


def overtake(world: ChangingWorld) -> None:
    """Change a limit while an entry is pending, and later entries were counted."""
    slow, fast = world.harness.fetch(0, "slow"), "fast"
    world.client.xadd(world.keys.stream, {"metric": "call", "subject": "z"})
    (pending,) = slow(1, 0.1)
    for _ in range(4):
        world.client.xadd(world.keys.stream, {"metric": "call", "subject": "z"})
    world.harness.drain(fast)
    world.change(*CHANGES["limit lowered"])
    for _ in range(4):
        world.client.xadd(world.keys.stream, {"metric": "call", "subject": "z"})
    world.harness.drain(fast)
    assert world.harness.pending() == [pending.id]
    world.harness.drain("closer", claim_idle=0)


def test_what_cannot_be_judged_is_stated_as_not_checked(world):
    """If an entry was counted although an earlier one was pending when the rules changed, differences are no finding.

    They are stated, with the command that makes the counters known again. Other metrics are still checked.
    """
    overtake(world)
    found = world.found()
    assert found.keys() == {"failed"}
    assert len(found["failed"]) == 2
    assert all("total" in text and "It is not known whether they are right" in text for text in found["failed"])
    assert "tallystream rebuild" in found["failed"][0]
    assert "tallystream snapshot --once" in found["failed"][1]
    wrong_bucket(world)
    assert world.found().keys() == {"failed", "buckets.differ"}


def rebuild(world: ChangingWorld) -> None:
    """Rebuild by the present rules, and remove the generation before."""
    chosen = Settings(RedisSettings(world.harness.url), rules=world.harness.rules)
    number = propose(world.client, Deployment.load(world.client), chosen.rules)
    build(chosen, Deployment.load(world.client), number, "")
    drop_generation(world.client, Deployment.load(world.client), number - 1)
    world.follow()


def restored_limits(world: ChangingWorld, steps: str) -> list[str]:
    """Restore the snapshot after some steps; return what is stated about earlier rules. Nothing else must be found.

    The steps are words: `raise` and `lower` change a limit, `count` counts events, `copy` takes a snapshot, and
    `rebuild` rebuilds.
    """
    metric, raised = CHANGES["limit raised"]
    moves = {
        "raise": lambda: world.change(metric, raised),
        "lower": lambda: world.change(metric, RULES.metric[metric]),
        "count": world.count,
        "copy": world.copy,
        "rebuild": lambda: rebuild(world),
    }
    for step in steps.split():
        moves[step]()
    restore(world.client, world.database, force=True)
    world.follow()
    world.count()
    report = world.verify()
    assert (report.findings, report.failed) == ({}, [])
    return [each.text for each in report.limits if "earlier rules" in each.text]


def test_a_restore_of_an_older_generation_states_no_rules_that_counted_nothing_in_it(world):
    """A change that only a later generation followed is not stated, if the present rules are those of the snapshot."""
    assert restored_limits(world, "raise count rebuild count lower count rebuild count") == []


def test_a_restore_of_an_older_generation_keeps_the_place_of_its_rules(world):
    """If the rules of the snapshot are live, the entries from their place in the snapshot on were counted by them."""
    metric, raised = CHANGES["limit raised"]
    world.change(metric, raised)
    world.count()
    (place,) = world.client.hvals(world.keys.adopted)
    (limit,) = restored_limits(world, "copy count rebuild count")
    assert (
        f"before {place.decode().partition(' ')[0]}, which were counted by earlier rules (call: limit 5 -> 50)" in limit
    )


def test_a_restore_of_a_rebuilt_generation_is_no_fault(world):
    """After a restore of a snapshot of a later generation, it is known which rules counted its first entries."""
    world.change(*CHANGES["limit raised"])
    world.count()
    for generation in (2, 3):
        chosen = Settings(RedisSettings(world.harness.url), rules=world.harness.rules)
        propose(world.client, Deployment.load(world.client), chosen.rules)
        build(chosen, Deployment.load(world.client), generation, "")
        drop_generation(world.client, Deployment.load(world.client), generation - 1)
        world.follow()
        world.count()
        if generation == 2:
            world.copy()
        world.change(*CHANGES["window added" if generation == 2 else "limit lowered"])
        world.count()
        assert "failed" not in world.found()
    restore(world.client, world.database, force=True)
    world.follow()
    world.count()
    assert world.found() == {}
    world.client.incrby(world.keys.total("call", "k0"), 1)
    assert "counters.differ" in world.found()


def test_lost_places_hide_nothing(world):
    """Without the places, every difference is stated as not checked, and the lost key is a finding."""
    world.change(*CHANGES["limit lowered"])
    world.count()
    world.client.delete(world.keys.adopted)
    found = world.found()
    assert found.keys() <= {"keys.lost", "failed"}
    assert world.keys.adopted in found["keys.lost"][0]
    world.client.incrby(world.keys.total("sale", "shop"), 1)
    assert any("total:sale:shop" in text for text in world.found()["failed"])


OTHERS = [
    RULES,
    *(replace(RULES, metric=RULES.metric | dict([change])) for name, change in CHANGES.items() if "max" not in name),
]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_was_changed_nothing_is_found(world, seed):
    """After random changes, events, decisions, retries, drops and snapshots, there is no finding."""
    chance = random.Random(seed)
    done = []
    for _ in range(14):
        move = chance.choice(
            ["publish", "publish", "count", "count", "wait", "decide", "retry", "drop", "adopt", "copy"]
        )
        done.append(move)
        if move == "publish":
            world.publish(chance.choice(OTHERS))
        elif move == "decide":
            decider = Decider(world.client, Deployment.load(world.client))
            for _ in range(4):
                decider(Event("call", f"k{chance.randrange(3)}"))
        elif move == "drop":
            drop(world.client, world.keys, list(letters(world.client, world.layout, 0))[:1])
        elif move == "wait":
            world.emit(2)
        elif move == "copy":
            world.copy()
        else:
            {"count": world.count, "retry": world.retry, "adopt": world.adopt}[move]()
    found = world.found()
    assert found.keys() <= {"failed"}, (done, found)
