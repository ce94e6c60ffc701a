"""After a restore, it is known which rules counted which entries: verifications and audits find no fault."""

from __future__ import annotations

from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.producing.decider import Decider
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import FIRST_RULES, UNORDERED
from tallystream.wire.event import Event
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.generation import build
from tallystream_worker.counting.adopt import adopt
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import propose
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.live_rules import followed_rules
from tallystream_worker.snapshot.point_in_time import SnapshotPosition
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.rule_records import rule_places
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.rewind import copy_of, go_back

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RULES = [
    Rules({"vote": Metric(once="forever"), "call": Metric(ids=None, limit=2, per="total"), "view": Metric(ids=None)}),
    Rules({"vote": Metric(), "call": Metric(ids=None, limit=5, per="total"), "view": Metric(ids=None)}),
    Rules({"vote": Metric(), "call": Metric(ids=None, limit=9, per="total"), "view": Metric(ids=None, top=3)}),
]
OTHER_FORMS = {
    "max_subjects removed": [
        Rules({"view": Metric(ids=None, top=5, max_subjects=100)}),
        Rules({"view": Metric(top=5)}),
    ],
    "max_subjects added": [Rules({"view": Metric(top=5)}), Rules({"view": Metric(ids=None, top=5, max_subjects=100)})],
    "exact=false removed": [
        Rules({"view": Metric(ids=None, top=5, exact=False)}),
        Rules({"view": Metric(ids=None, top=5)}),
    ],
    "metric added": [
        Rules({"call": Metric(ids=None, top=3)}),
        Rules(
            {
                "call": Metric(ids=None, top=3),
                "view": Metric(top=5, windows=("day",), retention={"day": "forever"}),
                "vote": Metric(windows=("hour",), once="day", unique="day"),
            }
        ),
    ],
    "metric removed": [
        Rules({"call": Metric(), "view": Metric(top=5, windows=("day",), retention={"day": "forever"})}),
        Rules({"call": Metric()}),
    ],
    "top and window added": [Rules({"view": Metric()}), Rules({"view": Metric(top=5, windows=("day",))})],
    "state removed": [
        Rules({"view": Metric(once="day", unique="day"), "call": Metric(limit=2, per="day", windows=("day",))}),
        Rules({"view": Metric(ids=None), "call": Metric(windows=("day",))}),
    ],
}
"""Rules, and later rules that store a metric in another form."""

SUBJECTS = "abcdefgh"


