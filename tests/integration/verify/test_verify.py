"""A verification finds each fault by its name, and finds nothing in a deployment that is right, also under load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis.exceptions import NoPermissionError, RedisError
from sqlalchemy import create_engine, text

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import DamagedValue
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.windows import bucket
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.repartition import to_partitions
from tallystream_worker.process import logs
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.compare import compare
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.publication import publish_again, publish_rules
from tallystream_worker.server.data_folder import client_of
from tallystream_worker.service.server_stats import query_server_stats
from tallystream_worker.settings.settings import (
    ArchiveSettings,
    RedisSettings,
    Settings,
    SnapshotSettings,
    VerifySettings,
)
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.names import removal_of
from tallystream_worker.snapshot.schema import metadata
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify import accounts
from tallystream_worker.verify.findings import KINDS
from tallystream_worker.verify.schedule import ScheduledVerification
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.rewind import copy_of, go_back
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tallystream_worker.verify.report import Verification

RULES = Rules(
    {
        "view": Metric(windows=("hour", "day"), top=3, ids=None),
        "vote": Metric(once="forever", top=3),
        "sale": Metric(ids="month"),
        "call": Metric(limit=5, per="day"),
        "visit": Metric(unique="day", ids=None),
        "page": Metric(exact=False, top=3, ids=None),
        "tick": Metric(spread=True, ids=None),
    }
)


LONG_AGO = datetime(2020, 1, 1)  # noqa: DTZ001  # the columns of the archive have no zone


class World:
    """A deployment with an archive and a snapshot, whose events were all counted.

    Attributes:
        harness: Its server.
        store: Its archive.
        database: Its snapshot.
        folder: The folder of both.
    """

    def __init__(self, harness: Harness, folder: Path) -> None:
        self.harness, self.folder = harness, folder
        self.client = harness.client
        self.layout, self.keys = harness.layout, harness.layout.keys[0]
        self.store = Store(str(folder / "archive"))
        self.database = Database(str(folder / "snapshot.sqlite"))

    def emit(self, events: int = 40) -> None:
        """Append events of every metric in several entries, by two producers and a client without a gate."""
        for name in range(2):
            with Producer(self.harness.url, linger=0) as producer:
                for number in range(events):
                    emit_each(producer, number + name * events)
                    if number % 10 == 9:
                        producer.flush(10)
        self.client.xadd(self.keys.stream, {"metric": "view", "subject": "plain"})
        self.client.xadd(self.keys.stream, {"metric": "unknown", "subject": "plain"})

    def copy(self) -> None:
        """Archive every entry, and take a snapshot."""
        deployment = Deployment.load(self.client)
        Archive(self.client, self.store, deployment).run_once(settled=0)
        Snapshotter(self.client, self.database, deployment).run_once()

    def verify(self, *, archive: bool = True, snapshot: bool = True) -> Verification:
        """Return the report of a verification."""
        sources = Sources(self.store if archive else None, self.database if snapshot else None)
        return verify(self.client, "tally", sources)

    def files(self) -> list[Path]:
        """Return the files of the archive of the first partition, in order."""
        return sorted(self.folder.glob(f"archive/**/partition={self.keys.prefix[7:-2]}/*.parquet"))


def emit_each(producer: Producer, number: int) -> None:
    """Emit one event of each metric."""
    producer.emit("view", f"a{number % 50}", number % 7 + 1)
    producer.emit("vote", f"a{number % 9}", actor=f"u{number}")
    producer.emit("sale", "shop", id=f"s{number}")
    producer.emit("call", f"k{number % 3}")
    producer.emit("visit", "home", actor=f"u{number}")
    producer.emit("page", f"p{number % 20}")


@pytest.fixture
def world(server, tmp_path: Path) -> Iterator[World]:
    """Provide one partition with counted events of every kind, two archive files at least, and a snapshot."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        found = World(harness, tmp_path)
        harness.client.hset(harness.layout.meta, "spread@tick", 1)  # the harness stores the rules without their marks
        for _ in range(3):
            found.emit()
            harness.drain("closer", claim_idle=0)
            found.copy()
        yield found
        found.database.close()


def names(report: Verification) -> set[str]:
    """Return the names of the findings of a report."""
    return set(report.findings)


def test_periods_that_were_kept_forever_are_no_fault(server):
    """After `retention` was shortened from forever, the buckets that are never removed are stated, and no fault."""
    with Harness(server.url, rules=Rules({}), partitions=1) as harness:
        for kept in ("forever", "31d"):
            rules = Rules({"view": Metric(windows=("hour",), retention={"hour": kept}, ids=None)})
            publish_rules(
                harness.client, Settings(RedisSettings(server.url), rules=rules), Deployment.load(harness.client)
            )
            harness.rules = rules
            if kept == "forever":
                with Producer(server.url) as producer:
                    producer.emit("view", "a")
                    producer.flush()
                harness.drain()
        report = verify(harness.client, "tally", Sources())
        assert report.findings == {}
        (limit,) = [each.text for each in report.limits if each.check == "keys"]
        assert limit.startswith("1 keys are of periods that earlier rules kept forever")


@pytest.mark.parametrize("once", ["31d", "7d", "1h"])
def test_a_label_of_a_length_is_no_month(once):
    """The period of a removed rule is found by its label, also if this is as long as that of a month."""
    label = bucket(once, 29_000_000).label
    end = bucket(once, 29_000_000).end * 1000
    assert removal_of(f"once:vote:{label}", Rules({"vote": Metric()})) == (end, end + 400 * 86_400_000)


def test_nothing_is_found_in_a_deployment_that_is_right(world):
    """A verification of correct data proves every part and finds nothing; what it does not prove has a reason."""
    report = world.verify()
    assert (report.findings, report.failed, report.status) == ({}, [], 0)
    assert {each.check for each in report.proofs} >= {
        "deployment", "log", "accounts", "counters", "leaderboards", "snapshot"
    }  # fmt: skip
    (log,) = [each for each in report.proofs if each.check == "log"]
    assert log.figures["entries"] == world.client.xlen(world.keys.stream)
    assert not [each for each in report.limits if each.check in ("log", "keys", "archive")]


