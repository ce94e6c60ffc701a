"""Of one actor's votes with the same time, the one that is later in the log counts, however the log is counted."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tallystream.deployment import Deployment
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.archive.entries import entries as archived
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import letters
from tallystream_worker.ingest import job
from tallystream_worker.ingest.job import jobs_of
from tallystream_worker.ingest.lines import Mapping
from tallystream_worker.ingest.pool import IngestRun
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.compare import Comparison, compare
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.settings.settings import RedisSettings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.drill import drill
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import settings_for

RULES = Rules({"vote": Metric(once="forever", windows=("hour",)), "view": Metric()})
AT = 1_795_870_000.0


@pytest.fixture
def harness(server):
    """Yield a harness with votes on an empty server."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        yield harness


def append(harness: Harness, *entries: list[tuple[str, int]], at: float = AT) -> None:
    """Append entries of votes (actor, amount) for one subject, all with the same time."""
    appender = Appender(harness.client, harness.layout)
    for number, votes in enumerate(entries, 1):
        pack = EntryBuilder()
        for actor, amount in votes:
            pack.add("vote", "post:1", amount, at, actor, None)
        appender.push(0, SealedEntry(number, pack.events, pack.size, pack.build()))
        appender.send()


def score(harness: Harness) -> tuple[int, int]:
    """Return the score and the number of votes up."""
    keys = harness.layout.keys[0]
    found = harness.client.mget(keys.total("vote", "post:1"), keys.up("vote", "post:1"))
    return tuple(int(value or 0) for value in found)


