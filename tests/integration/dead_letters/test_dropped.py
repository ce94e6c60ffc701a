"""Events of a dropped dead letter are counted by no later fold: audit, rebuild, replay and repartition agree."""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, StreamError
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.wire.codec import Group, Payload, Single, decode, decode_packed, encode
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import drop, letters, shorten
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.drop import drop as drop_generation
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.replay import Left, ReplaySelection, replay
from tallystream_worker.repartition.reading_marks import HOLDER
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt, settings_for
from tests.integration.repartition.test_migration import moved

OLD = Rules({"view": Metric(ids=None, windows=("day",), top=5), "like": Metric(ids=None)})
NEW = Rules({**OLD.metric, "clap": Metric(ids=None, windows=("hour",))})
MINUTE = 29_400_000
relaxed = settings(
    max_examples=int(os.environ.get("TALLYSTREAM_EXAMPLES", "4")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

names = st.sampled_from(["a", "b", "c", "d"])
metrics = st.sampled_from(["view", "like", "clap"])
amounts = st.integers(-3, 5)


@st.composite
def payloads(draw) -> Payload:
    """Draw the payload of one entry: groups with every form of sum, and single events, some of them alike."""
    groups = [
        Group(
            draw(metrics),
            MINUTE + draw(st.integers(0, 1)),
            draw(st.lists(names, max_size=3)),
            draw(st.dictionaries(names, st.integers(2, 4), max_size=2)),
            draw(st.dictionaries(names, st.tuples(amounts, st.integers(1, 3)), max_size=2)),
        )
        for _ in range(draw(st.integers(0, 2)))
    ]
    groups = [group for group in groups if group.events]
    actors = st.sampled_from(["u1", "u2"])
    singles = [
        Single(draw(metrics), draw(names), draw(amounts), MINUTE * 60_000, draw(actors), None)
        for _ in range(draw(st.integers(0 if groups else 1, 4)))
    ]
    return Payload(groups, singles)


def sums(payload: Payload) -> Counter[tuple[str, str]]:
    """Return the amounts of a payload by metric and subject."""
    found: Counter[tuple[str, str]] = Counter()
    for group in payload.groups:
        for subject in group.ones:
            found[group.metric, subject] += 1
        for subject, events in group.counts.items():
            found[group.metric, subject] += events
        for subject, (amount, _) in group.sums.items():
            found[group.metric, subject] += amount
    for single in payload.singles:
        found[single.metric, single.subject] += single.amount
    return found


def append(harness: Harness, payload: Payload) -> None:
    """Append a payload as an entry of a producer."""
    keys = harness.layout.keys[0]
    fields = {"v": 1, "n": payload.events, "b": encode(payload)}
    harness.client.xadd(keys.stream, fields)


def nonzero(counts) -> dict:
    """Return the counts that are not 0."""
    return {name: count for name, count in counts.items() if count}


def agrees(harness: Harness, dropped: int) -> None:
    """Check that an audit finds no difference, that the ledger balances, and that it has the dropped events."""
    assert audit(harness.client, Deployment.create_or_load(harness.client), harness.rules).differences == []
    assert harness.ledger().get("dropped", 0) == dropped
    with closing(Totals(harness.url)) as totals:
        assert totals.run(query_ledger(harness.layout)).unaccounted == 0


@relaxed
@given(entries=st.lists(payloads(), min_size=1, max_size=8), seed=st.integers(0, 10_000))
def test_no_later_fold_counts_dropped_events(server, entries, seed):
    """Whichever dead letters are dropped, whole or parts, each later fold counts all other events and none of these."""
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=OLD, partitions=1) as harness:
        left: Counter[tuple[str, str]] = Counter()
        for payload in entries:
            append(harness, payload)
            left.update(sums(payload))
            # Some entries are given up: they are dead-lettered whole, although nothing in them is wrong.
            harness.drain(max_deliveries=chance.choice([0, 10, 10]))
        harness.rules = NEW
        harness.client.hset(harness.layout.meta, "rules", publish(NEW))
        gone = 0
        for letter in list(letters(harness.client, harness.layout, 0)):
            if chance.random() < 0.5:
                assert drop(harness.client, harness.layout.keys[0], [letter]) == (1, letter.events)
                gone += letter.events
                left.subtract(sums(decode(letter.fields, 0)))
            else:
                retry(harness.client, harness.layout, NEW, letter)
        assert nonzero(harness.totals()) == nonzero(left)
        agrees(harness, gone)
        assert drop(harness.client, harness.layout.keys[0], []) == (0, 0)
        rebuilt(harness)
        assert nonzero(harness.totals()) == nonzero(left)
        assert list(letters(harness.client, harness.layout, 0)) == []
        agrees(harness, gone)
        read: Counter[tuple[str, str]] = Counter()
        skipped = Left()
        for event in replay(harness.client, harness.layout, ReplaySelection(), skipped):
            read[event["metric"], event["subject"]] += event["amount"]
        assert (nonzero(read), skipped.dropped) == (nonzero(left), gone)
        moved(harness, 1 + seed % 3)
        assert nonzero(harness.totals()) == nonzero(left)
        agrees(harness, 0)


VOTES = Rules({**NEW.metric, "vote": Metric(once="forever", windows=("hour",))})
votes = st.lists(st.tuples(st.sampled_from(["u1", "u2"]), st.sampled_from([1, 0, -1, 1, 5])), min_size=1, max_size=6)


@relaxed
@given(entries=st.lists(st.tuples(votes, st.booleans()), min_size=1, max_size=6), chance=st.randoms())
def test_votes_keep_their_places_when_others_are_dropped(server, entries, chance):
    """Whichever votes of one time are dropped, the last of the others counts, with the same place in every fold."""
    server.clear()
    with Harness(server.url, rules=VOTES, partitions=1) as harness:
        left: dict[str, list[tuple[str, int, int]]] = {}  # by entry: actor, amount and place of each vote
        for drawn, declared in entries:  # an amount of 5 is refused; without the declaration, every vote is
            harness.rules = VOTES if declared else NEW
            append(harness, Payload([], [Single("vote", "s", by, MINUTE * 60_000, who, None) for who, by in drawn]))
            counts: Counter[str] = Counter()
            id_ = harness.client.xinfo_stream(harness.layout.keys[0].stream)["last-generated-id"].decode()
            left[id_] = [(who, by, (counts.update([who]), counts[who])[1] - 1) for who, by in drawn]
            harness.drain()
        harness.rules = VOTES
        gone = 0
        for letter in list(letters(harness.client, harness.layout, 0)):
            if chance.random() < 0.5:
                (vote,) = decode(letter.fields, 0).singles
                left[letter.source].remove((vote.actor, vote.amount, int(letter.fields.get(b"i", 0))))
                gone += drop(harness.client, harness.layout.keys[0], [letter])[1]
            else:
                retry(harness.client, harness.layout, VOTES, letter)
        last = {who: by for of_entry in left.values() for who, by, _ in of_entry if by != 5}
        key = harness.layout.keys[0].once("vote", "forever", "s")
        live = harness.client.hgetall(key)
        assert {actor.decode(): int(record.split()[1]) for actor, record in live.items() if actor} == last
        agrees(harness, gone)
        rebuilt(harness)
        assert harness.client.hgetall(harness.layout.keys[0].once("vote", "forever", "s")) == live
        agrees(harness, gone)


@pytest.mark.parametrize(
    ("amounts", "declared", "drops", "place"),
    [
        ((5, 1), True, [0], [b"1"]),  # refused, counted
        ((1, 1), False, [1], []),  # both in columns, both undeclared; the first is counted later
        ((1, 1), False, [0], [b"1"]),
        ((0, 1, 0), False, [2, 1], []),
    ],
)
def test_a_vote_keeps_its_place_after_another_is_dropped(server, amounts, declared, drops, place):
    """Votes that were dropped still count for the places of later votes, also if they are alike."""
    with Harness(server.url, rules=VOTES if declared else NEW, partitions=1) as harness:
        pack = EntryBuilder()
        for amount in amounts:
            pack.add("vote", "s", amount, MINUTE * 60, "u", None)
        append(harness, decode_packed(pack.build()))
        harness.drain()
        harness.rules = VOTES
        found = list(letters(harness.client, harness.layout, 0))
        assert drop(harness.client, harness.layout.keys[0], [found[n] for n in drops])[0] == len(drops)
        for letter in list(letters(harness.client, harness.layout, 0)):
            retry(harness.client, harness.layout, VOTES, letter)
        live = harness.client.hget(harness.layout.keys[0].once("vote", "forever", "s"), "u")
        assert live.split()[0].split(b".")[2:] == place
        agrees(harness, len(drops))
        rebuilt(harness)
        assert harness.client.hget(harness.layout.keys[0].once("vote", "forever", "s"), "u") == live


@pytest.fixture
def harness(server):
    """Yield a harness of one partition with one entry that was given up, and one that was counted."""
    with Harness(server.url, rules=OLD, partitions=1) as wired:
        stream = wired.layout.keys[0].stream
        wired.client.xadd(stream, {"metric": "view", "subject": "s"})
        wired.drain()
        wired.client.xadd(stream, {"metric": "view", "subject": "s"})
        wired.drain(max_deliveries=0)
        yield wired


def test_an_entry_that_was_given_up_and_dropped(harness):
    """An audit agrees while the entry is a dead letter and after it was dropped, and a rebuild does not count it."""
    agrees(harness, 0)
    drop(harness.client, harness.layout.keys[0], letters(harness.client, harness.layout, 0))
    agrees(harness, 1)
    rebuilt(harness)
    assert harness.totals() == {("view", "s"): 1}
    agrees(harness, 1)


def test_an_undeclared_metric_that_was_dropped_does_not_return(harness):
    """A rebuild makes no new dead letter of events whose dead letter was dropped; the ledger still has their number."""
    keys = harness.layout.keys[0]
    harness.client.xadd(keys.stream, {"metric": "nosuch", "subject": "a"})
    harness.client.xadd(keys.stream, {"v": "99", "n": "3", "b": "x"})
    harness.drain()
    drop(harness.client, keys, letters(harness.client, harness.layout, 0))
    rebuilt(harness)
    assert list(letters(harness.client, harness.layout, 0)) == []
    assert (harness.ledger()["dead"], harness.ledger()["dropped"]) == (5, 5)
    agrees(harness, 5)


@pytest.mark.parametrize(
    ("mark", "reason"), [("1 closed", "a repartition has closed it"), ("1 restoring 3 token", "a restore replaces its")]
)
def test_a_refused_drop_states_its_reason(harness, mark, reason):
    """If a partition is closed, or a restore replaces its counters, the error of a drop states which one it is."""
    keys = harness.layout.keys[0]
    before = list(letters(harness.client, harness.layout, 0))
    assert before
    harness.client.set(keys.live, mark)
    with pytest.raises(StreamError, match=f"nothing was dropped in this partition, because {reason}"):
        drop(harness.client, keys, before)
    assert list(letters(harness.client, harness.layout, 0)) == before


def test_nothing_is_dropped_while_other_counters_may_have_it(harness):
    """While a rebuild runs, or its previous counters are kept, a drop is refused: they may have counted the events."""
    keys = harness.layout.keys[0]
    generation = propose(harness.client, Deployment.create_or_load(harness.client), OLD)
    deployment = Deployment.create_or_load(harness.client)
    with Rebuild(settings_for(harness.url, OLD, 1), deployment, generation) as run:
        run.begin()
        with pytest.raises(
            ConfigurationError, match=r"cannot drop 1 of .* a rebuild is running .* tallystream rebuild --drop"
        ):
            drop(harness.client, keys, letters(harness.client, harness.layout, 0))
        assert shorten(harness.client, keys, 1)[1:] == (0, 0)
    drop_generation(harness.client, deployment, generation)
    harness.client.hset(keys.retention_holds, HOLDER, "0-0")
    with pytest.raises(ConfigurationError, match="a repartition is running"):
        drop(harness.client, keys, letters(harness.client, harness.layout, 0))
    harness.client.hdel(keys.retention_holds, HOLDER)
    assert shorten(harness.client, keys, 1)[1:] == (1, 1)
    agrees(harness, 1)


def test_dropped_to_make_room(harness):
    """If dead letters are dropped to make room, a rebuild finds them again, except for entries that were given up."""
    keys = harness.layout.keys[0]
    harness.client.xadd(keys.stream, {"metric": "clap", "subject": "s"})
    harness.drain()
    assert shorten(harness.client, keys, 1)[1:] == (2, 2)
    agrees(harness, 2)
    rebuilt(harness, NEW)
    assert harness.totals() == {("view", "s"): 1, ("clap", "s"): 1}
    agrees(harness, 1)


def test_a_restore_knows_what_was_dropped(harness, tmp_path):
    """A snapshot contains the records of dropped dead letters, and a restore in place keeps those made since."""
    keys = harness.layout.keys[0]
    with closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "s"})
        harness.drain(max_deliveries=0)
        drop(harness.client, keys, letters(harness.client, harness.layout, 0))
        dropped = harness.client.hgetall(keys.dropped)
        assert len(dropped) == 2
        restore(harness.client, database, force=True)
        assert harness.totals() == {("view", "s"): 1}
        assert harness.client.hgetall(keys.dropped) == dropped
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        harness.client.flushall()
        restore(harness.client, database)
    assert harness.totals() == {("view", "s"): 1}
    assert harness.client.hgetall(keys.dropped) == dropped


def test_an_audit_learns_of_entries_that_are_given_up_meanwhile(harness, monkeypatch):
    """An entry that is given up, or dropped, while an audit runs is no difference."""
    from tallystream_worker.rebuild import partition_audit  # noqa: PLC0415

    inner, calls = partition_audit.PartitionAudit._compare, []

    def compare(self, *arguments, **options):
        if not calls:
            calls.append(1)
            harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": "s"})
            harness.drain(max_deliveries=0)
            drop(harness.client, harness.layout.keys[0], letters(harness.client, harness.layout, 0))
        return inner(self, *arguments, **options)

    monkeypatch.setattr(partition_audit.PartitionAudit, "_compare", compare)
    assert audit(harness.client, Deployment.create_or_load(harness.client), OLD).differences == []
    assert calls
