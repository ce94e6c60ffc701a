"""The result of every counting rule depends only on the set of events, not on order, batches, workers or repeats."""

from __future__ import annotations

import os
import random
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystream.deployment import Deployment
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.reading.leaderboards import query_top
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.keys import partition_of
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream.wire.stream_id import parse_id
from tests.harness import Harness
from tests.oracle_rules import Happened, tally

HOUR = 3_600_000
RULES = Rules(
    {
        "view": Metric(windows=("hour", "day", "month"), top=5),
        "plain": Metric(ids=None),
        "order": Metric(windows=("hour",), ids="hour"),
        "vote": Metric(windows=("day",), once="forever", top=5),
        "daily": Metric(windows=("hour",), once="day"),
        "call": Metric(windows=("hour", "day"), limit=3, per="hour"),
        "fast": Metric(limit=2, per="minute", accept_late="forever"),
        "paid": Metric(windows=("day",), limit=2, per="day", ids="hour"),
        "aside": Metric(windows=("hour",), accept_late="2h", late="aside"),
        "tardy": Metric(accept_late="2h"),
    }
)
SUBJECTS = [f"s{n}" for n in range(5)]
EXAMPLES = int(os.environ.get("TALLYSTREAM_EXAMPLES", "40"))


@st.composite
def happenings(draw) -> list[tuple[Event, bool]]:
    """Draw events of some of the rules, each with whether it is decided at once or appended."""
    now = int(time.time()) * 1000
    drawn = []
    # Draw few of each in one example: rules have an effect if events have the same subject, actor, id or moment.
    metrics = draw(st.lists(st.sampled_from(list(RULES.metric)), min_size=1, max_size=3, unique=True))
    subjects = draw(st.lists(st.sampled_from(SUBJECTS), min_size=1, max_size=3, unique=True))
    hours = [1, 2, 3, 20, 24, 30, 7 * 24, 50 * 24]
    moments = [0, 1, 500, 59_000, *(hour * HOUR for hour in hours), HOUR + 1]
    agos = draw(st.lists(st.sampled_from(moments), min_size=1, max_size=4, unique=True))
    for _ in range(draw(st.integers(1, 60))):
        metric = draw(st.sampled_from(metrics))
        rule = RULES.metric[metric]
        ago = draw(st.sampled_from(agos))
        if rule.once is not None:
            amount = draw(st.sampled_from([1, 1, -1, 0]))
        else:
            amount = 1 if rule.limit else draw(st.sampled_from([1, 1, 1, 2, -3, 10**12]))
        actor = draw(st.sampled_from(["u1", "u2", "u3"])) if rule.once else draw(st.sampled_from([None, "u1"]))
        id_ = draw(st.sampled_from([None, None, "a", "b"]))
        event = Event(metric, draw(st.sampled_from(subjects)), amount, actor, (now - ago) / 1000, id_)
        late = rule.late_seconds if id_ is None or not rule.keeps_ids else rule.id_late_seconds
        decided = draw(st.booleans()) and (late is None or ago < late * 1000)
        drawn.append((event, decided))
    return drawn


def said(event: Event, received: int, place: tuple[int, ...] = ()) -> Happened:
    """Return an appended event as the oracle takes it; an event that is packed in a group has the end of its minute."""
    at = int((event.at or 0) * 1000)
    if event.actor is None and event.id is None and abs(event.amount) < 2**40:
        at = at // 60_000 * 60_000 + 59_999
    return Happened(event.metric, event.subject, event.amount, at, received, event.actor, event.id, place=place)


def feed(harness: Harness, drawn: list[tuple[Event, bool]], chance: random.Random) -> list[Happened]:
    """Append or decide each event; return the events as the oracle takes them."""
    decide = Decider(harness.client, Deployment.create_or_load(harness.client))
    happened = []
    packs: dict[int, EntryBuilder] = defaultdict(EntryBuilder)
    packed: dict[int, list[Event]] = defaultdict(list)
    appender = Appender(harness.client, harness.layout)

    def seal(partition: int) -> None:
        pack = packs.pop(partition)
        appender.push(partition, SealedEntry(1, pack.events, pack.size, pack.build()))
        appender.send()
        entry = parse_id(str(appender.last_ids[partition]))
        happened.extend(said(event, entry[0], (*entry, n)) for n, event in enumerate(packed.pop(partition)))

    for event, decided in drawn:
        if decided:
            entry = parse_id(decide(event).id)
            at = int((event.at or 0) * 1000)
            fields = (event.metric, event.subject, event.amount, at, entry[0], event.actor, event.id)
            happened.append(Happened(*fields, place=(*entry, 0)))
            continue
        partition = partition_of(event.subject, harness.layout.partitions)
        packs[partition].add(event.metric, event.subject, event.amount, event.at or 0, event.actor, event.id)
        packed[partition].append(event)
        if chance.random() < 0.3:
            seal(partition)
    for partition in list(packs):
        seal(partition)
    return happened


