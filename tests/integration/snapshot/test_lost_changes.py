"""If a server has lost changes of the rules, a restore makes them again, and each entry keeps the rules of its time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from tallystream.deployment import Deployment
from tallystream.rules.changes import changes_of
from tallystream.rules.metrics import Metric, Ratio, Rules
from tallystream.rules.retraction import Retraction
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.regained import regained_text
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.retract import ends
from tallystream_worker.runtime.publication import publish_again
from tallystream_worker.snapshot.lost_changes import merged
from tallystream_worker.snapshot.partition_restore import PartitionRestore
from tallystream_worker.snapshot.retractions import note_retractions
from tallystream_worker.verify.verify import verify
from tests.integration.snapshot.test_kept_rules import NEW, OLD, SUBJECTS, World, world
from tests.rewind import copy_of, go_back

__all__ = ["world"]  # the fixture

LATER = Rules({**NEW.metric, "view": Metric(ids=None, limit=7, per="total")})


def rules_of(limit: int, **others: Metric) -> Rules:
    """Return rules with a limit of views, and other metrics."""
    return Rules({"view": Metric(ids=None, limit=limit, per="total"), **others})


def views(world: World, times: int) -> None:
    """Emit and count several views of each subject."""
    for _ in range(times):
        world.emit("view")


def follow(world: World, above: int) -> None:
    """Give the rules a number above a lost one, as a worker does that followed the lost rules."""
    publish_again(world.client, Deployment.load(world.client), above)


def numbers(world: World) -> list[int]:
    """Return the numbers of the recorded changes."""
    return [change.number for change in changes_of(read_changes(world.client, world.harness.layout))]


def archive(world: World, store: Store) -> None:
    """Archive all entries and changes of the rules."""
    Archive(world.client, store, Deployment.load(world.client)).run_once(settled=0)


def interrupt(world: World, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Begin a restore, which is interrupted before it opens a partition."""

    def fail(*_: Any) -> None:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(PartitionRestore, "open", fail)
        with pytest.raises(OSError, match="interrupted"):
            world.restore(**options)


def assert_right(world: World, store: Store | None = None) -> None:
    """Check that a verification finds no fault, and that nothing keeps it from a check."""
    report = verify(world.client, "tally", Sources(store, world.database))
    assert (list(report.findings), report.failed) == ([], [])


@pytest.mark.parametrize("is_followed", [True, False])
def test_lost_changes_are_made_again(world, *, is_followed):
    """Older data has older rules, which count; the restore makes the lost change again, as a new change.

    This is so whether or not a worker has given the older rules a higher number.
    """
    views(world, 1)
    older = copy_of(world.client)
    world.publish(NEW)
    views(world, 3)
    world.emit("clap")
    world.snapshot()
    go_back(world.client, older)
    if is_followed:
        follow(world, 2)
    world.harness.rules = OLD
    views(world, 1)  # rejected: the limit is 2 again, and 4 are counted
    done = world.restore()
    assert (done.regained, done.kept, done.rules) == ([2], False, NEW)
    assert done.is_regained_live
    totals, _, rules, number, changes = world.state()
    assert (totals["view", "a"], totals["clap", "a"], rules) == (4, 1, NEW)
    assert (number, numbers(world)) == (4, [1, 2, 3, 4])
    assert [change.rules for change in changes_of(changes)] == [OLD, NEW, OLD, NEW]
    assert_right(world)
    world.harness.rules = NEW
    world.emit("clap")
    assert world.state()[0]["clap", "a"] == 2
    assert_right(world)
    before = world.state()
    assert world.restore().regained == []
    assert world.state() == before


def test_without_an_event_after_the_loss_nothing_else_changes(world):
    """If nothing was counted by the older rules, the rules get back the number that they had."""
    views(world, 1)
    older = copy_of(world.client)
    world.publish(NEW)
    world.snapshot()
    go_back(world.client, older)
    assert world.restore().regained == [2]
    assert (world.state()[2:4], numbers(world)) == ((NEW, 2), [1, 2])
    assert_right(world)


