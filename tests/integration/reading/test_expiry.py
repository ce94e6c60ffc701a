"""Reads over a range are exact within the bounds that they state, whatever has expired.

They are compared with the oracle at simulated times, while the keys of real servers really expire.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import EventError
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.reading.totals import Totals
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.rules.windows import bucket
from tallystream.storage.keys import partition_of
from tallystream.storage.scripts import Script
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream.wire.window import DAY, HOUR, WINDOWS
from tallystream_worker.alerts.evaluator import AlertEvaluator
from tallystream_worker.rebuild.audit import audit
from tests.clock import steady
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt
from tests.oracle_reads import Reads
from tests.oracle_rules import Happened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tallystream_worker.counting.entry import Entry
    from tests.clock import ClockedServer

SEEDS = int(os.environ.get("TALLYSTREAM_EXAMPLES", "5"))
ZONES = ["UTC", "Asia/Kolkata", "Australia/Lord_Howe", "America/Havana", "Europe/Vienna", "Asia/Kathmandu"]
SUBJECTS = [f"s{n}" for n in range(4)]
ACTORS = [f"u{n}" for n in range(9)]
RANGES = ["1h", "1d", "7d", "9d", "30d", "45d", "100d"]
LATE = [0, 0, 0, HOUR // 2, 3 * HOUR, 30 * HOUR, 9 * DAY, 25 * DAY]
STEPS = [0, 61, HOUR, 5 * HOUR, DAY, 3 * DAY, 8 * DAY + HOUR, 20 * DAY, 31 * DAY]
BOUND = 12


def an_hour(days: int) -> int:
    """Return a second some days ago, far from the end of its minute and hour: a test does not run into the next one."""
    return (int(time.time()) // HOUR - days * 24) * HOUR + 1205


def draw_rules(chance: random.Random) -> Rules:
    """Draw a zone, windows and retention for metrics that are summed, voted, spread and watched."""

    def windows() -> tuple[Any, ...]:
        drawn = chance.sample(WINDOWS, chance.randint(1, 3))
        return tuple(window for window in WINDOWS if window in drawn)

    def retention() -> dict[Any, str]:
        kept = {"minute": ["1h", "3h"], "hour": ["2h", "8d", "forever"], "day": ["3d", "30d"], "month": ["40d", "400d"]}
        return {w: chance.choice(kept[w]) for w in WINDOWS if chance.random() < 0.7}

    watched = windows()
    finest = next(w for w in WINDOWS if w in watched)
    span = chance.choice(["31d", "60d"] if finest == "month" else ["2d", "9d", "31d"])
    return Rules(
        {
            "view": Metric(windows=windows(), retention=retention(), unique=chance.choice(WINDOWS), top=5, ids=None),
            "vote": Metric(windows=windows(), retention=retention(), once="forever", top=5, ids=None),
            "hot": Metric(windows=windows(), retention=retention(), spread=True, top=5, ids=None),
            "seen": Metric(windows=watched, retention=retention(), top=5, ids=None),
        },
        zone=chance.choice(ZONES),
        alert=(Alert("many", "seen", over=span, above=BOUND),),
    )


class Machine:
    """Appends, decides and counts events on a server whose clock it moves, and knows every event that was received."""

    def __init__(self, harness: Harness, clock: ClockedServer, rules: Rules, chance: random.Random, now: float) -> None:
        self.harness, self.clock, self.rules, self.chance = harness, clock, rules, chance
        self.now = now
        self.events: list[Happened] = []
        self.appender = Appender(harness.client, harness.layout)
        self.decide = Decider(harness.client, Deployment.create_or_load(harness.client))
        self.moments: set[int] = set()
        self.move(0)

    def move(self, step: float) -> None:
        """Move the server's clock ahead."""
        self.now += step
        self.clock.set(self.now - time.time())

    def event(self) -> Event:
        """Draw an event of the last weeks; no two have the same time, so no two votes of an actor tie."""
        metric = self.chance.choice(list(self.rules.metric))
        at = int((self.now - self.chance.choice(LATE) * self.chance.random()) * 1000)
        while at in self.moments:
            at -= 1
        self.moments.add(at)
        amount = self.chance.choice([1, -1, 0]) if metric == "vote" else self.chance.randint(1, 5)
        actor = self.chance.choice(ACTORS) if metric in ("vote", "view") else None
        return Event(metric, self.chance.choice(SUBJECTS), amount, actor, at / 1000)

    def arrive(self, events: int) -> None:
        """Append or decide some events."""
        packs: dict[int, tuple[EntryBuilder, list[Event]]] = defaultdict(lambda: (EntryBuilder(), []))
        for event in (self.event() for _ in range(events)):
            if event.metric != "hot" and self.chance.random() < 0.2:
                self.receive([event], self.decide(event).id)
                continue
            partition = (
                partition_of(event.subject, self.harness.layout.partitions)
                if event.metric != "hot"
                else self.chance.randrange(2)
            )
            builder, packed = packs[partition]
            builder.add(event.metric, event.subject, event.amount, event.at or 0, event.actor, None)
            packed.append(event)
        for partition, (builder, packed) in packs.items():
            self.appender.push(partition, SealedEntry(1, builder.events, builder.size, builder.build()))
            self.appender.send()
            self.receive(packed, str(self.appender.last_ids[partition]))

    def receive(self, events: Sequence[Event], entry: str) -> None:
        """Note events that the server has received in an entry."""
        received = int(entry.partition("-")[0])
        for event in events:
            at = round((event.at or 0) * 1000)
            self.events.append(Happened(event.metric, event.subject, event.amount, at, received, event.actor))

    def count(self) -> None:
        """Count every entry, in any order and split into any batches."""
        for partition in range(self.harness.layout.partitions):
            held: list[Entry] = self.harness.fetch(partition, "reader")(10_000, 0)
            self.chance.shuffle(held)
            while held:
                part, held = held[:2], held[2:]
                handed = iter([part])
                self.harness.consumer(partition, "w", fetch=lambda *_, handed=handed: next(handed)).run_once()
        self.harness.finish()

    def standing(self) -> list[Happened]:
        """Return the events without the votes that a later vote of the same actor replaces."""
        votes: dict[tuple[str, str | None], Happened] = {}
        for event in self.events:
            if event.metric == "vote":
                known = votes.setdefault((event.subject, event.actor), event)
                votes[event.subject, event.actor] = max(known, event, key=lambda vote: vote.at)
        return [event for event in self.events if event.metric != "vote"] + list(votes.values())


