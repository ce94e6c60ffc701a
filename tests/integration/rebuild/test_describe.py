"""`reopen` describes a deployment again whose hash was lost, as far as its other keys and the archive state it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, KeyLost, StreamError
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.retraction import Retraction
from tallystream.storage.keys import Layout
from tallystream.storage.rule_changes import read_changes, write_changes
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import ArchiveError, Store
from tallystream_worker.cli.commands.reopen import reopen as command
from tallystream_worker.ingest.offsets import OffsetGate
from tallystream_worker.rebuild.describe import describe, retracted_events
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import Rebuild
from tallystream_worker.rebuild.reopen import Reopened, reopen
from tallystream_worker.rebuild.retract import propose_without
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.catch_up import CatchUpCounter
from tallystream_worker.repartition.migration import Repartition
from tallystream_worker.runtime.publication import publish_again
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt, settings_for
from tests.integration.repartition.test_migration import emit, moved

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = Rules({"view": Metric(ids=None, spread=True), "call": Metric(limit=5, per="total")})


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Yield a harness of 8 partitions, in which an event was counted by published rules."""
    with Harness(server.url, rules=RULES, partitions=8) as harness:
        publish_again(harness.client, Deployment.load(harness.client), 0)
        harness.client.hset(harness.layout.meta, "spread@view", 1)
        harness.client.xadd(harness.layout.keys[3].stream, {"metric": "view", "subject": "a"})
        harness.drain()
        yield harness


@pytest.mark.parametrize("generation", [1, 2])
def test_the_last_change_of_the_rules_describes_a_deployment(harness, generation):
    """The epoch, the partitions, the rules, their number and the live generation are the same again."""
    if generation == 2:
        rebuilt(harness)
        drop(harness.client, Deployment.load(harness.client), 1)
    before = Deployment.load(harness.client)
    newest = int(harness.client.hget(before.layout.root, "newest-revision"))
    harness.client.delete(before.layout.root)
    assert describe(harness.client, "tally", 0)
    assert Deployment.load(harness.client) == before
    assert int(harness.client.hget(before.layout.root, "newest-revision")) > newest
    assert not describe(harness.client, "tally", 0)


def test_another_generation_can_be_dropped(harness):
    """A generation that was kept when the hash was lost is kept again, so that it can be removed."""
    rebuilt(harness)
    harness.client.delete(harness.layout.root)
    describe(harness.client, "tally", 0)
    found = Deployment.load(harness.client)
    assert (found.generation, set(found.others)) == (2, {1})
    assert drop(harness.client, found, 1) > 0


def test_the_archive_and_the_configuration_state_what_the_record_does_not(harness):
    """Without a record of the rules, the archive has the epoch; without one, the configuration has the number."""
    harness.client.delete(harness.layout.rule_changes, harness.layout.root)
    manifest = {"epoch": "archived", "partitions": 8}
    assert describe(harness.client, "tally", 0, lambda _: manifest)
    found = Deployment.find(harness.client)
    assert (found.epoch, found.layout.partitions, found.declared) == ("archived", 8, None)
    harness.client.delete(harness.layout.root)
    for number in (0, 7):
        with pytest.raises(ConfigurationError, match=r"at least 8\. Set \[redis\] partitions"):
            describe(harness.client, "tally", number)
    assert describe(harness.client, "tally", 9)
    assert Deployment.find(harness.client).layout.partitions == 9


@pytest.mark.parametrize("right", [4, 8, 9])
def test_the_configuration_decides_if_the_record_contradicts_the_keys(harness, right):
    """If more partitions have keys than the record states, the configured number is used, also the recorded one."""
    changes = read_changes(harness.client, harness.layout)
    for _, fields in changes:
        fields[b"partitions"] = b"4"
    harness.client.delete(harness.layout.rule_changes, harness.layout.root)
    write_changes(harness.client, harness.layout, changes)
    for number in (0, 7):
        with pytest.raises(ConfigurationError, match=r"state 4, but 8 have keys\. Set \[redis\] partitions"):
            describe(harness.client, "tally", number)
    assert describe(harness.client, "tally", right)
    assert Deployment.find(harness.client).layout.partitions == right


def test_nothing_is_described_without_a_deployment(server):
    """If there are no keys, no deployment is made up."""
    with pytest.raises(ConfigurationError, match="nothing is stored under tally"):
        describe(server.client(), "tally", 4)
    assert not server.client().exists(Layout().root)


