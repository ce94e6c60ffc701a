"""A command that was paused changes nothing after another one has begun; a removal that was interrupted is finished."""

from __future__ import annotations

import contextlib
import sys

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DamagedValue, StreamError
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.cli.generation import build, finish_switch
from tallystream_worker.cli.unfinished import unfinished
from tallystream_worker.process import failpoints
from tallystream_worker.rebuild import rebuild
from tallystream_worker.rebuild.drop import _drop_partition, drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.turn import Overtaken, take_turn
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import settings_for

OLD = Rules({"view": Metric(ids=None)})
NEW = Rules({"view": Metric(ids=None, windows=["hour"])})
SUBJECTS = [f"s:{n}" for n in range(12)]


class World:
    """A deployment of two partitions with one view of each subject, and the commands of an operator.

    Args:
        url: The URL of the server.
    """

    def __init__(self, url):
        self.settings = settings_for(url, NEW)
        self.harness = Harness(url, rules=OLD, partitions=2)
        self.client = self.harness.client
        with Producer(url) as producer:
            for subject in SUBJECTS:
                producer.emit("view", subject)
            producer.flush(10)
        self.harness.drain()

    @property
    def deployment(self):
        """The deployment as it is stored now."""
        return Deployment.load(self.client)

    def run(self, generation):
        """Return a run that has counted a generation: a new one, or a kept one."""
        run = Rebuild(self.settings, self.deployment, generation).__enter__()
        if generation == self.deployment.building:
            run.begin()
        run.catch_up()
        return run

    def rebuild(self):
        """Count history again, as `tallystream rebuild` does; continue what is being built."""
        number = propose(self.client, self.deployment, NEW)
        build(self.settings, self.deployment, number, "")

    def undo(self, generation=1):
        """Go back to a kept generation, as `tallystream rebuild --undo` does."""
        build(self.settings, self.deployment, generation, "", begun=True)

    def live(self):
        """Return the generation for readers, and those of the partitions."""
        found = self.deployment
        return found.generation, {keys.generation for keys in found.layout.keys}

    def check(self):
        """Make sure that every total is right, and that all partitions are in the live generation."""
        found = self.deployment
        assert {keys.generation for keys in found.layout.keys} == {found.generation}
        self.harness.layout = found.layout
        assert {subject: value for (_, subject), value in self.harness.totals().items()} == dict.fromkeys(SUBJECTS, 1)


@pytest.fixture
def world(server):
    """Provide a deployment whose generation 1 is live."""
    found = World(server.url)
    with found.harness:
        yield found


def at(monkeypatch, place, happen):
    """Call `happen` once, when the process reaches a place, as if the process was paused there."""
    left = [happen]

    def reach(reached):
        if reached == place and left:
            left.pop()()

    monkeypatch.setattr(failpoints, "reach", reach)


def test_a_paused_switch_does_not_undo_an_undo(world, monkeypatch):
    """It has switched one partition; then another process finishes the rebuild, and the operator goes back."""
    run = world.run(propose(world.client, world.deployment, NEW))

    def meanwhile():
        world.rebuild()
        world.undo()

    at(monkeypatch, "rebuild-switching", meanwhile)
    with pytest.raises(Overtaken, match="or a restore, has begun after this command"), run:
        run.switch()
    assert world.live() == (1, {1})
    world.check()


@pytest.mark.parametrize("moment", ["before", "between"])
def test_a_paused_switch_makes_nothing_live_after_an_undo(world, monkeypatch, moment):
    """It has switched no partition yet, or all, but not the hash that readers follow."""
    run = world.run(propose(world.client, world.deployment, NEW))

    def meanwhile(*_):
        world.rebuild()
        world.undo()

    if moment == "before":
        meanwhile()
    else:
        note = rebuild.note

        def pause(*arguments):
            monkeypatch.setattr(rebuild, "note", note)
            meanwhile()
            note(*arguments)

        monkeypatch.setattr(rebuild, "note", pause)
    with pytest.raises(Overtaken), run:
        run.switch()
    assert world.live() == (1, {1})
    world.check()


