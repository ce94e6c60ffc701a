"""An event with an id counts once: its copies are found, or set aside as late, but never counted as new."""

from __future__ import annotations

import random
import time

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import StreamError
from tallystream.producing.decider import Decider
from tallystream.producing.producer import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.windows import bucket
from tallystream.storage.keys import DUE
from tallystream.wire.codec import Payload, Single, encode
from tallystream.wire.event import Event
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import letters
from tests.harness import Harness
from tests.oracle_rules import Happened, tally

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
RULES = Rules(
    {
        "m": Metric(windows=("hour", "month")),
        "short": Metric(windows=("minute",), ids="minute", accept_late="1h"),
        "sketch": Metric(exact=False, top=3),
        "bloom": Metric(seen="bloom"),
        "free": Metric(ids=None),
    }
)


@pytest.fixture
def harness(server):
    """Yield a harness of one partition with metrics that keep ids in several ways, on an empty server."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        yield harness


def append(harness: Harness, metric: str, at: int, id_: str = "x", *, amount: int = 1, received: int | None = None):
    """Append an entry of one event with an id that the server received at a time; return it as the oracle takes it."""
    body = encode(Payload([], [Single(metric, "s", amount, at, None, id_)]))
    fields = {"v": 1, "p": "copy", "q": received or at, "n": 1, "b": body}
    keys = harness.layout.keys[0]
    harness.client.xadd(keys.stream, fields, id=f"{received}-*" if received else "*")
    harness.client.hincrby(keys.topic_ledger, "appended")
    return Happened(metric, "s", amount, at, received or at, None, id_)


def counted(harness: Harness, metric: str) -> int:
    """Return the total of the one subject."""
    with Totals(harness.url) as totals:
        return totals.get("s", metric).value


def an_hour_later(harness: Harness) -> None:
    """Let an hour pass, as far as the removal of periods is concerned."""
    forgotten = harness.layout.keys[0].forgotten
    if due := harness.client.hget(forgotten, DUE):
        since, bound = map(int, due.split())
        harness.client.hset(forgotten, DUE, f"{since - HOUR} {bound}")


def registered(harness: Harness) -> int:
    """Return the number of periods of ids that are registered to be removed."""
    return sum(b" seen:" in name for name in harness.client.zrange(harness.layout.keys[0].periods, 0, -1))


def forget(harness: Harness, times: int = 2) -> None:
    """Let the next batches remove what is due, as if an hour had passed since it became due."""
    for _ in range(times):
        append(harness, "free", int(time.time() * 1000), "tick")
        harness.finish()
        an_hour_later(harness)


def balanced(harness: Harness) -> bool:
    """Return whether the ledger accounts for every event."""
    with Totals(harness.url) as totals:
        return totals.run(query_ledger(harness.layout)).unaccounted == 0


def test_a_copy_over_midnight_is_a_copy(harness):
    """An id that is retried 0.2 s later, over midnight, counts once: in the first day, in whatever order they come."""
    midnight = int(time.time() * 1000) // DAY * DAY
    for number, (first, second) in enumerate([(-100, 100), (100, -100)]):
        append(harness, "m", midnight + first, f"id{number}")
        harness.finish()
        append(harness, "m", midnight + second, f"id{number}")
        harness.finish()
    assert counted(harness, "m") == 2
    keys = harness.layout.keys[0]
    label = time.strftime("%Y-%m-%dT%H", time.gmtime((midnight - 1) / 1000))
    assert harness.client.hgetall(keys.window("hour", "m", label)) == {b"s": b"2"}
    assert harness.ledger()["duplicate@m"] == 2
    assert balanced(harness)


@pytest.mark.parametrize("seed", range(60))
def test_copies_equal_the_oracle_in_any_order(server, seed):
    """Copies that are chained over several periods count like in the oracle, in any order and any batches."""
    chance = random.Random(seed)
    now = int(time.time() * 1000)
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        happened = []
        for _ in range(chance.randint(2, 25)):
            metric = chance.choice(["m", "short"])
            step = chance.choice([1000, MINUTE, HOUR, DAY] if metric == "m" else [1000, MINUTE])
            at = now - chance.randrange(1, 12) * step - chance.choice([0, 0, 1, 500])
            happened.append(append(harness, metric, at, chance.choice("ab"), amount=chance.choice([1, 1, 5])))
        held = harness.fetch(0, "reader")(1000, 0)
        chance.shuffle(held)
        while held:
            size = chance.randint(1, 5)
            handed, held = iter([held[:size]]), held[size:]
            harness.consumer(0, "reader", fetch=lambda *_, handed=handed: next(handed)).run_once()
        harness.finish()
        expected = tally(happened, RULES.metric)
        assert harness.totals() == dict(expected.totals)
        for field in ("counted", "duplicate", "late"):
            assert harness.ledger().get(field, 0) == expected.ledger.get(field, 0), field
        assert balanced(harness)


def test_a_large_amount_is_remembered_exactly(harness):
    """An earlier copy replaces an event with the largest amount, to the last digit."""
    now = int(time.time() * 1000)
    append(harness, "m", now, amount=2**53 - 1)
    harness.finish()
    append(harness, "m", now - 1, amount=2**53 - 2)
    harness.finish()
    assert counted(harness, "m") == 2**53 - 2


@pytest.mark.parametrize("metric", ["m", "bloom", "sketch"])
def test_an_id_counts_once_while_it_is_accepted(harness, metric):
    """A copy that comes days later counts once; after `accept_late` it is late, and so is a first event."""
    now = int(time.time() * 1000)
    for after in (0, 2 * DAY, 7 * DAY, 7 * DAY + 1, 8 * DAY):
        append(harness, metric, now, received=now + after)
        harness.finish()
    append(harness, metric, now, "new", received=now + 8 * DAY)
    harness.finish()
    assert counted(harness, metric) == 1
    assert (harness.ledger()[f"duplicate@{metric}"], harness.ledger()[f"late@{metric}"]) == (2, 3)
    assert balanced(harness)


def test_no_key_of_ids_expires_by_the_clock(harness):
    """Keys of ids have no expiry: they are removed when the log is past them, never because time has passed."""
    old = int(time.time() * 1000) - 6 * DAY
    for metric in ("m", "bloom", "sketch"):
        append(harness, metric, old, received=old)
    harness.finish()
    names = list(harness.client.scan_iter(match="*seen:*"))
    assert len(names) == 3
    assert {harness.client.pttl(name) for name in names} == {-1}


def test_ids_of_a_backlog_are_kept(harness):
    """While entries wait that may be copies, no period is removed, however long the workers were away."""
    now = int(time.time() * 1000)
    begin = now - 40 * DAY
    for day in range(40):
        append(harness, "m", begin + day * DAY, f"id{day}", received=begin + day * DAY)
        if day >= 6:
            append(harness, "m", begin + (day - 6) * DAY, f"id{day - 6}", received=begin + day * DAY)
    held = harness.fetch(0, "reader")(1000, 0)
    for entry in held:
        handed = iter([[entry]])
        harness.consumer(0, "reader", fetch=lambda *_, handed=handed: next(handed)).run_once()
        an_hour_later(harness)
    harness.finish()
    assert counted(harness, "m") == 40
    assert harness.ledger()["duplicate@m"] == 34
    kept = registered(harness)
    assert kept == len(list(harness.client.scan_iter(match="*seen:*"))) <= 12


def test_forgotten_ids_are_never_counted_as_new(harness):
    """A period is removed once the log is past it, only after an hour; an event of it is then late, never new."""
    now = int(time.time() * 1000)
    at = now - 20 * DAY
    append(harness, "m", at, received=at)
    harness.finish()
    append(harness, "free", now, "tick")
    harness.finish()
    assert registered(harness) == 1  # due, but not for an hour
    forget(harness)
    assert (registered(harness), list(harness.client.scan_iter(match="*seen:*"))) == (0, [])
    append(harness, "m", at)  # it states that it was received in time
    harness.finish()
    assert counted(harness, "m") == 1
    assert harness.ledger()["late@m"] == 1
    assert balanced(harness)


@pytest.mark.parametrize(
    ("metric", "rule", "id_"),
    [
        ("m", Metric(unique="day"), "i"),
        ("once", Metric(unique="day", once="day"), None),
        ("limit", Metric(unique="day", limit=9, per="day"), None),
    ],
)
def test_a_late_event_of_a_removed_period_adds_no_actor(server, metric, rule, id_):
    """An event that is late because the state of its period was removed is no unique actor; other events are."""
    with Harness(server.url, rules=Rules({metric: rule}), partitions=1) as harness:
        keys, at = harness.layout.keys[0], time.time()
        label = bucket("day", int(at) // 60).label
        for actor, forgotten in (("u1", 0), ("u2", int(at * 1000) + DAY), ("u3", 0)):
            kind = "seen" if id_ else metric
            harness.client.hset(keys.forgotten, f"{kind}:{metric}", forgotten)
            with Producer(server.url) as producer:
                producer.emit(metric, "s", actor=actor, at=at, id=id_ and f"{id_}-{actor}")
            harness.finish()
            assert harness.ledger().get(f"late@{metric}", 0) == (actor != "u1")
            assert harness.client.pfcount(keys.unique(metric, label, "s")) == {"u1": 1, "u2": 1, "u3": 2}[actor]


def test_a_clock_that_jumps_forgets_no_ids(harness):
    """If a period is due for a moment only, because the clock was ahead, it stays."""
    keys, now = harness.layout.keys[0], int(time.time() * 1000)
    at = now - 20 * DAY
    append(harness, "m", at, received=at)
    harness.finish()
    harness.client.hset(keys.forgotten, DUE, f"{now + 30 * DAY} {now + 30 * DAY}")  # stamped while the clock was ahead
    for _ in range(3):
        append(harness, "free", now, "tick")
        harness.finish()
    assert registered(harness) == 1


def test_a_retry_of_a_forgotten_id_is_refused(harness):
    """A dead letter whose id is forgotten is not counted: the error names the reason, and the dead letter stays."""
    now = int(time.time() * 1000)
    at = now - 20 * DAY
    append(harness, "m", at, received=at)
    harness.rules = Rules({"free": Metric(ids=None)})
    harness.drain()
    (letter,) = letters(harness.client, harness.layout, 0)
    harness.client.hset(harness.layout.keys[0].forgotten, "seen:m", at + DAY)
    with pytest.raises(StreamError, match="may be a copy"):
        retry(harness.client, harness.layout, RULES, letter)
    assert [found.name for found in letters(harness.client, harness.layout, 0)] == [letter.name]
    assert balanced(harness)


def test_the_sketch_takes_an_earlier_copy(harness):
    """In a sketch too, the earliest copy counts: its amount replaces that of a later one."""
    now = int(time.time() * 1000)
    for at, amount in ((now, 7), (now - 5, 4), (now + 5, 9)):
        append(harness, "sketch", at, amount=amount)
        harness.finish()
    assert counted(harness, "sketch") == 4
    assert harness.ledger()["total@sketch"] == 4


def test_decisions_know_ids_over_midnight(server):
    """A decision with an id that was decided before midnight is a duplicate."""
    midnight = time.time() // 86_400 * 86_400
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        decide = Decider(harness.client, Deployment.create_or_load(harness.client))
        verdicts = [decide(Event("m", "s", at=midnight + after, id="x")) for after in (-0.1, 0.1)]
    assert [(one.accepted, one.total, one.reason) for one in verdicts] == [(True, 1, None), (False, 1, "duplicate")]


@pytest.mark.parametrize("hour", range(2, 10))
def test_a_decision_states_the_limit_of_its_own_bucket(server, hour):
    """If an event replaces a later copy in another bucket of the limit, it states what remains in its own bucket."""
    rules = Rules({"call": Metric(limit=10, per="hour", ids="day")})
    day = time.time() // 86_400 * 86_400 - 86_400
    before, after = day + hour * 3600 - 600, day + hour * 3600 + 600
    with Harness(server.url, rules=rules, partitions=1) as harness:
        decide = Decider(harness.client, Deployment.create_or_load(harness.client))
        used = [decide(Event("call", "s", at=after, id=f"{n}")).remaining for n in range(5)]
        assert used == [9, 8, 7, 6, 5]
        copy = decide(Event("call", "s", at=before, id="0"))
        assert (copy.accepted, copy.reason, copy.remaining) == (False, "duplicate", 9)
        with Totals(server.url) as totals:
            assert totals.get("s", "call").value == 5


@pytest.mark.parametrize("hour", range(2, 10))
def test_a_decision_that_replaces_one_of_the_next_period_states_its_own_bucket(server, hour):
    """If an event replaces a copy in the next period of ids, it states what remains in its own bucket of the limit."""
    rules = Rules({"call": Metric(limit=3, per="hour", ids="hour")})
    day = time.time() // 86_400 * 86_400 - 86_400
    before, after = day + hour * 3600 - 600, day + hour * 3600 + 600
    with Harness(server.url, rules=rules, partitions=1) as harness:
        decide = Decider(harness.client, Deployment.create_or_load(harness.client))
        for n in range(6):
            decide(Event("call", "s", at=after, id=f"{n}"))
        found = decide(Event("call", "s", at=before, id="0"))
        assert (found.accepted, found.reason, found.remaining) == (False, "duplicate", 2)