@pytest.mark.parametrize("lost", ["root", "meta", "root meta"])
@pytest.mark.parametrize("topics", [2, 3])
@pytest.mark.parametrize("is_dropped", [False, True])
def test_a_deployment_is_described_again_after_repartitions(harness, lost, topics, is_dropped):
    """The closed topics name the live one: its partitions, rules and epoch, and the topics before, are the same."""
    for partitions in (12, 3)[: topics - 1]:
        if topics == 3 and partitions == 3:
            topic.drop(harness.client, Deployment.load(harness.client))
        moved(harness, partitions)
    harness.drain()
    if is_dropped:
        topic.drop(harness.client, Deployment.load(harness.client))
    before = Deployment.load(harness.client)
    names = [getattr(before.layout, name) for name in lost.split()]
    closing = int(harness.client.hget(before.layout.root, "closing"))
    harness.client.delete(*names)
    if "root" not in lost:
        with pytest.raises(KeyLost, match=r"tallystream reopen"):
            Deployment.load(harness.client)
    assert describe(harness.client, "tally", 0) == names
    assert Deployment.load(harness.client) == before
    assert int(harness.client.hget(before.layout.root, "closing")) == closing
    assert describe(harness.client, "tally", 0) == []
    emit(harness, "b", 1)
    harness.drain()
    assert harness.totals() == {("view", "a"): 1, ("view", "b"): 1}
    moved(harness, 5) if is_dropped else topic.drop(harness.client, Deployment.load(harness.client))
    assert harness.totals() == {("view", "a"): 1, ("view", "b"): 1}


@pytest.mark.parametrize("closes", [False, True])
def test_an_unfinished_repartition_is_described_as_unfinished(harness, closes):
    """If the root is lost before the new topic is live, the repartition can be continued, or given up."""
    harness.client.xadd(harness.layout.keys[5].stream, {"nonsense": 1})  # its copy is plain, too
    deployment = Deployment.load(harness.client)
    layout = topic.propose(harness.client, deployment, 3)
    run = Repartition(settings_for(harness.url, RULES, 0), harness.client, deployment, layout)
    run.begin()
    if closes:
        with CatchUpCounter(settings_for(harness.url, RULES, 0), run.new, run.rules) as counting:
            run.catch_up(counting)
        topic.close(harness.client, deployment, layout, topic.next_closing(harness.client, deployment))
    before = Deployment.load(harness.client)
    harness.client.delete(before.layout.root)
    assert describe(harness.client, "tally", 0) == [before.layout.root]
    assert Deployment.load(harness.client) == before
    assert before.moving == layout.topic
    with pytest.raises(ConfigurationError, match=r"continue it with .* --partitions 3; .* rebuild --drop"):
        reopen(harness.client, before)
    if closes:
        moved(harness, 3)
    else:
        topic.give_up(harness.client, before)
    harness.drain()
    assert harness.totals() == {("view", "a"): 1}


@pytest.mark.parametrize("how", ["decide", "XADD"])
def test_a_topic_that_only_took_an_event_is_live(harness, how):
    """Neither a decided event nor a plain one leaves a record of a producer, and no worker has read the topic."""
    moved(harness, 3)
    before = Deployment.load(harness.client)
    if how == "XADD":
        harness.client.xadd(before.layout.keys[0].stream, {"metric": "view", "subject": "b"})
    else:
        with Producer(harness.url) as producer:
            assert producer.decide("call", "b").accepted
    harness.client.delete(before.layout.root)
    describe(harness.client, "tally", 0)
    assert Deployment.load(harness.client) == before
    assert reopen(harness.client, before) == Reopened([], [])
    harness.drain()
    assert harness.totals() == {("view", "a"): 1, ("view" if how == "XADD" else "call", "b"): 1}


def test_an_error_does_not_hide_what_was_mended(harness, capsys, monkeypatch):
    """If the repartition has to be continued first, the command prints that `tally:meta` is stored again."""
    monkeypatch.setenv("TALLYSTREAM_REDIS_URL", harness.url)
    topic.begin(harness.client, *_proposed(harness))
    harness.client.delete(harness.layout.root)
    with pytest.raises(ConfigurationError, match="--partitions 3"):
        command()
    assert capsys.readouterr().out == "mended tally:meta\n"
    with pytest.raises(ConfigurationError, match="--partitions 3"):
        command()
    assert not capsys.readouterr().out


def _proposed(harness: Harness) -> tuple[Deployment, Layout, Rules]:
    """Return the arguments of `topic.begin` for a repartition to 3 partitions."""
    deployment = Deployment.load(harness.client)
    return deployment, topic.propose(harness.client, deployment, 3), deployment.rules


