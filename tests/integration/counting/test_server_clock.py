"""A server's clock that jumps ahead or back changes no result for longer than it is wrong.

Stream IDs never go back: after a jump ahead they stay ahead of the clock. So an entry states the clock's time, and the
rules about late events use it: in the live counters, a rebuild, the archive and a repartition.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tallystream.deployment import Deployment
from tallystream.errors import EventError
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.producing.producer import Producer
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.keys import partition_of
from tallystream.storage.scripts import Script
from tallystream.wire.codec import Group, Payload, encode, received_of
from tallystream.wire.event import MAX_AHEAD, Event
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.archive.entries import entries as archived
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.counting.entry import Entry
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import letters
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.repartition.migration import repartition
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import deliver, said, stored, without_zeros
from tests.integration.rebuild.test_rebuild import rebuilt, settings_for
from tests.integration.rebuild.test_rebuild import stored as stored_live
from tests.oracle_rules import Happened, received, tally
from tests.unit.archive.test_rows import meaning

if TYPE_CHECKING:
    from tests.clock import ClockedServer

HOUR = 3600.0
WEEK = 7 * 86_400.0
RULES = Rules(
    {
        "view": Metric(windows=("hour",)),
        "api": Metric(limit=4, per="hour", accept_late="2h"),
        "daily": Metric(once="day", accept_late="2h"),
        "aside": Metric(windows=("hour",), accept_late="2h", late="aside"),
        "tardy": Metric(windows=("day",), accept_late="2h"),
    }
)
# No lateness and no time ahead is within minutes of its bound (2 h late, 1 h ahead), whatever the clock's offset was.
# The clock is never more than 24 h ahead of what it was: keys are kept for a day after their last write.
OFFSETS = (-3.0, 0.0, 0.0, 3.0, 20.0)
AGOS = (0.0, 1.5, 4.25, 30.0)
relaxed = settings(
    max_examples=int(os.environ.get("TALLYSTREAM_EXAMPLES", "2")),
    deadline=None,
    # Do not look for the smallest failing example: each example rebuilds and repartitions, so this would take minutes.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@st.composite
def clocked_events(draw) -> list[tuple[float, str, Event, float]]:
    """Draw (clock's offset in hours, way of appending, event, hours ago); the event has no time yet."""
    drawn = []
    offset = 0.0
    metrics = draw(st.lists(st.sampled_from(list(RULES.metric)), min_size=1, max_size=3, unique=True))
    for _ in range(draw(st.integers(1, 40))):
        offset = draw(st.sampled_from([*[offset] * 8, *OFFSETS]))
        metric = draw(st.sampled_from(metrics))
        actor = draw(st.sampled_from(["u1", "u2"])) if metric == "daily" else draw(st.sampled_from([None, "u1"]))
        event = Event(metric, draw(st.sampled_from(["a", "b", "c"])), 1, actor)
        way = draw(st.sampled_from(["append", "append", "decide", "plain"]))
        drawn.append((offset, way, event, draw(st.sampled_from(AGOS))))
    return drawn


class Writer:
    """Appends events in three ways, and remembers them as the oracle takes them.

    Args:
        harness: The deployment to write to.
        server: Its server, with the clock.
    """

    def __init__(self, harness: Harness, server: ClockedServer) -> None:
        self._harness, self._server = harness, server
        self._decider = Decider(harness.client, Deployment.create_or_load(harness.client))
        self._appender = Appender(harness.client, harness.layout)
        self.happened: list[Happened] = []
        """The events that must be counted, rejected or set aside."""
        self.dead = 0
        """The number of events that must be dead-lettered, because they are too far ahead."""

    def append(self, event: Event) -> None:
        """Append an event as a producer does."""
        clock = self._clock()
        partition = partition_of(event.subject, self._harness.layout.partitions)
        pack = EntryBuilder()
        pack.add(event.metric, event.subject, event.amount, event.at or 0, event.actor, event.id)
        self._appender.push(partition, SealedEntry(1, 1, pack.size, pack.build()))
        self._appender.send()
        self._note(said(event, 0), str(self._appender.last_ids[partition]), clock)

    def plain(self, event: Event) -> None:
        """Append an event as any Redis client does."""
        fields = {"metric": event.metric, "subject": event.subject, "at": f"{event.at:.3f}"}
        if event.actor is not None:
            fields["actor"] = event.actor
        id_ = self._harness.client.xadd(self._harness.layout.keys_of(event.subject).stream, fields)
        self._note(exactly(event), id_.decode(), None)

    def decide(self, event: Event) -> None:
        """Decide an event; it must be refused if it is late or too far ahead."""
        clock, stream = self._clock(), self._harness.layout.keys_of(event.subject).stream
        at, limit = exactly(event).at, RULES.metric[event.metric].late_seconds
        last = self._harness.client.xinfo_stream(stream)["last-generated-id"].decode().partition("-")[0]
        is_late = limit is not None and clock - at > limit * 1000
        if is_late or at > max(clock, int(last)) + MAX_AHEAD * 1000:
            with pytest.raises(EventError, match="server's clock"):
                self._decider(event)
        else:
            self._note(exactly(event), self._decider(event).id, clock)

    def _clock(self) -> int:
        return int(self._server.clock.now() * 1000)

    def _note(self, event: Happened, entry_id: str, clock: int | None) -> None:
        if event.at > int(entry_id.partition("-")[0]) + MAX_AHEAD * 1000:
            self.dead += 1
        else:
            self.happened.append(replace(event, received=received(entry_id, clock)))


def exactly(event: Event) -> Happened:
    """Return an event as the oracle takes it, without the time of its entry; it keeps its exact time."""
    return Happened(event.metric, event.subject, event.amount, int(f"{event.at:.3f}".replace(".", "")), 0, event.actor)


def write(harness: Harness, server: ClockedServer, drawn: list[tuple[float, str, Event, float]]) -> Writer:
    """Set the clock and append each event as drawn; set the clock to that of the machine at the end."""
    writer = Writer(harness, server)
    now = server.clock.now()
    for offset, way, event, ago in drawn:
        if server.clock.offset != offset * HOUR:
            server.set(offset * HOUR)
        getattr(writer, way)(replace_at(event, now - ago * HOUR))
    server.set(0)
    return writer


def replace_at(event: Event, at: float) -> Event:
    """Return a copy of an event with another time, in whole milliseconds."""
    return Event(event.metric, event.subject, event.amount, event.actor, round(at, 3), event.id)


def send_chunk(harness: Harness, source: str) -> None:
    """Append one event as a chunk of a file."""
    keys, payload = harness.layout.keys[0], encode(Payload([Group("view", 1, ["a"], {}, {})], []))
    names = [keys.stream, keys.sequences, keys.topic_ledger]
    answer, *_ = Script("tallystream_worker.ingest", "ingest")(harness.client, names, [1, source, 0, 9, 1, payload])
    assert answer == b"appended"


def assert_counted(harness: Harness, writer: Writer) -> None:
    """Check the totals, votes above 0 and windows of the harness's generation against the oracle."""
    expected, found = tally(writer.happened, RULES.metric), stored_live(harness)
    for name in ("totals", "up", "windows"):
        assert found[name] == without_zeros(getattr(expected, name)), name


def assert_ledger(harness: Harness, writer: Writer) -> None:
    """Check the ledger of the first generation against the oracle."""
    ledger = Counter({name: n for name, n in harness.ledger().items() if not name.startswith("dead@")})
    assert ledger["dead"] == writer.dead
    ledger["appended"] -= ledger.pop("dead", 0)
    assert without_zeros(ledger) == without_zeros(tally(writer.happened, RULES.metric).ledger)


@relaxed
@given(drawn=clocked_events(), seed=st.integers(0, 10_000))
def test_lateness_is_measured_by_the_clock_in_every_fold(clocked, tmp_path_factory, drawn, seed):
    """However the clock jumps, counters and ledger equal the oracle; so do an audit, a rebuild and a repartition."""
    clocked.clear()
    with Harness(clocked.url, rules=RULES, partitions=2) as harness:
        writer = write(harness, clocked, drawn)
        deliver(harness, random.Random(seed))
        assert_counted(harness, writer)
        asked = tally(writer.happened, RULES.metric).asked
        assert without_zeros(stored(harness)["asked"]) == without_zeros(asked)
        assert_ledger(harness, writer)
        assert audit(harness.client, Deployment.create_or_load(harness.client), RULES).differences == []
        store = Store(str(tmp_path_factory.mktemp("archive")))
        Archive(harness.client, store, Deployment.create_or_load(harness.client)).run_once(settled=0)
        for partition, keys in enumerate(harness.layout.keys):
            original = [Entry(id_.decode(), fields) for id_, fields in harness.client.xrange(keys.stream)]
            assert [meaning(entry) for entry in archived(store, partition)] == [meaning(entry) for entry in original]
        generation = rebuilt(harness)
        drop(harness.client, Deployment.create_or_load(harness.client), generation - 1)
        assert_counted(harness, writer)
        repartition(settings_for(harness.url, RULES, 0), Deployment.create_or_load(harness.client), 3)
        harness.layout = Deployment.create_or_load(harness.client).layout
        assert_counted(harness, writer)
        assert audit(harness.client, Deployment.create_or_load(harness.client), RULES).differences == []


def test_a_jump_of_the_clock_sets_nothing_aside_after_it(clocked):
    """After a clock was 8 days ahead for a moment, limits, votes and late events count; only that moment's are late."""
    rules = Rules(
        {
            "api": Metric(limit=1000, per="hour"),
            "daily": Metric(once="day"),
            "aside": Metric(windows=("hour",), accept_late="1d", late="aside"),
            "view": Metric(windows=("hour",)),
        }
    )
    with Harness(clocked.url, rules=rules, partitions=2) as harness, Producer(clocked.url) as producer:

        def wave(name: str, accepted: int) -> None:
            for number in range(10):
                for metric in ("api", "aside", "view"):
                    producer.emit(metric, "s")
                producer.emit("daily", "s", actor=f"{name}{number}")
            producer.flush()
            if accepted:
                assert producer.decide("api", "s").accepted
            else:
                with pytest.raises(EventError, match="by the server's clock"):
                    producer.decide("api", "s")
            harness.finish()

        wave("before", 1)
        clocked.set(WEEK + 86_400)
        wave("during", 0)
        clocked.set(0)
        wave("after", 1)
        assert harness.totals() == {("api", "s"): 22, ("daily", "s"): 20, ("aside", "s"): 20, ("view", "s"): 30}
        ledger = harness.ledger()
        assert {name: n for name, n in ledger.items() if name.startswith("late")} == {
            "late": 30, "late@api": 10, "late@daily": 10, "late@aside": 10,
        }  # fmt: skip
        assert ledger["appended"] == ledger["counted"] + ledger["late"]


def test_an_entry_states_the_clock_only_if_its_id_is_later(clocked):
    """A producer's entry, a decision and a chunk of a file have a field `t` only while stream IDs are ahead."""
    with Harness(clocked.url, rules=Rules({"view": Metric()}), partitions=1) as harness:
        stream = harness.layout.keys[0].stream
        for offset, states in ((0, False), (30, False), (0, True), (-HOUR, True), (31, False)):
            clocked.set(offset)
            before, entries = clocked.clock.now(), len(harness.client.xrange(stream))
            with Producer(clocked.url) as producer:
                producer.emit("view", "a")
                producer.flush()
                producer.decide("view", "a")
            send_chunk(harness, f"{offset} {states}")
            after = clocked.clock.now()
            added = harness.client.xrange(stream)[entries:]
            assert [b"t" in fields for _, fields in added] == [states] * 3
            for id_, fields in added:
                assert int(before * 1000) <= received_of(id_.decode(), fields) <= after * 1000 + 1


def test_a_retry_keeps_the_clock_of_its_entry(clocked):
    """A dead letter is as late as its entry was, not as late as the entry's stream ID."""
    with Harness(clocked.url, rules=Rules({"view": Metric()}), partitions=1) as harness:
        declared = Rules({"view": Metric(), "aside": Metric(accept_late="2h", late="aside")})
        harness.client.hset(harness.layout.meta, "rules", publish(declared))
        with Producer(clocked.url) as producer:
            clocked.set(20 * HOUR)
            producer.emit("view", "a")
            producer.flush()
            clocked.set(0)
            producer.emit("view", "a")
            producer.emit("aside", "a", actor="u1")
            producer.emit("aside", "a")
            producer.flush()
        harness.finish()
        for letter in letters(harness.client, harness.layout, 0):
            retry(harness.client, harness.layout, declared, letter)
        assert harness.totals() == {("view", "a"): 2, ("aside", "a"): 2}
        assert "late" not in harness.ledger()


def test_an_alert_of_a_bucket_fires_after_a_jump(clocked):
    """An alert on the present hour fires while stream IDs are ahead of the clock, and not only when it reaches them."""
    rules = Rules({"view": Metric(windows=("hour",))}, alert=(Alert("busy", "view", above=5, window="hour"),))
    with Harness(clocked.url, rules=rules, partitions=1) as harness, Producer(clocked.url) as producer:
        clocked.set(WEEK)
        producer.emit("view", "a")
        producer.flush()
        clocked.set(0)
        at = clocked.clock.now()
        for _ in range(9):
            producer.emit("view", "a", at=at)
        producer.flush()
        harness.finish()
        assert [fields[b"state"] for _, fields in harness.client.xrange(harness.layout.keys[0].outbox)] == [b"firing"]
