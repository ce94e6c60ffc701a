"""Older data of another generation or topic is found, and a snapshot that has more than it is not replaced."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from tallystream.deployment import Deployment
from tallystream.reading.totals import Totals
from tallystream_worker.cli.later_backup import find_losses
from tallystream_worker.cli.repartition import to_partitions
from tallystream_worker.settings.settings import RedisSettings, Settings, SnapshotSettings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.lost_log import LogLost, PassedOver
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.integration.verify.test_remedies import run
from tests.integration.verify.test_verify import RULES, World, names, rebuilt, world
from tests.rewind import copy_of, go_back

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["world"]  # the fixture


def count(world: World) -> None:
    """Append events to the live topic, and count them in the live generation."""
    layout = Deployment.load(world.client).layout
    world.harness.layout, world.keys = layout, layout.keys[0]
    world.emit()
    world.harness.drain("closer", claim_idle=0)


def repartitioned(world: World) -> None:
    """Move the events to a topic with two partitions."""
    settings = Settings(RedisSettings(world.harness.url), rules=RULES)
    to_partitions(settings, Deployment.load(world.client), 2, "", accept_loss=False, json=True)


def nothing(world: World) -> None:
    """Change nothing."""
    del world


def restored(world: World) -> None:
    """Restore the snapshot, which is of the first generation and topic."""
    restore(world.client, world.database, force=True, accept_loss=True)


CASES: Final[dict[str, tuple[Callable[[World], None], Callable[[World], None]]]] = {
    "the server of an earlier generation": (nothing, rebuilt),
    "the server of a later generation": (rebuilt, restored),
    "the server of an earlier topic": (nothing, repartitioned),
    "the server of a later topic": (repartitioned, restored),
}
"""By what is put back: what is done before the copy of the data, and what after it, before the last snapshot."""


def lose(world: World, case: str, *, is_followed: bool) -> dict[tuple[str, str], int]:
    """Put data of another generation or topic back that lacks entries of the snapshot; return the right totals.

    With `is_followed`, more events are counted then, which are not in the totals.
    """
    first, then = CASES[case]
    first(world)
    before = copy_of(world.client)
    then(world)
    count(world)
    Snapshotter(world.client, world.database, Deployment.load(world.client)).run_once()
    right = world.harness.totals()
    go_back(world.client, before)
    if is_followed:
        count(world)
    return right


@pytest.mark.parametrize("is_followed", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_older_data_of_another_generation_is_found(world: World, case: str, *, is_followed: bool) -> None:
    """A verification has the same finding as in one generation, and each of its two commands mends it.

    No snapshot replaces the one that has the lost entries.
    """
    right = lose(world, case, is_followed=is_followed)
    with pytest.raises(LogLost, match="has lost entries"):
        Snapshotter(world.client, world.database, Deployment.load(world.client)).run_once()
    report = world.verify(archive=False)
    assert {each for each in names(report) if each.startswith("snapshot.")} == {"snapshot.ahead"}
    assert not [each.text for each in report.limits if "the next snapshot" in each.text]
    if is_followed:
        return
    url, older = str(world.folder / "snapshot.sqlite"), copy_of(world.client)
    commands = re.findall(r"tallystream (?!verify)[^;,.]*", report.remedy(report.findings["snapshot.ahead"]))
    forced = " --accept-loss" * (case == "the server of a later topic")  # the restore names this option
    for command in (commands[0] + forced, commands[1]):
        go_back(world.client, older)
        run(world, command, url)
        if "restore" in command:
            world.harness.layout = Deployment.load(world.client).layout
            assert world.harness.totals() == right
    assert not {each for each in names(world.verify(archive=False)) if each.startswith("snapshot.")}


def test_a_snapshot_of_a_later_topic_that_a_restore_has_passed_over_is_kept(world: World) -> None:
    """After a restore of an earlier topic, the snapshot of the later one is kept, also if its streams are still there.

    The error and `tallystream status` name the restore, until the loss is accepted.
    """
    repartitioned(world)
    count(world)
    url = str(world.folder / "later.sqlite")
    settings = Settings(RedisSettings(world.harness.url), rules=RULES, snapshot=SnapshotSettings(url=url))
    with closing(Database(url)) as later, closing(Totals(world.harness.url)) as totals:
        Snapshotter(world.client, later, Deployment.load(world.client)).run_once()
        right = later.facts()
        restored(world)
        count(world)
        assert Deployment.load(world.client).layout.topic == totals.deployment.layout.topic == 1
        for is_whole in (False, True):
            with pytest.raises(PassedOver, match=r"another snapshot was restored at .* after this one was taken"):
                Snapshotter(world.client, later, Deployment.load(world.client)).run_once(whole=is_whole)
        assert later.facts() == right
        (loss,) = find_losses(settings, totals)
        assert (loss.is_certain, loss.text.startswith("passed over: another snapshot was restored")) == (True, True)
        Snapshotter(world.client, later, Deployment.load(world.client)).run_once(accept_loss=True)
        assert find_losses(settings, totals) == []
        Snapshotter(world.client, later, Deployment.load(world.client)).run_once()