class World:
    """A deployment with published rules, an archive and a snapshot, to which the words of a script do something."""

    def __init__(self, harness: Harness, folder: Path, sequence: list[Rules] = RULES) -> None:
        self.harness, self.client = harness, harness.client
        self.store = Store(str(folder / "archive"))
        self.database = Database(str(folder / "snapshot.sqlite"))
        self.turn, self.sequence = -1, sequence
        self.rules()

    def play(self, script: str) -> None:
        """Call the methods that a script names, separated by spaces."""
        for word in script.split():
            getattr(self, word)()

    def rules(self) -> None:
        """Publish the next rules, as a worker does at its start."""
        self.turn += 1
        rules = self.sequence[self.turn % len(self.sequence)]
        open_deployment(Settings(RedisSettings(self.harness.url), rules=rules))
        self.harness.rules = rules

    def count(self, subjects: str = SUBJECTS) -> None:
        """Emit events of each metric in each partition, and count them."""
        with Producer(self.harness.url) as producer:
            for subject in subjects:
                for _ in range(3):
                    for metric in self.harness.rules.metric:
                        producer.emit(metric, subject, actor="u")
            producer.flush(10)
        self.harness.drain()

    def one(self) -> None:
        """Emit events of each metric in one partition, and count them."""
        self.count(SUBJECTS[:1])

    def decide(self) -> None:
        """Count events in the calls that append them."""
        decider = Decider(self.client, Deployment.load(self.client))
        for subject in SUBJECTS:
            decider(Event("call", subject))

    def stall(self) -> None:
        """Deliver an entry of each partition to a worker that does not count it."""
        for partition, keys in enumerate(self.harness.layout.keys):
            metric = min(self.sequence[0].metric)
            self.client.xadd(keys.stream, {"metric": metric, "subject": f"late{partition}"})
            assert len(self.harness.fetch(partition, "slow")(1, 0.1)) == 1

    def overtake(self) -> None:
        """Count entries while an earlier one is pending, and leave it pending."""
        self.stall()
        self.count()

    def adopt(self) -> None:
        """Record in each partition that the present rules count it, as a worker does at its start."""
        for keys in self.harness.layout.keys:
            adopt(self.client, keys, self.harness.rules)

    def claim(self) -> None:
        """Count the pending entries."""
        self.harness.drain("closer", claim_idle=0)

    def snapshot(self) -> None:
        """Take a snapshot."""
        Snapshotter(self.client, self.database, Deployment.load(self.client)).run_once()

    def archive(self) -> None:
        """Archive every entry."""
        Archive(self.client, self.store, Deployment.load(self.client)).run_once(settled=0)

    def rebuild(self) -> None:
        """Count all entries by the present rules in a new generation, and remove the one before."""
        chosen = Settings(RedisSettings(self.harness.url), rules=self.harness.rules)
        number = propose(self.client, Deployment.load(self.client), chosen.rules)
        build(chosen, Deployment.load(self.client), number, "")
        drop(self.client, Deployment.load(self.client), number - 1)
        self.follow()

    def follow(self) -> None:
        """Use the generation that is live now."""
        self.harness.layout = Deployment.load(self.client).layout

    def restore(self, *, archive: bool) -> None:
        """Restore the snapshot."""
        archived, changes = (partial(entries, self.store), self.store.rules()) if archive else (None, {})
        restore(self.client, self.database, archived, force=True, changes=changes)
        self.follow()

    def numbers(self) -> dict[Any, int]:
        """Return the totals that are not 0, and the ledger's main fields."""
        ledger = {name: n for name, n in self.harness.ledger().items() if name in ("counted", "duplicate")}
        return {name: total for name, total in self.harness.totals().items() if total} | ledger

    def boards(self) -> dict[tuple[int, str], dict[bytes, float]]:
        """Return the values of the subjects in each leaderboard, by partition and key without the prefix."""
        return {
            (partition, key.removeprefix(keys.counters)): dict(self.client.zrange(key, 0, -1, withscores=True))
            for partition, keys in enumerate(self.harness.layout.keys)
            for key in map(bytes.decode, self.client.scan_iter(match=f"{keys.counters}top:*", count=1000))
        }

    def sketches(self) -> list[bytes | None]:
        """Return the sketch of the metric `view` in each partition."""
        return [self.client.get(keys.sketch("view")) for keys in self.harness.layout.keys]

    def periods(self) -> list[dict[bytes, float]]:
        """Return until when the keys of each period are kept, of each partition."""
        return [dict(self.client.zrange(keys.periods, 0, -1, withscores=True)) for keys in self.harness.layout.keys]

    def found(self, *, archive: bool, snapshot: bool) -> dict[str, Any]:
        """Return what a verification and an audit find, and what they cannot check; empty if all is right."""
        sources = Sources(self.store if archive else None, self.database if snapshot else None)
        report = verify(self.client, "tally", sources)
        found: dict[str, Any] = {name: each.details for name, each in report.findings.items()}
        if report.failed:
            found["failed"] = [each.text for each in report.failed]
        with suppress(ConfigurationError):  # the snapshot is of another generation, and is the only source
            deployment = Deployment.load(self.client)
            followed = followed_rules(self.client, deployment.layout, sources.changes)
            audited = audit(self.client, deployment, deployment.rules, sources=sources, followed=followed)
            if wrong := [*audited.differences, *audited.uncertain]:
                found["audit"] = wrong
        return found


@pytest.fixture(params=[1, 3], ids=["1 partition", "3 partitions"])
def world(server, tmp_path: Path, request) -> Iterator[World]:
    """Provide a deployment with the first rules and no event."""
    with Harness(server.url, rules=RULES[0], partitions=request.param) as harness:
        found = World(harness, tmp_path)
        with closing(found.database):
            yield found