def test_what_was_changed_after_the_loss_stays(world):
    """A metric that was changed after the loss stays so; the others are those of the lost change.

    No number of rules is used twice.
    """
    views(world, 1)
    older = copy_of(world.client)
    world.publish(NEW)
    views(world, 3)
    world.snapshot()
    go_back(world.client, older)
    world.publish(rules_of(6))  # its number is 2, too
    views(world, 3)
    world.restore()
    totals, _, rules, number, changes = world.state()
    assert rules == rules_of(6, clap=NEW.metric["clap"])
    assert totals["view", "a"] == 6
    assert len(set(numbers(world))) == len(numbers(world))
    assert number == max(numbers(world))
    assert changes_of(changes)[-1].rules == rules
    assert_right(world)


def test_the_same_configuration_after_the_loss_needs_no_new_change(world):
    """If a worker was started with the latest configuration after the loss, its rules stay, and are counted once."""
    views(world, 1)
    older = copy_of(world.client)
    world.publish(NEW)
    world.snapshot()
    go_back(world.client, older)
    views(world, 2)
    world.publish(NEW)
    views(world, 1)
    world.restore()
    totals, _, rules, number, _ = world.state()
    assert (totals["view", "a"], rules, number) == (3, NEW, max(numbers(world)))
    assert_right(world)


@pytest.mark.parametrize("is_emptied", [True, False])
def test_a_change_that_only_the_archive_has_is_made_again(world, tmp_path, *, is_emptied):
    """A change after the snapshot is in the archive: it is live after the restore, and has counted its entries."""
    store = Store(str(tmp_path / "archive"))
    views(world, 1)
    world.snapshot()
    older = copy_of(world.client)
    world.publish(NEW)
    views(world, 3)
    world.emit("clap")
    archive(world, store)
    before = world.state()
    if is_emptied:
        world.client.flushall()
    else:
        go_back(world.client, older)
    done = world.restore(archived=partial(entries, store), changes=store.rules())
    assert (done.regained, world.state()) == ([2], before)
    assert_right(world, store)


@pytest.mark.parametrize("place", ["snapshot", "archive"])
@pytest.mark.parametrize("is_interrupted", [True, False])
def test_a_noted_retraction_stays_with_a_change_that_is_made_again(
    world, tmp_path, monkeypatch, place, *, is_interrupted
):
    """If a server was emptied, the archive's later change of the rules is live again, and so is a noted retraction.

    Its events stay out, also if the archive lacks the change that made the retraction live.
    """
    store = Store(str(tmp_path / "archive"))
    views(world, 1)
    world.snapshot()
    world.publish(NEW)
    world.emit("clap")
    for subject in "ab":
        keys = world.harness.layout.keys_of(subject)
        world.client.xadd(keys.stream, {"metric": "clap", "subject": subject, "actor": "bot"})
    world.harness.drain()
    archive(world, store)
    known, deployment = store.rules(), Deployment.load(world.client)
    retraction = Retraction(ends(world.client, deployment), actor="bot")
    if place == "snapshot":
        note_retractions(world.database, [retraction])
    else:
        store.note([retraction])
    world.client.flushall()
    options = {"archived": partial(entries, store), "changes": known, "retracted": store.retracted()}
    if is_interrupted:
        interrupt(world, monkeypatch, **options)
    done = world.restore(**options)
    totals, _, rules, number, changes = world.state()
    assert rules.retracted == done.rules.retracted == (retraction,)
    assert (rules.metric, totals["clap", "a"], totals["clap", "c"]) == (NEW.metric, 1, 1)
    assert (numbers(world), number, changes_of(changes)[-1].rules) == ([1, 2, 3], 3, rules)
    assert_right(world, store)


@pytest.mark.parametrize("is_followed", [True, False])
def test_a_partition_that_has_lost_nothing_keeps_its_places(world, *, is_followed):
    """If only the description has lost a change, the events that were counted by the change stay counted."""
    views(world, 1)
    layout = world.harness.layout
    earlier = {key: world.client.dump(key) for key in (layout.meta, layout.rule_changes)}
    world.publish(NEW)
    world.snapshot()
    world.emit("clap")
    for key, value in earlier.items():
        world.client.restore(key, 0, value, replace=True)
    if is_followed:
        follow(world, 2)
        world.harness.rules = OLD
        world.emit("clap")  # no rules declare it now
    assert world.restore().regained == [2]
    totals, _, rules, _, _ = world.state()
    assert (totals["clap", "a"], rules) == (1, NEW)
    assert len(world.harness.dead()) == (len(SUBJECTS) if is_followed else 0)
    assert_right(world)
    world.harness.rules = NEW
    world.emit("clap")
    assert world.state()[0]["clap", "a"] == 2
    assert_right(world)