def test_a_paused_undo_does_not_go_back_after_a_rebuild(world, monkeypatch):
    """Another undo finished, and the operator removed the other generation and built a third one."""
    world.rebuild()
    run = world.run(1)

    def meanwhile():
        world.undo()
        drop(world.client, world.deployment, 2)
        world.rebuild()

    at(monkeypatch, "rebuild-switching", meanwhile)
    with pytest.raises(Overtaken), run:
        run.switch()
    assert world.live() == (3, {3})
    world.check()


def test_a_paused_removal_removes_nothing_that_was_made_live(world, monkeypatch):
    """It has checked that the generation is not live; then the operator goes back to that generation."""
    world.rebuild()
    module = sys.modules["tallystream_worker.rebuild.drop"]
    begin = module._BEGIN

    def pause(*arguments):
        world.undo()
        return begin(*arguments)

    monkeypatch.setattr(module, "_BEGIN", pause)
    with pytest.raises(Overtaken):
        drop(world.client, world.deployment, 1)
    assert world.live() == (1, {1})
    assert list(unfinished(world.deployment)) == []  # it is not recorded that generation 1 is being removed
    world.check()


def test_a_switch_that_was_paused_does_not_reach_a_generation_that_is_being_removed(world, monkeypatch):
    """The removal takes its turn in every partition before it looks which generation is live there."""
    world.rebuild()
    run = world.run(1)  # an undo

    def meanwhile():
        with pytest.raises(Overtaken):
            run.switch()

    at(monkeypatch, "drop-begun", meanwhile)
    assert drop(world.client, world.deployment, 1) > 0
    run.__exit__()
    assert world.live() == (2, {2})
    world.check()


class Killed(BaseException):
    """The process ends, as by SIGKILL."""


def kill():
    """End the process."""
    raise Killed


@pytest.mark.parametrize("place", ["drop-begun", "drop-removed"])
def test_an_interrupted_removal_is_only_finished(world, monkeypatch, place):
    """No command goes back to a generation that is removed in part; `--drop` removes the rest."""
    world.rebuild()
    at(monkeypatch, place, kill)
    with pytest.raises(Killed):
        drop(world.client, world.deployment, 1)
    assert list(unfinished(world.deployment)) == [
        "removal: generation 1 is removed in part: remove the rest with: tallystream rebuild --drop"
    ]
    with pytest.raises(ConfigurationError, match="generation 1 is being removed"):
        world.undo()
    with pytest.raises(ConfigurationError, match="generation 1 is still kept"):
        world.rebuild()
    assert world.live() == (2, {2})
    world.check()
    drop(world.client, world.deployment, 1)
    assert list(unfinished(world.deployment)) == []
    assert not [name for name in world.client.hkeys(world.deployment.layout.meta) if b"@" in name and b"1" in name]
    world.rebuild()
    assert world.live() == (3, {3})
    world.check()


@pytest.mark.parametrize("place", ["drop-begun", "drop-removed"])
def test_a_build_that_is_removed_in_part_is_not_continued(world, monkeypatch, place):
    """A rebuild would count a partition whose counters are left once more."""
    world.run(propose(world.client, world.deployment, NEW)).__exit__()
    at(monkeypatch, place, kill)
    with pytest.raises(Killed):
        drop(world.client, world.deployment, 2)
    with pytest.raises(ConfigurationError, match="generation 2 is being removed"):
        propose(world.client, world.deployment, NEW)
    drop(world.client, world.deployment, 2)
    world.rebuild()
    assert world.live() == (3, {3})
    world.check()


def test_a_refused_rebuild_leaves_what_a_later_command_builds(world, monkeypatch):
    """It would remove the generation that it has begun, if no other command had begun since."""
    number = propose(world.client, world.deployment, NEW)

    def meanwhile():
        world.run(number).__exit__()
        raise StreamError("entries are gone")

    at(monkeypatch, "rebuild-begun", meanwhile)
    with pytest.raises(StreamError, match="entries are gone"), Rebuild(world.settings, world.deployment, number) as run:
        run.begin()
    assert world.deployment.building == number
    world.rebuild()
    assert world.live() == (number, {number})
    world.check()


def test_an_incomplete_switch_that_another_command_finished_is_left_alone(world, monkeypatch):
    """A command read that some partitions were in another generation; until its turn, an undo has ended."""
    world.rebuild()
    run = world.run(1)
    at(monkeypatch, "rebuild-switching", kill)
    with pytest.raises(Killed):
        run.switch()
    run.__exit__()
    stale = world.deployment
    assert stale.is_half_switched
    world.undo()
    assert finish_switch(world.settings, stale, "").generation == 1
    assert world.live() == (1, {1})
    world.check()


