"""Under all rules, a reset gives the counters of the oracle, live and however the log is counted later."""

from __future__ import annotations

import random
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import partition_of
from tallystream.wire.codec import is_reset
from tallystream.wire.stream_id import parse_id
from tallystream_worker.archive.entries import entries as archived
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.reset import reset
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.drill import drill
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import RULES, deliver, feed, happenings, without_zeros
from tests.integration.rebuild.test_rebuild import rebuilt, relaxed, settings_for, stored
from tests.integration.rebuild.test_retract import taken_back
from tests.oracle_rules import Happened, tally

if TYPE_CHECKING:
    from pathlib import Path


class History:
    """Random events and resets of one deployment, and the counters that they must give."""

    def __init__(self, harness: Harness, seed: int) -> None:
        self.harness = harness
        self.chance = random.Random(seed)
        self.events: list[Happened] = []
        self.resets: dict[tuple[str, str], tuple[int, ...]] = {}

    @property
    def deployment(self) -> Deployment:
        """The present deployment."""
        return Deployment.create_or_load(self.harness.client)

    def add(self, drawn) -> None:
        """Append and count drawn events in any order."""
        self.events += feed(self.harness, drawn, self.chance)
        deliver(self.harness, self.chance)

    def reset(self) -> None:
        """Reset a subject that has events, in one of its metrics or in all metrics."""
        event = self.chance.choice(self.events)
        metrics = [event.metric] if self.chance.random() < 0.5 else list(RULES.metric)
        expected = tally(self.events, RULES.metric, resets=self.resets).totals
        taken = reset(self.harness.client, self.deployment, event.subject, metrics)
        assert taken == {metric: expected[metric, event.subject] for metric in metrics}
        keys = self.harness.layout.keys[partition_of(event.subject, self.harness.layout.partitions)]
        ((id_, fields),) = self.harness.client.xrevrange(keys.stream, count=1)
        assert is_reset(fields)
        for metric in metrics:
            self.resets[metric, event.subject] = parse_id(id_.decode())

    def check(self, sources: Sources | None = None) -> None:
        """Check all counters, and that an audit finds no difference."""
        expected, now = tally(self.events, RULES.metric, resets=self.resets), stored(self.harness)
        for name in ("totals", "up", "windows"):
            assert now[name] == without_zeros(getattr(expected, name)), name
        found = self.harness.ledger()
        for metric in RULES.metric:
            assert found.get(f"total@{metric}", 0) == expected.ledger[f"total@{metric}"], metric
        report = audit(self.harness.client, self.deployment, self.harness.rules, sources=sources or Sources())
        assert report.differences == []


def _rebuild(history: History, _: Path, __: Database) -> Sources:
    rebuilt(history.harness)
    drop(history.harness.client, history.deployment, 1)
    return Sources()


def _undo(history: History, _: Path, __: Database) -> Sources:
    harness = history.harness
    for partition in range(harness.layout.partitions):
        harness.fetch(partition, "crashed")(3, 0)
    rebuilt(harness)
    history.reset()
    history.check()
    with Rebuild(settings_for(harness.url, RULES), history.deployment, 1) as run:
        run.catch_up()
        run.switch()
    harness.layout = history.deployment.layout
    drop(harness.client, history.deployment, 2)
    return Sources()


def _build_beside(history: History, _: Path, __: Database) -> Sources:
    """Reset while another generation is built, before and after it has counted most of the log."""
    harness = history.harness
    generation = propose(harness.client, history.deployment, RULES)
    with Rebuild(settings_for(harness.url, RULES), history.deployment, generation) as run:
        run.begin()
        history.reset()
        run.catch_up()
        history.reset()
        run.switch()
    harness.layout = history.deployment.layout
    drop(harness.client, history.deployment, 1)
    return Sources()


def _move(history: History, _: Path, __: Database) -> Sources:
    harness = history.harness
    repartition(settings_for(harness.url, RULES, 0), history.deployment, 3)
    harness.layout = history.deployment.layout
    return Sources()