@pytest.mark.parametrize("is_rebuilt", [False, True])
def test_a_stream_without_entries_is_not_missing(server, is_rebuilt):
    """A missing stream is a fault only if the ledgers have entries of it; the finding states how many, at least."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        harness.client.hset(harness.layout.meta, "spread@tick", 1)
        (keys,) = harness.layout.keys
        harness.client.delete(keys.stream)
        report = verify(harness.client, "tally", Sources())
        assert report.findings == {}
        assert any(f"{keys.stream} does not exist" in each.text for each in report.limits)
        harness.fetch(0).ensure_group()
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "plain"})
        harness.drain()
        if is_rebuilt:
            rebuilt(harness)
        harness.client.delete(keys.stream)
        (detail,) = verify(harness.client, "tally", Sources()).findings["log.missing"].details
        assert detail == f"{keys.stream}: at least 1 entries were appended"


def top_value(world: World) -> bytes:
    """Return a subject on the leaderboard of views."""
    return world.client.zrevrange(world.keys.top("view"), 0, 0)[0]


def key_like(world: World, pattern: str) -> bytes:
    """Return the first key of the partition that matches a pattern."""
    return min(world.client.keys(f"{world.keys.prefix}{pattern}"))


def entry(world: World, at: int) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the ID and the fields of the entry of a producer with this place in the stream."""
    found = [(id_, fields) for id_, fields in world.client.xrange(world.keys.stream) if b"p" in fields]
    return found[at]


def producers(world: World) -> list[bytes]:
    """Return the producers with a record."""
    return sorted(name for name in world.client.hkeys(world.keys.sequences) if not name.startswith(b"!"))


def append_twice(world: World) -> None:
    """Append the last entry of a producer a second time, past the sequence gate."""
    world.client.xadd(world.keys.stream, entry(world, -1)[1])


def keep_a_record_back(world: World) -> None:
    """Set the record of a producer back to its entry before the last."""
    fields = entry(world, -1)[1]
    last = int(fields[b"q"])
    before = next(id_ for id_, found in world.client.xrange(world.keys.stream)
                  if found.get(b"p") == fields[b"p"] and found[b"q"] == b"%d" % (last - 1))  # fmt: skip
    world.client.hset(world.keys.sequences, fields[b"p"], b"%d %s" % (last - 1, before))


def set_group(world: World, id_: bytes | str) -> None:
    """Move the consumer group that counts."""
    world.client.execute_command("XGROUP SETID", world.keys.stream, world.keys.group, id_)


def move_group_forward(world: World) -> None:
    """Append events, and move the group past them without counting them."""
    world.emit(10)
    set_group(world, "$")


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table], name: Path | None = None) -> None:
    """Replace a file of the archive by one with other rows, under the same name or another."""
    table = pq.read_table(file)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), name or file)


def double_an_entry(world: World) -> None:
    """Put the rows of the first entry of a producer at the end of a file again, with the next ID."""

    def change(table: pa.Table) -> pa.Table:
        first = next(i for i, name in enumerate(table["producer"].to_pylist()) if name is not None)
        rows = table.filter(pa.compute.equal(table["received"], table["received"][first]))
        number = pa.array([n + 1_000_000 for n in table["received_n"].to_pylist()[-1:]] * len(rows), pa.uint64())
        moment = pa.array([table["received"][-1].as_py()] * len(rows), table["received"].type)
        rows = rows.set_column(0, table.schema.field(0), moment).set_column(1, table.schema.field(1), number)
        return pa.concat_tables([table, rows])

    rewrite(world.files()[0], change)


