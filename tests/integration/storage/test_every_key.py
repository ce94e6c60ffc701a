"""Each key of a deployment is deleted once: it is mended, or named by a refusal or by a verification, never silent."""

from __future__ import annotations

import contextlib
import inspect
import re
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import StreamError, TallyError
from tallystream.producing.appender import Appender
from tallystream.producing.decider import Decider
from tallystream.producing.partition_queue import SealedEntry
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import PartitionKeys
from tallystream.wire.event import Event
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.dead_letters.store import drop, letters
from tallystream_worker.ingest.file_identity import identify
from tallystream_worker.ingest.offsets import Chunk, OffsetGate
from tallystream_worker.maintenance.losses import settle_losses
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.describe import describe
from tallystream_worker.rebuild.drop import drop as drop_generation
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.rebuild.reopen import reopen
from tallystream_worker.rebuild.reset import reset
from tallystream_worker.rebuild.rule_record import record_again
from tallystream_worker.runtime.publication import publish_again
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import Server

RULES = Rules(
    {
        "view": Metric(windows=("day",), top=2, unique="day", ids="day"),
        "like": Metric(once="forever"),
        "vote": Metric(once="day"),
        "sale": Metric(ids="month", limit=100, per="total"),
        "call": Metric(limit=50, per="day", ids=None),
        "page": Metric(exact=False, ids=None),
        "few": Metric(max_subjects=2, ids=None),
    },
    alert=(Alert("many", "view", "s", above=1), Alert("recent", "view", "s", over="2d", above=1)),
)

REFUSED, FOUND, MENDED = "refused", "found", "mended"
DAY = time.strftime("%Y-%m-%d", time.gmtime())

PARTITION: dict[str, tuple[str, list[Any]]] = {
    "adopted": (FOUND, []),
    "alerting": (MENDED, ["many", ""]),
    "archive": (MENDED, []),
    "begun": (FOUND, []),
    "gone": (FOUND, []),
    "dead": (FOUND, []),
    "dropped": (FOUND, []),
    "forgotten": (REFUSED, []),
    "hot_subject": (MENDED, []),
    "labels": (FOUND, ["view"]),
    "ledger": (REFUSED, []),
    "limit": (REFUSED, ["call", DAY]),
    "live": (REFUSED, []),
    "once": (FOUND, ["vote", DAY, "s"]),
    "outbox": (FOUND, []),
    "periods": (FOUND, []),
    "resets": (FOUND, []),
    "retention_holds": (MENDED, []),
    "seen": (REFUSED, ["view", f"1d-{int(time.time()) // 86400}"]),
    "sequences": (REFUSED, []),
    "sketch": (FOUND, ["page"]),
    "stream": (REFUSED, []),
    "top": (FOUND, ["view"]),
    "topic_ledger": (REFUSED, []),
    "total": (FOUND, ["view", "s"]),
    "unique": (FOUND, ["view", DAY, "s"]),
    "up": (FOUND, ["like", "s"]),
    "watched": (MENDED, ["recent"]),
    "window": (FOUND, ["day", "view", DAY]),
    "window_top": (FOUND, ["day", "view", DAY]),
}
"""By name of a key in `PartitionKeys`, what happens without it, and the arguments that select one such key."""

PERMANENT: dict[str, tuple[str, list[Any]]] = {
    "limit": (FOUND, ["sale", "total"]),
    "once": (FOUND, ["like", "forever", "s"]),
}
"""As `PARTITION`, of keys that are kept forever."""

ELSEWHERE = {"backfilled", "copied"}
"""Keys that exist only during a rebuild or a repartition: see `test_script_replies.py`."""

NAMES = {"namespace", "topic", "counters", "group", "generation"}
"""Attributes of `PartitionKeys` that are no keys; the group is deleted as well."""

TOPIC = {"root": REFUSED, "rule_changes": FOUND, "files": FOUND}
"""The same for keys in `Layout`, of which `meta` is the root of the first topic."""

CASES = [
    *((name, outcome, arguments) for name, (outcome, arguments) in {**PARTITION}.items()),
    *((name, outcome, arguments) for name, (outcome, arguments) in {**PERMANENT}.items()),
    *((name, outcome, []) for name, outcome in TOPIC.items()),
]


