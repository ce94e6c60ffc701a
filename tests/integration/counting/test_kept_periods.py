"""The state of limits, periodic votes and ids is kept until the log is past it, whatever a clock shows.

So workers may stop for days, and the server's clock may be wrong for a moment: the counts stay those of the oracle.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import EventError, StreamError
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import letters
from tallystream_worker.maintenance.trim import trim
from tallystream_worker.settings.settings import RetentionSettings
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt
from tests.oracle_rules import Happened, tally

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tallystream_worker.counting.entry import Entry
    from tests.clock import ClockedServer

SEEDS = int(os.environ.get("TALLYSTREAM_EXAMPLES", "2"))
MINUTE, HOUR, DAY = 60, 3600, 86_400
RULES = Rules(
    {
        "by-minute": Metric(limit=2, per="minute", accept_late="90m", ids="hour"),
        "by-hour": Metric(limit=2, per="hour", windows=("day",), accept_late="3h", ids=None),
        "by-day": Metric(limit=3, per="day", windows=("month",)),
        "hourly": Metric(once="hour", windows=("hour",), accept_late="3h"),
        "daily": Metric(once="day"),
        "weekly": Metric(once="7d", accept_late="2d"),
        "view": Metric(ids=None),
    }
)
AGOS = (0, 0, 5 * MINUTE, 45 * MINUTE, 100 * MINUTE, 4 * HOUR, 30 * HOUR, 8 * DAY)
"""How long before it is appended an event is. None is within minutes of the largest that a metric accepts."""


class Log:
    """Appends events to a server whose clock it moves, and knows every event with the time at which it was received."""

    def __init__(self, harness: Harness, clock: ClockedServer, seed: int) -> None:
        self.harness, self.clock, self.chance = harness, clock, random.Random(seed)
        self.appender = Appender(harness.client, harness.layout)
        self.decide = Decider(harness.client, Deployment.create_or_load(harness.client))
        self.happened: list[Happened] = []
        # In the past, so that `decide` accepts events of every moment that the clock shows.
        self.offset = -60.0 * DAY
        self.jump(0)

    def jump(self, seconds: float) -> None:
        """Move the server's clock."""
        self.offset += seconds
        self.clock.set(self.offset)

    def now(self) -> float:
        """Return the time by the server's clock."""
        return time.time() + self.offset

    def event(self, metric: str, ago: float, actor: str, id_: str | None) -> Event:
        """Return an event some seconds ago, with the actor and the id that its metric allows."""
        rule = RULES.metric[metric]
        return Event(
            metric,
            self.chance.choice(["s1", "s2"]),
            self.chance.choice([1, -1]) if rule.once else 1,
            actor if rule.once else None,
            int((self.now() - ago) * 1000) / 1000,
            id_ if rule.keeps_ids else None,
        )

    def draw(self) -> Event:
        """Return any event."""
        chance = self.chance
        metric = chance.choice(list(RULES.metric))
        return self.event(metric, chance.choice(AGOS), chance.choice("uvw"), chance.choice([None, "i", "j"]))

    def append(self, *events: Event) -> None:
        """Append events as one entry."""
        builder = EntryBuilder()
        for event in events:
            builder.add(event.metric, event.subject, event.amount, event.at or 0, event.actor, event.id)
        self.appender.push(0, SealedEntry(1, builder.events, builder.size, builder.build()))
        confirmed, error = self.appender.send()
        assert (len(confirmed), error) == (1, None)
        self.note(events, str(self.appender.last_ids[0]))

    def note(self, events: Sequence[Event], entry: str) -> None:
        """Remember events that the server has received in an entry."""
        place = tuple(map(int, entry.split("-")))
        for nth, event in enumerate(events):
            at = round((event.at or 0) * 1000)
            place_of = (*place, nth)
            received = int(self.now() * 1000)
            self.happened.append(
                Happened(event.metric, event.subject, event.amount, at, received, event.actor, event.id, place=place_of)
            )

    def decided(self, event: Event) -> bool:
        """Decide an event; return whether it was refused, and so not appended."""
        try:
            self.note([event], self.decide(event).id)
        except EventError:
            return True
        return False

    def count(self) -> None:
        """Count every entry in any order and any batches."""
        held: list[Entry] = self.harness.fetch(0, "reader")(10_000, 0)
        self.chance.shuffle(held)
        while held:
            size = self.chance.randint(1, 3)
            handed, held = iter([held[:size]]), held[size:]
            self.harness.consumer(0, "reader", fetch=lambda *_, handed=handed: next(handed)).run_once()
        self.harness.finish()

    def check(self) -> None:
        """Fail unless totals and ledger are those of the oracle."""
        expected = tally(self.happened, RULES.metric)
        totals = self.harness.totals()
        assert {key: totals.get(key, 0) for key in expected.totals} == dict(expected.totals)
        ledger = self.harness.ledger()
        for name in ("counted", "duplicate", "late", "rejected:limit", "rejected:once"):
            names = [name, *(f"{name}@{metric}" for metric in RULES.metric)]
            assert {each: ledger.get(each, 0) for each in names} == {each: expected.ledger[each] for each in names}
        with Totals(self.harness.url) as reader:
            assert reader.run(query_ledger(self.harness.layout)).unaccounted == 0

    def state(self) -> set[str]:
        """Return the keys of limits, periodic votes and ids, without prefix."""
        prefix = self.harness.layout.keys[0].counters
        found = (name.decode().removeprefix(prefix) for name in self.harness.client.scan_iter(count=1000))
        return {name for name in found if name.startswith(("limit:", "once:", "seen:"))}

    def registered(self) -> dict[str, float]:
        """Return the keys that are registered to be removed, each with the millisecond until which it is kept."""
        members = self.harness.client.zrange(self.harness.layout.keys[0].periods, 0, -1, withscores=True)
        return {member.decode().partition(" ")[2]: until for member, until in members}