def change_archived(world: World, column: str, value: object) -> None:
    """Replace the last value of a column in the second file of the archive, or set one in the last row."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        at = max((row for row, found in enumerate(values) if found is not None), default=len(values) - 1)
        values[at] = value
        place = table.schema.get_field_index(column)
        return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))

    rewrite(world.files()[1], change)


def damage_rows(world: World) -> None:
    """Change the last byte of the first column in the second file of the archive; its metadata stays valid."""
    content = bytearray(world.files()[1].read_bytes())
    column = pq.ParquetFile(world.files()[1]).metadata.row_group(0).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin + column.total_compressed_size - 1] ^= 0xFF
    world.files()[1].write_bytes(content)


def overlap(world: World) -> None:
    """Copy the first file of the archive to a name whose range is within it."""
    first = world.files()[0]
    begin, _, end = first.stem.partition("_")
    milliseconds, _, number = begin.partition("-")
    rewrite(first, lambda table: table, first.with_name(f"{milliseconds}-{int(number) + 1}_{end}.parquet"))


def change_table(world: World, statement: str) -> None:
    """Run a statement in the database of the snapshot."""
    engine = create_engine(f"sqlite:///{world.folder}/snapshot.sqlite")
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def lose_rules(world: World, *, archive: bool) -> None:
    """Change the rules, copy the change to the archive or the snapshot, and take the server back to before it."""
    publish_again(world.client, Deployment.load(world.client), 0)
    earlier = {key: world.client.dump(key) for key in (world.layout.meta, world.layout.rule_changes)}
    deployment = Deployment.load(world.client)
    publish_again(world.client, deployment, deployment.revision)
    if archive:
        Archive(world.client, world.store, deployment).run_once(settled=0)
    else:
        Snapshotter(world.client, world.database, Deployment.load(world.client)).run_once()
    for key, value in earlier.items():
        world.client.restore(key, 0, value, replace=True)


def delete_number(world: World, name: str) -> None:
    """Delete a number of the description, after the rules got a number and a rebuild began."""
    deployment = Deployment.load(world.client)
    publish_again(world.client, deployment, 0)
    propose(world.client, Deployment.load(world.client), RULES)
    assert world.client.hdel("tally:meta", name) == 1


ROWS = {
    "totals": "value", "upvotes": "value", "windows": "subject", "limits": "value", "votes": "value", "ids": "label",
    "uniques": "subject", "structures": "name", "buckets": "expires", "ledger": "value", "alerts": "value",
    "producers": "value", "dead": "value", "positions": "mark", "facts": "value", "digests": "value",
}  # fmt: skip
"""By table of the snapshot, a column of it."""

FAULTS: dict[str, tuple[Callable[[World], Any], set[str]]] = {
    "the stream is deleted": (lambda w: w.client.delete(w.keys.stream), {"log.missing"}),
    "the sequences are deleted": (lambda w: w.client.delete(w.keys.sequences), {"keys.lost"}),
    "one record is deleted": (lambda w: w.client.hdel(w.keys.sequences, producers(w)[0]), {"sequences.missing"}),
    "a record is set back": (keep_a_record_back, {"sequences.differ"}),
    "a record names no entry": (
        lambda w: w.client.hset(w.keys.sequences, producers(w)[0], f"900 {int(1e13)}-0"), {"sequences.differ"},
    ),
    "the ledger is deleted": (lambda w: w.client.delete(w.keys.ledger), {"keys.lost"}),
    "a figure of the ledger is changed": (
        lambda w: w.client.hincrby(w.keys.ledger, "counted", 3), {"ledger.unbalanced", "ledger.differs"},
    ),
    "the appended events are changed": (
        lambda w: w.client.hincrby(w.keys.ledger, "appended", 3), {"ledger.unbalanced", "log.differs"},
    ),
    "the number of plain entries is changed": (
        lambda w: w.client.hincrby(w.keys.ledger, "entries:plain", 2), {"ledger.differs"},
    ),
    "a counter gets a time to live": (
        lambda w: w.client.expire(key_like(w, "hour:view:*"), 1000), {"keys.expiring"},
    ),
    "the description gets a time to live": (lambda w: w.client.expire("tally:meta", 1000), {"keys.expiring"}),
    "the rules that a partition has followed are changed": (
        lambda w: w.client.hset(w.keys.forgotten, "!rules:view", "hour=UTC top=50"), {"fields.changed"},
    ),
    "the dead letters are deleted": (lambda w: w.client.delete(w.keys.dead), {"dead.differ"}),
    "the periods are deleted": (lambda w: w.client.delete(w.keys.periods), {"periods.missing"}),
    "the group is deleted": (lambda w: w.client.xgroup_destroy(w.keys.stream, w.keys.group), {"group.missing"}),
    "the group is moved back": (lambda w: set_group(w, entry(w, 3)[0]), {"group.moved"}),
    "the group is moved forward": (move_group_forward, {"group.moved"}),
    "the group is after the end": (lambda w: set_group(w, f"{int(1e13)}-0"), {"group.ahead"}),
    "an entry is deleted": (lambda w: w.client.xdel(w.keys.stream, entry(w, 4)[0]), {"log.deleted", "archive.unknown"}),
    "the first entry is deleted": (lambda w: w.client.xdel(w.keys.stream, entry(w, 0)[0]), {"log.removed"}),
    "an entry is there twice": (append_twice, {"log.repeated", "log.differs"}),
    "a total is changed": (
        lambda w: w.client.incr(w.keys.total("view", top_value(w).decode())), {"counters.differ"},
    ),
    "a total is deleted": (lambda w: w.client.delete(key_like(w, "total:view:*")), {"counters.differ"}),
    "a bucket is deleted": (lambda w: w.client.delete(key_like(w, "hour:view:*")), {"buckets.differ"}),
    "a limit is deleted": (lambda w: w.client.delete(key_like(w, "limit:call:*")), {"limits.differ"}),
    "votes are deleted": (lambda w: w.client.delete(key_like(w, "once:vote:*")), {"votes.differ"}),
    "the ids are deleted": (lambda w: w.client.delete(key_like(w, "seen:sale:*")), {"ids.differ"}),
    "the actors are deleted": (lambda w: w.client.delete(key_like(w, "unique:visit:*")), {"uniques.differ"}),
    "a score is changed": (
        lambda w: w.client.zincrby(w.keys.top("view"), 5, top_value(w)), {"leaderboards.differ"},
    ),
    "a place is removed": (lambda w: w.client.zrem(w.keys.top("view"), top_value(w)), {"leaderboards.differ"}),
    "a place and the bound of the others are removed": (
        lambda w: (w.client.zrem(w.keys.top("view"), top_value(w)), w.client.hdel(w.keys.ledger, "unlisted@view")),
        {"leaderboards.incomplete"},
    ),
    "a leaderboard of a bucket is deleted": (
        lambda w: w.client.delete(key_like(w, "top:hour:view:*")), {"leaderboards.differ"},
    ),
    "a sketch is changed": (
        lambda w: w.client.execute_command("BITFIELD", w.keys.sketch("page"), "INCRBY", "i64", "#7", 1),
        {"sketches.differ"},
    ),
    "the first file is removed": (lambda w: w.files()[0].unlink(), {"archive.gap"}),
    "a file in the middle is removed": (lambda w: w.files()[1].unlink(), {"archive.gap", "archive.lacks"}),
    "the last file is removed": (lambda w: w.files()[-1].unlink(), {"archive.gap"}),
    "all files are removed": (lambda w: [file.unlink() for file in w.files()], {"archive.missing"}),
    "an entry is doubled in a file": (double_an_entry, {"archive.repeated"}),
    "two files overlap": (overlap, {"archive.overlap", "archive.repeated"}),
    "a file is cut off": (lambda w: w.files()[1].write_bytes(w.files()[1].read_bytes()[:-40]), {"archive.unreadable"}),
    "the rows of a file are damaged": (damage_rows, {"archive.unreadable"}),
    "a column is missing in a file": (
        lambda w: rewrite(w.files()[1], lambda t: t.drop_columns(["subject"])), {"archive.unreadable"},
    ),
    "rows are missing in a file": (lambda w: rewrite(w.files()[0], lambda t: t.slice(3)), {"archive.differs"}),
    **{
        f"the {column} of an archived event is changed": (partial(change_archived, column=column, value=value),
                                                          {"archive.differs"})
        for column, value in {
            "subject": "other", "amount": 77, "actor": "other", "id": "other", "metric": "vote", "decided": "1",
            "happened": LONG_AGO, "stated": LONG_AGO,
        }.items()
    },
    "the votes of the snapshot are deleted": (lambda w: change_table(w, "DELETE FROM votes"), {"snapshot.differs"}),
    "a total of the snapshot is changed": (
        lambda w: change_table(w, "UPDATE totals SET value = value + 1"), {"snapshot.differs"},
    ),
    **{
        f"a row of the snapshot's {table} is {what}": (partial(change_table, statement=statement),
                                                                  {"snapshot.damaged"})
        for table, column in ROWS.items()
        for what, statement in {
            "changed": f"UPDATE {table} SET {column} = {column} || '1' WHERE rowid = (SELECT MAX(rowid) FROM {table})",  # noqa: S608
            "removed": f"DELETE FROM {table} WHERE rowid = (SELECT MIN(rowid) FROM {table})",  # noqa: S608
        }.items()
        if table != "dead"  # there is none
    },
    "a row is added to the snapshot's dead": (
        partial(change_table, statement="INSERT INTO dead VALUES (0, '5-0', x'90')"), {"snapshot.damaged"},
    ),
    "the snapshot has no position": (lambda w: change_table(w, "DELETE FROM positions"), {"snapshot.missing"}),
    "the snapshot is of other data": (
        lambda w: change_table(w, "UPDATE facts SET value = 'x' WHERE name = 'epoch'"), {"snapshot.other"},
    ),
    "the snapshot is old": (lambda w: change_table(w, "UPDATE positions SET taken = 1"), {"snapshot.old"}),
    "the snapshot is ahead": (
        lambda w: change_table(w, "UPDATE positions SET generated = '10000000000000-0'"), {"snapshot.ahead"},
    ),
    "the description is deleted": (lambda w: w.client.delete("tally:meta"), {"deployment.missing"}),
    "the description of a later topic is deleted": (
        lambda w: w.client.hset("tally:meta", "log", 2), {"deployment.missing"}
    ),
    "another generation is live": (lambda w: w.client.set(w.keys.live, 2), {"deployment.generations_differ"}),
    "a partition is closed": (lambda w: w.client.set(w.keys.live, "1 closed"), {"deployment.closed"}),
    "the tags are changed": (
        lambda w: w.client.hset("tally:meta", "tags", "p1.1840"), {"deployment.tags_differ"},
    ),
    **{
        f"the field {name} of the description is deleted": (partial(delete_number, name=name),
                                                            {"deployment.numbers_differ"})
        for name in ("revision", "newest-revision", "newest")
    },
    **{
        f"the server lost rules that {place} has": (
            partial(lose_rules, archive=place == "the archive"), {"rules.missing"},
        )
        for place in ("the snapshot", "the archive")
    },
    "the record of an entry that states an earlier time is deleted": (
        lambda w: w.client.xadd(w.keys.stream, {**entry(w, -1)[1], "t": "1"}), {"fields.lost"},
    ),
    "the mark of a spread metric is deleted": (
        lambda w: w.client.hdel("tally:meta", "spread@tick"), {"deployment.spread_missing"},
    ),
    "a restore was interrupted": (
        lambda w: (w.client.delete("tally:meta"), w.client.hset("tally:meta", "restoring", "[]")),
        {"deployment.restore_unfinished"},
    ),
}  # fmt: skip
"""By description, what is done to a deployment that is right, and the findings that must be among those reported."""


_CHECKS = {"log": "log", "sequences": "log", "group": "accounts", "deployment": "deployment"}
"""By the first part of the name of a finding, the check whose proof of the one partition it contradicts."""


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_name(world, fault):
    """A verification names each fault that is put into the data, the archive or the snapshot by hand."""
    spoil, expected = FAULTS[fault]
    spoil(world)
    report = world.verify()
    assert names(report) >= expected
    assert report.status == 1
    for each in report.findings.values():
        assert each.details
        assert report.remedy(each)
    contradicted = {_CHECKS.get(name.partition(".")[0]) for name in report.findings}
    assert not contradicted & {each.check for each in report.proofs}


@pytest.mark.parametrize("sample", [1.0, 1e-9])
@pytest.mark.parametrize("do", ["delete", "incr"])
def test_a_wrong_total_on_a_leaderboard_is_one_finding(world, do, sample):
    """A total of a listed subject that was deleted or changed is found by its name, once, and nothing else is wrong."""
    total = world.keys.total("view", top_value(world).decode())
    getattr(world.client, do)(total)
    report = verify(world.client, "tally", Sources(world.store, world.database), sample=sample)
    if sample < 1 and do == "incr":  # the total was not compared with the entries, so either of the two may be right
        assert names(report) == {"leaderboards.differ", "snapshot.differs"}
        return
    assert names(report) == {"counters.differ"}
    (found,) = [found for found in report.findings.values() if found.name == "counters.differ"]
    assert found.count == 1
    assert total.removeprefix(world.keys.counters) in found.details[0]


def test_a_wrong_counter_of_the_snapshot_is_found_by_the_entries(world):
    """A snapshot that is named is no proof of its counters, as long as every entry is there."""
    world.client.incr(world.keys.total("view", top_value(world).decode()))
    world.copy()
    report = verify(world.client, "tally", Sources(world.store, world.database, prefers_snapshot=True))
    assert "counters.differ" in names(report)


def test_a_deleted_bucket_on_a_leaderboard_is_one_kind_of_finding(world):
    """A bucket that was deleted is found by the names of its counters, and its leaderboard is not."""
    world.client.delete(key_like(world, "hour:view:*"))
    assert names(world.verify()) == {"buckets.differ"}


def test_a_leaderboard_that_is_wrong_is_not_proved(world):
    """The number of leaderboards that agree leaves out one that does not."""

    def agreeing() -> int:
        return next(each.figures["boards"] for each in world.verify().proofs if each.check == "leaderboards")

    before = agreeing()
    board = next(world.client.scan_iter(f"{world.keys.counters}top:view", count=1_000))
    world.client.zincrby(board, 1, world.client.zrange(board, 0, 0)[0])
    assert agreeing() == before - 1


def test_a_deleted_leaderboard_is_named(world):
    """If the leaderboard of all time of a metric is deleted, the subjects that belong on it are named."""
    world.client.delete(world.keys.top("view"))
    report = world.verify()
    assert "leaderboards.incomplete" in names(report)
    assert report.failed == []


def test_exactly_the_counters_that_agree_are_proved(world):
    """Of the compared counters, each that differs is left out, once; one that should not exist was never among them."""

    def agreeing() -> int:
        return next(each.figures["counters"] for each in world.verify().proofs if each.check == "counters")

    before = agreeing()
    world.client.set(world.keys.total("view", "invented"), 5)
    assert agreeing() == before
    world.client.delete(key_like(world, "top:day:view:*"))
    assert agreeing() == before - 1
    world.client.incr(world.keys.total("call", "k1"))
    assert agreeing() == before - 2


def test_a_missing_entry_is_a_gap_of_its_producer(world):
    """Without an archive, an entry that is gone from the middle of the stream is a gap between two of its producer."""
    second = next(id_ for id_, fields in world.client.xrange(world.keys.stream) if fields.get(b"q") == b"2")
    world.client.xdel(world.keys.stream, second)
    assert names(world.verify(archive=False)) >= {"log.deleted", "log.gap"}


@pytest.mark.parametrize("is_trimmed", [False, True])
@pytest.mark.parametrize("at", [0, -2, -1])
@pytest.mark.parametrize("fault", ["a file is cut off", "the rows of a file are damaged"])
def test_a_file_that_cannot_be_read_is_one_finding(world, monkeypatch, at, is_trimmed, fault):
    """A file that cannot be read is the only finding, whichever it is; other faults of the log are found as before."""
    with Producer(world.harness.url, linger=0) as producer:
        for _ in range(3):  # one producer has entries in the last three files
            producer.emit("view", "a")
            producer.flush(10)
            world.harness.drain("closer", claim_idle=0)
            world.copy()
    if is_trimmed:
        removed = world.client.xtrim(world.keys.stream, maxlen=1, approximate=False)
        world.client.hincrby(world.keys.ledger, "entries:retired", removed)
    files = world.files()
    monkeypatch.setattr(world, "files", lambda: [files[at]] * 2)
    FAULTS[fault][0](world)
    assert {name for name in names(world.verify()) if name.startswith(("archive.", "log."))} == {"archive.unreadable"}
    world.client.hincrby(world.keys.topic_ledger, "entries:retired", -1)
    found = world.verify().findings
    assert {name for name in found if name.startswith(("archive.", "log."))} >= {"archive.unreadable", *LOG[is_trimmed]}
    assert (found["archive.unreadable"].count, str(files[at]) in found["archive.unreadable"].details[0]) == (1, True)


LOG = {False: (), True: ("log.removed",)}


def test_archived_entries_that_the_stream_lacks_are_not_compared(world):
    """The report states how many archived entries have events that nothing else has, and finds nothing wrong."""
    removed = world.client.xtrim(world.keys.stream, maxlen=8, approximate=False)
    world.client.hincrby(world.keys.ledger, "entries:retired", removed)
    report = world.verify()
    assert report.findings == {}
    (limit,) = [each.text for each in report.limits if each.check == "archive"]
    assert f"of {removed:,} entries up to" in limit


def test_a_verification_without_copies_states_what_is_missing(world):
    """If the older entries are gone and nothing has them, the report states this and proves the rest."""
    assert not world.verify(archive=False, snapshot=False).findings
    removed = world.client.xtrim(world.keys.stream, maxlen=8, approximate=False)
    world.client.hincrby(world.keys.ledger, "entries:retired", removed)
    report = world.verify(archive=False, snapshot=False)
    assert names(report) == set()
    assert {each.check for each in report.limits} >= {"log", "counters", "snapshot"}
    assert report.status == 0, "limits do not change the exit status"
    whole = world.verify()
    assert (names(whole), [each for each in whole.limits if each.check == "log"]) == (set(), [])
    with_archive, without = (next(each for each in found.proofs if each.check == "log") for found in (whole, report))
    assert with_archive.figures["events"] > without.figures["events"]


def test_a_report_states_what_was_compared_with_the_archive(world):
    """Entries that were compared with the archive are proved; other entries and a missing archive are limits."""
    held = world.client.xlen(world.keys.stream)
    report = world.verify()
    (proof,) = [each for each in report.proofs if each.check == "archive"]
    assert (proof.figures["entries"], proof.figures["not_archived"]) == (held, 0)
    assert "are equal in stream and archive; 0 entries are not archived yet" in proof.text
    assert not limits(report, "archive")
    world.client.xadd(world.keys.stream, {"metric": "view", "subject": "later"})
    world.harness.drain("closer", claim_idle=0)
    report = world.verify()
    (proof,) = [each for each in report.proofs if each.check == "archive"]
    assert (proof.figures["entries"], proof.figures["not_archived"]) == (held, 1)
    assert limits(report, "archive") == [
        f"{world.keys.stream}: 1 entry is not archived yet, so only the stream has them"
    ]
    report = world.verify(archive=False)
    assert "archive" not in {each.check for each in report.proofs}
    assert limits(report, "archive") == ["no archive is configured (--archive URL), so no entry was compared with one"]
    change_archived(world, "amount", 7)
    assert "archive" not in {each.check for each in world.verify().proofs}


def rebuilt(world: World | Harness, generation: int | None = None, *, accept_loss: bool = False) -> None:
    """Rebuild, and switch to the new generation; or switch back to `generation`."""
    url = world.url if isinstance(world, Harness) else world.harness.url
    deployment = Deployment.load(world.client)
    begun = generation is not None
    number = generation or propose(world.client, deployment, RULES)
    deployment = Deployment.load(world.client)
    with Rebuild(Settings(RedisSettings(url), rules=RULES), deployment, number, accept_loss=accept_loss) as run:
        if not begun:
            run.begin()
        run.catch_up()
        run.switch()


def of_snapshot(report: Verification) -> set[str]:
    """Return the findings of a report about the snapshot."""
    return {name for name in names(report) if name.startswith("snapshot.")}


def limits(report: Verification, check: str) -> list[str]:
    """Return the texts of what a check does not prove."""
    return [each.text for each in report.limits if each.check == check]


def test_a_recent_snapshot_of_another_generation_is_no_fault(world):
    """After a rebuild, and after its undo, the snapshot is not of the live generation: no fault until it is old."""
    rebuilt(world)
    report = world.verify()
    assert not of_snapshot(report)
    (limit,) = [text for text in limits(report, "snapshot") if "which is not live" in text]
    assert "of generation 1 (of 20" in limit
    assert "the next snapshot will be of generation 2" in limit
    world.copy()
    assert not limits(world.verify(), "snapshot")
    rebuilt(world, 1)
    report = world.verify()
    assert (of_snapshot(report), "of generation 2 (of 20" in str(limits(report, "snapshot"))) == (set(), True)
    change_table(world, "UPDATE positions SET taken = 1")
    assert of_snapshot(world.verify()) == {"snapshot.outdated", "snapshot.old", "snapshot.damaged"}


def test_a_snapshot_of_a_generation_that_never_was_is_a_fault(world):
    """A snapshot of a later generation than the newest one is of other data."""
    change_table(world, "UPDATE positions SET generation = 9")
    assert "snapshot.other" in names(world.verify())


def test_a_recent_snapshot_of_an_earlier_topic_is_no_fault(world):
    """After a repartition, the snapshot is of the earlier topic: no fault until it is old."""
    settings = Settings(RedisSettings(world.harness.url), rules=RULES)
    to_partitions(settings, Deployment.load(world.client), 2, "", accept_loss=False, json=True)
    report = world.verify(archive=False)
    assert "snapshot.other" not in names(report)
    (limit,) = limits(report, "snapshot")
    assert "is of topic 1 (of 20" in limit
    assert "the next snapshot will be of topic 2" in limit
    change_table(world, "UPDATE positions SET taken = 1")
    assert "snapshot.outdated" in names(world.verify(archive=False))


def test_a_check_that_cannot_be_made_is_not_a_proof(world):
    """If a figure cannot be read, its check is named with the reason, the others are made, and the status is 2."""
    world.client.hset(world.keys.ledger, "entries:plain", "x")
    report = world.verify()
    assert {each.check for each in report.failed} == {"accounts", "snapshot"}
    assert all("entries:plain" in each.text or "'x'" in each.text for each in report.failed)
    assert (names(report), report.status) == (set(), 2)


def test_a_scratch_server_that_cannot_be_started_ends_no_other_check(world, monkeypatch):
    """Without a folder for temporary files, the checks that need one are named with the reason, and others are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(world.folder / "missing"))
    report = world.verify()
    assert {each.check for each in report.failed} == {"counters", "snapshot"}
    assert all("cannot be started" in each.text and "TMPDIR" in each.text for each in report.failed)
    assert "log" in {each.check for each in report.proofs}
    assert (names(report), report.status) == (set(), 2)


