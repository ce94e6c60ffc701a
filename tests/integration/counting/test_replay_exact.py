"""Every total depends only on the set of entries, not on their order, or on how often they are delivered.

Hypothesis draws the events, and the seed of the random generator that determines the delivery. A failure prints both,
and can be repeated with them. With CI set, the examples are the same in every run. With SHRINK set, a failing example
is shrunk, which takes minutes with a real server.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tallystream.producing.appender import Appender
from tallystream.producing.partition_queue import SealedEntry
from tallystream.storage.keys import GROUP
from tallystream.wire.codec import Payload, decode, encode
from tallystream.wire.packer import EntryBuilder
from tests import oracle
from tests.harness import METRICS, Harness
from tests.oracle import MAX, Event, home

if TYPE_CHECKING:
    from tallystream_worker.counting.entry import Entry

PARTITIONS = 4
DAY = 86_400

exact = settings(
    max_examples=40,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    phases=[phase for phase in Phase if phase not in (Phase.shrink, Phase.explain) or os.environ.get("SHRINK")],
    # The fixture is a server, and each example empties it.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

good_subjects = st.sampled_from(
    [
        *("article:1", "article:2", "post:3", "a}b{c", "{}", "{p0.425}", "*?[x]", "a:b:c", " ", "' OR 1=1"),
        *("caf\u00e9", "\u65e5\u672c\u8a9e", "\U0001f600", "/favicon.ico", "<img onerror=x>", "x" * 1024),
    ]
)
bad_subjects = st.sampled_from(["", "x" * 1025, "a\nb", "a\x00", "\x1b[31m", "\u202egpj", "\u2028", "e\u0301"])
subjects = good_subjects | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
amounts = st.just(1) | st.integers(-5, 5) | st.sampled_from([2**40, -(2**40), 10**15, -(10**15), 2**45 + 1, -(2**46)])
short = st.none() | st.sampled_from(["u1", "u2", "\u00fc", "}{"])


@dataclass(frozen=True)
class Told:
    """An event, the kind of entry that it is appended in, and whether it is appended to a wrong partition."""

    event: Event
    way: str
    misplaced: bool


@st.composite
def events(draw, subjects=subjects, amounts=amounts):
    """Draw an event, which in a few cases cannot be counted."""
    metric = draw(st.sampled_from([*METRICS, *METRICS, *METRICS, "undeclared"]))
    ages = st.none() | st.sampled_from([0, 30, 59, 3 * DAY, 9000 * DAY, 0, 30, -2 * DAY])
    age = draw(ages)
    at = None if age is None else float(int(time.time()) - age)
    return Event(metric, draw(subjects), draw(amounts), draw(short), at, draw(short))


ways = st.sampled_from(["gate", "gate", "packed", "plain"])
told = st.builds(Told, events(), ways, st.sampled_from([False] * 9 + [True]))
spoilt = st.builds(Told, events(subjects=bad_subjects), ways, st.sampled_from([False]))
garbage = st.tuples(
    st.integers(0, PARTITIONS - 1),
    st.sampled_from(["noise", "noise through the gate", "future version", "wrong n", "no payload", "plain"]),
    st.binary(max_size=40),
    st.integers(1, 2000),
)
sets_of_events = st.tuples(
    st.lists(told, max_size=60),
    st.lists(spoilt, max_size=3),
    st.lists(garbage, max_size=4),
)
seeds = st.integers(0, 2**32)


def bytes_of(events: list[Event]) -> bytes:
    """Return the payload that a producer appends for these events."""
    pack = EntryBuilder()
    for event in events:
        at = time.time() if event.at is None else event.at
        pack.add(event.metric, event.subject, event.amount, at, event.actor, event.id)
    return pack.build()


def plain_fields(event: Event) -> dict[str, str]:
    """Return the fields of a plain entry of an event."""
    fields = {"metric": event.metric, "subject": event.subject, "amount": str(event.amount)}
    optional = {"actor": event.actor, "id": event.id, "at": None if event.at is None else f"{event.at:.1f}"}
    return fields | {name: value for name, value in optional.items() if value is not None}


def append(harness: Harness, chosen, chance: random.Random) -> list[oracle.Entry]:
    """Append the chosen events and bad entries in random entries; return the entries for the oracle."""
    well, ill, noise = chosen
    written: list[oracle.Entry] = []
    gate = Appender(harness.client, harness.layout)
    by_place = {}
    for each in [*well, *ill]:
        partition = home(each.event.subject, PARTITIONS)
        place = (each.way, (partition + each.misplaced) % PARTITIONS)
        by_place.setdefault(place, []).append(each.event)

    def through_the_gate(partition: int, payload: bytes, events: int) -> str:
        gate.push(partition, SealedEntry(1, events, len(payload), payload))
        while gate.oldest_cycle is not None:
            _, error = gate.send()
            assert error is None
        return gate.last_ids[partition]

    for (way, partition), events_there in by_place.items():
        stream = harness.layout.keys[partition].stream
        while events_there:
            size = 1 if way == "plain" else chance.choice([1, 2, 5, 30])
            group, events_there = events_there[:size], events_there[size:]  # noqa: PLW2901
            if way == "gate":
                id_ = through_the_gate(partition, bytes_of(group), len(group))
            elif way == "packed":
                fields = {"v": 1, "n": len(group), "b": bytes_of(group)}
                id_ = harness.client.xadd(stream, fields).decode()
            else:
                id_ = harness.client.xadd(stream, plain_fields(group[0])).decode()
            written.append(oracle.Entry(id_, partition, tuple(group), plain=way == "plain"))
    for partition, kind, payload, n in noise:
        stream = harness.layout.keys[partition].stream
        if kind == "noise through the gate":
            written.append(oracle.Entry(through_the_gate(partition, payload, n), partition, unreadable=n))
            continue
        fields, claimed = {
            "noise": ({"v": 1, "n": n, "b": payload}, n),
            "future version": ({"v": 99, "n": n, "b": payload}, n),
            "wrong n": ({"v": 1, "n": n + 1, "b": encode(Payload([], []))}, n + 1),
            "no payload": ({"v": 1, "n": n}, n),
            "plain": ({"metric": "view", "subject": "x", "amount": "1.0"}, 1),
        }[kind]
        written.append(oracle.Entry(harness.client.xadd(stream, fields).decode(), partition, unreadable=claimed))
    return written


def fetched(harness: Harness, partition: int, names: list[str], chance: random.Random) -> list[Entry]:
    """Deliver every entry of a partition to a random consumer, claim some for another, and return all of them."""
    keys = harness.layout.keys[partition]
    fetches = [harness.fetch(partition, name) for name in names]
    found: list[Entry] = []
    while new := chance.choice(fetches)(chance.choice([1, 3, 50]), 0):
        found += new
    stolen = [entry.id for entry in found if chance.random() < 0.3]
    if stolen:
        harness.client.xclaim(keys.stream, GROUP, chance.choice(names), 0, stolen)
    return found


class Scripted:
    """A fetch that returns the given entries in random batches, and then nothing."""

    def __init__(self, entries: list[Entry], chance: random.Random) -> None:
        self._batches = []
        chance.shuffle(entries)
        while entries:
            size = chance.choice([1, 2, 7, 40])
            batch, entries = entries[:size], entries[size:]
            self._batches.append(batch)

    def __call__(self, _count: int, _block: float) -> list[Entry]:
        """Return the next batch; an empty list if there is none."""
        return self._batches.pop() if self._batches else []

    def __bool__(self) -> bool:
        """Return whether there is another batch."""
        return bool(self._batches)


def check(harness: Harness, written: list[oracle.Entry]) -> None:
    """Check that all totals and the ledger equal the oracle's, and that the ledger balances."""
    expected = oracle.fold(written, METRICS, PARTITIONS)
    ledger = harness.ledger()
    assert harness.totals() == expected.totals
    assert ledger == expected.ledger
    assert ledger.get("appended", 0) == ledger.get("counted", 0) + ledger.get("dead", 0)
    assert sum(int(fields[b"events"]) for fields in harness.dead()) == ledger.get("dead", 0)