def test_a_paused_begin_begins_nothing_that_a_later_command_removed(world, monkeypatch):
    """A generation without counters, whose group is there, would hold back the trimming of the stream."""
    number = propose(world.client, world.deployment, NEW)
    begin = rebuild._BEGIN

    def pause(*arguments):
        monkeypatch.setattr(rebuild, "_BEGIN", begin)
        drop(world.client, world.deployment, number)
        return begin(*arguments)

    monkeypatch.setattr(rebuild, "_BEGIN", pause)
    with pytest.raises(Overtaken), Rebuild(world.settings, world.deployment, number) as run:
        run.begin()
    for keys in world.deployment.layout.keys:
        assert [group["name"] for group in world.client.xinfo_groups(keys.stream)] == [keys.group.encode()]
    assert not world.client.keys("*:g2:*")
    world.rebuild()
    world.check()


@pytest.mark.parametrize("place", ["drop-begun", "drop-removed"])
def test_a_paused_removal_removes_no_restored_counters(world, monkeypatch, tmp_path, place):
    """A restore makes generation 1 live again while a removal of generation 1 is paused."""
    world.rebuild()
    with contextlib.closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        Snapshotter(world.client, database, world.deployment).run_once()
        at(monkeypatch, place, lambda: restore(world.client, database, force=True))
        with pytest.raises(Overtaken, match="or a restore, has begun after"):
            drop(world.client, world.deployment, 1)
    assert world.live() == (1, {1})
    world.check()
    world.rebuild()
    assert drop(world.client, world.deployment, 1) > 0
    world.check()


def test_a_paused_removal_removes_nothing_while_a_restore_runs(world, monkeypatch, tmp_path):
    """The restore has loaded the counters of a partition, and has not finished."""
    turn = take_turn(world.client, world.deployment)

    def continue_removal():
        for keys in world.harness.layout.keys:
            with pytest.raises(Overtaken):
                _drop_partition(world.client, keys, turn)

    with contextlib.closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        Snapshotter(world.client, database, world.deployment).run_once()
        at(monkeypatch, "after-load", continue_removal)
        restore(world.client, database, force=True)
    world.check()


def test_a_paused_end_of_a_removal_leaves_what_is_stated_after_a_restore(world, monkeypatch, tmp_path):
    """All counters of generation 1 are removed; the rules that the restore states for generation 1 are not."""
    world.rebuild()
    module = sys.modules["tallystream_worker.rebuild.drop"]
    end = module._END
    with contextlib.closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        Snapshotter(world.client, database, world.deployment).run_once()

        def pause(*arguments):
            restore(world.client, database, force=True)
            return end(*arguments)

        monkeypatch.setattr(module, "_END", pause)
        with pytest.raises(Overtaken):
            drop(world.client, world.deployment, 1)
    assert world.live() == (1, {1})
    world.check()


def test_turns_rise_above_those_of_the_partitions(world):
    """A failover may lose the number in the hash, but no partition's."""
    first = take_turn(world.client, world.deployment)
    world.client.hdel(world.deployment.layout.meta, "turn")
    assert take_turn(world.client, world.deployment) == first + 1


def test_a_turn_that_was_taken_late_is_refused(world, monkeypatch):
    """Between its number and the partitions, another command has taken a later turn."""
    module = sys.modules["tallystream_worker.rebuild.turn"]
    claim = module._CLAIM

    def pause(*arguments):
        answer = claim(*arguments)
        monkeypatch.setattr(module, "_CLAIM", claim)
        take_turn(world.client, world.deployment)
        return answer

    monkeypatch.setattr(module, "_CLAIM", pause)
    with pytest.raises(Overtaken):
        take_turn(world.client, world.deployment)


def test_a_damaged_turn_is_named(world):
    """The error names the field, and how to mend it."""
    world.client.hset(world.deployment.layout.keys[0].sequences, "!turn", "01")
    with pytest.raises(DamagedValue, match=r"!turn of .* Delete the field"):
        take_turn(world.client, world.deployment)