def test_a_temporary_file_that_cannot_be_written_ends_no_other_check(world, monkeypatch):
    """If the live values cannot be written to a file, only the check that needs the file is not made."""
    monkeypatch.setattr("tallystream_worker.rebuild.partition_audit._IN_MEMORY", 1)

    def show(step: str) -> None:
        if "counted again" in step:
            monkeypatch.setattr(tempfile, "tempdir", str(world.folder / "missing"))
        elif "snapshot" in step:
            monkeypatch.setattr(tempfile, "tempdir", None)

    report = verify(world.client, "tally", Sources(world.store, world.database), show=show)
    assert [each.check for each in report.failed] == ["counters"]
    assert "missing" in report.failed[0].text
    assert report.status == 2


def test_a_scratch_server_that_ends_ends_no_other_check(world, tmp_path, monkeypatch):
    """If the temporary server ends, the check is named with the end of its log, and others are made."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    def show(step: str) -> None:
        if "counted again" in step:
            for path in folder.glob("*/server.sock"):
                with suppress(RedisError), closing(client_of(path, 5.0)) as client:
                    client.shutdown(nosave=True)

    report = verify(world.client, "tally", Sources(world.store, world.database), show=show)
    (failed,) = report.failed
    assert (failed.check, report.status) == ("counters", 2)
    assert "the embedded server has ended with status" in failed.text
    assert "snapshot" in {each.check for each in report.proofs}


def test_a_damaged_record_ends_no_other_check(world):
    """If the record of a dropped dead letter is damaged, the check that reads it is named, and others are made."""
    world.client.hset(world.keys.dropped, "g 1-1", "AAAA")
    report = world.verify()
    (failed,) = report.failed
    assert (failed.check, "is damaged" in failed.text) == ("counters", True)
    assert "log" in {each.check for each in report.proofs}


def test_entries_in_hand_are_no_fault(world):
    """If some entries are pending, and others are not delivered yet, a verification finds nothing."""
    world.emit(10)
    world.harness.fetch(0, "holder")(2, 0)
    report = world.verify()
    assert names(report) == set()
    (accounts,) = [each for each in report.proofs if each.check == "accounts"]
    assert accounts.figures["waiting"] > len(world.harness.pending()) == 2


@contextmanager
def load(url: str) -> Iterator[None]:
    """Emit events of every metric without a pause, by a producer that is replaced now and then."""
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            with Producer(url, linger=0.002) as producer:
                for _ in range(50):
                    number += 1
                    emit_each(producer, number)
                    producer.decide("call", f"d{number % 40}")
                    if stop.wait(0.1):
                        break

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.timeout(300)
def test_nothing_is_found_while_events_arrive(server, tmp_path):
    """While producers, workers, archive and snapshots run, no verification finds anything, nor fails."""
    chosen = Settings(
        RedisSettings(server.url, partitions=2),
        rules=RULES,
        archive=ArchiveSettings(str(tmp_path / "archive"), every=0.2),
        snapshot=SnapshotSettings(str(tmp_path / "snapshot.sqlite"), every=0.5),
    )
    store = Store(chosen.archive.url)
    client = server.client()
    with (
        counting(chosen, logs.configure(quiet=True)),
        closing(Database(chosen.snapshot.url)) as database,
        load(server.url),
    ):
        until(database.facts, 20, what="a snapshot")
        for _ in range(RUNS):
            report = verify(client, "tally", Sources(store, database))
            assert (report.findings, report.failed) == ({}, [])


RUNS = int(os.environ.get("TALLYSTREAM_RUNS", "3"))


def test_rows_of_every_table_are_changed():
    """The tests change a row of each table of a snapshot."""
    assert ROWS.keys() == metadata.tables.keys()


def test_each_finding_is_found_by_a_test():
    """Each kind of finding is that of a fault in these tests."""
    tested = {name for _, expected in FAULTS.values() for name in expected}
    assert set(KINDS) - tested == OTHERWISE


OTHERWISE = {
    "keys.mistyped", "log.gap", "group.pending_gone", "archive.ahead", "archive.skips", "snapshot.behind",
    "snapshot.outdated", "snapshot.passed_over", "archive.set_aside",
}  # fmt: skip
"""Findings of separate tests."""


@pytest.mark.timeout(300)
def test_the_command_prints_a_page(world):
    """`verify` exits with 0, 1 or 2; it prints what is wrong, its remedy, and what is proved; --json has the same."""
    program = Path(sys.executable).with_name("tallystream")
    environment = {**os.environ, "TALLYSTREAM_REDIS_URL": world.harness.url}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        places = ("--archive", world.store.url, "--snapshot", f"{world.folder}/snapshot.sqlite")
        return subprocess.run(
            [program, "verify", *places, *arguments],
            env=environment, cwd=world.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip

    said = command()
    assert (said.returncode, "Proved:" in said.stdout, "Not proved:" in said.stdout) == (0, True, True), said
    assert "nothing wrong was found in what is proved" in said.stdout
    world.client.incr(world.keys.total("call", "k1"))
    said = command("--json")
    found = json.loads(said.stdout)
    assert (said.returncode, found["status"]) == (1, 1)
    assert [each["name"] for each in found["findings"]] == ["counters.differ"]
    world.client.delete("tally:meta")
    said = command()
    assert (said.returncode, "WRONG: deployment.missing (1)" in said.stdout) == (1, True), said
    assert "tallystream restore" in said.stdout
    world.client.flushall()
    said = command()
    assert (said.returncode, "cannot verify" in said.stderr) == (2, True), said
    said = command("--config", "missing.toml")
    assert (said.returncode, "cannot verify" in said.stderr) == (2, True), said


def test_the_remedy_of_a_repeated_entry_counts_it_once(world):
    """A rebuild counts an entry that is in the stream twice both times; without the later one, it counts it once."""
    right = world.harness.totals()
    append_twice(world)
    world.harness.drain()
    rebuilt(world)
    drop(world.client, Deployment.load(world.client), 1)
    world.harness.layout = Deployment.load(world.client).layout
    assert world.harness.totals() != right
    assert "log.repeated" in names(world.verify(snapshot=False))
    world.client.xdel(world.keys.stream, entry(world, -1)[0])
    rebuilt(world, accept_loss=True)
    drop(world.client, Deployment.load(world.client), 2)
    world.harness.layout = Deployment.load(world.client).layout
    assert world.harness.totals() == right
    assert names(world.verify(snapshot=False)) - {"keys.lost"} == {"log.deleted"}  # the test recorded no rules


def test_a_pending_entry_that_is_gone_is_named(world):
    """An entry that is pending and was deleted is named, until a worker enters its events as trimmed."""
    world.emit(10)
    world.harness.fetch(0, "holder")(2, 0)
    world.client.xdel(world.keys.stream, world.harness.pending()[0])
    assert names(world.verify()) >= {"group.pending_gone", "log.removed"}


@pytest.mark.parametrize("times", [1, 100])
def test_entries_that_are_trimmed_while_they_are_read_end_no_check(world, monkeypatch, times):
    """If waiting entries are trimmed while they are read, they are read again; after five times, that is a limit."""
    read, left = accounts.stream_entries, iter(range(times))

    def trimming(*arguments):
        for number, entry in enumerate(read(*arguments)):
            if number == 0 and next(left, None) is not None:
                world.client.xtrim(world.keys.stream, maxlen=1, approximate=False)
                with world.client.pipeline() as pipeline:
                    for _ in range(1100):  # more than two pages
                        pipeline.xadd(world.keys.stream, {"metric": "view", "subject": "plain"})
                    pipeline.execute()
            yield entry

    with world.client.pipeline() as pipeline:
        for _ in range(1100):
            pipeline.xadd(world.keys.stream, {"metric": "view", "subject": "plain"})
        pipeline.execute()
    monkeypatch.setattr(accounts, "stream_entries", trimming)
    report = world.verify(archive=False, snapshot=False)
    assert "accounts" not in {each.check for each in report.failed}
    trimmed = [text for text in limits(report, "accounts") if "trimmed faster" in text]
    assert len(trimmed) == (times > 5)


def test_a_snapshot_whose_later_entries_are_gone_is_named(world):
    """If entries after the snapshot are gone from the stream, the snapshot is of no use without an archive."""
    world.emit(10)
    world.harness.drain("closer", claim_idle=0)
    removed = world.client.xtrim(world.keys.stream, maxlen=2, approximate=False)
    world.client.hincrby(world.keys.ledger, "entries:retired", removed)
    assert names(world.verify(archive=False)) == {"snapshot.behind"}


def test_a_gap_within_the_archive_is_named(world):
    """If an entry is gone from a file and from the stream, its producer's entries have a gap in the archive."""

    def change(table: pa.Table) -> pa.Table:
        found = [(row["producer"], row["sequence"]) for row in table.select(["producer", "sequence"]).to_pylist()]
        return table.filter(pa.array([sequence != 2 for _, sequence in found]))

    rewrite(world.files()[0], change)
    removed = world.client.xtrim(world.keys.stream, maxlen=2, approximate=False)
    world.client.hincrby(world.keys.ledger, "entries:retired", removed)
    assert "archive.skips" in names(world.verify())