@pytest.fixture
def log(clocked: ClockedServer):
    """Yield the log of a server with one partition."""
    with Harness(clocked.url, rules=RULES, partitions=1) as harness:
        yield Log(harness, clocked, 0)


@pytest.mark.parametrize("away", [26 * HOUR, 10 * DAY])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_workers_may_be_away_for_days(clocked: ClockedServer, away: int, seed: int) -> None:
    """Entries that wait while workers are away for a day or more are counted as if they had not waited."""
    with Harness(clocked.url, rules=RULES, partitions=1) as harness:
        log = Log(harness, clocked, seed)
        for _ in range(3):
            for _ in range(log.chance.randint(1, 12)):
                log.append(*(log.draw() for _ in range(log.chance.randint(1, 3))))
                log.jump(log.chance.choice([0, 0, 70, 20 * MINUTE, 2 * HOUR]))
                if log.chance.random() < 0.4:
                    log.count()
            log.jump(away)
            for _ in range(log.chance.randint(0, 3)):
                log.decided(log.draw())
            log.count()
            log.check()
            assert log.state() <= log.registered().keys()
        rebuilt(harness)
        log.check()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_clock_that_is_ahead_for_a_minute_removes_nothing(clocked: ClockedServer, seed: int) -> None:
    """If the server's clock is a week ahead between two batches, what is counted before and after stays exact."""
    with Harness(clocked.url, rules=RULES, partitions=1) as harness:
        log = Log(harness, clocked, seed)
        for _ in range(4):
            for _ in range(log.chance.randint(1, 8)):
                log.append(*(log.draw() for _ in range(log.chance.randint(1, 3))))
            log.count()
            needed = log.state() & {name for name, until in log.registered().items() if until > log.now() * 1000}
            log.jump(8 * DAY)
            for _ in range(log.chance.randint(0, 3)):
                log.append(log.draw())
                log.count()
            log.jump(-8 * DAY + 60)
            assert needed <= log.state()
            log.jump(log.chance.choice([0, HOUR, 25 * HOUR]))
        log.count()
        log.check()


def in_the_middle_of_a_day(log: Log) -> None:
    """Move the clock to 06:00 UTC, and append and count events with ids, votes and limits of this day."""
    log.jump(6 * HOUR - log.now() % DAY)
    log.append(log.event("by-day", 0, "u", "i"), log.event("daily", 0, "u", None), log.event("by-day", 0, "u", None))
    log.count()


def test_an_entry_received_before_the_one_in_front_of_it(log: Log) -> None:
    """The state that an entry needs stays while it waits after entries of a moment in which the clock was ahead."""
    in_the_middle_of_a_day(log)
    log.jump(30 * DAY)
    for _ in range(2):
        log.append(log.event("view", 0, "u", None))
    log.jump(-30 * DAY + 10 * MINUTE)
    log.append(log.event("by-day", 5, "u", "i"), log.event("daily", 5, "u", None), log.event("by-day", 1, "u", None))
    log.jump(12 * DAY)
    held: list[Entry] = log.harness.fetch(0, "reader")(10_000, 0)
    for entry in held:
        log.harness.consumer(0, "reader", fetch=lambda *_, entry=entry: [entry]).run_once()
        log.jump(HOUR + MINUTE)
    log.harness.finish()
    log.check()