@contextlib.contextmanager
def example(server, seed: int):
    """Yield a harness on an emptied server, and a random generator with the example's seed."""
    server.clear()
    with Harness(server.url, partitions=PARTITIONS) as harness:
        yield harness, random.Random(seed)


@exact
@given(chosen=sets_of_events, seed=seeds)
def test_any_order_any_split_any_repetition(server, chosen, seed):
    """Entries that are delivered shuffled, split and repeatedly to two consumers count as the set of them does."""
    with example(server, seed) as (harness, chance):
        written = append(harness, chosen, chance)
        for partition in range(PARTITIONS):
            entries = fetched(harness, partition, ["a", "b"], chance)
            # A batch may contain entries that were counted before, and even the same entry twice.
            again = [entry for entry in entries if chance.random() < 0.4]
            script = Scripted(entries + again, chance)
            consumer = harness.consumer(partition, fetch=script, max_keys=chance.choice([1, 3, 1000]))
            while script:
                consumer.run_once()
        assert harness.waiting() == 0
        check(harness, written)


@exact
@given(chosen=sets_of_events, seed=seeds)
def test_several_workers_with_the_same_entries(server, chosen, seed):
    """Three workers that count the same entries at the same time count each of them once."""
    with example(server, seed) as (harness, chance):
        written = append(harness, chosen, chance)
        work = []
        for partition in range(PARTITIONS):
            entries = fetched(harness, partition, ["a", "b", "c"], chance)
            for _ in range(3):
                script = Scripted([e for e in entries if chance.random() < 0.8], chance)
                work.append((script, harness.consumer(partition, fetch=script, max_keys=chance.choice([2, 1000]))))
        failures: list[Exception] = []

        def run(share) -> None:
            try:
                for script, consumer in share:
                    while script:
                        consumer.run_once()
            except Exception as error:  # noqa: BLE001  # passed to the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=run, args=(work[i::3],)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        harness.finish()
        check(harness, written)