def deliver(harness: Harness, chance: random.Random) -> None:
    """Count the entries shuffled, split and repeated by several consumers, then all that are left."""
    for partition in range(harness.layout.partitions):
        held = harness.fetch(partition, "reader")(10_000, 0)
        chance.shuffle(held)
        while held:
            part = held[: chance.randint(1, 4)]
            again = chance.sample(held, min(len(held), 2))
            handed = iter([part + again if chance.random() < 0.5 else part])
            harness.consumer(
                partition,
                f"w{chance.randint(0, 2)}",
                fetch=lambda *_, handed=handed: next(handed),
                max_keys=chance.choice([1, 3000]),
            ).run_once()
            held = [entry for entry in held if entry not in part] if chance.random() < 0.9 else held
    harness.finish()


def stored(harness: Harness) -> dict[str, Counter]:
    """Return all stored counters, by the names that the oracle uses."""
    found: dict[str, Counter] = {name: Counter() for name in ("totals", "up", "windows", "asked")}
    for keys in harness.layout.keys:
        for key in harness.client.scan_iter(match=f"{keys.prefix}*", count=1000):
            kind, _, rest = key.decode().removeprefix(keys.prefix).partition(":")
            metric, _, name = rest.partition(":")
            if kind in ("total", "up"):
                found["totals" if kind == "total" else "up"][metric, name] = int(harness.client.get(key))
            elif kind in ("minute", "hour", "day", "month"):
                for subject, value in harness.client.hgetall(key).items():
                    found["windows"][kind, metric, name, subject.decode()] = int(value)
            elif kind == "limit":
                for subject, value in harness.client.hgetall(key).items():
                    found["asked"][metric, name, subject.decode()] = int(value)
    return found


def without_zeros(counts) -> dict:
    """Return the counts that are not 0: a counter of 0 is the same as none."""
    return {name: count for name, count in counts.items() if count}


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_all_rules_together_equal_the_oracle(server, drawn, seed):
    """Totals, windows, limits, votes, ledger and leaderboards equal the oracle's, however events are delivered."""
    chance = random.Random(seed)
    server.client().flushall()
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        happened = feed(harness, drawn, chance)
        deliver(harness, chance)
        expected, found = tally(happened, RULES.metric), stored(harness)
        for name in ("totals", "up", "windows", "asked"):
            assert without_zeros(found[name]) == without_zeros(getattr(expected, name)), name
        assert without_zeros(harness.ledger()) == without_zeros(expected.ledger)
        with Totals(server.url) as totals:
            for metric in ("view", "vote"):
                ranking = totals.run(query_top(harness.layout, RULES, metric, 5, now=time.time()))
                assert ranking.error == 0
                assert dict(ranking.places) == dict(expected.top(metric, 5))


@pytest.fixture
def harness(server):
    """Yield a harness on an empty server, with all the rules of this module."""
    with Harness(server.url, rules=RULES, partitions=2) as wired:
        yield wired


def test_a_vote_that_overtakes_a_later_one_stays_behind_it(harness):
    """A vote that is older than the counted vote of the same actor is not accepted."""
    decide = Decider(harness.client, Deployment.create_or_load(harness.client))
    now = time.time()
    assert decide(Event("vote", "post:1", -1, "u1", now)).accepted
    assert not decide(Event("vote", "post:1", 1, "u1", now - 60)).accepted
    assert decide(Event("vote", "post:1", 0, "u1", now + 1)).total == 0


def test_a_limit_holds_between_threads(harness):
    """Of 300 concurrent decisions, a limit of 100 accepts exactly 100, because check and add are one step."""
    rules = Rules({"call": Metric(limit=100, per="hour")})
    harness.client.hset(harness.layout.meta, "rules", publish(rules))
    decide = Decider(harness.client, Deployment.create_or_load(harness.client))
    at = time.time() // 3600 * 3600 + 1
    with ThreadPoolExecutor(16) as threads:
        verdicts = list(threads.map(lambda _: decide(Event("call", "key:1", at=at)), range(300)))
    assert sum(verdict.accepted for verdict in verdicts) == 100
    assert sorted(verdict.remaining for verdict in verdicts if verdict.accepted) == list(range(100))
    assert {verdict.reason for verdict in verdicts if not verdict.accepted} == {"limit"}


def test_decided_events_are_not_counted_again(harness):
    """The worker acknowledges the entries of decided events and changes no counter; the ledger balances."""
    decide = Decider(harness.client, Deployment.create_or_load(harness.client))
    for number in range(5):
        decide(Event("call", "key:1", at=time.time() - 1))
        decide(Event("vote", "post:1", 1, f"u{number}"))
    before = stored(harness), harness.ledger()
    harness.finish()
    assert (stored(harness), harness.ledger()) == before
    with Totals(harness.url) as totals:
        assert totals.run(query_ledger(harness.layout)).unaccounted == 0
