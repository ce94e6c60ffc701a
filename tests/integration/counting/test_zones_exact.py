"""Under random rules in zones with half hours, changes of clocks and skipped days, all counters equal the oracle's."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream_worker.rebuild.audit import audit
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import EXAMPLES, deliver, feed, stored, without_zeros
from tests.oracle_rules import Happened, tally
from tests.unit.rules.test_zones import ZONES, changes

if TYPE_CHECKING:
    from collections.abc import Sequence

ODD = (
    "Asia/Kolkata", "Asia/Kathmandu", "Asia/Tehran", "Australia/Lord_Howe", "Australia/Eucla", "Pacific/Chatham",
    "Pacific/Marquesas", "Pacific/Apia", "America/St_Johns", "Antarctica/Troll", "Antarctica/Casey",
    "Africa/Casablanca", "Africa/Cairo", "America/Havana", "America/Nuuk", "America/Asuncion",
    "Europe/Vienna", "Asia/Singapore",
)  # fmt: skip
KEPT = dict.fromkeys(("minute", "hour", "day", "month"), "forever")
APART = [0, 1, 29 * 60, 30 * 60, 31 * 60, 3599, 3600, 2 * 3600, 23 * 3600, 86_400, 25 * 3600, 31 * 86_400]
relaxed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def rules_of_a_zone(draw) -> Rules:
    """Draw rules of up to three metrics in a zone; metrics that the zone does not allow are left out."""
    zone = draw(st.sampled_from((*ODD, *ODD, *ZONES)))
    metrics: dict[str, Metric] = {}
    for name in "abc":
        kind = draw(st.sampled_from(["plain", "limit", "once"]))
        metric = Metric(
            windows=tuple(draw(st.lists(st.sampled_from(("minute", "hour", "day", "month")), unique=True))),
            retention=KEPT,
            ids=draw(st.sampled_from([None, "minute", "hour", "day", "month"])),
            top=draw(st.sampled_from([0, 5])),
            once=draw(st.sampled_from(["forever", "hour", "day", "30d"])) if kind == "once" else None,
            limit=draw(st.integers(1, 4)) if kind == "limit" else None,
            per=draw(st.sampled_from(["minute", "hour", "hour", "day", "month", "total"])) if kind == "limit" else None,
            accept_late="forever" if kind == "once" else draw(st.sampled_from(["4000d", "forever"])),
        )
        with contextlib.suppress(ConfigurationError):
            Rules({name: metric}, zone=zone)
            metrics[name] = metric
    assume(metrics)
    return Rules(metrics, zone=zone)


def moments(zone: str, now: int) -> Sequence[int]:
    """Return seconds of the past around which days of a zone are special."""
    special = [change for change in changes(zone) if now - 3000 * 86_400 < change < now - 40 * 86_400]
    return [*special[-6:], 1_709_164_800, now - 2 * 86_400, now - now % 86_400 - 6 * 3600]


@st.composite
def events_under(draw, rules: Rules) -> list[tuple[Event, bool]]:
    """Draw events around a special moment of the zone, each with whether it is decided at once or appended."""
    now = int(time.time())
    moment = draw(st.sampled_from(moments(rules.zone, now)))
    aparts = draw(st.lists(st.sampled_from(APART), min_size=1, max_size=4, unique=True))
    drawn = []
    for _ in range(draw(st.integers(1, 50))):
        metric = draw(st.sampled_from(sorted(rules.metric)))
        rule = rules.metric[metric]
        at = min(now, moment + draw(st.sampled_from([-1, 1])) * draw(st.sampled_from(aparts)))
        amount = (
            draw(st.sampled_from([1, -1, 0]))
            if rule.once
            else 1
            if rule.limit
            else draw(st.sampled_from([1, 1, 5, -2]))
        )
        actor = draw(st.sampled_from(["u1", "u2"])) if rule.once else draw(st.sampled_from([None, "u1"]))
        event = Event(
            metric, draw(st.sampled_from("st")), amount, actor, at, draw(st.sampled_from([None, None, "i", "j"]))
        )
        drawn.append((event, draw(st.booleans())))
    return drawn


def in_zone(event: Happened, zone: str) -> Happened:
    """Return an event as the oracle takes it in a zone."""
    return Happened(**{**vars(event), "zone": zone})


@relaxed
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_rules_in_every_zone_equal_the_oracle(server, data, seed):
    """Whatever rules are accepted in a zone, the counters depend on the set of events only, and an audit agrees."""
    rules, chance = data.draw(rules_of_a_zone()), random.Random(seed)
    drawn = data.draw(events_under(rules))
    server.client().flushall()
    with Harness(server.url, rules=rules, partitions=2) as harness:
        happened = [in_zone(event, rules.zone) for event in feed(harness, drawn, chance)]
        deliver(harness, chance)
        expected, found = tally(happened, rules.metric), stored(harness)
        for name in ("totals", "up", "windows", "asked"):
            assert without_zeros(found[name]) == without_zeros(getattr(expected, name)), name
        assert without_zeros(harness.ledger()) == without_zeros(expected.ledger)
        if seed % 5 == 0:
            deployment = Deployment.create_or_load(harness.client)
            assert audit(harness.client, deployment, rules).differences == []