@exact
@given(chosen=sets_of_events, seed=seeds)
def test_workers_that_die_with_entries_in_hand(server, chosen, seed):
    """Entries of workers that die between fetch and apply are counted once by their successors."""
    with example(server, seed) as (harness, chance):
        written = append(harness, chosen, chance)
        for partition in range(PARTITIONS):
            for _ in range(chance.randrange(4)):
                name = chance.choice(["a", "b"])  # it restarts under its name, or another worker claims its entries
                if chance.random() < 0.5:
                    harness.fetch(partition, name, claim_idle=0)(chance.choice([1, 4, 100]), 0)
                else:
                    harness.consumer(partition, name, claim_idle=0, max_deliveries=1000).run_once()
        harness.finish()
        check(harness, written)


@exact
@given(
    amounts=st.lists(st.integers(-MAX, MAX) | st.sampled_from([MAX, -MAX, MAX - 3, 7, 1]), max_size=40),
    seed=seeds,
)
def test_no_total_leaves_its_bounds(server, amounts, seed):
    """If amounts overflow, totals stay within +-(2^53 - 1) and equal the appended less the dead-lettered amounts."""
    with example(server, seed) as (harness, chance):
        given_, dead = {}, {}
        for start in range(0, len(amounts), 5):
            for subject in ("article:1", "article:2"):
                group = [Event("view", subject, amount) for amount in amounts[start : start + 5]]
                fields = {"v": 1, "n": len(group), "b": bytes_of(group)}
                harness.client.xadd(harness.layout.keys_of(subject).stream, fields)
                given_[subject] = given_.get(subject, 0) + sum(event.amount for event in group)
        for partition in range(PARTITIONS):
            entries = fetched(harness, partition, ["a", "b"], chance)
            script = Scripted(entries, chance)
            consumer = harness.consumer(partition, fetch=script)
            while script:
                consumer.run_once()
        for fields in harness.dead():
            entry = {name[2:]: value for name, value in fields.items() if name.startswith(b"e.")}
            payload = decode(entry, int(fields[b"source"].partition(b"-")[0]))
            for single in payload.singles:
                dead[single.subject] = dead.get(single.subject, 0) + single.amount
            for group in payload.groups:
                for subject in {*group.ones, *group.counts, *group.sums}:
                    more = group.ones.count(subject) + group.counts.get(subject, 0)
                    more += group.sums.get(subject, (0, 0))[0]
                    dead[subject] = dead.get(subject, 0) + more
        totals, ledger = harness.totals(), harness.ledger()
        assert harness.waiting() == 0
        assert all(abs(total) <= MAX for total in totals.values())
        for subject, amount in given_.items():
            assert totals.get(("view", subject), 0) == amount - dead.get(subject, 0)
        assert ledger.get("appended", 0) == 2 * len(amounts)
        assert ledger.get("appended", 0) == ledger.get("counted", 0) + ledger.get("dead", 0)
        assert ledger.get("total@view", 0) == sum(totals.values())


def test_the_oracle_knows_a_wrong_count(server):
    """The oracle detects a total that is too high by 1."""
    with Harness(server.url) as harness:
        written = append(
            harness, ([Told(Event("view", "article:1"), "gate", misplaced=False)], [], []), random.Random(1)
        )
        harness.finish()
        check(harness, written)
        harness.client.incr(harness.layout.keys_of("article:1").total("view", "article:1"))
        with pytest.raises(AssertionError):
            check(harness, written)