@pytest.mark.parametrize("partitions", [3, 5])
def test_a_topic_that_was_given_up_is_not_filled_again(harness, monkeypatch, partitions):
    """If its removal was interrupted, and the next repartition has begun, it is described as left."""
    topic.begin(harness.client, *_proposed(harness))
    with monkeypatch.context() as killed:
        killed.setattr(topic, "drop_left", lambda *_: {})
        topic.give_up(harness.client, Deployment.load(harness.client))
    deployment = Deployment.load(harness.client)
    topic.begin(harness.client, deployment, topic.propose(harness.client, deployment, partitions), deployment.rules)
    before = Deployment.load(harness.client)
    assert (before.moving, harness.client.hget(before.layout.root, "left")) == (3, b"2:3")
    harness.client.delete(before.layout.root)
    describe(harness.client, "tally", 0)
    assert Deployment.load(harness.client) == before
    found = harness.client.hmget(before.layout.root, "left", "moving-partitions")
    assert found == [b"2:3", b"%d" % partitions]
    moved(harness, partitions)
    harness.drain()
    assert harness.totals() == {("view", "a"): 1}


@pytest.mark.parametrize("states", ["the archive", "a file", "its hash"])
def test_a_lost_partition_of_an_earlier_topic_does_not_shrink_it(harness, states):
    """If the keys of the last partition are lost, other keys and the archive have the number of partitions.

    With a lower number, events of files and spools would be searched in wrong partitions of the topic.
    """
    moved(harness, 12)
    if states == "a file":
        harness.client.hset(Layout(12, topic=2).keys[11].sequences, "file:x", "500 1-1")
    topic.drop(harness.client, Deployment.load(harness.client))
    moved(harness, 3)
    harness.drain()
    if states != "its hash":
        topic.drop(harness.client, Deployment.load(harness.client))
    before = Deployment.load(harness.client)
    assert before.earlier == {1: 8, 2: 12}
    lost = Layout(12, topic=2).keys[11]
    harness.client.delete(before.layout.root, lost.sequences, lost.topic_ledger, lost.live)
    manifest = {2: {"partitions": 12}} if states == "the archive" else {}
    assert describe(harness.client, "tally", 0, manifest.get)
    assert Deployment.load(harness.client) == before


def test_a_topic_that_a_restore_has_left_can_still_be_removed(harness, tmp_path):
    """A restore of an earlier topic closes the live one: it is described as left, not as live."""
    with closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        moved(harness, 3)
        restore(harness.client, database, force=True, accept_loss=True)
    before = Deployment.load(harness.client)
    harness.client.delete(before.layout.root)
    describe(harness.client, "tally", 0)
    assert Deployment.load(harness.client) == before
    assert topic.drop_left(harness.client, before).keys() == {2}


@pytest.mark.parametrize("is_dropped", [False, True])
@pytest.mark.parametrize("is_emptied", [False, True])
def test_a_restore_before_the_loss_hides_no_earlier_topic(harness, tmp_path, is_dropped, is_emptied):
    """A restore closes the first topic for the live one; the topics between them are still described as earlier."""
    moved(harness, 12)
    harness.client.hset(Deployment.load(harness.client).layout.keys[0].sequences, "file:x", "500 1-1")
    topic.drop(harness.client, Deployment.load(harness.client))
    moved(harness, 3)
    harness.drain()
    if is_dropped:
        topic.drop(harness.client, Deployment.load(harness.client))
    with closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        if is_emptied:
            harness.client.flushall()
        restore(harness.client, database, force=True)
    harness.drain()
    before = Deployment.load(harness.client)
    assert before.earlier == {1: 8, 2: 12}
    harness.client.delete(before.layout.root)
    assert describe(harness.client, "tally", 0)
    after = Deployment.load(harness.client)
    assert after == before
    _, offsets = OffsetGate(harness.client, after.layout, "file:x").earlier_offsets(after.earlier_layouts)
    assert offsets[0] == 500


def test_a_topic_that_a_restore_has_left_is_no_earlier_topic(harness, tmp_path):
    """It stays so after it was dropped and the restored topic was repartitioned: its sequences name a lower topic."""
    with closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        moved(harness, 12)
        topic.drop(harness.client, Deployment.load(harness.client))
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        moved(harness, 3)
        restore(harness.client, database, force=True, accept_loss=True)
    topic.drop_left(harness.client, Deployment.load(harness.client))
    moved(harness, 5)
    harness.drain()
    before = Deployment.load(harness.client)
    assert (before.layout.topic, dict(before.earlier), before.kept) == (4, {1: 8, 2: 12}, 2)
    harness.client.delete(before.layout.root)
    assert describe(harness.client, "tally", 0)
    assert Deployment.load(harness.client) == before
    assert harness.client.hget(before.layout.root, "left") is None


