"""An audit reports no correct counter, even while events arrive, and reports exactly the counters that are wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import NoPermissionError

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, StreamError
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.windows import bucket, labelled
from tallystream.wire.codec import VERSION, Payload, Reset, encode
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.process import logs
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.schedule import Scheduled
from tallystream_worker.rebuild.scope import Span
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.service.server_stats import query_server_stats
from tallystream_worker.settings.settings import AuditSettings, RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.live_rules import followed_rules
from tallystream_worker.snapshot.snapshotter import HOLDER, Snapshotter
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import RULES, deliver, feed, happenings
from tests.waiting import until

relaxed = settings(
    max_examples=int(os.environ.get("TALLYSTREAM_EXAMPLES", "5")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def report(harness: Harness, **options):
    """Audit the counters of a harness, and return the report."""
    return audit(harness.client, Deployment.create_or_load(harness.client), harness.rules, **options)


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_an_audit_is_silent_on_counters_that_are_right(server, drawn, seed):
    """Under all rules, with decisions and any order of delivery, no counter differs from a second fold."""
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        feed(harness, drawn, chance)
        deliver(harness, chance)
        found = report(harness)
        assert found.differences == []
        assert found.counters > 0


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_entries_in_hand_are_left_out(server, drawn, seed):
    """If some entries are pending, some unread and some decided, an audit finds no difference."""
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        feed(harness, drawn, chance)
        for partition in range(2):
            harness.fetch(partition, "holder")(chance.randint(1, 5), 0)
            if chance.random() < 0.5:
                harness.consumer(partition, "other").run_once()
                feed(harness, drawn[:5], chance)
        assert report(harness).differences == []


def filled(harness: Harness) -> None:
    """Append and count 180 events under several rules."""
    for number in range(60):
        subject = f"s{number % 7}"
        keys = harness.layout.keys_of(subject)
        harness.client.xadd(keys.stream, {"metric": "view", "subject": subject})
        harness.client.xadd(keys.stream, {"metric": "vote", "subject": subject, "actor": f"u{number % 5}"})
        harness.client.xadd(keys.stream, {"metric": "call", "subject": subject, "id": str(number)})
    harness.finish()


@pytest.fixture
def harness(server):
    """Provide counted events under several rules, in two partitions."""
    with Harness(server.url, rules=RULES, partitions=2) as wired:
        filled(wired)
        yield wired


def test_a_tampered_counter_is_named(harness):
    """An audit reports a changed total with its expected value and its difference, and nothing else."""
    keys = harness.layout.keys_of("s3")
    before = int(harness.client.get(keys.total("view", "s3")))
    harness.client.incrby(keys.total("view", "s3"), 5)
    (wrong,) = report(harness).differences
    assert (wrong.counter, wrong.expected, wrong.found, wrong.difference) == ("total:view:s3", before, before + 5, 5)


def test_everything_that_can_be_tampered_with_is_named(harness):
    """An audit reports each bucket, total, vote, leaderboard, id, limit and ledger that was changed or removed."""
    keys = harness.layout.keys_of("s3")
    (day,) = harness.client.keys(f"{keys.prefix}day:view:*")
    (limit,) = harness.client.keys(f"{keys.prefix}limit:call:*")
    (seen,) = harness.client.keys(f"{keys.prefix}seen:call:*")
    harness.client.hincrby(day, "s3", 1)
    harness.client.delete(keys.total("view", "s3"))
    harness.client.set(keys.total("view", "invented"), 7)
    harness.client.hdel(keys.once("vote", "forever", "s3"), "u0")
    harness.client.hset(limit, "invented", 1)
    harness.client.hdel(seen, next(iter(harness.client.hkeys(seen))))
    harness.client.zincrby(keys.top("view"), 2, "s3")
    harness.client.hincrby(keys.ledger, "counted@view", -1)
    named = {each.counter for each in report(harness).differences}
    label = day.decode().rpartition(":")[2]
    assert f"day:view:{label} -> s3" in named
    assert {"total:view:s3", "total:view:invented", "once:vote:forever:s3 -> u0", "top:view -> s3"} <= named
    assert any(name.startswith("limit:call:") and name.endswith("invented") for name in named)
    assert any(name.startswith("seen:call:") for name in named)
    assert "ledger -> counted@view" in named
    assert len(named) == 8


def test_an_audit_needs_no_rest(server):
    """An audit finds no difference in totals, leaderboards and ledgers while events are appended and counted."""
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        filled(harness)
        stop = threading.Event()

        def work() -> None:
            with Harness(server.url, rules=RULES, partitions=2) as other:
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
                assert report(harness).differences == []
        finally:
            stop.set()
            thread.join()


def test_an_audit_ends_although_entries_arrive_faster_than_it_folds(server):
    """If two entries arrive for each one that an audit folds, it compares every counter, ends, and finds nothing."""
    rules = Rules({"view": Metric(ids=None, windows=("hour",))})
    with Harness(server.url, rules=rules, partitions=1) as harness:
        keys = harness.layout.keys[0]
        with Producer(server.url) as producer:
            for number in range(8000):
                producer.emit("view", f"s{number}")
            producer.flush(30)
        harness.drain()
        folded = 0

        def arrive(_stream: str, entries: int, _counters: int) -> None:
            nonlocal folded
            assert entries < 5000, "the audit folds ever more entries"
            with harness.client.pipeline() as pipeline:
                for number in range(2 * (entries - folded)):
                    pipeline.xadd(keys.stream, {"metric": "view", "subject": f"new{number % 50}"})
                pipeline.execute()
            folded = entries
            harness.drain()

        found = report(harness, show=arrive)
        assert found.differences == []
        assert found.counters >= 16_000


def test_what_the_log_no_longer_holds_is_said(harness, tmp_path):
    """An audit of trimmed streams fails without an archive, and audits every entry with one."""
    store = Store(str(tmp_path / "archive"))
    Archive(harness.client, store, Deployment.create_or_load(harness.client)).run_once(settled=0)
    for keys in harness.layout.keys:
        harness.client.xtrim(keys.stream, maxlen=3, approximate=False)
    with pytest.raises(ConfigurationError, match="the entries that the counters were made of are gone"):
        report(harness)
    found = report(harness, sources=Sources(archive=store))
    assert found.differences == []
    assert found.entries == 180


def test_a_sample_compares_a_share(harness):
    """A sampled audit compares fewer counters than a full one, and finds no difference in correct counters."""
    whole, part = report(harness), report(harness, sample=0.3)
    assert 0 < part.counters < whole.counters
    assert part.differences == []


def trim(harness: Harness, left: int) -> None:
    """Trim every stream to `left` entries."""
    for keys in harness.layout.keys:
        harness.client.xtrim(keys.stream, maxlen=left, approximate=False)


@pytest.fixture
def snapshot(harness, tmp_path):
    """Provide the database with a snapshot of the counters."""
    database = Database(str(tmp_path / "snapshot.sqlite"))
    Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
    yield database
    database.close()


def test_an_audit_begins_with_a_snapshot(harness, snapshot):
    """With trimmed streams, a snapshot and the entries after it prove every counter, and reveal changed ones."""
    before = report(harness).counters
    filled(harness)
    for keys in harness.layout.keys:
        harness.client.xtrim(
            keys.stream, minid=harness.client.hget(keys.retention_holds, HOLDER).decode(), approximate=False
        )
    found = report(harness, sources=Sources(snapshot=snapshot))
    assert found.differences == []
    assert found.counters >= before
    assert {(scope.base, scope.unproved) for scope in found.scopes} == {("snapshot", 0)}
    keys = harness.layout.keys_of("s3")
    harness.client.incrby(keys.total("view", "s3"), 5)
    harness.client.hset(keys.once("vote", "forever", "s3"), "invented", "1 1 -")
    harness.client.hincrby(keys.ledger, "counted@view", 1)
    named = {each.counter: each.difference for each in report(harness, sources=Sources(snapshot=snapshot)).differences}
    assert named["total:view:s3"] == 5
    assert named.keys() == {"total:view:s3", "once:vote:forever:s3 -> invented", "ledger -> counted@view"}


def test_a_snapshot_that_is_named_is_begun_with(harness, snapshot):
    """With `--snapshot`, an audit folds only the entries after the snapshot, even if the streams have all entries."""
    for _ in range(2):
        harness.client.xadd(harness.layout.keys_of("s1").stream, {"metric": "view", "subject": "s1"})
    harness.finish()
    found = report(harness, sources=Sources(snapshot=snapshot, prefers_snapshot=True))
    assert (found.differences, found.entries) == ([], 2)


@relaxed
@given(drawn=st.lists(happenings(), min_size=2, max_size=2), seed=st.integers(0, 10_000))
def test_a_snapshot_is_a_base_under_all_rules(server, tmp_path_factory, drawn, seed):
    """A snapshot and the entries after it prove every counter, even if entries are pending or decided at any time."""
    chance = random.Random(seed)
    server.clear()
    database = Database(str(tmp_path_factory.mktemp("base") / "snapshot.sqlite"))
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        feed(harness, drawn[0], chance)
        for partition in range(2):
            harness.fetch(partition, "holder")(chance.randint(1, 5), 0)
            if chance.random() < 0.5:
                harness.consumer(partition, "other").run_once()
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        feed(harness, drawn[1], chance)
        if chance.random() < 0.5:
            deliver(harness, chance)
        assert report(harness, sources=Sources(snapshot=database, prefers_snapshot=True)).differences == []
    database.close()


def test_a_snapshot_that_the_log_has_left_behind_is_refused(harness, snapshot):
    """An audit refuses a named snapshot if entries after it were trimmed."""
    filled(harness)
    trim(harness, 3)
    with pytest.raises(ConfigurationError, match=r"entries after the snapshot of .* were trimmed"):
        report(harness, sources=Sources(snapshot=snapshot, prefers_snapshot=True))


AGES = [0, 2, 5, 26, 50, 75]
"""Ages of events in hours; two events are in the same hour, in the same day, or in neither."""


def back_dated(harness: Harness, chance: random.Random, hours: float, n: int = 25) -> None:
    """Append `n` entries whose IDs are `hours` old, and count them."""
    for _ in range(n):
        received = int((time.time() - hours * 3600) * 1000)
        metric = chance.choice(list(RULES.metric))
        subject = f"s{chance.randint(0, 4)}"
        late = chance.choice([0, 0, 0, 1, 30]) * 3600
        fields = {"metric": metric, "subject": subject, "at": received / 1000 + chance.choice([0, 0, 1800]) - late}
        if RULES.metric[metric].once is not None:
            fields |= {"actor": f"u{chance.randint(0, 3)}", "amount": chance.choice([1, -1, 0])}
        elif chance.random() < 0.4:
            fields["id"] = chance.choice("abc")
        keys = harness.layout.keys_of(subject)
        info = harness.client.xinfo_stream(keys.stream)
        last = int(info["last-generated-id"].partition(b"-")[0])
        harness.client.xadd(keys.stream, fields, id=f"{max(received, last)}-*")
    harness.finish()


@relaxed
@given(seed=st.integers(0, 100_000), left=st.integers(1, 40))
def test_what_is_left_of_the_log_proves_whole_buckets(server, seed, left):
    """After any trimming, the remaining entries prove some buckets correct, and no difference is reported."""
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        for hours in reversed(AGES):
            back_dated(harness, chance, hours)
        assert report(harness).differences == []
        trim(harness, left)
        with contextlib.suppress(ConfigurationError):  # so few entries are left that no counter can be proved
            found = report(harness)
            assert found.differences == []
            assert found.unproved > 0


def test_tampered_buckets_are_named_where_the_log_was_trimmed(server):
    """In a trimmed stream, an audit reports wrong buckets that it can prove, and none that it cannot prove."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        chance = random.Random(7)
        back_dated(harness, chance, 75)
        harness.client.xtrim(harness.layout.keys[0].stream, maxlen=1, approximate=False)
        back_dated(harness, chance, 26, n=60)
        keys = harness.layout.keys[0]
        found = harness.client.keys(f"{keys.prefix}day:view:*")
        labels = sorted(key.decode().rpartition(":day:view:")[2] for key in found)
        assert report(harness).differences == []
        harness.client.hincrby(keys.window("day", "view", labels[-1]), "s1", 3)
        harness.client.hincrby(keys.window("day", "view", labels[0]), "s1", 3)  # may lack events of trimmed entries
        harness.client.incrby(keys.total("view", "s1"), 3)  # cannot be proved
        found = report(harness)
        assert [(each.counter, each.difference) for each in found.differences] == [(f"day:view:{labels[-1]} -> s1", 3)]
        (scope,) = found.scopes
        assert scope.base == "log"
        assert scope.unproved > 2