def scheduled(
    world: World, lines: list[tuple[str, dict[str, object]]], stopping: threading.Event, client: Any = None
) -> Any:
    """Return the scheduled verification of a worker; `lines` gets its log lines."""

    class Log:
        def error(self, event: str, **fields: object) -> None:
            lines.append((event, fields))

        warning = error

    chosen = Settings(RedisSettings(world.harness.url, partitions=1), rules=RULES, verify=VerifySettings("6h"))
    return ScheduledVerification(chosen, client or world.client, Log(), stopping)


def test_a_verification_is_done_by_one_worker_when_it_is_due(world):
    """One of two workers verifies; neither again before it is due. Faults are logged, stored, and published."""
    lines: list[tuple[str, dict[str, object]]] = []
    world.client.incr(world.keys.total("call", "k1"))
    first, second = (scheduled(world, lines, threading.Event()) for _ in range(2))
    assert first.run_once()["findings"] == "counters.differ"
    assert (second.run_once(), first.run_once()) == (None, None)
    assert [(event, fields["findings"]) for event, fields in lines] == [
        ("verification.found_faults", "counters.differ")
    ]
    with closing(Totals(world.harness.url)) as totals:
        stats = totals.run(query_server_stats(totals.deployment.layout))
    assert stats.verified is not None
    assert stats.verified[1:] == (1, 0)
    world.client.hset("tally:meta", "verified", "0 0 0")
    world.client.set(world.keys.prefix + "verifying", "another worker")
    assert second.run_once() is None