def pack(number: int) -> tuple[int, bytes, int]:
    """Return the number of events, the payload and the size of an entry with events of every rule."""
    builder, now = EntryBuilder(), time.time()
    builder.add("view", "s", 1, now, f"a{number}", f"i{number}")
    builder.add("view", f"t{number}", 1, now, None, None)
    builder.add("like", "s", 1, now, f"a{number}", None)
    builder.add("vote", "s", 1, now, f"a{number % 3}", None)
    builder.add("sale", "s", 1, now, None, f"i{number}")
    builder.add("call", "s", 1, now, None, None)
    builder.add("page", f"p{number}", 1, now, None, None)
    builder.add("few", f"f{number}", 1, now, None, None)
    return builder.events, builder.build(), builder.size


@pytest.fixture(scope="module")
def saved(server_process: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[bytes, bytes], Path]:
    """Return every key of a deployment of one partition, as DUMP returns it, and the snapshot.

    The second generation is live, its rules were changed, events of every rule were counted, and an entry waits.
    """
    server_process.clear()
    snapshot = tmp_path_factory.mktemp("every-key") / "snapshot.sqlite"
    with (
        Harness(server_process.url, rules=RULES, partitions=1) as harness,
        closing(Database(str(snapshot))) as database,
    ):
        client, (first,) = harness.client, harness.layout.keys
        publish_again(client, Deployment.load(client), 0)
        appender = Appender(client, harness.layout, harness.deployment.epoch)
        append(appender, 1, 2, 3)
        for _ in range(2):
            client.xadd(first.stream, {"metric": "unknown", "subject": "x"})
        gate = OffsetGate(client, harness.layout, f"file:{identify(client, harness.layout, b'head', '').name}")
        gate.push(0, Chunk(0, 10, *pack(4)[:2]))
        while gate.waiting:
            gate.send()
        harness.drain()
        drop(client, first, [next(letters(client, harness.layout, 0))])
        reset(client, Deployment.load(client), "s", ["view"])
        rebuild(harness)
        harness.layout = Deployment.load(client).layout
        for number in (5, 6):
            append(appender, number)
            harness.drain()
            deployment = Deployment.load(client)
            publish_again(client, deployment, deployment.revision)
        client.set(first.hot_subject, "{}")
        client.hset(first.archive, mapping={"first": "1-0", "last": "2-0", "entries": 2})
        Snapshotter(client, database, Deployment.load(client)).run_once()
        append(appender, 7)
        keys = client.keys("*")
        found = {key: client.dump(key) for key in keys}
    server_process.close_clients()
    return found, snapshot


@pytest.fixture
def snapshot(saved: tuple[dict[bytes, bytes], Path], tmp_path: Path) -> Iterator[Database]:
    """Provide a copy of the snapshot."""
    copy = tmp_path / "snapshot.sqlite"
    copy.write_bytes(saved[1].read_bytes())
    with closing(Database(str(copy))) as database:
        yield database


@pytest.fixture
def harness(server: Server, saved: tuple[dict[bytes, bytes], Path]) -> Iterator[Harness]:
    """Provide the deployment that was saved, in its live generation."""
    with closing(connect(server.url)) as client:
        for key, value in saved[0].items():
            client.restore(key, 0, value)
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        yield harness


def append(appender: Appender, number: int, *more: int) -> None:
    """Append an entry for each number."""
    for each in (number, *more):
        events, payload, size = pack(each)
        appender.push(0, SealedEntry(1, events, size, payload))
    while appender.oldest_cycle is not None:
        error = appender.send()[1]
        if error is not None:
            raise error


def rebuild(harness: Harness) -> None:
    """Count all entries in the next generation, and make it live."""
    settings = Settings(RedisSettings(harness.url, partitions=1), rules=RULES)
    deployment = Deployment.load(harness.client)
    with Rebuild(settings, deployment, propose(harness.client, deployment, RULES)) as counted_again:
        counted_again.begin()
        counted_again.catch_up()
        counted_again.switch()


def use(harness: Harness) -> list[str]:
    """Append, decide and count as processes do that begin now; return the text of each refusal."""
    client, refusals = harness.client, []
    appender = Appender(client, harness.layout, harness.deployment.epoch)
    actions = (
        lambda: Deployment.create_or_load(client, 1),
        lambda: append(appender, 8),
        lambda: Decider(client, Deployment.load(client))(Event("call", "s")),
        harness.fetch(0).ensure_group,
        harness.drain,
    )
    for action in actions:
        try:
            action()
        except (TallyError, RedisError) as error:
            refusals.append(str(error))
    return refusals


