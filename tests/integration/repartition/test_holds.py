"""The retention holds of a repartition protect what is not copied yet; none of them stays in a live partition."""

from __future__ import annotations

from contextlib import closing

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, StreamError
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.catch_up import CatchUpCounter
from tallystream_worker.repartition.copy import StreamCopier
from tallystream_worker.repartition.migration import Repartition, repartition
from tallystream_worker.repartition.reading_marks import HOLDER
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import settings_for
from tests.integration.repartition.test_lost_writes import PLAIN, SUBJECTS, begun, totals
from tests.rewind import Slot


@pytest.fixture
def harness(server):
    """Yield a harness of two partitions with a view of each subject."""
    with Harness(server.url, rules=PLAIN, partitions=2) as harness:
        append(harness)
        harness.drain()
        yield harness


def append(harness):
    """Append a view of each subject, with `XADD`."""
    for subject in SUBJECTS:
        harness.client.xadd(harness.layout.keys_of(subject).stream, {"metric": "view", "subject": subject})


def copied(harness, partitions):
    """Begin a repartition and copy; return it."""
    run = begun(harness, partitions)
    with CatchUpCounter(settings_for(harness.url, PLAIN, 0), run.new, PLAIN) as counting:
        run.catch_up(counting)
    return run


def holds(harness, layout=None):
    """Return the hold of a repartition in each partition."""
    return [harness.client.hget(keys.retention_holds, HOLDER) for keys in (layout or harness.layout).keys]


def test_a_repartition_that_was_given_up_places_no_hold(harness):
    """A process that was paused while another one gave the repartition up leaves no hold in the live partitions."""
    run = copied(harness, 3)
    topic.give_up(harness.client, Deployment.load(harness.client))
    run._copying.hold()
    assert holds(harness) == [None, None]
    with pytest.raises(StreamError, match="given up meanwhile"):
        run.begin()
    assert holds(harness) == [None, None]


def test_a_repartition_that_was_given_up_does_not_move_the_hold_of_a_later_one(harness):
    """Otherwise entries could be trimmed that the later one has not copied."""
    run = copied(harness, 3)
    topic.give_up(harness.client, Deployment.load(harness.client))
    later = begun(harness, 4)
    run._copying.hold()
    assert holds(harness) == [b"0-0", b"0-0"]
    with CatchUpCounter(settings_for(harness.url, PLAIN, 0), later.new, PLAIN) as counting:
        later.catch_up(counting)
    assert b"0-0" not in holds(harness)
    run._copying.look()
    after = holds(harness)
    run._copying.hold()
    assert holds(harness) == after


def test_a_run_that_another_one_has_overtaken_keeps_the_hold_of_the_kept_topic(harness):
    """Workers still copy from the kept topic, and nothing is trimmed there that they have not copied."""
    old = harness.layout
    run = begun(harness, 3)
    repartition(settings_for(harness.url, PLAIN, 0), Deployment.load(harness.client), 3)
    with pytest.raises(StreamError, match="given up meanwhile"):
        run.begin()
    assert None not in holds(harness, old)
    assert all(harness.client.hexists(keys.sequences, "!copying") for keys in old.keys)


def test_a_topic_that_was_dropped_gets_no_hold(harness):
    """A worker that copied stragglers while the old topic was dropped creates none of its keys again."""
    old = harness.layout
    repartition(settings_for(harness.url, PLAIN, 0), Deployment.load(harness.client), 3)
    deployment = Deployment.load(harness.client)
    copier = StreamCopier(harness.client, old, deployment.layout)
    copier.look()
    topic.drop(harness.client, deployment)
    copier.hold()
    assert holds(harness, old) == [None, None]


def test_a_hold_that_a_failover_has_lost_is_noticed(harness):
    """Nothing is copied then, because entries may have been trimmed; the next run places the hold again."""
    deployment = Deployment.load(harness.client)
    layout = topic.propose(harness.client, deployment, 3)
    run = Repartition(settings_for(harness.url, PLAIN, 0), harness.client, deployment, layout)
    slot = Slot(harness.client, 0)
    run.begin()
    slot.go_back()
    with (
        CatchUpCounter(settings_for(harness.url, PLAIN, 0), run.new, PLAIN) as counting,
        pytest.raises(StreamError, match=r"retention hold of this repartition is gone.*Run the command again"),
    ):
        run.catch_up(counting)
    repartition(settings_for(harness.url, PLAIN, 0), Deployment.load(harness.client), 3)
    assert totals(harness) == dict.fromkeys(SUBJECTS, 1)


def test_entries_that_were_trimmed_while_a_hold_was_lost_are_noticed(harness):
    """A run that continues refuses if a partition of which nothing was copied lacks entries, as the first run does."""
    deployment = Deployment.load(harness.client)
    layout = topic.propose(harness.client, deployment, 3)
    settings = settings_for(harness.url, PLAIN, 0)
    first = Repartition(settings, harness.client, deployment, layout)
    first.begin()
    read = first._copying._from
    first._copying._from = lambda source: read(source) if source else iter(())
    first._copying()
    harness.client.xtrim(harness.layout.keys[0].stream, maxlen=1, approximate=False)
    with pytest.raises(ConfigurationError, match="entries are no longer in the streams"):
        repartition(settings, Deployment.load(harness.client), 3)
    repartition(settings, Deployment.load(harness.client), 3, accept_loss=True)


def test_a_snapshot_whose_hold_a_failover_has_lost_is_taken_anew(harness, tmp_path):
    """The mark of the snapshot is lost together with its hold: so every counter is read, also if entries are gone."""
    slot = Slot(harness.client, 0)
    with closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        slot.go_back()
        assert harness.client.hget(harness.layout.keys[0].retention_holds, "snapshot") is None
        append(harness)
        harness.drain()
        assert Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once().whole == 1
        assert harness.client.hget(harness.layout.keys[0].retention_holds, "snapshot") not in (None, b"0-0")
