"""After a restore, reads are right within the bounds that they state, however `retention` was changed before."""

from __future__ import annotations

import os
import random
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tallystream.deployment import Deployment
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.windows import bucket
from tallystream.wire.event import Event
from tallystream.wire.window import HOUR
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.runtime.publication import publish_rules
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.integration.reading.test_expiry import Machine, append_alone, remove

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clock import ClockedServer

SEEDS = int(os.environ.get("TALLYSTREAM_EXAMPLES", "2"))
SUBJECT = "s1"


def rules(kept: str) -> Rules:
    """Return rules that keep the hours of views for a time, and those of hits for two hours."""
    return Rules(
        {
            "view": Metric(windows=("hour",), retention={"hour": kept}, unique="hour", top=5, ids=None),
            "hit": Metric(windows=("hour",), retention={"hour": "2h"}, ids=None),
        }
    )


def an_hour(hours: int) -> int:
    """Return a second in the middle of an hour, so many hours ago."""
    return (int(time.time()) // HOUR - hours) * HOUR + 1205


@dataclass
class Scene:
    """A deployment with one partition, its snapshot, and the truth.

    Attributes:
        machine: The server, whose clock it moves.
        database: The snapshot.
        truth: By the start of an hour, the sum of the views of `SUBJECT` in this hour.
    """

    machine: Machine
    database: Database
    truth: dict[int, int] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """The second by the server's clock."""
        return self.machine.now

    def view(self, amount: int, ago: float = 0) -> int:
        """Append and count views with a time some seconds ago; return the start of their hour."""
        at = self.now - ago
        append_alone(self.machine, Event("view", SUBJECT, amount, "u1", at))
        self.machine.count()
        start = bucket("hour", int(at) // 60).start
        self.truth[start] = self.truth.get(start, 0) + amount
        return start

    def hit(self) -> None:
        """Append and count a hit."""
        append_alone(self.machine, Event("hit", SUBJECT, 1, None, self.now))
        self.machine.count()

    def keep(self, kept: str) -> None:
        """Publish rules that keep views for a time, and count by them."""
        harness = self.machine.harness
        chosen = Settings(RedisSettings(harness.url), rules=rules(kept))
        publish_rules(harness.client, chosen, Deployment.load(harness.client))
        harness.rules = rules(kept)

    def take(self) -> None:
        """Take a snapshot."""
        client = self.machine.harness.client
        Snapshotter(client, self.database, Deployment.load(client)).run_once()

    def restore(self, *, is_emptied: bool) -> None:
        """Restore the snapshot, to the emptied server or over its counters; then workers publish their rules again."""
        harness = self.machine.harness
        kept = harness.rules.metric["view"].retention["hour"]
        if is_emptied:
            harness.client.flushall()
        restore(harness.client, self.database, force=not is_emptied)
        self.keep(kept)

    def hours(self, last: int = 40) -> dict[int, int]:
        """Return by start the sums of the hours that reads do not state as missing.

        Fail if a leaderboard or a rolling sum states other hours as missing, or another sum, or if the number of actors
        is not that of the hours that it states.
        """
        with Totals(self.machine.harness.url) as totals:
            series = totals.series(SUBJECT, "view", "hour", last)
            stated = {point.start: point.value for point in series.series if point.value is not None}
            found = totals.sum(SUBJECT, "view", f"{last - 1}h")
            assert found.start is not None
            assert found.value == sum(value for start, value in stated.items() if start >= found.start)
            board = totals.top("view", f"{last - 1}h")
            places = {place.subject: place.value for place in board.top}
            assert (board.start, places.get(SUBJECT, 0)) == (found.start, found.value)
            actors = totals.uniques(SUBJECT, "view", f"{last - 1}h")
            assert actors.start is not None
            assert actors.value == any(start >= actors.start for start in self.truth)
        return stated

    def check(self) -> None:
        """Fail if a sum that reads state is wrong, or if a verification finds a fault."""
        for start, value in self.hours().items():
            assert value == self.truth.get(start, 0), start
        report = verify(self.machine.harness.client, "tally", Sources(None, self.database))
        assert report.findings == {}


@pytest.fixture
def scene(clocked: ClockedServer, tmp_path: Path) -> Iterator[Scene]:
    """Provide a deployment that keeps views for 8 days."""
    begin = an_hour(36)
    clocked.set(begin - time.time())
    with (
        Harness(clocked.url, rules=Rules({}), partitions=1) as harness,
        closing(Database(str(tmp_path / "copy.sqlite"))) as database,
    ):
        scene = Scene(Machine(harness, clocked, rules("8d"), random.Random(0), begin), database)
        scene.keep("8d")
        yield scene


def test_a_snapshot_keeps_a_bucket_that_was_not_removed(scene):
    """If `retention` is shortened and raised again, a restored server has the buckets that the live one kept."""
    hour = scene.view(5)
    scene.hit()
    scene.machine.move(5 * HOUR)
    scene.keep("1h")
    scene.take()
    remove_hits(scene)
    scene.take()
    scene.restore(is_emptied=True)
    scene.keep("8d")
    stated = scene.hours()
    assert stated[hour] == 5
    scene.check()


def remove_hits(scene: Scene) -> None:
    """Let workers remove the hours of hits that have closed."""
    for _ in range(3):
        scene.hit()
        scene.machine.move(HOUR + 60)


@pytest.mark.parametrize("is_emptied", [False, True])
def test_what_was_removed_before_the_snapshot_stays_missing(scene, is_emptied):
    """If workers had removed a bucket before the snapshot, reads state it as missing after the restore."""
    hour = scene.view(5)
    scene.keep("2h")
    scene.view(3)
    scene.machine.move(5 * HOUR)
    remove(scene.machine)
    last = scene.view(2)
    scene.take()
    scene.keep("8d")
    before = scene.hours()
    assert hour not in before
    assert before[last] == 2
    scene.restore(is_emptied=is_emptied)
    assert scene.hours() == before
    scene.check()


def test_what_was_removed_after_the_snapshot_is_restored(scene):
    """If workers removed a bucket after the snapshot, a restore returns it, with the late events since then."""
    hour = scene.view(5)
    scene.take()
    scene.keep("2h")
    scene.machine.move(5 * HOUR)
    scene.view(1, ago=4 * HOUR)
    remove(scene.machine)
    scene.keep("8d")
    assert hour not in scene.hours()
    scene.restore(is_emptied=False)
    assert scene.hours()[hour] == 5
    scene.check()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_read_is_wrong_whatever_was_changed(scene, seed):
    """In any order of changes, snapshots and restores, reads state each hour as missing or have its right sum."""
    chance = random.Random(seed)
    scene.take()
    for _ in range(25):
        if scene.now > time.time() - 2 * HOUR:
            break
        match chance.choice(["view", "view", "late", "hit", "hour", "hour", "keep", "take", "restore"]):
            case "view":
                scene.view(chance.randint(1, 9))
            case "late":
                scene.view(chance.randint(1, 9), ago=chance.randint(1, 8) * HOUR)
            case "hit":
                scene.hit()
            case "hour":
                scene.machine.move(HOUR + 60)
            case "keep":
                scene.keep(chance.choice(["1h", "3h", "8d"]))
            case "take":
                scene.take()
            case _:
                scene.restore(is_emptied=False)
        for start, value in scene.hours().items():
            assert value == scene.truth.get(start, 0), start
    scene.restore(is_emptied=False)
    scene.check()
    scene.keep("8d")
    scene.check()