def test_a_trimmed_reset_is_no_difference(server):
    """Votes in a period that began after a trimmed reset are compared, and no difference is reported."""
    rules = Rules({"vote": Metric(once="day", ids=None)})
    reset = {"v": VERSION, "n": 0, "b": encode(Payload([], [], [Reset("vote", "s")]))}
    with Harness(server.url, rules=rules, partitions=1) as harness:
        keys = harness.layout.keys[0]

        def append(hours: int, fields: dict) -> None:
            received = int((time.time() - hours * 3600) * 1000)
            of_event = {} if "v" in fields else {"at": received / 1000}
            harness.client.xadd(keys.stream, fields | of_event, received)

        vote = {"metric": "vote", "subject": "s", "actor": "u"}
        for hours, fields in ((100, vote), (99, reset), (98, vote)):
            append(hours, fields)
        harness.finish()
        harness.client.xtrim(keys.stream, maxlen=0, approximate=False)
        for hours in (74, 26):  # more than a day apart, so the later day begins after the earlier vote at any hour
            append(hours, vote)
        harness.finish()
        found = report(harness)
        assert found.differences == []
        assert found.counters > 0
        (key, *_) = sorted(harness.client.scan_iter(match=f"{keys.prefix}once:vote:*"), reverse=True)
        harness.client.hset(key, "", "1-0")  # a wrong place of the reset is still reported
        assert [each.counter.partition(":")[0] for each in report(harness).differences] == ["once"]


