"""Tests of the plan: known values, and that a larger load never needs less."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric
from tallystream_plan.explain import document, drivers, lines, size
from tallystream_plan.load import ExpectedLoad, distinct
from tallystream_plan.packing import pack
from tallystream_plan.processor import server_seconds, worker_seconds
from tallystream_plan.sizing import HEADROOM, UTILISATION, Plan, plan
from tallystream_plan.storage import YEAR, counter_bytes, log_bytes
from tallystream_worker.capacity.costs import Costs, load_costs
from tallystream_worker.settings.settings import RetentionSettings, Settings

ROOM = 16 * 2**30
COSTS = msgspec.convert(
    {
        "machine": "a machine",
        "software": "a server",
        "server": dict.fromkeys(("append_entry", "entry", "total", "window", "board", "place"), 1.0)
        | {"append_subject": 0.0, "subject": 0.0, "limit": 2.0, "vote": 10.0, "unique": 5.0},
        "worker": {"entry": 8.0, "subject": 0.0, "counter": 0.5, "fresh": 0.25, "single": 4.0},
        "producer": {"entry": 15.0, "event": 1.0},
        "memory": {
            "total": 100.0,
            "field": 40.0,
            "votes": 200.0,
            "vote": 30.0,
            "id": 120.0,
            "unique": 190.0,
            "actor": 2.0,
            "member": 80.0,
            "entry": 70.0,
            "subject": 15.0,
            "single": 45.0,
            "producer": 70.0,
            "dropped": 87.0,
        },
        "wire": {
            "append_entry": 240.0,
            "append_subject": 15.0,
            "append_single": 45.0,
            "read_entry": 150.0,
            "apply_counter": 16.0,
            "apply_single": 140.0,
            "log_entry": 700.0,
            "log_total": 50.0,
            "log_window": 27.0,
            "log_single": 150.0,
        },
    },
    Costs,
)
VIEW = Metric(windows=("hour", "day"), top=100)
VOTE = Metric(once="forever")


def load(events: float = 1e5, subjects: int = 10**6, rule: Metric = VIEW, **others: Any) -> ExpectedLoad:
    """Return a load of one metric."""
    return ExpectedLoad(events, subjects, {"view": rule}, {"view": 1.0}, **others)


def made(expected: ExpectedLoad, *, node_memory: float = ROOM, partitions: int | None = None) -> Plan:
    """Return the plan of a load."""
    return plan(expected, COSTS, Settings(), node_memory=node_memory, partitions=partitions)


@pytest.mark.parametrize("skew", [0.0, 0.8, 1.0, 1.3])
def test_distinct_is_what_the_formula_says(skew: float) -> None:
    """The blocks of ranks give the same result as the sum over all ranks, within one percent."""
    weights = [rank**-skew for rank in range(1, 5_001)]
    whole = sum(weights)
    for events in (1, 100, 10_000, 1e6):
        exact = sum(-math.expm1(-events * weight / whole) for weight in weights)
        assert distinct(events, 5_000, skew) == pytest.approx(exact, rel=0.01)


def test_distinct_at_its_ends() -> None:
    """No event has no subject, one event has one, and very many events have all of them."""
    assert distinct(0, 10, 1.0) == 0
    assert distinct(1e-3, 10**9, 0.0) == pytest.approx(1e-3, rel=1e-3)
    assert distinct(1e9, 1000, 1.0) == pytest.approx(1000)
    assert distinct(10**6, 10**12, 0.0) == pytest.approx(10**6, rel=0.01)


def test_entries_fill_within_the_linger() -> None:
    """An entry has its first event and those within the linger, at most 1,000."""
    assert pack(load(4000, producers=1), 4, 3000).entry_events == pytest.approx(1 + 1000 * 0.005)
    assert pack(load(4000, producers=10, linger=0.1), 4, 3000).entry_events == pytest.approx(1 + 100 * 0.1)
    assert pack(load(1e9, producers=1), 4, 3000).entry_events == 1000
    assert pack(load(1e9, producers=1), 4, 3000).entries == 1e6


def test_batches_close_at_their_weight_or_at_their_entries() -> None:
    """A batch has 3,000 counters if no subject repeats; with one subject it has the entries of one read."""
    alike = load(1e9, 10**9, Metric(), producers=1, skew=0.0)
    assert pack(alike, 4, 3000).batch_events == pytest.approx(3000, rel=0.01)
    one = pack(load(1e9, 1, Metric(), producers=1), 1, 3000)
    assert one.batch_events == 256 * 1000
    assert one.counters["view"] == pytest.approx(1e9 / 256_000)
    votes = pack(load(1e9, 10**9, VOTE, producers=1, skew=0.0), 4, 3000)
    assert votes.batch_events == pytest.approx(750, rel=0.01)


def test_the_servers_time_adds_up() -> None:
    """Each event that never repeats costs its share of an entry, a total, two buckets and three leaderboards."""
    expected = load(1e6, 10**10, producers=1, skew=0.0)
    packing = pack(expected, 4, 3000)
    spent = server_seconds(expected, packing, COSTS)
    assert spent["appending"] == pytest.approx(packing.entries * 1e-6)
    assert spent["totals"] == pytest.approx(1.0, rel=0.01)
    assert spent["windows"] == pytest.approx(2.0, rel=0.01)
    assert spent["leaderboards"] == pytest.approx(3 * (1 + 150 / packing.batch_events), rel=0.01)
    assert worker_seconds(packing, COSTS) == pytest.approx(packing.entries * 8e-6 + 0.5 + 0.25, rel=0.01)


def test_a_worker_remembers_so_many_subjects() -> None:
    """No subject is validated again if the cache has room for all of them; every one is if none repeats."""
    assert pack(load(1e6, 4 * 50_000), 4, 3000).fresh == 0
    assert pack(load(1e6, 10**10, skew=0.0), 4, 3000).fresh == pytest.approx(1e6, rel=0.01)
    some = pack(load(1e6, 10**6), 4, 3000).fresh
    assert 0 < some < pack(load(1e6, 10**8), 4, 3000).fresh < 1e6


def test_memory_at_known_points() -> None:
    """Memory is a total per subject, a field per active subject and bucket, and a vote per actor."""
    dense = counter_bytes(load(1e6, 1000, Metric(windows=("day",), retention={"day": "9d"})), 4, COSTS)
    assert dense == {"view: total": pytest.approx(100_000), "view: days for 9d": pytest.approx(10 * 40_000, rel=0.01)}
    sparse = counter_bytes(
        load(1 / 86_400, 10**9, Metric(windows=("day",), retention={"day": "9d"}), skew=0.0), 4, COSTS
    )
    assert sparse["view: days for 9d"] == pytest.approx(10 * 40, rel=0.01)
    votes = counter_bytes(load(1e6, 1000, VOTE, actors=50), 4, COSTS)
    assert votes["view: a vote per actor (forever)"] == pytest.approx(1000 * (200 + 50 * 30), rel=0.01)
    year = counter_bytes(load(1 / YEAR, 10**9, Metric(), skew=0.0), 4, COSTS)
    assert year["view: total"] == pytest.approx(100, rel=0.01)


def test_memory_of_a_limit_of_thousands() -> None:
    """The memory of a limit is named with its whole number; each part of a metric has another name."""
    limited = Metric(limit=1_000_000, per="day", windows=("day",), unique="day")
    named = counter_bytes(load(1e6, 1000, limited, actors=50), 4, COSTS)
    assert list(named) == ["view: total", "view: days", "view: limit 1,000,000 per day", "view: unique actors by day"]


def test_the_log_is_bounded_by_age_or_bytes() -> None:
    """The streams have the entries within the age, and at most the configured bytes."""
    packing = pack(load(1000, 10**9, Metric(), producers=1, skew=0.0), 4, 3000)
    grows = packing.entries * 70 + 1000 * 15
    assert log_bytes(packing, 4, COSTS, RetentionSettings(age="1h", bytes=0, backlog_bytes=0)) == pytest.approx(
        3600 * grows, rel=0.01
    )
    assert log_bytes(packing, 4, COSTS, RetentionSettings(age="30d", bytes=1000)) == 4000


def test_primaries_follow_from_time_and_memory() -> None:
    """The number of primaries follows from processor time or memory, and the partitions suffice for it."""
    fast = made(load(3e6, 10**6, producers=2))
    assert fast.primaries == math.ceil(sum(fast.server.values()) / UTILISATION) > 1
    assert fast.partitions >= 2 * fast.primaries
    small = made(load(1e3, 10**7), node_memory=2**30)
    assert small.primaries == math.ceil(small.memory / 2**30) > sum(small.server.values()) / UTILISATION
    assert small.memory == HEADROOM * (sum(small.counters.values()) + small.log)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("events", [1, 1e2, 1e4, 1e5, 1e6, 4e6]),
        ("subjects", [1, 100, 10**4, 10**6, 10**8]),
        ("producers", [1, 3, 10, 100, 1000]),
        ("actors", [1, 10, 1000, 10**5]),
    ],
)
@pytest.mark.parametrize("rule", [Metric(), VIEW, VOTE, Metric(unique="day")])
def test_more_never_needs_less(rule: Metric, name: str, values: list[float]) -> None:
    """More events, subjects, producers or actors never need less of a resource, for any number of partitions."""
    for partitions in (4, 64, 1024):
        plans = [made(replace(load(rule=rule, actors=5), **{name: value}), partitions=partitions) for value in values]
        for figure in (
            lambda each: each.memory,
            lambda each: sum(each.server.values()),
            lambda each: each.worker,
            lambda each: each.primaries,
            lambda each: sum(each.traffic.values()),
        ):
            figures = [figure(each) for each in plans]
            for less, more in pairwise(figures):
                assert more >= less * 0.998, (partitions, figures)


def test_longer_lingers_never_need_more() -> None:
    """A longer linger packs more events into an entry, and never needs more of a server."""
    plans = [made(load(1e6, linger=linger), partitions=64) for linger in (0.0, 0.005, 0.05, 0.5, 5.0)]
    needed = [sum(each.server.values()) for each in plans]
    assert needed == sorted(needed, reverse=True)


def test_what_cannot_be_planned_is_said() -> None:
    """A load that is too large, and inputs out of range, are rejected with advice."""
    with pytest.raises(ConfigurationError, match="split the load over several namespaces"):
        made(load(1e12))
    for wrong in ({"events": 0}, {"subjects": 0}, {"skew": 4.0}, {"actors": -1}, {"producers": 0}, {"linger": -1.0}):
        with pytest.raises(ConfigurationError, match="plan: "):
            replace(load(), **wrong)


def test_each_figure_is_explained() -> None:
    """Every line has a reason, and the JSON document contains the constants."""
    expected = load(1e6, producers=1000)
    found = made(expected)
    rows = lines(expected, found, COSTS, Settings(), 1, ROOM)
    assert all(row.figure and row.because for row in rows)
    assert any("longer --linger" in row.because for row in rows)
    assert drivers(found)[0].name.startswith("time: ")
    whole = document(expected, found, COSTS, Settings(), 2)
    assert whole["replicas"] == 2 * whole["primaries"]
    assert whole["measured"]["server"]["vote"] == 10.0
    assert size(1536) == "1.5 KiB"


def test_the_shipped_costs_can_be_read(tmp_path) -> None:
    """The shipped costs are readable; a file without costs is rejected with its name."""
    assert load_costs().server.total > 0
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_costs(tmp_path / "nowhere.json")
    for wrong in (b"{}", b'{"machine":"\xff"}', b'{"unknown":' + b"[" * 100_000):
        (tmp_path / "wrong.json").write_bytes(wrong)
        with pytest.raises(ConfigurationError, match="write it with"):
            load_costs(tmp_path / "wrong.json")