def _restore(history: History, _: Path, database: Database) -> Sources:
    harness = history.harness
    report = drill(harness.client, database, history.deployment)
    assert report.differing == 0, report.differences
    restore(harness.client, database, force=True)
    Snapshotter(harness.client, database, history.deployment).run_once()
    return Sources(snapshot=database)


def _restore_from_archive(history: History, folder: Path, database: Database) -> Sources:
    harness = history.harness
    store = Store(str(folder / "archive"))
    Archive(harness.client, store, history.deployment).run_once(settled=0)
    harness.client.flushall()
    restore(harness.client, database, lambda n, after, end: archived(store, n, after, end))
    Snapshotter(harness.client, database, history.deployment).run_once()
    return Sources(snapshot=database)


def _retract(history: History, _: Path, __: Database) -> Sources:
    actor = history.chance.choice(["u1", "u2"])
    history.events = [event for event in history.events if event.actor != actor]
    taken_back(history.harness, actor=actor)
    return Sources()


quick = settings(relaxed, phases=[Phase.generate])
"""Without shrinking: an example takes about a second."""

WAYS = {
    "rebuild": _rebuild,
    "undo": _undo,
    "beside": _build_beside,
    "repartition": _move,
    "restore": _restore,
    "archive": _restore_from_archive,
    "retract": _retract,
}


@pytest.mark.parametrize("way", WAYS)
@quick
@given(drawn=st.lists(happenings(), min_size=3, max_size=3), seed=st.integers(0, 10_000))
def test_a_reset_takes_away_what_was_before_it(server, tmp_path_factory, way, drawn, seed):
    """Counters are those since the reset, also after they were counted again, moved, restored, or events retracted."""
    server.clear()
    folder = tmp_path_factory.mktemp("reset")
    database = Database(str(folder / "snapshot.sqlite"))
    with closing(database), Harness(server.url, rules=RULES, partitions=2) as harness:
        history = History(harness, seed)
        history.add(drawn[0])
        Snapshotter(harness.client, database, history.deployment).run_once()
        history.reset()
        history.check()
        if history.chance.random() < 0.5:
            Snapshotter(harness.client, database, history.deployment).run_once()
        history.add(drawn[1])
        history.reset()
        if history.chance.random() < 0.5:
            Snapshotter(harness.client, database, history.deployment).run_once()
        history.add(drawn[2])
        history.check()
        sources = WAYS[way](history, folder, database)
        if way != "retract":
            history.check(sources)
            history.reset()
            history.check(sources)
        else:
            history.check(sources)


def test_a_reset_waits_for_pending_entries_of_other_consumers(server):
    """In a generation that is not live, entries that other consumers left pending are counted before the reset.

    Two processes count the generation: one has the entries before the reset, the other those from the reset on.
    """
    rules = Rules({"view": Metric(windows=("hour",))})
    with Harness(server.url, rules=rules, partitions=1) as harness, Producer(server.url) as producer:

        def emit(amount):
            producer.emit("view", "a", amount)
            producer.flush(10)

        emit(1)
        emit(10)
        harness.drain()
        generation = propose(harness.client, Deployment.create_or_load(harness.client), rules)
        deployment = Deployment.create_or_load(harness.client)
        with Rebuild(settings_for(harness.url, rules, 1), deployment, generation) as run:
            run.begin()
            assert reset(harness.client, deployment, "a", ["view"]) == {"view": 11}
            emit(100)
            harness.drain()
            harness.layout = deployment.layout.of(generation)
            for consumer, n in (("first", 1), ("second", 2)):
                assert len(harness.fetch(0, consumer)(n, 0)) == n
            run.catch_up()
            harness.finish_beside()
            assert harness.totals() == {("view", "a"): 100}
            run.switch()
        harness.layout = Deployment.create_or_load(harness.client).layout
        assert harness.totals() == {("view", "a"): 100}
        assert audit(harness.client, Deployment.create_or_load(harness.client), rules).differences == []