def test_a_worker_that_stops_gives_its_verification_up(world):
    """A worker that stops during a verification leaves neither a lease nor a result."""
    stopping = threading.Event()
    stopping.set()
    assert scheduled(world, [], stopping).run_once() is None
    assert not world.client.exists(world.keys.prefix + "verifying")
    assert world.client.hget("tally:meta", "verified") is None


def test_a_verification_whose_result_cannot_be_recorded_is_not_repeated_at_once(world):
    """If the time of a verification cannot be written to `tally:meta`, its worker waits; another worker verifies."""
    only = ("resetkeys", "%R~tally:meta", f"~{world.keys.prefix}*")
    world.client.execute_command("ACL", "SETUSER", "reader", "on", ">x", "+@all", *only)
    reader = world.harness.connect(world.harness.url.replace("://", "://reader:x@"))
    try:
        worker = scheduled(world, [], threading.Event(), reader)
        with pytest.raises(NoPermissionError):
            worker.run_once()
        assert worker.run_once() is None
        assert world.client.hget("tally:meta", "verified") is None
        assert scheduled(world, [], threading.Event()).run_once() is not None
    finally:
        reader.close()
        world.client.execute_command("ACL", "DELUSER", "reader")


def test_lost_entries_that_only_the_archive_has_are_found(world: World) -> None:
    """If older data was put back, the loss is named without any later entry; the archiver then sets it aside."""
    copy = copy_of(world.client)
    world.emit(4)
    world.harness.drain()
    Archive(world.client, world.store, Deployment.load(world.client)).run_once(settled=0)
    go_back(world.client, copy)
    report = world.verify(snapshot=False)
    assert names(report) == {"archive.ahead"}
    assert report.status == 1
    Archive(world.client, world.store, Deployment.load(world.client)).run_once(settled=0)
    assert names(world.verify(snapshot=False)) == {"archive.set_aside"}