SCRIPTS = [
    "count rules snapshot",
    "count rules one snapshot",
    "count rules count snapshot",
    "count rules snapshot one",
    "count rules snapshot count",
    "count rules snapshot decide",
    "count rules decide snapshot decide count",
    "count snapshot rules",
    "count snapshot rules count",
    "count snapshot rules one rules count",
    "count rules rules snapshot",
    "count rules rules snapshot count",
    "count rules snapshot rules count",
    "count rules one rules snapshot",
    "count rules one rules snapshot one",
    "rules snapshot count",
    "one rules snapshot count",
    "one rules count rules snapshot",
    "count rules snapshot count snapshot",
    "count rules snapshot rules snapshot count",
    "count rules rebuild count rules snapshot",
    "count rules rebuild rules rules snapshot one",
    "overtake rules snapshot claim",
    "overtake claim rules snapshot count",
    "count stall rules count snapshot claim",
    "count rules overtake snapshot claim",
    "overtake rules count rules one snapshot claim",
]


@pytest.mark.parametrize("is_emptied", [True, False], ids=["emptied", "kept"])
@pytest.mark.parametrize("has_archive", [True, False], ids=["archive", "no archive"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_restore_leaves_the_counters_proved(world, script, has_archive, is_emptied):
    """The totals are those of before, and all are what the entries give by the rules that counted them."""
    world.play(script)
    boards, periods = world.boards(), world.periods()
    at_snapshot = world.numbers() if script.endswith("snapshot") else None
    if has_archive:
        world.archive()
    before = world.numbers()
    assert "claim" in script or world.found(archive=has_archive, snapshot=True) == {}
    if is_emptied:
        world.client.flushall()
    world.restore(archive=has_archive)
    if has_archive or not is_emptied:
        assert world.numbers() == before
    elif at_snapshot is not None:
        assert world.numbers() == at_snapshot
    if has_archive or not is_emptied or at_snapshot is not None:
        compare_stored(world, boards, periods)
    for step in ("rules", "rules"):
        for archive in {has_archive, False}:
            for snapshot in (True, False):
                found = world.found(archive=archive, snapshot=snapshot)
                assert found == {} or ("claim" in script and found.keys() <= {"failed", "audit"})
        world.play(f"{step} count")
        if has_archive:
            world.archive()
        world.snapshot()


def compare_stored(
    world: World,
    boards: dict[tuple[int, str], dict[bytes, float]],
    periods: list[dict[bytes, float]],
    *,
    was_adopted: bool = False,
) -> None:
    """Assert that a restore has kept the leaderboards `boards`, and until when the keys of `periods` are kept.

    A restored leaderboard may have more subjects, which were counted before the rules that made it. If `was_adopted`,
    some may have only such subjects.
    """
    restored = world.boards()
    assert restored.keys() >= boards.keys()
    assert restored.keys() == boards.keys() or was_adopted
    for key, board in boards.items():
        assert board.items() <= restored[key].items()
    assert world.periods() == periods


@pytest.mark.parametrize("is_emptied", [True, False], ids=["emptied", "kept"])
@pytest.mark.parametrize(
    "script",
    [
        "count rules snapshot",
        "count rules one snapshot",
        "count rules adopt snapshot",
        "count stall rules count snapshot claim",
        "count rules overtake snapshot claim",
        "stall rules count snapshot claim",
    ],
)
@pytest.mark.parametrize("forms", OTHER_FORMS)
def test_a_restore_reads_the_form_that_the_snapshot_has(server, tmp_path, forms, script, is_emptied):
    """Leaderboards are as before, and no bucket is removed earlier, whichever rules a partition follows."""
    with Harness(server.url, rules=OTHER_FORMS[forms][0], partitions=2) as harness:
        world = World(harness, tmp_path, OTHER_FORMS[forms])
        with closing(world.database):
            world.play(script)
            world.archive()
            before, boards, periods = world.numbers(), world.boards(), world.periods()
            sketches = world.sketches()
            if is_emptied:
                world.client.flushall()
            world.restore(archive=True)
            assert world.numbers() == before
            assert world.sketches() == sketches
            compare_stored(world, boards, periods, was_adopted="adopt" in script)


@pytest.mark.parametrize(
    ("live", "stated", "places", "fields"),
    [
        ("1 2", None, {}, {FIRST_RULES: 2}),
        (
            "1 2",
            1,
            {2: "5-0 5-0"},
            {FIRST_RULES: 1, f"{UNORDERED}2": 1},
        ),  # it counts by the latest rules, but their place is lost
        ("1 1", None, {2: "5-1 5-0"}, {FIRST_RULES: 1}),
        ("2 1", None, {}, {}),  # the number is of another generation, which has just become live
    ],
)
def test_a_place_is_added_for_rules_without_one(server, live, stated, places, fields):
    """The number of the rules that count a partition is used, if it is of the generation of the snapshot."""
    with Harness(server.url, rules=RULES[0], partitions=1) as harness:
        (keys,) = harness.layout.keys
        harness.client.set(keys.live, live)
        if stated is not None:
            harness.client.hset(keys.ledger, FIRST_RULES, stated)
        position = SnapshotPosition(taken=5, delivered="5-0", generated="5-0")
        assert rule_places(harness.client, keys, position, {1, 2}) == (places, fields)


def test_a_restore_counts_by_the_rules_whose_place_was_lost(world):
    """If the key with the places is lost before a snapshot, later entries follow the rules that counted last.

    An audit then proves nothing of metrics that these rules changed, and states no false difference.
    """
    world.play("count rules count")
    for keys in world.harness.layout.keys:
        world.client.delete(keys.adopted)
    world.play("snapshot one archive")
    before = world.numbers()
    world.client.flushall()
    world.restore(archive=True)
    assert world.numbers() == before
    deployment = Deployment.load(world.client)
    followed = followed_rules(world.client, deployment.layout, world.store.rules)
    audited = audit(world.client, deployment, deployment.rules, sources=Sources(world.store, None), followed=followed)
    assert not audited.differences


def test_a_later_snapshot_does_not_keep_that_a_place_was_uncertain(server, tmp_path):
    """If the partition follows the rules in order after all, the ledger of the next snapshot does not deny it."""
    with Harness(server.url, rules=RULES[0], partitions=1) as harness:
        world = World(harness, tmp_path)
        with closing(world.database):
            world.play("overtake rules snapshot")
            assert f"{UNORDERED}2" in world.database.ledger(0)
            harness.client.set(harness.layout.keys[0].live, "1 2")  # counts by rules 2, with a place
            harness.client.hset(harness.layout.keys[0].adopted, "2", "9-0 9-0")
            world.snapshot()
            assert f"{UNORDERED}2" not in world.database.ledger(0)
            assert world.database.damaged(0) == []


LOST = [
    ("count", "rules rebuild count"),
    ("count", "rules count rebuild count"),
    ("count rules count", "rebuild count"),
    ("count rules count", "rebuild rules count"),
    ("count rules", "one rebuild rules"),
]


@pytest.mark.parametrize("after", ["", "count"])
@pytest.mark.parametrize(("kept", "lost"), LOST)
def test_older_data_of_an_earlier_generation_leaves_the_counters_proved(world, kept, lost, after):
    """If data of before a rebuild was put back, archived entries are counted by the rules that counted them.

    Only rules that have counted entries are stated as earlier ones.
    """
    world.play(f"{kept} archive")
    older, rules = copy_of(world.client), world.harness.rules
    world.play(f"{lost} snapshot one archive")
    before, latest, number = (
        world.numbers(),
        Deployment.load(world.client).rules,
        Deployment.load(world.client).revision,
    )
    go_back(world.client, older)
    world.follow()
    world.harness.rules = rules
    world.play(after)
    world.restore(archive=True)
    assert Deployment.load(world.client).rules == latest
    if not after:
        assert world.numbers() == before
        assert Deployment.load(world.client).revision == number
        report = verify(world.client, "tally", Sources(world.store, world.database))
        assert not any("limit 5 -> 2" in each.text for each in report.limits)
    assert world.found(archive=False, snapshot=True) == {}
    world.snapshot()
    assert world.found(archive=not after, snapshot=True) == {}