def test_an_audit_of_a_range(server):
    """An audit of a range compares only buckets in it, and folds only entries that may have changed them."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        chance = random.Random(7)
        back_dated(harness, chance, 240)
        back_dated(harness, chance, 26, n=60)
        keys = harness.layout.keys[0]
        found = harness.client.keys(f"{keys.prefix}day:view:*")
        labels = sorted(key.decode().rpartition(":day:view:")[2] for key in found)
        for label in labels:
            harness.client.hincrby(keys.window("day", "view", label), "s1", 3)
        bounds = labelled("day", labels[-1])
        found = report(harness, span=Span(bounds.start, bounds.end))
        assert [each.counter for each in found.differences] == [f"day:view:{labels[-1]} -> s1"]
        assert found.unproved == 0
        assert 0 < found.entries <= 60
        assert all(each.counter.startswith("day:") for each in report(harness, span=Span(end=bounds.end)).differences)


def scheduled(
    harness: Harness, log, *, every: str = "6h", stopping: threading.Event | None = None, client=None
) -> Scheduled:
    """Return the scheduled audit of a worker."""
    chosen = Settings(RedisSettings(harness.url, partitions=2), rules=RULES, audit=AuditSettings(every))
    return Scheduled(chosen, client or harness.client, log, stopping or threading.Event())


def test_an_audit_is_done_by_one_worker_when_it_is_due(harness):
    """One of two workers audits; neither audits again before it is due. Differences are logged and stored."""
    keys = harness.layout.keys_of("s3")
    harness.client.incrby(keys.total("view", "s3"), 5)
    lines: list[tuple[str, dict]] = []

    class Log:
        def error(self, event: str, **fields: object) -> None:
            lines.append((event, fields))

    first, second = scheduled(harness, Log()), scheduled(harness, Log())
    done = first.run_once()
    assert done is not None
    assert done["differences"] == 1
    assert (second.run_once(), first.run_once()) == (None, None)
    ((event, fields),) = lines
    assert (event, fields["first"]) == ("audit.counters_differ", "total:view:s3")
    with closing(Totals(harness.url)) as totals:
        vitals = totals.run(query_server_stats(totals.deployment.layout))
    assert vitals.audit is not None
    assert vitals.audit[1:] == (done["counters"], 1)
    at = float(harness.client.hget(harness.layout.meta, "audit").split()[0])
    harness.client.hset(harness.layout.meta, "audit", f"{at - 6 * 3600} 1 0")
    harness.client.set(harness.layout.keys[0].prefix + "auditing", "somebody else")
    assert second.run_once() is None
    harness.client.delete(harness.layout.keys[0].prefix + "auditing")
    assert second.run_once() is not None
    assert not harness.client.exists(harness.layout.keys[0].prefix + "auditing")


def test_a_worker_that_stops_gives_its_audit_up(harness):
    """A worker that stops during an audit leaves neither a lease nor a result."""
    stopping = threading.Event()
    stopping.set()
    assert scheduled(harness, None, stopping=stopping).run_once() is None
    assert not harness.client.exists(harness.layout.keys[0].prefix + "auditing")
    assert harness.client.hget(harness.layout.meta, "audit") is None


def test_an_audit_whose_result_cannot_be_recorded_is_not_repeated_at_once(harness):
    """If the time of an audit cannot be written to `tally:meta`, its worker waits; another worker audits."""
    only = ("resetkeys", f"%R~{harness.layout.meta}", *(f"~{keys.prefix}*" for keys in harness.layout.keys))
    harness.client.execute_command("ACL", "SETUSER", "reader", "on", ">x", "+@all", *only)
    reader = harness.connect(harness.url.replace("://", "://reader:x@"))
    try:
        worker = scheduled(harness, None, client=reader)
        with pytest.raises(NoPermissionError):
            worker.run_once()
        assert worker.run_once() is None
        assert harness.client.hget(harness.layout.meta, "audit") is None
        assert scheduled(harness, None).run_once() is not None
    finally:
        reader.close()
        harness.client.execute_command("ACL", "DELUSER", "reader")


def test_a_worker_audits(server):
    """If `[audit] every` is set, a worker audits its counters without a command."""
    chosen = Settings(RedisSettings(server.url), audit=AuditSettings("1s"))
    client = server.client()
    with counting(chosen, logs.configure(quiet=True)), Producer(server.url) as producer:
        producer.emit("view", "article:1", 3)
        producer.flush(wait="counted", timeout=20)
        until(lambda: (client.hget("tally:meta", "audit") or b"0 0").split()[1] != b"0", timeout=20, what="an audit")
        assert client.hget("tally:meta", "audit").split()[2] == b"0"


@pytest.mark.usefixtures("snapshot")
def test_the_command_says_what_the_verdict_rests_on(harness, tmp_path):
    """`audit` prints the snapshot that it began with, exits with 1 if a counter differs, and creates no file."""
    program = Path(sys.executable).with_name("tallystream")
    environment = {**os.environ, "TALLYSTREAM_REDIS_URL": harness.url}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, "audit", *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    place = ("--snapshot", str(tmp_path / "snapshot.sqlite"))
    said = command(*place)
    assert (said.returncode, "audited from the snapshot of" in said.stderr) == (0, True), said.stderr
    harness.client.incr(harness.layout.keys_of("s3").total("view", "s3"))
    said = command(*place, "--json")
    assert said.returncode == 1
    assert [each["counter"] for each in json.loads(said.stdout)["differences"]] == ["total:view:s3"]
    said = command("--snapshot", "nowhere.sqlite")
    assert (said.returncode, "there is no such snapshot" in said.stderr) == (1, True), said.stderr
    assert not (tmp_path / "nowhere.sqlite").exists()


@pytest.mark.parametrize("case", ["whole", "snapshot", "gone"])
def test_the_remedy_is_the_command_that_works(server, tmp_path, case):
    """`audit --json` names a rebuild only if it is not refused, and a restore only if a rebuild would be refused.

    A rebuild is named although the audit began with a snapshot, if the stream is whole. If the snapshot is older than
    entries that are gone, a rebuild needs the archive, and a restore would lose entries.
    """
    program = Path(sys.executable).with_name("tallystream")
    url = str(tmp_path / "snapshot.sqlite")
    environment = {**os.environ, "TALLYSTREAM_REDIS_URL": server.url, "TALLYSTREAM_SNAPSHOT_URL": url}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    with Harness(server.url, rules=RULES, partitions=1) as harness:
        open_deployment(Settings(RedisSettings(server.url, partitions=1), rules=RULES))
        keys, chance = harness.layout.keys[0], random.Random(7)
        back_dated(harness, chance, 75)
        with closing(Database(url)) as database:
            Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        if case == "gone":
            back_dated(harness, chance, 75)
        if case != "whole":
            trim(harness, 1)
        back_dated(harness, chance, 26, n=60)
        labels = sorted(key.decode().rpartition(":")[2] for key in harness.client.keys(f"{keys.prefix}day:view:*"))
        harness.client.hincrby(keys.window("day", "view", labels[-1]), "s1", 3)
        done = command("audit", "--json", *(["--snapshot", url] if case == "whole" else []))
        remedy = json.loads(done.stdout)["remedy"]
        if case == "gone":
            assert remedy.startswith("find the archive")
            assert "no longer in the streams" in command("rebuild").stderr
        else:
            words = remedy.partition(" (")[0].split()
            assert words[1] == ("rebuild" if case == "whole" else "restore")
            again = command(*words[1:])
            assert again.returncode == 0, again.stderr
            assert json.loads(command("audit", "--json").stdout)["differences"] == []


def test_the_snapshot_of_an_earlier_log_is_no_base(harness, snapshot):
    """An audit refuses a named snapshot from before a repartition."""
    snapshot.state({"log": "2"})
    with pytest.raises(ConfigurationError, match="before the last repartition"):
        report(harness, sources=Sources(snapshot=snapshot, prefers_snapshot=True))


def test_expired_uniques_are_no_difference(server):
    """Unique actors of a bucket that has expired are not compared, like the other counters of the bucket."""
    rules = Rules({"m": Metric(windows=("hour",), unique="hour", ids=None)})
    with Harness(server.url, rules=rules, partitions=1) as harness:
        keys, now = harness.layout.keys[0], time.time()
        for days in (12, 0):
            for actor in range(20):
                event = {"metric": "m", "subject": "s", "actor": f"u{actor}", "at": str(now - days * 86_400)}
                harness.client.xadd(keys.stream, event, id=f"{int((now - days * 86_400) * 1000)}-{actor}")
        harness.finish()
        old = bucket("hour", int(now - 12 * 86_400) // 60)
        # The server deletes both keys when the retention of 8 days has passed, and a day since the last write.
        harness.client.delete(keys.window("hour", "m", old.label), keys.unique("m", old.label, "s"))
        assert report(harness).differences == []
        # The server keeps a bucket for a while after its retention.
        harness.client.hset(keys.window("hour", "m", old.label), "s", 20)
        harness.client.pfadd(keys.unique("m", old.label, "s"), *(f"u{actor}" for actor in range(20)))
        assert report(harness).differences == []
        present = bucket("hour", int(now) // 60)
        harness.client.delete(keys.unique("m", present.label, "s"))
        assert [each.counter for each in report(harness).differences] == [f"unique:m:{present.label}:s"]


def test_a_bucket_that_expires_while_it_is_read_is_no_difference(server, monkeypatch):
    """The server's clock decides what has expired: a bucket that expires just before it is read is not compared."""
    rules = Rules({"m": Metric(windows=("minute",), retention={"minute": "1m"}, unique="minute", ids=None)})
    with Harness(server.url, rules=rules, partitions=1) as harness:
        keys, end = harness.layout.keys[0], int(time.time()) // 60 * 60 - 60
        at = end - 30
        harness.client.xadd(keys.stream, {"metric": "m", "subject": "s", "actor": "u", "at": str(at)}, id=f"{at}000-0")
        harness.finish()
        label = bucket("minute", at // 60).label
        harness.client.delete(keys.window("minute", "m", label), keys.unique("m", label, "s"))
        monkeypatch.setattr(time, "time", lambda: float(at))  # a host whose clock is slow
        assert report(harness).differences == []


def test_a_host_that_is_ahead_finds_no_difference(clocked):
    """Buckets that have expired by the clock of the host are not compared: the scratch server does not have them."""
    rules = Rules({"m": Metric(windows=("minute", "day"), retention={"minute": "1m"}, unique="minute", ids=None)})
    clocked.set(-7200)
    with Harness(clocked.url, rules=rules, partitions=1) as harness:
        entry = {"metric": "m", "subject": "s", "actor": "u", "at": str(clocked.clock.now())}
        harness.client.xadd(harness.layout.keys[0].stream, entry)
        harness.finish()
        found = report(harness)
        assert (found.differences, found.counters > 1) == ([], True)


def colliding(subject: str) -> list[str]:
    """Return subjects that together raise every cell of a subject in a sketch."""
    rows, width = range(4), 32_768

    def cells(name: str) -> list[int]:
        digest = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        return [int(digest[8 * row : 8 * row + 8], 16) % width for row in rows]

    own, found, number = cells(subject), {}, 0
    while len(found) < len(rows):
        number += 1
        for row, (mine, other) in enumerate(zip(own, cells(f"s{number}"), strict=True)):
            if mine == other:
                found.setdefault(row, f"s{number}")
    return list(found.values())


def test_the_leaderboard_of_a_sketch_is_no_difference(server):
    """The places of a sketch depend on the order of the batches, so they are not compared; the sketch itself is."""
    rules = Rules({"u": Metric(exact=False, top=5, ids=None)})
    with Harness(server.url, rules=rules, partitions=1) as harness:
        keys, others = harness.layout.keys[0], colliding("x")
        for subject, amount in (("x", 10), *((other, 5) for other in others)):
            harness.client.xadd(keys.stream, {"metric": "u", "subject": subject, "amount": str(amount)})
        held = harness.fetch(0, "reader")(100, 0)
        for entry in reversed(held):
            handed = iter([[entry]])
            harness.consumer(0, "reader", fetch=lambda *_, handed=handed: next(handed)).run_once()
        assert harness.client.zscore(keys.top("u"), "x") > 10
        assert report(harness).differences == []
        harness.client.execute_command("BITFIELD", keys.sketch("u"), "INCRBY", "i64", "#7", 1)
        assert [each.counter for each in report(harness).differences] == ["sketch:u"]


class Lines:
    """A log that keeps its errors."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def error(self, event: str, **_: object) -> None:
        """Keep the name of the event."""
        self.events.append(event)


def change(harness: Harness) -> None:
    """Change the limit of calls, as a worker does at its start."""
    rules = Rules({**harness.rules.metric, "call": Metric(limit=9, per="total")})
    open_deployment(Settings(RedisSettings(harness.url, partitions=2), rules=rules))
    harness.rules = rules


def test_a_change_of_the_rules_is_no_difference(server):
    """The scheduled audit counts each entry by the rules of its time: it finds a wrong counter, and nothing else."""
    rules = Rules({"call": Metric(limit=3, per="total"), "view": Metric(ids=None)})
    with Harness(server.url, rules=rules, partitions=2) as harness:
        open_deployment(Settings(RedisSettings(harness.url, partitions=2), rules=rules))
        for _ in range(2):
            for number in range(40):
                keys = harness.layout.keys_of(f"s{number % 4}")
                harness.client.xadd(keys.stream, {"metric": "call", "subject": f"s{number % 4}"})
            harness.drain()
            if harness.rules == rules:
                change(harness)
        log = Lines()
        done = scheduled(harness, log).run_once()
        assert (done["differences"], done["uncertain"], log.events) == (0, 0, [])
        harness.client.hdel(harness.layout.meta, "audit")
        harness.client.incrby(harness.layout.keys_of("s1").total("call", "s1"), 1)
        done = scheduled(harness, log).run_once()
        assert (done["differences"], done["first"], log.events) == (1, "total:call:s1", ["audit.counters_differ"])


def test_an_audit_finds_old_rules_in_the_archive(server, tmp_path):
    """If the server does not record a change any more, an audit reads it from the archive; without one, it doubts."""
    rules = Rules({"call": Metric(limit=3, per="total")})
    with Harness(server.url, rules=rules, partitions=2) as harness:
        chosen = Settings(RedisSettings(harness.url, partitions=2), rules=rules)
        open_deployment(chosen)
        keys, store = harness.layout.keys_of("s1"), Store(str(tmp_path / "archive"))
        for limit in (3, 4, 9):
            harness.rules = Rules({"call": Metric(limit=limit, per="total")})
            open_deployment(replace(chosen, rules=harness.rules))
            for _ in range(5):
                harness.client.xadd(keys.stream, {"metric": "call", "subject": "s1"})
            harness.drain()
        deployment = Deployment.load(harness.client)
        Archive(harness.client, store, deployment).run_once(settled=0)
        harness.client.xtrim(harness.layout.rule_changes, maxlen=1, approximate=False)
        for sources, uncertain in ((Sources(), True), (Sources(store), False)):
            followed = followed_rules(harness.client, deployment.layout, sources.changes)
            done = audit(harness.client, deployment, deployment.rules, sources=sources, followed=followed)
            assert (done.differences, bool(done.uncertain)) == ([], uncertain)


def test_a_change_of_the_rules_during_an_audit_is_no_difference(server):
    """If the rules change while an audit runs, and counters differ, the audit fails instead of reporting them."""
    rules = Rules({"call": Metric(limit=3, per="total")})
    with Harness(server.url, rules=rules, partitions=2) as harness:
        open_deployment(Settings(RedisSettings(harness.url, partitions=2), rules=rules))
        keys, deployment = harness.layout.keys_of("s1"), Deployment.load(harness.client)
        for _ in range(5):
            harness.client.xadd(keys.stream, {"metric": "call", "subject": "s1"})
        harness.drain()
        changed = []

        def show(*_: object) -> None:
            if not changed:
                changed.append(True)
                change(harness)
                for _ in range(10):
                    harness.client.xadd(keys.stream, {"metric": "call", "subject": "s1"})
                harness.drain()

        followed = followed_rules(harness.client, deployment.layout)
        with pytest.raises(StreamError, match="changed meanwhile"):
            audit(harness.client, deployment, deployment.rules, followed=followed, show=show)