@pytest.mark.parametrize("amounts", [*itertools.permutations([1, 0, -1]), (1, -1, 1), (-1, 1, 1, 0), (0, 1, 0)])
@pytest.mark.parametrize("spread", ["one entry", "an entry each"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_later_place_counts(harness, amounts, spread, reverse):
    """The last vote in the log counts, in one entry or several, whatever the order in which these are counted."""
    votes = [("u1", amount) for amount in amounts]
    append(harness, *([votes] if spread == "one entry" else [[vote] for vote in votes]))
    held = harness.fetch(0, "reader")(100, 0)
    for entry in reversed(held) if reverse else held:
        handed = iter([[entry]])
        harness.consumer(0, "reader", fetch=lambda *_, handed=handed: next(handed)).run_once()
    harness.finish()
    assert score(harness) == (amounts[-1], int(amounts[-1] > 0))


def test_the_order_of_an_actor_survives_the_packing(harness):
    """Votes of several actors in one entry, drawn at random, leave the last of each actor."""
    chance = random.Random(8)
    votes = [(f"u{chance.randrange(20)}", chance.choice([1, 1, 0, -1])) for _ in range(300)]
    append(harness, votes[:120], votes[120:])
    harness.finish()
    last = dict(votes)
    assert score(harness) == (sum(last.values()), sum(amount > 0 for amount in last.values()))


def test_a_decision_up_and_down_in_one_moment(harness):
    """Decisions with the same time follow one another: each that changes the vote is accepted."""
    decide = Decider(harness.client, Deployment.create_or_load(harness.client))
    at = time.time()
    totals = [decide(Event("vote", "post:1", amount, "u1", at)) for amount in (1, -1, 0, 0, 1, -1)]
    assert [(one.accepted, one.total, one.reason) for one in totals] == [
        (True, 1, None), (True, -1, None), (True, 0, None), (False, 0, "once"), (True, 1, None), (True, -1, None),
    ]  # fmt: skip
    append(harness, [("u1", 1)], at=at)
    harness.finish()
    assert score(harness) == (1, 1)


@pytest.mark.parametrize(
    ("rule", "total"),
    [
        (Metric(once="forever"), 0),
        (Metric(once="day", floor=3), 3),
        (Metric(), 0),
        (Metric(max_subjects=1), None),
    ],
)
def test_the_total_after_a_first_amount_of_0(server, rule, total):
    """A decision of amount 0 for a new subject returns the total 0; none only if the subject has no exact counter."""
    server.clear()
    with Harness(server.url, rules=Rules({"m": rule}), partitions=1) as harness:
        decide = Decider(harness.client, Deployment.create_or_load(harness.client))
        assert rule.max_subjects is None or decide(Event("m", "a", 1)).total == 1
        actor = "u1" if rule.once else None
        verdict = decide(Event("m", "b", 0, actor, id="x"))
        assert (verdict.accepted, verdict.total) == (True, total)
        again = decide(Event("m", "b", 0, actor, id="x"))
        assert (again.accepted, again.total, again.reason) == (False, total, "once" if rule.once else "duplicate")


def test_a_decision_after_an_entry_that_is_not_counted_yet(harness):
    """A decision is later in the log than an entry that a worker counts only afterwards."""
    decide = Decider(harness.client, Deployment.create_or_load(harness.client))
    at = int(time.time()) * 1.0
    append(harness, [("u1", 1)], at=at)
    assert decide(Event("vote", "post:1", 0, "u1", at)).accepted
    harness.finish()
    assert score(harness) == (0, 0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_dead_letters_keep_their_places(harness, order):
    """Votes of one entry that are dead-lettered and retried in any order leave the last of the entry."""
    harness.rules = Rules({"view": Metric()})
    append(harness, [("u1", 1), ("u1", -1), ("u1", 0)])
    harness.drain()
    found = list(letters(harness.client, harness.layout, 0))
    assert len(found) == 3
    for number in order:
        retry(harness.client, harness.layout, RULES, found[number])
    assert score(harness) == (0, 0)
    assert harness.ledger()["counted@vote"] == 1
    assert harness.ledger()["rejected:once@vote"] == 2


def test_votes_of_one_second(server):
    """Likes that are withdrawn within their second are gone, and a later vote against is counted."""
    begin = time.time() // 1 - 100
    rows = [("u1", 1, 0), ("u1", 0, 0), ("u2", 1, 0), ("u2", -1, 0), ("u3", 1, 0), ("u3", 0, 1)]
    with Harness(server.url, rules=RULES, partitions=2) as harness, Producer(server.url) as producer:
        for actor, amount, after in rows:
            producer.emit("vote", "post:tie", amount, actor=actor, at=begin + after)
        producer.flush(10)
        harness.finish()
        assert harness.totals() == {("vote", "post:tie"): -1}


POLLS = Rules({"vote": Metric(once="forever", windows=("hour",)), "poll": Metric(once="30d", top=3)})


class Voters:
    """Draws votes, many of them with the same time, and keeps the vote of each actor that counts.

    Attributes:
        counting: By metric, subject and actor: the time and the place of the vote that counts, and its amount.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._begin = time.time() // 1 - 100
        self._number = 0
        self.counting: dict[tuple[str, str, str], tuple[float, int, int]] = {}

    def vote(self, harness: Harness) -> None:
        """Append 60 votes, some of them by decisions; count the entries of each partition in any order."""
        chance, decide = self._chance, Decider(harness.client, Deployment.create_or_load(harness.client))
        with Producer(harness.url) as producer:
            for _ in range(60):
                self._number += 1
                voter = chance.choice(("vote", "poll")), chance.choice("abcd"), chance.choice("uvw")
                amount, at = chance.choice((1, 0, -1)), self._begin + chance.choice((0, 0, 0, 1))
                if chance.random() < 0.2:
                    producer.flush(10)
                    decide(Event(voter[0], voter[1], amount, voter[2], at))
                else:
                    producer.emit(voter[0], voter[1], amount, actor=voter[2], at=at)
                vote = at, self._number, amount
                self.counting[voter] = max(self.counting.get(voter, vote), vote)
                if chance.random() < 0.2:
                    producer.flush(10)
            producer.flush(10)
        for partition in range(harness.layout.partitions):
            held = harness.fetch(partition, "reader")(1000, 0)
            chance.shuffle(held)
            for entry in held:
                handed = iter([[entry]])
                harness.consumer(partition, "reader", fetch=lambda *_, handed=handed: next(handed)).run_once()
        harness.finish()

    def check(self, harness: Harness, sources: Sources) -> None:
        """Check the vote of each actor, the totals, and that an audit, with these sources, finds no difference."""
        found, totals = {}, Counter()
        for keys in harness.layout.keys:
            for key in harness.client.scan_iter(f"{keys.counters}once:*"):
                metric, _, subject = key.decode().removeprefix(f"{keys.counters}once:").split(":")
                for actor, record in harness.client.hgetall(key).items():
                    if actor:  # the field without an actor is about resets
                        found[metric, subject, actor.decode()] = int(record.split()[1])
        assert found == {voter: amount for voter, (_, _, amount) in self.counting.items()}
        for (metric, subject, _), amount in found.items():
            totals[metric, subject] += amount
        assert Counter(harness.totals()) == totals  # equal without zeros
        deployment = Deployment.create_or_load(harness.client)
        assert audit(harness.client, deployment, harness.rules, sources=sources).differences == []


def _rebuild(harness: Harness, _: Path, __: Database) -> Sources:
    generation = propose(harness.client, Deployment.create_or_load(harness.client), POLLS)
    deployment = Deployment.create_or_load(harness.client)
    with Rebuild(settings_for(harness.url, POLLS), deployment, generation) as run:
        run.begin()
        run.catch_up()
        assert compare(harness.client, Deployment.create_or_load(harness.client), generation) == Comparison([], 0)
        run.switch()
    drop(harness.client, Deployment.create_or_load(harness.client), 1)
    harness.layout = Deployment.create_or_load(harness.client).layout
    return Sources()


def _move(harness: Harness, _: Path, __: Database) -> Sources:
    repartition(settings_for(harness.url, POLLS, 0), Deployment.create_or_load(harness.client), 3)
    harness.layout = Deployment.create_or_load(harness.client).layout
    return Sources()


def _restore(harness: Harness, _: Path, database: Database) -> Sources:
    verdict = drill(harness.client, database, Deployment.create_or_load(harness.client))
    assert verdict.differing == 0, verdict.differences
    restore(harness.client, database, force=True)
    Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
    return Sources(snapshot=database)  # the entries before the restore are gone


def _restore_from_archive(harness: Harness, folder: Path, database: Database) -> Sources:
    store = Store(str(folder / "archive"))
    Archive(harness.client, store, Deployment.create_or_load(harness.client)).run_once(settled=0)
    harness.client.flushall()
    restore(harness.client, database, partial(archived, store))
    Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
    return Sources(snapshot=database)  # the entries before the restore are gone


def _ingest(harness: Harness, folder: Path, _: Database, name: str) -> Sources:
    program = Path(sys.executable).parent / "tallystream"
    command = [program, "replay", "--redis", harness.url, "--format", Path(name).suffix[1:], "-o", folder / name]
    subprocess.run([str(each) for each in command], check=True, timeout=60)
    harness.client.flushall()
    with Harness(harness.url, rules=POLLS, partitions=2):
        pass
    jobs = jobs_of(str(folder / name), Path(name).suffix[1:], Mapping())
    assert len(jobs) > 3
    IngestRun(jobs, RedisSettings(url=harness.url), 1, threading.Event(), lambda _: True).run()
    return Sources()


WAYS = {
    "rebuild": _rebuild,
    "repartition": _move,
    "restore": _restore,
    "archive": _restore_from_archive,
    "ndjson": partial(_ingest, name="all.ndjson"),
    "parquet": partial(_ingest, name="all.parquet"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(2))
def test_ties_keep_their_order(server, tmp_path, monkeypatch, way, seed):
    """Votes with one time keep their order when they are counted again, moved, restored, or replayed and ingested."""
    monkeypatch.setattr(job, "SEGMENT", 1000)
    monkeypatch.setattr(job, "SEGMENT_ROWS", 10)
    voters = Voters(seed)
    database = Database(str(tmp_path / "snapshot.sqlite"))
    with closing(database), Harness(server.url, rules=POLLS, partitions=2) as harness:
        voters.vote(harness)
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        voters.vote(harness)
        voters.check(harness, Sources())
        sources = WAYS[way](harness, tmp_path, database)
        harness.finish()
        voters.check(harness, sources)
        voters.vote(harness)
        voters.check(harness, sources)