@pytest.mark.parametrize("is_followed", [True, False])
def test_a_loss_that_was_accepted_is_not_undone(world, tmp_path, *, is_followed):
    """After a snapshot of the older data has replaced the earlier one, a restore keeps the older rules."""
    store = Store(str(tmp_path / "archive"))
    views(world, 1)
    older = copy_of(world.client)
    world.publish(NEW)
    views(world, 1)
    archive(world, store)
    go_back(world.client, older)
    world.harness.rules = OLD
    if is_followed:
        follow(world, 2)
    views(world, 1)
    world.snapshot()
    done = world.restore(archived=partial(entries, store), changes=store.rules())
    assert (done.regained, done.kept, done.rules) == ([], True, OLD)


def test_a_restore_to_yesterday_keeps_the_live_rules(world):
    """A server that has lost nothing keeps its rules, and the restore makes no change."""
    views(world, 1)
    world.snapshot()
    world.publish(NEW)
    views(world, 1)
    assert world.restore().regained == []
    assert (world.state()[2:4], numbers(world)) == ((NEW, 2), [1, 2])


def test_a_server_without_a_record_of_its_changes_gets_the_later_rules(world):
    """If the older data lacks the record of the changes too, the rules of the snapshot are live."""
    views(world, 1)
    older = copy_of(world.client)
    world.publish(NEW)
    world.snapshot()
    go_back(world.client, older)
    world.client.delete(world.harness.layout.rule_changes)
    world.restore()
    assert world.state()[2:4] == (NEW, 2)


def test_a_repeated_restore_makes_the_change_once(world, monkeypatch):
    """After a restore that was interrupted, the next one makes the lost change again, and once only."""
    views(world, 1)
    older = copy_of(world.client)
    world.publish(NEW)
    world.snapshot()
    go_back(world.client, older)
    follow(world, 2)
    world.harness.rules = OLD
    views(world, 1)

    interrupt(world, monkeypatch)
    world.restore()
    assert (world.state()[2:4], numbers(world)) == ((NEW, 4), [1, 2, 3, 4])
    assert_right(world)


def test_two_branches_of_rules_become_one():
    """Each part is that of the branch which has changed it; if both have, that of the later one."""
    lost = rules_of(5, clap=Metric(), vote=Metric(once="forever"))
    base = rules_of(2, vote=Metric(once="forever"), old=Metric())
    assert merged(base, lost, base) == lost
    assert merged(base, base, lost) == lost
    assert merged(base, lost, rules_of(3, vote=Metric(), old=Metric())) == rules_of(3, clap=Metric(), vote=Metric())
    one, other = Retraction({"s": "1-1"}, actor="one"), Retraction({"s": "2-1"}, actor="other")
    both = merged(base, replace(base, retracted=(one,)), replace(base, retracted=(one, other)))
    assert both == replace(base, retracted=(one, other))
    assert merged(both, replace(both, retracted=(other,)), both) == replace(base, retracted=(other,))
    with_ratio = Rules({"view": Metric(), "clap": Metric()}, ratio={"r": Ratio(of=("clap",), by=("view",))})
    without = Rules({"view": Metric(), "clap": Metric()})
    assert merged(without, with_ratio, rules_of(2)) is None  # together, the ratio would lack its metric


def test_a_restore_states_that_a_lost_change_is_not_live(world):
    """If the lost change and a later one contradict each other, the later rules stay live, and the result states it."""
    world.publish(NEW)
    views(world, 1)
    older = copy_of(world.client)
    world.publish(Rules(NEW.metric, ratio={"r": Ratio(of=("clap",), by=("view",))}))
    world.snapshot()
    go_back(world.client, older)
    world.harness.rules = NEW
    world.publish(OLD)
    views(world, 1)
    done = world.restore()
    assert (done.regained, done.is_regained_live, done.rules) == ([3], False, OLD)
    assert world.state()[2] == OLD
    told = regained_text(done.regained, is_live=done.is_regained_live)
    assert "had lost the change of the rules with the number 3: it is recorded again, but not live" in told
    assert "with the numbers 3, 4: they are live" in regained_text([3, 4], is_live=True)
    assert_right(world)
