"""Of one actor's votes with the same time, the one that is later in the log counts, however the log is counted."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from tallystream.deployment import Deployment
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import letters
from tests.harness import Harness

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