def found(harness: Harness, snapshot: Database) -> str:
    """Return the details of everything that a verification finds."""
    findings = verify(harness.client, "tally", Sources(None, snapshot)).findings
    return "\n".join(detail for finding in findings.values() for detail in finding.details)


def delete(harness: Harness, name: str, *arguments: str) -> str:
    """Delete a key of the deployment, and return its name; without arguments, one of its kind."""
    key = getattr(harness.layout if name in TOPIC else harness.layout.keys[0], name)
    if callable(key):
        key = key(*(arguments or PARTITION[name][1]))
    assert harness.client.delete(key) == 1
    return key


def remedy(harness: Harness, snapshot: Database, key: str) -> str:
    """Return what a worker or a verification states about a deleted key."""
    with contextlib.suppress(TallyError, RedisError):
        harness.fetch(0).ensure_group()
        harness.drain()
    findings = verify(harness.client, "tally", Sources(None, snapshot)).findings.values()
    name = key.removeprefix(harness.layout.keys[0].counters)
    details = [(detail, each.kind.remedy) for each in findings for detail in each.details if name in detail]
    return "\n".join(" ".join(each) for each in details)


def totals(entries: int) -> dict[tuple[str, str], int]:
    """Return the exact totals after the entries 1 to `entries`, and the reset after the fourth."""
    found = {(metric, "s"): entries for metric in ("like", "sale", "call")} | {("vote", "s"): 3}
    found |= {("few", f"f{number}"): 1 for number in (1, 2)}  # the others are in the sketch
    return found | {("view", f"t{number}"): 1 for number in range(1, entries + 1)} | {("view", "s"): entries - 4}


def test_nothing_is_found_or_refused_if_no_key_is_missing(harness, snapshot):
    """The deployment whose keys are deleted below is right, and continues."""
    assert use(harness) == []
    assert found(harness, snapshot) == ""
    assert harness.totals() == {**totals(8), ("call", "s"): 9}


@pytest.mark.parametrize(("name", "outcome", "arguments"), CASES)
def test_a_deleted_key_is_never_silent(harness, snapshot, name, outcome, arguments):
    """While entries wait and more arrive, the key is refused by name, found by name, or mended by itself."""
    key = delete(harness, name, *arguments)
    refusals = use(harness)
    if outcome == REFUSED:
        assert any(key in each for each in refusals)
        return
    assert refusals == []
    if outcome == FOUND:
        assert key.removeprefix(harness.layout.keys[0].counters) in found(harness, snapshot)
        return
    Snapshotter(harness.client, snapshot, Deployment.load(harness.client)).run_once()
    assert found(harness, snapshot) == ""
    assert harness.totals() == {**totals(8), ("call", "s"): 9}


def test_a_deleted_group_is_refused_by_name(harness):
    """Nothing is counted through another group."""
    keys = harness.layout.keys[0]
    harness.client.xgroup_destroy(keys.stream, keys.group)
    assert any(f"consumer group {keys.group!r} is missing" in each for each in use(harness))


REBUILD = [
    *(
        "adopted",
        "begun",
        "dead",
        "forgotten",
        "labels",
        "ledger",
        "limit",
        "once",
        "periods",
        "resets",
        "seen",
        "sketch",
        "top",
    ),
    *("total", "unique", "up", "window", "window_top"),
]
"""The keys that a rebuild makes again."""


@pytest.mark.parametrize("name", REBUILD)
def test_a_rebuild_repairs_a_deleted_key(harness, snapshot, name):
    """Without a key of a generation, the next generation is right, with the entries that waited."""
    key = delete(harness, name)
    assert "rebuild" in remedy(harness, snapshot, key)
    drop_generation(harness.client, Deployment.load(harness.client), 1)
    rebuild(harness)
    harness.layout = Deployment.load(harness.client).layout
    assert use(harness) == []
    assert harness.totals() == {**totals(8), ("call", "s"): 9}
    Snapshotter(harness.client, snapshot, Deployment.load(harness.client)).run_once()
    assert found(harness, snapshot) == ""


