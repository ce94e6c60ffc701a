"""Audit: silent on counters that are right, whatever arrives meanwhile, and exact about those that are not."""

from __future__ import annotations

import os
import random
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystream.errors import ConfigurationError
from tallystream.meta import establish
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.generation.audit import audit
from tests.integration.test_rules_exact import RULES, deliver, feed, happenings
from tests.rig import Rig

relaxed = settings(
    max_examples=int(os.environ.get("TALLYSTREAM_EXAMPLES", "5")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def report(rig: Rig, **options):
    """Audit what a rig has counted."""
    return audit(rig.client, establish(rig.client), rig.rules, **options)


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_an_audit_is_silent_on_counters_that_are_right(server, drawn, seed):
    """Under all rules, decisions mixed in, delivered in any order: no counter differs from what is folded again."""
    chance = random.Random(seed)
    server.clear()
    with Rig(server.url, rules=RULES, partitions=2) as rig:
        feed(rig, drawn, chance)
        deliver(rig, chance)
        found = report(rig)
        assert found.differences == []
        assert found.counters > 0


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_entries_in_hand_are_left_out(server, drawn, seed):
    """With entries that somebody holds, some that nobody has read, and decided ones among them, no counter differs."""
    chance = random.Random(seed)
    server.clear()
    with Rig(server.url, rules=RULES, partitions=2) as rig:
        feed(rig, drawn, chance)
        for partition in range(2):
            rig.fetch(partition, "holder")(chance.randint(1, 5), 0)
            if chance.random() < 0.5:
                rig.consumer(partition, "other").run_once()
                feed(rig, drawn[:5], chance)
        assert report(rig).differences == []


def filled(rig: Rig) -> None:
    """Count something under several rules."""
    for number in range(60):
        subject = f"s{number % 7}"
        keys = rig.layout.keys_of(subject)
        rig.client.xadd(keys.stream, {"metric": "view", "subject": subject})
        rig.client.xadd(keys.stream, {"metric": "vote", "subject": subject, "actor": f"u{number % 5}"})
        rig.client.xadd(keys.stream, {"metric": "call", "subject": subject, "id": str(number)})
    rig.finish()


@pytest.fixture
def rig(server):
    """Counters under all rules."""
    with Rig(server.url, rules=RULES, partitions=2) as wired:
        filled(wired)
        yield wired


def test_a_tampered_counter_is_named(rig):
    """A total that somebody changed is named with what it should be and by how much it is off; nothing else is."""
    keys = rig.layout.keys_of("s3")
    before = int(rig.client.get(keys.total("view", "s3")))
    rig.client.incrby(keys.total("view", "s3"), 5)
    (wrong,) = report(rig).differences
    assert (wrong.counter, wrong.expected, wrong.found, wrong.difference) == ("total:view:s3", before, before + 5, 5)


def test_everything_that_can_be_tampered_with_is_named(rig):
    """A bucket, a vote, a board, an id, a limit and a ledger that were changed, removed or invented are each named."""
    keys = rig.layout.keys_of("s3")
    (day,) = rig.client.keys(f"{keys.prefix}day:view:*")
    (limit,) = rig.client.keys(f"{keys.prefix}limit:call:*")
    (seen,) = rig.client.keys(f"{keys.prefix}seen:call:*")
    rig.client.hincrby(day, "s3", 1)
    rig.client.delete(keys.total("view", "s3"))
    rig.client.set(keys.total("view", "invented"), 7)
    rig.client.hdel(keys.once("vote", "forever", "s3"), "u0")
    rig.client.hset(limit, "invented", 1)
    rig.client.hdel(seen, next(iter(rig.client.hkeys(seen))))
    rig.client.zincrby(keys.top("view"), 2, "s3")
    rig.client.hincrby(keys.ledger, "counted@view", -1)
    named = {each.counter for each in report(rig).differences}
    label = day.decode().rpartition(":")[2]
    assert f"day:view:{label} -> s3" in named
    assert {"total:view:s3", "total:view:invented", "once:vote:forever:s3 -> u0", "top:view -> s3"} <= named
    assert any(name.startswith("limit:call:") and name.endswith("invented") for name in named)
    assert any(name.startswith("seen:call:") for name in named)
    assert "ledger -> counted@view" in named
    assert len(named) == 8


def test_an_audit_needs_no_rest(server):
    """While events are appended and counted all the time, an audit of totals, boards and books names nothing."""
    with Rig(server.url, rules=RULES, partitions=2) as rig:
        filled(rig)
        stop = threading.Event()

        def work() -> None:
            with Rig(server.url, rules=RULES, partitions=2) as other:
                number = 0
                while not stop.is_set():
                    number += 1
                    subject = f"s{number % 300}"
                    other.client.xadd(other.layout.keys_of(subject).stream, {"metric": "view", "subject": subject})
                    if number % 50 == 0:
                        other.drain(f"w{number % 2}")

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(3):
                assert report(rig).differences == []
        finally:
            stop.set()
            thread.join()


def test_what_the_log_no_longer_holds_is_said(rig, tmp_path):
    """Where the stream was trimmed an audit says how much is gone; with an archive that has it, all is audited."""
    store = Store(str(tmp_path / "archive"))
    Archive(rig.client, store, establish(rig.client)).run_once(settled=0)
    for keys in rig.layout.keys:
        rig.client.xtrim(keys.stream, maxlen=3, approximate=False)
    with pytest.raises(ConfigurationError, match="entries before that are gone"):
        report(rig)
    found = report(rig, archive=store.url)
    assert found.differences == []
    assert found.entries == 180


def test_a_sample_compares_a_share(rig):
    """A sampled audit compares fewer counters, and finds nothing where nothing is wrong."""
    whole, part = report(rig), report(rig, sample=0.3)
    assert 0 < part.counters < whole.counters
    assert part.differences == []