def test_a_key_of_another_type_is_named_and_mended_by_a_rebuild(world: World) -> None:
    """Whatever key has another type, `verify` names it; a rebuild mends every key that it replaces."""
    copy, mended = copy_of(world.client), set()
    found = {
        key.decode().split("}:")[-1].partition(":")[0]: key
        for key in sorted(copy)
        if not key.endswith((b"meta", b":live", b":stream", b":seq"))
    }
    for key in found.values():
        go_back(world.client, copy)
        kind = "list" if world.client.type(key) != b"list" else "string"
        world.client.delete(key)
        world.client.rpush(key, "x") if kind == "list" else world.client.set(key, "x")
        report = world.verify(archive=False, snapshot=False)
        (detail,) = report.findings["keys.mistyped"].details
        assert detail.startswith(f"{key.decode()} has the type {kind}"), key
        assert all("WRONGTYPE" not in each.text for each in report.failed)
        if detail != f"{key.decode()} has the type {kind}":
            continue
        deployment = Deployment.load(world.client)
        generation = propose(world.client, deployment, RULES)
        deployment = Deployment.load(world.client)
        with Rebuild(Settings(RedisSettings(world.harness.url), rules=RULES), deployment, generation) as run:
            run.begin()
            run.catch_up()
            assert all(each.stream for each in compare(world.client, deployment, generation).differences)
            run.switch()
        drop(world.client, Deployment.load(world.client), 1)
        assert not world.client.exists(key), key
        assert not world.verify(archive=False, snapshot=False).findings.keys() - {"keys.lost"}, key  # no rules recorded
        mended.add(key.decode().split(":")[2])
    assert mended >= {"total", "hour", "day", "top", "limit", "once", "seen", "unique", "sketch", "labels", "up"}
    assert mended >= {"periods", "forgotten", "dead"}


