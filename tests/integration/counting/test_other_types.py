"""A key of another type than the rules need makes dead letters of the events that need it, and of no others."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import KeyLost, StreamError
from tallystream.producing.decider import Decider
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.counting.fold_result import OVERFLOW
from tests.harness import Harness
from tests.rewind import copy_of, go_back

if TYPE_CHECKING:
    import redis

RULES = Rules(
    {
        "view": Metric(ids=None, windows=("hour", "day"), unique="day", top=3),
        "call": Metric(ids=None, limit=5, per="day", windows=("day",)),
        "lot": Metric(ids=None, limit=50, per="total"),
        "vote": Metric(once="forever", top=3),
        "poll": Metric(once="day", windows=("day",)),
        "buy": Metric(ids="day", windows=("day",)),
        "pay": Metric(ids="day", seen="bloom"),
        "rough": Metric(ids=None, exact=False, top=3),
        "few": Metric(ids=None, max_subjects=1),
        "plain": Metric(ids=None),
    },
    alert=(
        Alert("hot", "plain", above=0),
        Alert("busy", "call", window="day", above=0),
        Alert("rising", "buy", over="1d", above=0),
    ),
)
"""Rules of every kind, and alerts of every kind."""

OF_THE_PARTITION = ("ledger", "forgotten", "periods", "resets", "alerts")
"""The last words of the keys that all metrics of a partition share."""

OF_OTHER_SCRIPTS = ("seq", "live", "stream", "dead", "meta", "rules")


@pytest.fixture
def harness(server):
    """Yield a harness of one partition, with rules of every kind, on an empty server."""
    with Harness(server.url, partitions=1, rules=RULES) as harness:
        yield harness


def append(harness: Harness, round_: int, *subjects: str) -> None:
    """Append one entry with an event of every metric about each subject, by default `a` and `b`."""
    pack, at = EntryBuilder(), float(int(time.time()))
    for subject in subjects or ("a", "b"):
        for metric in ("view", "call", "lot", "rough", "few", "plain"):
            pack.add(metric, subject, 1, at, f"u{round_}" if metric == "view" else None, None)
        for metric, actor in (("vote", "u"), ("poll", f"u{round_}")):
            pack.add(metric, subject, 1, at + round_, actor, None)
        for metric in ("buy", "pay"):
            pack.add(metric, subject, 1, at, None, f"x{round_}")
    harness.client.xadd(harness.layout.keys[0].stream, {"v": 1, "n": pack.events, "b": pack.build()})


def value_of(client: redis.Redis, key: bytes) -> object:
    """Return the value of a key. Members of a set and fields of a hash have no order."""
    match client.type(key):
        case b"set":
            return client.smembers(key)
        case b"hash":
            return client.hgetall(key)
        case b"zset":
            return client.zrange(key, 0, -1, withscores=True)
    return client.dump(key)


def values(harness: Harness, *, without: str = "") -> dict[bytes, object]:
    """Return all counters, except those of the metric `without` and shared keys."""
    left_out = (*OF_THE_PARTITION, *OF_OTHER_SCRIPTS)
    return {
        key: value_of(harness.client, key)
        for key in harness.client.scan_iter(count=1000)
        if key.decode().rpartition(":")[2] not in left_out
        and (not without or without not in key.decode().split(":"))
        and not re.search(r"\}:(alerting|watched):", key.decode())
    }


def replace(harness: Harness, key: bytes) -> str:
    """Replace a key by one of another type, and return that type."""
    kind = "string" if harness.client.type(key) == b"list" else "list"
    harness.client.delete(key)
    harness.client.rpush(key, "x") if kind == "list" else harness.client.set(key, "x")
    return kind


def metric_of(key: bytes) -> str:
    """Return the metric to which a key of a rule or an alert belongs; `""` for a key that all metrics share."""
    words = key.decode().split("}:")[-1].split(":")
    alert = {"hot": "plain", "busy": "call", "rising": "buy"}
    if words[0] in ("alerting", "watched"):
        return alert[words[1]]
    return next((word for word in words[1:] if word in RULES.metric), "")


def test_a_key_of_another_type_makes_dead_letters_of_its_events_only(harness):
    """Whatever key of a rule has another type: only events of its metric become dead letters, which name the key."""
    append(harness, 1)
    harness.drain()
    append(harness, 2, "a", "c")
    before = copy_of(harness.client)
    harness.drain()
    right, checked = {metric: values(harness, without=metric) for metric in RULES.metric}, set()
    for key in sorted(before):
        metric = metric_of(key)
        if not metric:
            continue
        go_back(harness.client, before)
        kind = replace(harness, key)
        harness.drain()
        dead, ledger = harness.dead(), harness.ledger()
        assert harness.waiting() == 0, key
        assert {(fields[b"metric"].decode(), fields[b"reason"].decode()) for fields in dead} <= {
            (metric, f"a key has the type {kind}: {key.decode()}")
        }
        assert {name.decode(): each for name, each in values(harness, without=metric).items()} == {
            name.decode(): each for name, each in right[metric].items()
        }, key
        assert ledger["appended"] == ledger["counted"] + ledger.get("dead", 0) + ledger.get("rejected:once", 0), key
        assert harness.client.type(key) == kind.encode()
        checked |= {key.decode().split(":")[2]} if dead else set()
    assert checked >= {"total", "up", "hour", "day", "top", "limit", "once", "seen", "unique", "sketch", "labels"}
    assert checked >= {"alerting", "watched"}


@pytest.mark.parametrize("name", OF_THE_PARTITION)
def test_a_shared_key_of_another_type_pauses_the_partition(harness, name):
    """If a key that all metrics share has another type, nothing is counted, and the error names the key."""
    append(harness, 1)
    harness.drain()
    key = f"{harness.layout.keys[0].counters}{name}".encode()
    kind = replace(harness, key)
    before = copy_of(harness.client)
    append(harness, 2, "a", "c")
    with pytest.raises(KeyLost, match=rf"^{key.decode()} has the type {kind}"):
        harness.drain()
    before_again = copy_of(harness.client)
    stream = harness.layout.keys[0].stream.encode()
    assert {k: v for k, v in before_again.items() if k != stream} == {k: v for k, v in before.items() if k != stream}
    assert (harness.dead(), harness.waiting()) == ([], 1)


def test_the_keys_of_a_snapshot_have_another_type(harness):
    """If a snapshot is being read, and its list of old values has another type, nothing is counted before an error."""
    append(harness, 1)
    harness.drain()
    cut = harness.layout.keys[0].counters + "cut"
    harness.client.set(cut, "token", px=3_600_000)
    harness.client.set(f"{cut}:before", "x")
    append(harness, 2)
    before = harness.totals()
    with pytest.raises(KeyLost, match=f"^{cut}:before has the type string"):
        harness.drain()
    assert (harness.totals(), harness.waiting()) == (before, 1)


def test_a_bucket_of_another_type_is_named_by_a_decision(harness):
    """`decide` about a metric with a key of another type raises an error that names the key, and appends nothing."""
    append(harness, 1)
    harness.drain()
    decider = Decider(harness.client, Deployment.create_or_load(harness.client))
    assert decider(Event("call", "a")).accepted
    (key,) = harness.client.keys("*}:limit:call:*")
    kind = replace(harness, key)
    length = harness.client.xlen(harness.layout.keys[0].stream)
    with pytest.raises(StreamError, match=rf"a key has the type {kind}: {key.decode()}"):
        decider(Event("call", "a"))
    assert decider(Event("lot", "a")).accepted
    assert harness.client.xlen(harness.layout.keys[0].stream) == length + 1


def test_a_key_of_the_right_type_is_not_named(harness):
    """If the value of a key of the right type is not a whole number, the reason states this."""
    harness.client.set(harness.layout.keys[0].total("plain", "a"), "x")
    append(harness, 1)
    harness.drain()
    assert [fields[b"reason"] for fields in harness.dead()] == [OVERFLOW.encode()]