def ask(read: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return the answer to a read over a range; `None` if it is refused, because it would read too many buckets."""
    try:
        return read(*arguments, **named)
    except EventError as error:
        if "would read more than 1,000" in str(error):
            return None
        raise


def check_sums(totals: Totals, reads: Reads, chance: random.Random) -> None:
    """Compare totals, series and sums of every metric and subject."""
    for metric, rule in reads.rules.metric.items():
        for subject in SUBJECTS:
            assert totals.get(subject, metric).value == reads.amount(metric, None, None)[subject]
            for window in rule.windows:
                found = totals.series(subject, metric, window, 40)
                assert [(p.bucket, p.value) for p in found.series] == reads.series(subject, metric, window, 40)
                open_ = [point for point in found.series if point.value is not None]
                assert found.complete == (len(open_) == 40)
                assert found.start == open_[0].start
                assert found.complete or (found.missing[0].start, found.missing[0].end) == (
                    found.series[0].start,
                    open_[0].start,
                )
            over = chance.choice(RANGES)
            if (total := ask(totals.sum, subject, metric, over)) is not None:
                assert total.value == reads.amount(metric, total.start, total.end)[subject], (metric, subject, total)
                assert total.error == 0
                reads.check_bounds(total, metric, over)


def check_tops(totals: Totals, reads: Reads, chance: random.Random) -> None:
    """Compare leaderboards of all time, of a window and of a range."""
    for metric, rule in reads.rules.metric.items():
        over = chance.choice(RANGES)
        for window in (None, chance.choice(rule.windows), over):
            if (board := ask(totals.top, metric, window, n=5)) is None:
                continue
            sums = reads.amount(metric, board.start, board.end)
            assert {place.subject: place.value for place in board.top if place.value} == {
                subject: value for subject, value in sums.items() if value
            }, (metric, window, board)
            if window is None:
                assert (board.start, board.end, board.complete) == (None, None, True)
            elif window == over:
                reads.check_bounds(board, metric, over)


def check_uniques(totals: Totals, reads: Reads, chance: random.Random) -> None:
    """Compare the numbers of different actors in a bucket and over a range."""
    unique = reads.rules.metric["view"].unique
    assert unique is not None
    for subject in SUBJECTS:
        over = chance.choice(RANGES)
        for span in (None, over):
            if (found := ask(totals.uniques, subject, "view", span)) is None:
                continue
            assert found.value == reads.actors(subject, "view", found.start, found.end), (span, found)
            if span is not None:
                reads.check_bounds(found, "view", over, [unique])


def check_alert(machine: Machine, totals: Totals, reads: Reads, before: set[str]) -> set[str]:
    """Compare for which subjects the alert fires; if part of its range has expired, it changes no state."""
    evaluator = AlertEvaluator(machine.harness.connect(), lambda: machine.harness.layout, machine.rules)
    evaluator.run_once()
    alerts = totals.alerts()
    firing = {each.subject for each in alerts.firing}
    over = machine.rules.alert[0].over
    assert over is not None
    if alerts.alerts[0].complete:
        figure = totals.sum("s0", "seen", over)
        assert figure.complete
        sums = reads.amount("seen", figure.start, figure.end)
        assert firing == {subject for subject, value in sums.items() if value > BOUND}
    else:
        figure = ask(totals.sum, "s0", "seen", over)
        assert figure is None or not figure.complete
        assert firing == before
    return firing


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_read_equals_the_oracle_at_every_time(clocked: ClockedServer, seed: int) -> None:
    """While months pass, with any rules, zone and order, each read is exact within the bounds that it states."""
    chance = random.Random(seed)
    rules = draw_rules(chance)
    begin = an_hour(300) - chance.randrange(24) * HOUR
    clocked.set(begin - time.time())
    with Harness(clocked.url, rules=rules, partitions=2) as harness:
        machine = Machine(harness, clocked, rules, chance, begin)
        firing: set[str] = set()
        for _ in range(8):
            machine.arrive(chance.randint(0, 25))
            if chance.random() < 0.7:
                machine.count()
            machine.move(chance.choice(STEPS))
            machine.count()
            with Totals(clocked.url) as totals:
                reads = Reads(machine.standing(), rules, machine.now)
                check_sums(totals, reads, chance)
                check_tops(totals, reads, chance)
                check_uniques(totals, reads, chance)
                firing = check_alert(machine, totals, reads, firing)


RETURNING = Rules(
    {
        "view": Metric(windows=("hour",), unique="hour", top=5, ids=None),
        "vote": Metric(windows=("hour",), once="forever", ids=None),
    }
)


def append_alone(machine: Machine, event: Event) -> None:
    """Append one event as its own entry."""
    builder = EntryBuilder()
    builder.add(event.metric, event.subject, event.amount, event.at or 0, event.actor, None)
    machine.appender.push(0, SealedEntry(1, builder.events, builder.size, builder.build()))
    machine.appender.send()


def names(harness: Harness, label: str) -> list[str]:
    """Return the keys of one hour: the buckets, the leaderboard and the unique actors."""
    keys = harness.layout.keys[0]
    tops = keys.window_top("hour", "view", label)
    return [
        keys.window("hour", "view", label),
        keys.window("hour", "vote", label),
        tops,
        keys.unique("view", label, "s1"),
    ]


def test_a_late_event_does_not_bring_a_bucket_back(clocked: ClockedServer) -> None:
    """An event that is later than its bucket's retention is counted in the total, and does not change the bucket."""
    begin = an_hour(15)
    label = bucket("hour", int(begin) // 60).label
    with Harness(clocked.url, rules=RETURNING, partitions=1) as harness, Totals(clocked.url) as totals:
        machine = Machine(harness, clocked, RETURNING, random.Random(0), begin)
        for n in range(20):
            machine.decide(Event("view", "s1", 1, f"u{n}", begin))
            machine.decide(Event("vote", "s1", 1, f"u{n}", begin))
        assert [harness.client.exists(name) for name in names(harness, label)] == [1, 1, 1, 1]
        was = [harness.client.dump(name) for name in names(harness, label)]
        # First the hour has closed and its keys are still there, then they are removed.
        for step, kept in ((8 * DAY + HOUR, was), (3 * DAY, [None] * 4)):
            for _ in range(2 if step == 3 * DAY else 0):  # keys become due, and are removed an hour later
                append_alone(machine, Event("view", "s2", 1, "u1", machine.now))
                machine.count()
                machine.move(HOUR + 60)
            machine.move(step)
            for metric in ("view", "vote"):
                machine.decide(Event(metric, "s1", 1, f"decided{step}", begin + 1))
                append_alone(machine, Event(metric, "s1", 1, f"appended{step}", begin + 2))
            machine.count()
            found = [harness.client.dump(name) for name in names(harness, label)]
            assert found == kept
        assert totals.get("s1", "view").value == totals.get("s1", "vote").value == 24
        found = totals.sum("s1", "view", "30d")
        assert (found.value, found.complete) == (0, False)
        assert found.missing[0].end == found.start
        assert found.end > machine.now


def test_an_entry_that_waited_does_not_bring_a_bucket_back(clocked: ClockedServer) -> None:
    """If the worker was away until long after a bucket closed, its events are counted in the total only."""
    begin = an_hour(15)
    label = bucket("hour", int(begin) // 60).label
    with Harness(clocked.url, rules=RETURNING, partitions=1) as harness, Totals(clocked.url) as totals:
        machine = Machine(harness, clocked, RETURNING, random.Random(0), begin)
        for metric in ("view", "vote"):
            append_alone(machine, Event(metric, "s1", 1, "u1", begin))
        machine.move(9 * DAY)
        steady(harness.client, harness.layout.keys[0].sequences)
        machine.count()
        assert [harness.client.exists(name) for name in names(harness, label)] == [0, 0, 0, 0]
        assert totals.get("s1", "view").value == totals.get("s1", "vote").value == 1


TRIM = Script("tallystream_worker.maintenance", "trim")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_clock_that_is_ahead_for_a_moment_loses_no_bucket(clocked: ClockedServer, seed: int) -> None:
    """If the server's clock is days ahead for a moment, even while entries are counted, no read lacks a bucket."""
    chance = random.Random(seed)
    drawn = draw_rules(chance)
    rules = Rules(drawn.metric, zone=drawn.zone)
    begin = an_hour(700)
    clocked.set(begin - time.time())
    with Harness(clocked.url, rules=rules, partitions=2) as harness:
        machine = Machine(harness, clocked, rules, chance, begin)

        def trim() -> None:
            """Store the server's clock in each partition, as a worker does every two seconds."""
            for keys in harness.layout.keys:
                TRIM(harness.client, [keys.stream, keys.retention_holds, keys.topic_ledger, keys.sequences],
                     [keys.group, 0, 0, 0, 100, 0])  # fmt: skip

        for _ in range(5):
            trim()
            machine.arrive(chance.randint(1, 25))
            if chance.random() < 0.5:
                machine.count()
            ahead = chance.choice([10, 500]) * DAY
            machine.move(ahead)
            if chance.random() < 0.5:
                trim()
            if chance.random() < 0.7:
                machine.count()
            for name in list(harness.client.scan_iter()):  # a server removes an expired key when a client asks for it
                harness.client.exists(name)
            machine.move(-ahead)
            machine.count()
            trim()
            with Totals(clocked.url) as totals:
                reads = Reads(machine.standing(), rules, machine.now)
                check_sums(totals, reads, chance)
                check_tops(totals, reads, chance)
                check_uniques(totals, reads, chance)
            for _ in range(chance.randint(0, 3)):
                machine.move(chance.choice([60, HOUR, DAY]))
                trim()


HOURS_AND_DAYS = Rules(
    {"view": Metric(windows=("hour", "day"), retention={"day": "3d"}, unique="day", top=5, ids=None)},
    alert=(Alert("many", "view", over="1d", above=BOUND),),
)


def remove(machine: Machine) -> None:
    """Count an entry and let more than an hour pass, twice, so that closed buckets are removed."""
    for _ in range(2):
        append_alone(machine, Event("view", "other", 1, "u0", machine.now))
        machine.count()
        machine.move(HOUR + 60)


def test_reads_state_what_a_clock_that_was_ahead_for_hours_has_removed(clocked: ClockedServer) -> None:
    """If workers have removed buckets by a wrong clock, no read takes them for empty; later buckets are exact."""
    begin = an_hour(30) // DAY * DAY + 6 * HOUR + 1205
    clocked.set(begin - time.time())
    with Harness(clocked.url, rules=HOURS_AND_DAYS, partitions=2) as harness:
        machine = Machine(harness, clocked, HOURS_AND_DAYS, random.Random(0), begin)
        for hour in range(4):
            append_alone(machine, Event("view", "s1", 5, "u1", machine.now))
            machine.count()
            if hour < 3:
                machine.move(HOUR)
        ahead = 20 * DAY
        machine.move(ahead)
        remove(machine)
        machine.move(-ahead - 2 * (HOUR + 60))
        with Totals(clocked.url) as totals:
            assert totals.get("s1", "view").value == 20
            day = bucket("day", int(machine.now) // 60)
            for found in (totals.sum("s1", "view", "1d"), totals.top("view", "1d"), totals.uniques("s1", "view", "2d")):
                assert not found.complete
                assert found.missing[-1].end == found.start == found.end >= machine.now
            for found in (totals.top("view", "day"), totals.uniques("s1", "view")):
                assert (found.start, found.end, found.complete) == (day.end, day.end, False)
                assert [(gap.start, gap.end) for gap in found.missing] == [(day.start, day.end)]
            assert [point.value for point in totals.series("s1", "view", "hour", 4).series] == [None] * 4
            AlertEvaluator(harness.connect(), lambda: harness.layout, HOURS_AND_DAYS).run_once()
            assert [alert.complete for alert in totals.alerts().alerts] == [False]
        machine.move(HOUR)
        append_alone(machine, Event("view", "s1", 7, "u2", machine.now))
        machine.count()
        with Totals(clocked.url) as totals:
            assert [point.value for point in totals.series("s1", "view", "hour", 4).series] == [None, None, None, 7]
            found = totals.sum("s1", "view", "2h")
            assert (found.value, found.complete) == (7, False)
            assert totals.get("s1", "view").value == 27


def test_reads_state_what_a_clock_that_was_ahead_for_hours_has_left_out(clocked: ClockedServer) -> None:
    """If a wrong clock has left events out of buckets that had closed by it, no read takes these for whole."""
    begin = an_hour(30) // DAY * DAY + 6 * HOUR + 1205
    clocked.set(begin - time.time())
    with Harness(clocked.url, rules=HOURS_AND_DAYS, partitions=1) as harness:
        machine = Machine(harness, clocked, HOURS_AND_DAYS, random.Random(0), begin)
        for _ in range(4):
            append_alone(machine, Event("view", "s1", 5, "u1", machine.now))
            machine.move(HOUR)
        ahead = 20 * DAY
        machine.move(ahead)
        steady(harness.client, harness.layout.keys[0].sequences)
        machine.count()
        machine.move(-ahead)
        with Totals(clocked.url) as totals:
            assert totals.get("s1", "view").value == 20
            for found in (totals.sum("s1", "view", "1d"), totals.top("view", "1d"), totals.uniques("s1", "view", "2d")):
                assert not found.complete
            assert [point.value for point in totals.series("s1", "view", "hour", 5).series] == [None] * 4 + [0]


def test_reads_state_what_was_removed_before_retention_was_raised(clocked: ClockedServer) -> None:
    """If `retention` is raised, the buckets that were removed by the earlier rules are stated as missing."""

    def rules(kept: str) -> Rules:
        return Rules({"view": Metric(windows=("hour",), retention={"hour": kept}, ids=None)})

    begin = an_hour(30)
    with Harness(clocked.url, rules=rules("2h"), partitions=1) as harness:
        machine = Machine(harness, clocked, rules("2h"), random.Random(0), begin)
        append_alone(machine, Event("view", "s1", 5, None, machine.now))
        machine.count()
        machine.move(4 * HOUR)
        remove(machine)
        harness.client.hset(harness.layout.meta, "rules", publish(rules("8d")))
        with Totals(clocked.url) as totals:
            found = totals.sum("other", "view", "1d")
            assert (found.value, found.complete) == (2, False)
            assert found.start == bucket("hour", int(begin) // 60).end
            assert totals.sum("other", "view", "3h").complete


@pytest.mark.parametrize("is_decided", [False, True])
def test_reads_state_what_arrived_too_late_before_retention_was_raised(
    clocked: ClockedServer, is_decided: bool
) -> None:
    """If `retention` is raised, the buckets that earlier rules did not add late events to are stated as missing.

    A rebuild counts these events in the buckets.
    """

    def rules(kept: str) -> Rules:
        return Rules({"view": Metric(windows=("hour",), retention={"hour": kept}, unique="hour", top=5, ids=None)})

    begin = an_hour(30)
    with Harness(clocked.url, rules=rules("2h"), partitions=1) as harness:
        machine = Machine(harness, clocked, rules("2h"), random.Random(0), begin)
        late = Event("view", "s1", 5, "u1", machine.now - 5 * HOUR)
        if is_decided:
            machine.decide(late)
        else:
            append_alone(machine, late)
        append_alone(machine, Event("view", "s1", 1, "u1", machine.now))
        machine.count()
        hour = bucket("hour", int(late.at or 0) // 60)
        harness.client.hset(harness.layout.meta, "rules", publish(rules("8d")))
        with Totals(clocked.url) as totals:
            assert totals.get("s1", "view").value == 6
            for found in (totals.sum("s1", "view", "9h"), totals.top("view", "9h"), totals.uniques("s1", "view", "9h")):
                assert (found.start, found.complete) == (hour.end, False)
            assert totals.sum("s1", "view", "9h").value == 1
            assert totals.sum("s1", "view", "3h").complete
        rebuilt(harness, rules("8d"))
        with Totals(clocked.url) as totals:
            found = totals.sum("s1", "view", "9h")
            assert (found.value, found.complete) == (6, True)


def test_reads_state_what_arrived_while_a_clock_was_ahead(clocked: ClockedServer) -> None:
    """If an event arrives after its bucket closed by a wrong clock, reads state the bucket as missing."""
    begin = an_hour(0)
    clocked.set(begin - time.time())
    with Harness(clocked.url, rules=HOURS_AND_DAYS, partitions=1) as harness:
        machine = Machine(harness, clocked, HOURS_AND_DAYS, random.Random(0), begin)
        append_alone(machine, Event("view", "s1", 5, "u1", machine.now))
        machine.count()
        machine.move(20 * DAY)
        append_alone(machine, Event("view", "s1", 3, "u2", begin))
        machine.count()
        machine.move(2 - 20 * DAY)
        append_alone(machine, Event("view", "s1", 2, "u3", machine.now))
        machine.count()
        with Totals(clocked.url) as totals:
            assert totals.get("s1", "view").value == 10
            for found in (totals.sum("s1", "view", "1h"), totals.top("view", "1d"), totals.uniques("s1", "view", "1d")):
                assert not found.complete
        machine.move(HOUR)
        append_alone(machine, Event("view", "s1", 7, "u1", machine.now))
        machine.count()
        with Totals(clocked.url) as totals:
            assert [point.value for point in totals.series("s1", "view", "hour", 2).series] == [None, 7]
        found = audit(harness.client, Deployment.create_or_load(harness.client), HOURS_AND_DAYS)
        assert (found.differences, found.expired > 0) == ([], True)


def test_a_month_of_days_in_a_zone_between_hours(clocked: ClockedServer) -> None:
    """In Kolkata, where days and hours do not meet, a sum over 30 days is read from whole days, and is exact."""
    rules = Rules({"view": Metric(windows=("hour", "day"), top=5, ids=None)}, zone="Asia/Kolkata")
    begin = an_hour(31)
    with Harness(clocked.url, rules=rules, partitions=1) as harness:
        machine = Machine(harness, clocked, rules, random.Random(0), begin)
        for _ in range(31):
            event = Event("view", "s1", 10, None, machine.now)
            append_alone(machine, event)
            machine.receive([event], str(machine.appender.last_ids[0]))
            machine.count()
            machine.move(DAY)
        with Totals(clocked.url) as totals:
            reads = Reads(machine.events, rules, machine.now)
            found = totals.sum("s1", "view", "30d")
            assert found.complete
            assert found.value == reads.amount("view", found.start, found.end)["s1"] in (300, 310)
            assert [place.value for place in totals.top("view", "30d").top] == [found.value]


def test_a_reader_with_a_wrong_clock_reads_the_same(clocked: ClockedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges end at the present of the server's clock, not of the reader's, which may also be set between two reads."""
    rules = Rules({"view": Metric(windows=("hour",), ids=None)})
    clocked.set(an_hour(40) - time.time())
    with Harness(clocked.url, rules=rules, partitions=1) as harness, Totals(clocked.url) as totals:
        machine = Machine(harness, clocked, rules, random.Random(0), an_hour(40))
        append_alone(machine, Event("view", "s1", 3, None, machine.now))
        machine.count()
        for ahead in (0, -30 * 86_400, 86_400):
            present = time.time
            with monkeypatch.context() as patched:
                patched.setattr(time, "time", lambda ahead=ahead, present=present: present() + ahead)
                assert totals.sum("s1", "view", "1d").value == 3
                assert totals.series("s1", "view", "hour", 2).series[-1].value == 3