@pytest.mark.parametrize("fault", ["none", "raised", "deleted", "counter"])
@pytest.mark.parametrize("metric", ["few", "seen"])
def test_the_sum_of_a_metric_is_that_of_its_counters(server, metric, fault):
    """If a metric's counters depend on the order of events, its sum in the ledger is still that of the counters."""
    rules = Rules({"few": Metric(max_subjects=3, ids=None), "seen": Metric(seen="bloom")})
    with Harness(server.url, rules=rules, partitions=1) as harness:
        with Producer(server.url) as producer:
            for number in range(40):
                producer.emit("few", f"s{number % 8}", number)
                producer.emit("seen", f"s{number % 8}", 2, id=f"i{number % 30}")
            producer.flush(10)
        harness.drain()
        keys, field = harness.layout.keys[0], f"total@{metric}"
        total = int(harness.client.hget(keys.ledger, field))
        if fault == "raised":
            harness.client.hincrby(keys.ledger, field, 1)
        elif fault == "deleted":
            harness.client.hdel(keys.ledger, field)
        elif fault == "counter":
            harness.client.incrby(next(harness.client.scan_iter(f"{keys.total(metric, '')}*")), 3)
        report = verify(harness.client, "tally", Sources())
        if fault == "none":
            assert report.findings == {}
            return
        stated, found = {"raised": (total + 1, total), "deleted": (0, total), "counter": (total, total + 3)}[fault]
        text = f"{keys.stream}: ledger -> {field} is {stated:,}, but its counters add up to {found:,}"
        assert report.findings["ledger.differs"].details == [text]


@pytest.mark.parametrize("damage", ["+{}", " {}", "0{}", "{}_0"])
@pytest.mark.parametrize("field", ["appended", "counted@view"])
def test_a_number_that_no_script_can_add_to_is_never_proved(world: World, field: str, damage: str) -> None:
    """A field of the ledger whose value Python reads as a number, but the server does not, is named; nothing is proved.

    An audit refuses a value that it compares, too.
    """
    value = world.client.hget(world.keys.ledger, field).decode()
    world.client.hset(world.keys.ledger, field, damage.format(value))
    report = world.verify()
    assert report.status != 0
    assert any(f"the field {field} of {world.keys.ledger} has the value" in each.text for each in report.failed)
    if field != "appended":
        with pytest.raises(DamagedValue, match=field):
            audit(world.client, Deployment.load(world.client), RULES)


def test_a_total_that_no_script_can_add_to_is_never_proved(server) -> None:
    """The same holds for an exact total of a metric with `max_subjects`, which no audit compares."""
    rules = Rules({"few": Metric(max_subjects=3, ids=None)})
    with Harness(server.url, rules=rules, partitions=1) as harness:
        with Producer(harness.url) as producer:
            producer.emit("few", "a", 23)
            producer.flush(10)
        harness.drain()
        key = harness.layout.keys[0].total("few", "a")
        harness.client.set(key, "+23")
        report = verify(harness.client, "tally", Sources(None, None))
        assert report.status == 2
        assert any(f"{key} has the value" in each.text for each in report.failed)


FORMS = {
    "a mark of the live generation with a zero": ("live", None, "0{}"),
    "a mark of the live generation with another number": ("live", None, "{} 1 7"),
    "the number of the rules": ("meta", "revision", "01"),
    "the highest number of rules": ("meta", "newest-revision", "+1"),
    "the highest number of a generation": ("meta", "newest", "1_0"),
    "the record of a producer with a sign": ("seq", "producer", "+{}"),
    "the record of a producer with a zero": ("seq", "producer", "0_{}"),
    "the record of a producer with another ID": ("seq", "producer", "{}-0"),
    "the most entries": ("seq", "!limit", "abc"),
    "the time until which appends are held back": ("seq", "!hold", "abc"),
    "the number of a closing": ("seq", "!closing", "01"),
    "the horizon of removed records": ("seq", "!reaped", "abc"),
    "the time of a restore": ("seq", "!restored-at", "+5"),
    "the record of a restore": ("seq", "!restored", "abc"),
    "a retention hold": ("holds", "snapshot", "abc"),
    "a place on a leaderboard": ("top:view", "first", ""),
}


def first_of(world: World) -> str:
    """Return the subject on the first place of a leaderboard."""
    return world.client.zrevrange(world.keys.top("view"), 0, 0)[0].decode()


@pytest.mark.parametrize("form", FORMS)
def test_a_value_in_a_form_that_no_script_writes_is_never_proved(world: World, form: str) -> None:
    """A value that Python reads as right, but that scripts compare or calculate with as it is written, is named."""
    name, field, damage = FORMS[form]
    key = world.layout.meta if name == "meta" else world.keys.prefix + name
    if field == "producer":
        field = next(each.decode() for each in world.client.hkeys(key) if not each.startswith(b"!"))
    if field is None:
        value = damage.format(world.client.get(key).decode())
        world.client.set(key, value)
    elif damage:
        value = damage.format((world.client.hget(key, field) or b"").decode())
        world.client.hset(key, field, value)
    else:
        world.client.zincrby(key, 0.25, first_of(world))
        value = ".25"
    try:
        report = world.verify()
    except DamagedValue as error:  # it is in the description of the deployment
        texts = [str(error)]
    else:
        assert report.status != 0
        texts = [text for each in report.findings.values() for text in each.details]
        texts += [each.text for each in report.failed]
    assert any(key in text or "the hash that describes" in text for text in texts if value in text)


def test_an_audit_names_a_place_on_a_leaderboard_that_is_no_whole_number(world: World) -> None:
    """An audit compares the whole score of a leaderboard, not only its whole part."""
    world.client.zincrby(world.keys.top("view"), 0.25, first_of(world))
    report = audit(world.client, Deployment.load(world.client), RULES)
    assert [each.counter for each in report.differences] == [f"top:view -> {first_of(world)}"]


def test_a_snapshot_names_a_number_of_a_closing_in_another_form(world: World) -> None:
    """A snapshot is not taken after a closing whose number no script can compare; the error names it, and its mend."""
    world.client.hset(world.keys.sequences, "!closing", "abc")
    with pytest.raises(DamagedValue, match=f"!closing of {world.keys.sequences} .* NAMESPACE:meta"):
        world.copy()


def test_the_hold_of_a_reader_that_is_gone_can_be_deleted() -> None:
    """The remedy of a damaged hold names the case that no reader writes it again, so that trimming does not stop."""
    text = str(DamagedValue("tally:{0}:holds", b"abc", field="archive"))
    assert "Set it to 0-0" in text
    assert "If no such reader runs any more, delete the field" in text