def test_two_jumps_of_the_clock_remove_nothing(log: Log) -> None:
    """State stays if the clock is ahead for a minute twice, more than an hour apart, and nothing is counted between."""
    keys, kept = log.harness.layout.keys[0], RetentionSettings()
    in_the_middle_of_a_day(log)

    def jump(seconds: float) -> None:
        log.jump(seconds)
        trim(log.harness.client, keys, kept)  # a worker does it every few seconds

    jump(0)
    for _ in range(2):
        jump(12 * DAY)
        log.append(log.event("view", 0, "u", None))
        log.count()
        jump(-12 * DAY + MINUTE)
        jump(HOUR + MINUTE)
    ago = 2 * HOUR + 5 * MINUTE
    log.append(
        log.event("by-day", ago, "u", "i"), log.event("daily", ago, "u", None), log.event("by-day", ago, "u", None)
    )
    log.count()
    log.check()


def test_periods_are_removed_when_the_log_is_past_them(log: Log) -> None:
    """State is removed an hour after all entries that need it are counted: by a batch 1,000 keys more than it adds."""
    for actor in range(40):
        log.append(*(Event("daily", f"s{n}", 1, f"u{actor}", log.now()) for n in range(100)))
    for first in range(0, 2400, 400):
        log.append(*(Event("daily", f"t{n}", 1, "u", log.now()) for n in range(first, first + 400)))
    log.append(Event("by-minute", "s1", 1, None, log.now()), Event("by-day", "s1", 1, None, log.now(), "i"))
    log.harness.drain()
    assert len(log.state()) == 100 + 2400 + 1 + 2
    log.jump(12 * DAY)
    log.append(Event("view", "s1", 1, None, log.now()))
    log.count()  # now they are due
    assert len(log.state()) == len(log.registered()) == 2503
    log.jump(HOUR + 60)
    for left in (1503, 503, 0):
        log.append(Event("view", "s1", 1, None, log.now()))
        log.count()
        assert len(log.state()) == len(log.registered()) == left
    log.check()


def test_removal_keeps_up_with_batches_that_add_votes(log: Log) -> None:
    """Although each batch adds thousands of keys of votes, their number stays bounded."""
    kept = []
    for _ in range(8):
        for first in range(0, 3000, 500):
            log.append(*(Event("hourly", f"s{n}", 1, "u", log.now()) for n in range(first, first + 500)))
        consumer = log.harness.consumer(0, "w", max_keys=100_000)
        while consumer.run_once():
            pass
        kept.append(len(log.state()))
        log.jump(2 * HOUR)
    assert max(kept) <= 5 * 3000


def test_events_of_a_removed_period_are_late(log: Log) -> None:
    """An event of a removed period is late although its entry is in time: it does not count as if it were the first."""
    at = log.now()
    keys = log.harness.layout.keys[0]
    events = [log.event(metric, 0, "u", None) for metric in ("by-hour", "daily", "by-day")]
    log.append(*events)
    log.count()
    before = log.harness.totals()
    ends = {"limit:by-hour": int(at) + HOUR, "once:daily": int(at) + DAY, "limit:by-day": int(at) + DAY}
    log.harness.client.hset(keys.forgotten, mapping={name: end * 1000 for name, end in ends.items()})
    log.append(*events)
    log.count()
    assert log.harness.totals() == before
    assert [log.harness.ledger()[f"late@{event.metric}"] for event in events] == [1, 1, 1]
    for event in events:
        assert log.decided(event)
    with Totals(log.harness.url) as totals:
        assert totals.run(query_ledger(log.harness.layout)).unaccounted == 0


@pytest.mark.parametrize("metric", ["by-hour", "daily"])
def test_a_retry_of_a_removed_period_is_refused(log: Log, metric: str) -> None:
    """A dead letter whose state was removed is not counted: it stays, with an error that names the reason."""
    keys, rules = log.harness.layout.keys[0], log.harness.rules
    event = log.event(metric, 0, "u", None)
    log.append(event)
    log.harness.rules = Rules({"view": Metric(ids=None)})
    log.harness.drain()
    (letter,) = letters(log.harness.client, log.harness.layout, 0)
    kind = "once" if metric == "daily" else "limit"
    log.harness.client.hset(keys.forgotten, f"{kind}:{metric}", int(log.now() + DAY) * 1000)
    with pytest.raises(StreamError, match="votes that are kept"):
        retry(log.harness.client, log.harness.layout, rules, letter)
    assert len(list(letters(log.harness.client, log.harness.layout, 0))) == 1
    log.harness.client.hdel(keys.forgotten, f"{kind}:{metric}")
    assert retry(log.harness.client, log.harness.layout, rules, letter).counted == 1