def test_a_hash_that_was_lost_during_a_switch_is_not_guessed(harness):
    """If the partitions count different generations, the command names the snapshot, and changes nothing."""
    harness.client.set(harness.layout.keys[1].live, "2")
    harness.client.delete(harness.layout.root)
    with pytest.raises(ConfigurationError, match="while a rebuild was switching"):
        describe(harness.client, "tally", 0)
    assert not harness.client.exists(harness.layout.root)


def retracted(harness: Harness) -> Retraction:
    """Count an event, retract it by a rebuild, and drop the earlier counters; return the retraction."""
    fields = {"metric": "view", "subject": "a", "actor": "u"}
    last = harness.client.xadd(harness.layout.keys[3].stream, fields).decode()
    harness.drain()
    retraction = Retraction(until={harness.layout.keys[3].stream: last}, actor="u")
    generation = propose_without(harness.client, Deployment.load(harness.client), retraction)
    deployment = Deployment.load(harness.client)
    with Rebuild(settings_for(harness.url, RULES, 8), deployment, generation) as run:
        run.begin()
        run.catch_up()
        run.switch()
    drop(harness.client, Deployment.load(harness.client), 1)
    return retraction


def test_retractions_that_are_not_known_are_not_forgotten_in_silence(harness):
    """Without a record of the rules, the archive has the retractions; if it has none, `force` is needed."""
    retraction = retracted(harness)
    layout = Deployment.load(harness.client).layout
    harness.client.delete(layout.root, layout.rule_changes)
    for manifest in (None, {"epoch": "archived", "partitions": 8}):
        with pytest.raises(StreamError, match=r"^1 events were retracted.* --force\. If you have an archive"):
            describe(harness.client, "tally", 8, lambda _, manifest=manifest: manifest)
        assert not harness.client.exists(layout.root)
    noted = {"epoch": "archived", "partitions": 8, "retracted": msgspec.to_builtins([retraction])}
    assert describe(harness.client, "tally", 8, lambda _: noted, rules=RULES) == [layout.root]
    found = Deployment.find(harness.client)
    assert found.declared == msgspec.structs.replace(RULES, retracted=(retraction,))
    assert found.revision > 1
    harness.client.delete(layout.root)
    assert describe(harness.client, "tally", 8, force=True) == [layout.root]
    found = Deployment.find(harness.client)
    assert (found.declared, retracted_events(harness.client, found.layout)) == (None, 1)


@pytest.mark.parametrize("has_archive", [True, False])
def test_retractions_that_come_back_with_lost_rules_are_known(harness, capsys, monkeypatch, tmp_path, *, has_archive):
    """If the archive has the change of the rules with the retractions, the command states no unknown retractions."""
    monkeypatch.setenv("TALLYSTREAM_REDIS_URL", harness.url)
    if has_archive:
        monkeypatch.setenv("TALLYSTREAM_ARCHIVE_URL", str(tmp_path))
    retraction = retracted(harness)
    layout = Deployment.load(harness.client).layout
    Archive(harness.client, Store(str(tmp_path)), Deployment.load(harness.client)).run_once(settled=0)
    *_, (last, _) = read_changes(harness.client, layout)
    harness.client.xdel(layout.rule_changes, last)
    harness.client.delete(layout.root)
    command(force=True)
    printed = capsys.readouterr().out
    assert ("live again" in printed, "not known which ones" in printed) == (has_archive, not has_archive)
    assert Deployment.load(harness.client).rules.retracted == ((retraction,) if has_archive else ())


def test_an_archive_that_cannot_be_read_does_not_hide_what_was_mended(harness, capsys, monkeypatch, tmp_path):
    """If the changes of the rules in the archive cannot be read, the command prints which keys it has mended."""
    monkeypatch.setenv("TALLYSTREAM_REDIS_URL", harness.url)
    monkeypatch.setenv("TALLYSTREAM_ARCHIVE_URL", str(tmp_path))
    (tmp_path / "_rules.json").write_text("{", encoding="utf-8")
    harness.client.delete(harness.layout.keys[3].live)
    with pytest.raises(ArchiveError):
        command()
    assert f"mended {harness.layout.keys[3].live}" in capsys.readouterr().out


def test_the_number_of_an_archived_topic_is_not_used_again(harness):
    """If no key shows a later topic that the archive has, its number is still not used again."""
    harness.client.delete(harness.layout.root)
    describe(harness.client, "tally", 0, topics=[2, 5])
    assert topic.propose(harness.client, Deployment.load(harness.client), 3).topic > 5