@pytest.mark.parametrize("name", ["dropped", "files", "live", "root", "sequences", "stream", "topic_ledger"])
def test_a_restore_repairs_a_deleted_key(harness, snapshot, name):
    """Without a key of the topic, a forced restore is right, except for entries that only the stream had."""
    key = delete(harness, name)
    if name != "root":
        assert "restore --force" in remedy(harness, snapshot, key)
    restore(harness.client, snapshot, force=True)
    harness.layout = Deployment.load(harness.client).layout
    assert use(harness) == []
    expected = {**totals(8), ("call", "s"): 9}
    if name == "stream":  # the producer of the seventh entry does not run any more, so it does not send it again
        expected = {each: value - (each[1] == "s" and each[0] != "vote") for each, value in expected.items()}
        del expected["view", "t7"]
    assert harness.totals() == expected
    Snapshotter(harness.client, snapshot, Deployment.load(harness.client)).run_once()
    left = found(harness, snapshot).splitlines()
    assert [line for line in left if ":dead: " not in line] == []  # a snapshot has no dead letters


@pytest.mark.parametrize("name", ["dropped", "live", "root", "stream"])
def test_counting_continues_without_a_snapshot(harness, snapshot, name):
    """Without a snapshot, `reopen` mends a deleted key; all entries count, except those that only the stream had."""
    key = delete(harness, name)
    if name != "root":
        assert "tallystream reopen" in remedy(harness, snapshot, key)
    assert describe(harness.client, "tally", 0) == ([key] if name == "root" else [])
    reopen(harness.client, Deployment.find(harness.client))
    harness.layout = Deployment.load(harness.client).layout
    assert use(harness) == []
    settle_losses(harness.client, harness.layout.keys[0])
    expected = {**totals(8), ("call", "s"): 9}
    if name == "stream":  # the seventh entry waited
        expected = {each: value - (each[1] == "s" and each[0] != "vote") for each, value in expected.items()}
        del expected["view", "t7"]
    assert harness.totals() == expected
    Snapshotter(harness.client, snapshot, Deployment.load(harness.client)).run_once(accept_loss=True)
    assert found(harness, snapshot) == ""


def test_the_record_of_the_rules_is_written_again(harness, snapshot):
    """Without the record of the changes of the rules, the named command writes it, and everything is as before."""
    key = delete(harness, "rule_changes")
    assert "tallystream reopen" in remedy(harness, snapshot, key)
    assert record_again(harness.client, Deployment.load(harness.client), {})
    assert use(harness) == []
    assert harness.totals() == {**totals(8), ("call", "s"): 9}
    Snapshotter(harness.client, snapshot, Deployment.load(harness.client)).run_once()
    assert found(harness, snapshot) == ""


@pytest.mark.parametrize("name", ["sequences", "topic_ledger"])
def test_a_partition_begins_again_without_a_snapshot(harness, snapshot, name):
    """Without the sequences or the ledger, `reopen --force` empties the partition, which works from then on."""
    key = delete(harness, name)
    assert "tallystream reopen" in remedy(harness, snapshot, key)
    with pytest.raises(StreamError, match="tallystream reopen --force"):
        reopen(harness.client, Deployment.find(harness.client))
    reopen(harness.client, Deployment.find(harness.client), force=True)
    harness.layout = Deployment.load(harness.client).layout
    assert use(harness) == []
    assert harness.totals()["view", "t8"] == 1
    assert ("view", "t7") not in harness.totals()
    snapshot.clear()
    Snapshotter(harness.client, snapshot, Deployment.load(harness.client)).run_once()
    assert found(harness, snapshot) == ""


@pytest.mark.parametrize("name", [*(name for name, (outcome, _) in PARTITION.items() if outcome == REFUSED), "root"])
def test_a_lost_key_has_one_remedy(harness, snapshot, name):
    """Each refusal and each finding that names a deleted key names the same command, and only one kind of finding."""
    key = delete(harness, name)
    report = verify(harness.client, "tally", Sources(None, snapshot))
    kinds = {
        each.name: f"{detail} {report.remedy(each)}"
        for each in report.findings.values()
        for detail in each.details
        if key in detail
    }
    texts = [*kinds.values(), *(text for text in use(harness) if key in text)]
    assert len(texts) > 1
    assert len(kinds) == 1
    named = [re.search("tallystream (rebuild|restore --force)", text) for text in texts if "NOGROUP" not in text]
    assert len({each and each[0] for each in named}) == 1, texts  # after NOGROUP, a worker looks for the lost key


def test_every_key_is_deleted():
    """The tests above delete each kind of key that `storage/keys.py` names."""
    of_a_partition = {name for name, _ in inspect.getmembers(PartitionKeys) if not name.startswith("_")}
    assert of_a_partition == PARTITION.keys() | ELSEWHERE | NAMES
