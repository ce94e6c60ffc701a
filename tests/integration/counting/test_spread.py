"""The events of a spread metric are counted in all partitions, and readers add the parts of a subject up."""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from contextlib import contextmanager

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, EventError
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.producing.producer import Producer
from tallystream.reading.leaderboards import query_top
from tallystream.reading.ledger import query_ledger
from tallystream.reading.series import query_rolling, query_series
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Ratio, Rules, publish
from tallystream.storage.deployment_hash import spread_fields
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.maintenance.hot_subjects import HotSubjectTracker, hot_subjects_service, query_hot_subjects
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.reset import reset
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import deliver, said, without_zeros
from tests.oracle_rules import Books, Happened, tally

RULES = Rules(
    {
        "hot": Metric(windows=("hour", "day"), top=3, spread=True),
        "bare": Metric(ids=None, spread=True),
        "net": Metric(windows=("day",), spread=True, floor=0),
        "view": Metric(windows=("hour", "day"), top=3),
        "vote": Metric(windows=("day",), once="forever"),
    },
    {"heat": Ratio(("hot",), ("view",))},
)
PARTITIONS = 3
HOUR = 3_600_000
SUBJECTS = [f"s{n}" for n in range(4)]
relaxed = settings(
    max_examples=int(os.environ.get("TALLYSTREAM_EXAMPLES", "10")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def happenings(draw) -> list[Event]:
    """Draw events of spread and other metrics."""
    now = int(time.time()) * 1000
    drawn = []
    for _ in range(draw(st.integers(1, 60))):
        metric = draw(st.sampled_from(list(RULES.metric)))
        is_vote = metric == "vote"
        amount = draw(st.sampled_from([1, -1, 0])) if is_vote else draw(st.sampled_from([1, 1, 2, -3, 10**12]))
        actor = draw(st.sampled_from(["u1", "u2"])) if is_vote else draw(st.sampled_from([None, None, "u1"]))
        at = (now - draw(st.sampled_from([0, 500, 2 * HOUR, 30 * HOUR]))) / 1000
        id_ = draw(st.sampled_from([None, None, "a", "b"]))
        drawn.append(Event(metric, draw(st.sampled_from(SUBJECTS)), amount, actor, at, id_))
    return drawn


def feed(harness: Harness, drawn: list[Event], chance: random.Random) -> list[Happened]:
    """Append each event to its partition, or to any if it is spread; return the events as the oracle takes them."""
    packs: dict[int, EntryBuilder] = defaultdict(EntryBuilder)
    packed: dict[int, list[Event]] = defaultdict(list)
    appender = Appender(harness.client, harness.layout)
    happened: list[Happened] = []

    def seal(partition: int) -> None:
        pack = packs.pop(partition)
        appender.push(partition, SealedEntry(1, pack.events, pack.size, pack.build()))
        appender.send()
        received, _, sequence = str(appender.last_ids[partition]).partition("-")
        entry = (int(received), int(sequence))
        happened.extend(said(event, entry[0], (*entry, n)) for n, event in enumerate(packed.pop(partition)))

    for event in drawn:
        is_spread = RULES.metric[event.metric].spread and event.id is None
        partition = chance.choice(harness.layout.holding(event.subject, spread=is_spread))
        packs[partition].add(event.metric, event.subject, event.amount, event.at or 0, event.actor, event.id)
        packed[partition].append(event)
        if chance.random() < 0.3:
            seal(partition)
    for partition in list(packs):
        seal(partition)
    return happened


def agree(harness: Harness, expected: Books) -> None:
    """Check that totals, series, sums over ranges, leaderboards and the ledger equal the oracle's."""
    now = time.time()
    with Totals(harness.url) as totals:
        layout, rules = totals.deployment.layout, totals.deployment.rules
        asked = [(subject, metric) for subject in SUBJECTS for metric in RULES.metric]
        for (subject, metric), value in totals.get_many(asked).values.items():
            true = expected.totals[metric, subject]
            assert value == (max(0, true) if metric == "net" else true), (subject, metric)
            for window in RULES.metric[metric].windows:
                points = totals.run(query_series(layout, rules, subject, metric, window, 40, now)).series
                found = {point.bucket: point.value for point in points if point.value}
                buckets = {
                    label: v
                    for (w, m, label, s), v in expected.windows.items()
                    if (w, m, s) == (window, metric, subject)
                }
                assert found == {k: v for k, v in buckets.items() if v and not (metric == "net" and v < 0)}
            if RULES.metric[metric].windows and metric != "net":
                rolling = totals.run(query_rolling(layout, rules, subject, metric, "40d", now))
                assert rolling.value == true
        for metric in ("hot", "view"):
            for window in (None, "40d"):
                ranking = totals.run(query_top(layout, rules, metric, 3, window, now=now))
                assert ranking.error == 0
                assert without_zeros(dict(ranking.places)) == without_zeros(dict(expected.top(metric, 3)))
        assert totals.run(query_ledger(layout)).unaccounted == 0


@contextmanager
def spreading(server):
    """Yield a harness on an emptied server whose spread metrics are marked as spread."""
    server.clear()
    with Harness(server.url, rules=RULES, partitions=PARTITIONS) as harness:
        harness.client.hset(harness.layout.meta, mapping=spread_fields(RULES.spread))
        yield harness


@pytest.fixture
def harness(server):
    """Yield a harness on an empty server, with spread metrics."""
    with spreading(server) as harness:
        yield harness


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_whatever_is_read_equals_the_oracle(server, drawn, seed):
    """Totals, series, sums, leaderboards and ledger equal the oracle's, also after a rebuild; an audit agrees."""
    chance = random.Random(seed)
    with spreading(server) as harness:
        expected = tally(feed(harness, drawn, chance), RULES.metric)
        deliver(harness, chance)
        agree(harness, expected)
        assert harness.dead() == []
        assert without_zeros(harness.ledger()) == without_zeros(expected.ledger)
        deployment = Deployment.create_or_load(harness.client)
        assert audit(harness.client, deployment, harness.rules).differences == []
        generation = propose(harness.client, deployment, RULES)
        with Rebuild(settings_for(harness), Deployment.create_or_load(harness.client), generation) as run:
            run.begin()
            run.catch_up()
            run.switch()
        harness.layout = Deployment.create_or_load(harness.client).layout
        agree(harness, expected)


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_a_snapshot_brings_all_parts_back(server, tmp_path_factory, drawn, seed):
    """After a total loss, a snapshot and its increment restore every part of a subject: all reads are as before."""
    chance = random.Random(seed)
    database = Database(str(tmp_path_factory.mktemp("snapshot") / "snapshot.sqlite"))
    with spreading(server) as harness:
        happened = feed(harness, drawn[: len(drawn) // 2], chance)
        deliver(harness, chance)
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        happened += feed(harness, drawn[len(drawn) // 2 :], chance)
        deliver(harness, chance)
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        server.clear()
        restore(harness.client, database)
        assert Deployment.create_or_load(harness.client).spread == RULES.spread
        agree(harness, tally(happened, RULES.metric))
    database.close()


def settings_for(harness: Harness, rules: Rules = RULES) -> Settings:
    """Return the settings of a worker."""
    return Settings(redis=RedisSettings(url=harness.url, partitions=PARTITIONS), rules=rules)


def in_streams(harness: Harness) -> list[int]:
    """Return the number of events in each stream, as the entries state it."""
    return [sum(int(fields[b"n"]) for _, fields in harness.client.xrange(keys.stream)) for keys in harness.layout.keys]


@pytest.mark.parametrize("spooled", [False, True])
def test_a_producer_spreads_what_has_no_id(harness, tmp_path, spooled):
    """Events of one subject go to all partitions, those with an id only to the subject's own; each counts once."""
    where = {"spool": tmp_path / "spool"} if spooled else {}
    with Producer(harness.url, entry_events=100, **where) as producer:
        producer.emit("hot", "s1")
        producer.flush(10)  # now it has read the partitions and the rules
        for number in range(3000):
            id_ = f"i{number % 100}" if number % 10 == 0 else None
            producer.emit("hot", "s1", actor="u1" if number % 3 == 0 else None, id=id_)
        producer.flush(10)
    assert min(in_streams(harness)) > 500
    harness.finish()
    with Totals(harness.url) as totals:
        assert totals.get("s1", "hot").value == 1 + 2700 + 10
        assert totals.run(query_ledger(harness.layout)).unaccounted == 0
    assert harness.dead() == []


def test_one_subject_is_one_sum_in_each_entry(harness):
    """Events are spread by entries: a thousand events of one subject still make at most two entries."""
    with Producer(harness.url, linger=5) as producer:
        producer.flush(10, wait="appended")
        for _ in range(1000):
            producer.emit("hot", "s1")
        producer.flush(10)
    assert sum(harness.client.xlen(keys.stream) for keys in harness.layout.keys) <= 2


def test_copies_of_an_id_meet_at_home(harness):
    """An event with an id in another partition than its subject's is dead-lettered: its copies are not found there."""
    home = harness.layout.holding("s1", spread=False)[0]
    for partition, keys in enumerate(harness.layout.keys):
        harness.client.xadd(keys.stream, {"metric": "hot", "subject": "s1", "id": "a"})
        harness.client.xadd(keys.stream, {"metric": "hot", "subject": "s1"})
        assert partition in harness.layout.holding("s1", spread=True)
    harness.finish()
    with Totals(harness.url) as totals:
        assert totals.get("s1", "hot").value == PARTITIONS + 1
    assert len(harness.dead()) == PARTITIONS - 1
    assert harness.dead(home) == []


def test_a_reset_takes_back_every_part(harness):
    """After a reset the total and the windows of a subject are 0 over all partitions."""
    for keys in harness.layout.keys:
        harness.client.xadd(keys.stream, {"metric": "hot", "subject": "s1", "amount": "5"})
    harness.finish()
    assert reset(harness.client, Deployment.create_or_load(harness.client), "s1", ["hot", "view"]) == {
        "hot": 15,
        "view": 0,
    }
    harness.finish()
    with Totals(harness.url) as totals:
        assert totals.get("s1", "hot").value == 0
        points = totals.run(query_series(harness.layout, RULES, "s1", "hot", "hour", 2, time.time())).series
        assert [point.value for point in points] == [0, 0]


def test_a_total_over_parts_cannot_be_decided(harness):
    """An event of a spread metric cannot be decided: one partition does not have the whole total."""
    with pytest.raises(EventError, match="spread over the partitions"):
        Decider(harness.client, Deployment.create_or_load(harness.client))(Event("hot", "s1"))


def plain_rules(**changes: Metric) -> Rules:
    """Return rules in which `hot` is not spread, with the changed metrics."""
    return Rules({"hot": Metric(windows=("hour",), top=3), "view": Metric()} | changes)


def test_turning_it_on_needs_no_rebuild(server):
    """After spread is turned on, earlier events and those of a producer with old rules are in the total."""
    with Harness(server.url, rules=plain_rules(), partitions=PARTITIONS) as harness:
        before = Producer(harness.url)
        before.emit("hot", "s1", 5)
        before.flush(10)
        consumers = [
            harness.consumer(partition, latest=lambda _: Deployment.create_or_load(harness.client).numbered_rules_of(1))
            for partition in range(PARTITIONS)
        ]
        for consumer in consumers:
            consumer.run_once()
        rules = plain_rules(hot=Metric(windows=("hour",), top=3, spread=True))
        open_deployment(settings_for(harness, rules))
        before.emit("hot", "s1", 7)  # it still has the old rules
        before.close()
        with Producer(harness.url, linger=0) as producer:
            producer.flush(10)
            for _ in range(3 * PARTITIONS):
                producer.emit("hot", "s1")
                producer.flush(10)
        # These workers began with the old rules. They read the new ones when a subject seems to be misrouted.
        for consumer in consumers:
            while consumer.run_once():
                pass
        assert harness.dead() == []
        with Totals(harness.url) as totals:
            assert totals.get("s1", "hot").value == 5 + 7 + 3 * PARTITIONS
            ranking = totals.run(query_top(harness.layout, rules, "hot", 3, now=time.time()))
            assert (ranking.places, ranking.error) == ([("s1", 5 + 7 + 3 * PARTITIONS)], 0)


def test_it_cannot_be_turned_off_on_the_same_log(harness):
    """Rules that turn `spread` off are rejected, for a worker and a rebuild, also after the metric was removed."""
    open_deployment(settings_for(harness))
    for rules in (plain_rules(), plain_rules(hot=Metric(limit=5, per="hour"))):
        with pytest.raises(ConfigurationError, match=r"\[metric.hot\] spread: .* Keep spread = true"):
            open_deployment(settings_for(harness, rules))
        with pytest.raises(ConfigurationError, match="Keep spread = true"):
            propose(harness.client, Deployment.create_or_load(harness.client), rules)
    open_deployment(settings_for(harness, Rules({"view": Metric()})), removing=["hot"])  # a metric may be removed
    with pytest.raises(ConfigurationError, match="Keep spread = true"):
        open_deployment(settings_for(harness, plain_rules()))


def test_an_old_generation_stays_readable_after_the_switch_back(server):
    """If a rebuild spreads a metric and is undone, the old generation counts the events that were spread since."""
    with Harness(server.url, rules=plain_rules(), partitions=PARTITIONS) as harness:
        rules = plain_rules(hot=Metric(windows=("hour",), top=3, spread=True))
        with counting(settings_for(harness, plain_rules()), structlog.get_logger()):
            deployment = Deployment.create_or_load(harness.client)
            generation = propose(harness.client, deployment, rules)
            with Rebuild(settings_for(harness, rules), Deployment.create_or_load(harness.client), generation) as run:
                run.begin()
                run.catch_up()
                run.switch()
            with Producer(harness.url, linger=0) as producer:
                producer.flush(10)
                for _ in range(3 * PARTITIONS):
                    producer.emit("hot", "s1")
                    producer.flush(10)
                producer.flush(10, wait="counted")
                with Rebuild(settings_for(harness, rules), Deployment.create_or_load(harness.client), 1) as run:
                    run.catch_up()
                    run.switch()
                producer.emit("hot", "s1")
                producer.flush(10, wait="counted")
        harness.layout = Deployment.create_or_load(harness.client).layout
        assert harness.layout.generations in ((), (1,) * PARTITIONS)
        assert harness.dead() == []
        with Totals(harness.url) as totals:
            assert totals.get("s1", "hot").value == 3 * PARTITIONS + 1


def test_the_hottest_subject_is_shown(harness):
    """The subject with most of a partition's events is published, and it is logged once with advice."""
    hottest, heard = HotSubjectTracker(PARTITIONS), LogCapture()
    log = structlog.wrap_logger(None, processors=[heard], wrapper_class=structlog.make_filtering_bound_logger(0))
    service = hot_subjects_service(
        settings_for(harness), Deployment.create_or_load(harness.client), lambda: hottest, log
    )
    (home,) = harness.layout.holding("s1", spread=False)
    with Producer(harness.url, linger=5) as producer:
        for number in range(50_000):
            producer.emit("view", "s1" if number % 10 else f"x{number}")
        producer.flush(10)
    while harness.consumer(home, subscribers=[hottest]).run_once():
        pass
    for _ in range(2):
        service.run_once()
    service.stop(0)
    with Totals(harness.url) as totals:
        found = totals.run(query_hot_subjects(harness.layout))
    stream = harness.layout.keys[home].stream
    assert (found[stream].metric, found[stream].subject) == ("view", "s1")
    assert 0.9 < found[stream].share < 1
    assert str(heard.entries).count("spread = true in [metric.view]") == 1


def test_published_rules_and_the_mark_come_together(harness):
    """A metric that is marked as spread is spread in the rules that are read, even if the published rules differ."""
    harness.client.hset(harness.layout.meta, "rules", publish(plain_rules()))
    found = Deployment.create_or_load(harness.client)
    assert found.rules.metric["hot"].spread
    assert not found.rules.metric["view"].spread
