"""After a server lost the end of its log, a verification names the commands that mend it, in an order that works."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import duckdb
import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.reading.totals import Totals
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.repartition import to_partitions
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.verify import verify
from tests.integration.verify.test_remedies import commands_in, lose_and_send_again, replaced, run
from tests.integration.verify.test_verify import RULES, World, emit_each, names, world
from tests.paths import ROOT
from tests.rewind import copy_of, go_back

if TYPE_CHECKING:
    from tallystream_worker.verify.report import Verification

__all__ = ["world"]  # the fixture

PROGRAM: Final = Path(sys.executable).with_name("tallystream")


def emit(world: World, begin: int, events: int = 20) -> None:
    """Append and count events of every metric, of a producer that then ends."""
    with Producer(world.harness.url, linger=0) as producer:
        for number in range(begin, begin + events):
            emit_each(producer, number)
            if number % 5 == 4:
                producer.flush(10)
    world.harness.drain("closer", claim_idle=0)


def archive(world: World) -> None:
    """Archive every entry."""
    Archive(world.client, world.store, Deployment.load(world.client)).run_once(settled=0)


def totals(world: World) -> dict[str, int]:
    """Return totals that depend on every event."""
    with closing(Totals(world.harness.url)) as reader:
        found = dict.fromkeys(("view", "sale", "visit", "page"), 0)
        for metric in found:
            for subject in ("shop", "home", *(f"a{n}" for n in range(50)), *(f"p{n}" for n in range(20))):
                found[metric] += reader.get(subject, metric).value
    return found


def lose_the_end(world: World, *, is_copied: bool, is_followed: bool, is_later: bool = False) -> dict[str, int]:
    """Let the server lose archived entries; return the totals that are right if they count too.

    Args:
        world: The deployment.
        is_copied: Whether a snapshot has the lost entries.
        is_followed: Whether later events are counted after the loss.
        is_later: Whether the server keeps entries that are after the snapshot.
    """
    if is_later:
        emit(world, 5_000)
    earlier = copy_of(world.client)
    emit(world, 10_000)
    world.copy() if is_copied else archive(world)
    right = totals(world)
    go_back(world.client, earlier)
    if is_followed:
        before = totals(world)
        emit(world, 20_000)
        right = {metric: value + totals(world)[metric] - before[metric] for metric, value in right.items()}
    return right


def commands(report: Verification) -> list[str]:
    """Return the commands of the first finding, in their order."""
    (first, *others) = report.in_order()
    assert {report.remedy(each).partition(",")[0] for each in others} <= {f"first mend {first.name}"}
    return [each for each in commands_in(report.remedy(first)) if "verify" not in each]


@pytest.mark.parametrize("is_followed", [True, False])
def test_the_loss_is_the_only_finding(world: World, *, is_followed: bool) -> None:
    """Without a snapshot, the loss is one finding: no other one names a command that makes the mend impossible."""
    lose_the_end(world, is_copied=False, is_followed=is_followed)
    report = world.verify(snapshot=False)
    assert names(report) == {"archive.ahead"}
    (detail,) = report.findings["archive.ahead"].details
    assert "0 of them were sent again" in detail


@pytest.mark.parametrize("is_later", [True, False])
@pytest.mark.parametrize("is_followed", [True, False])
@pytest.mark.parametrize("is_copied", [True, False])
def test_the_named_commands_bring_everything_back(
    world: World, *, is_copied: bool, is_followed: bool, is_later: bool
) -> None:
    """With a snapshot, whether or not it has the lost entries, the first finding names a restore, which is enough."""
    right = lose_the_end(world, is_copied=is_copied, is_followed=is_followed, is_later=is_later)
    report = world.verify()
    assert names(report) == {"archive.ahead", *["snapshot.ahead"] * is_copied}
    first, *_ = commands(report)
    assert first == "tallystream restore --force"
    run(world, first, str(world.folder / "snapshot.sqlite"), TALLYSTREAM_ARCHIVE_URL=world.store.url)
    archive(world)
    report = world.verify()
    assert (names(report), report.failed, totals(world)) == (set(), [], right)


def said(world: World, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the archive and more variables, and return its result, whatever its exit status is."""
    environment = {"TALLYSTREAM_REDIS_URL": world.harness.url, "TALLYSTREAM_ARCHIVE_URL": world.store.url} | variables
    return subprocess.run(
        [PROGRAM, *command], env=os.environ | environment, cwd=world.folder, capture_output=True, text=True, check=False
    )


def ingest_lost(world: World) -> None:
    """Count the entries in files `*.parquet.lost` that were not sent again, and move these files away: see the page."""
    query = (ROOT / "docs" / "archive.md").read_text().partition("```sql\nCOPY")[2].partition("```")[0]
    query = query.replace("'archive/", f"'{world.store.url}/").replace("lost.parquet", f"{world.folder}/lost.parquet")
    duckdb.sql(f"COPY{query}")
    run(world, "tallystream ingest lost.parquet", "")
    world.harness.drain("closer", claim_idle=0)
    (world.folder / "archive" / "lost").rename(world.folder / "counted")


@pytest.mark.parametrize("is_accepted", [True, False])
def test_entries_that_no_snapshot_brings_back_are_named_until_they_count(world: World, *, is_accepted: bool) -> None:
    """Without a snapshot from before the loss, the archiver sets the lost entries aside, and no counter changes.

    Then the only finding names their number. After the steps of the page, nothing is found, and each event counts.
    """
    right = lose_the_end(world, is_copied=is_accepted, is_followed=True)
    counted, url = totals(world), str(world.folder / "snapshot.sqlite")
    if is_accepted:
        run(world, commands(world.verify())[1], url)
    command, *_ = commands(world.verify(snapshot=is_accepted))
    run(world, command, url, TALLYSTREAM_ARCHIVE_URL=world.store.url)
    report = world.verify(snapshot=is_accepted)
    assert (names(report), report.failed, totals(world)) == ({"archive.set_aside"}, [], counted)
    (detail,) = report.findings["archive.set_aside"].details
    assert detail.startswith(f"{world.keys.stream}: 4 entries with 120 events; a rebuild leaves them out")
    assert "entries with 120 events in files *.parquet.lost" in said(world, "status").stderr
    ingest_lost(world)
    archive(world)
    report = world.verify(snapshot=is_accepted)
    assert (names(report), report.failed, totals(world)) == (set(), [], right)


def test_entries_that_were_sent_again_are_set_aside_and_count(world: World) -> None:
    """If a producer has sent all lost entries again, the files with them are stated, and are no finding."""
    lose_and_send_again(world, 10, lambda: archive(world))
    world.harness.drain("closer", claim_idle=0)
    command, *_ = commands(world.verify(snapshot=False))
    run(world, command, "", TALLYSTREAM_ARCHIVE_URL=world.store.url)
    report = world.verify(snapshot=False)
    assert (names(report), report.failed) == (set(), [])
    (limit,) = [each.text for each in report.limits if "*.parquet.lost" in each.text]
    assert "nothing needs 10 entries with 60 events" in limit


def test_a_rebuild_and_the_report_agree_on_entries_that_were_set_aside(world: World) -> None:
    """If a snapshot with lost entries is restored after these were set aside, both commands name `--accept-loss`.

    Before and after the rebuild, it is not proved whether the entries count: later entries are gone from the stream.
    """
    right = lose_the_end(world, is_copied=True, is_followed=False)
    archive(world)  # too early: it makes the restore read less from the archive
    url = str(world.folder / "snapshot.sqlite")
    run(world, "tallystream restore --force", url, TALLYSTREAM_ARCHIVE_URL=world.store.url)
    world.harness.drain("closer", claim_idle=0)
    archive(world)
    report = world.verify()
    assert (names(report), report.failed, totals(world)) == (set(), [], right)
    (limit,) = [each.text for each in report.limits if "*.parquet.lost" in each.text]
    assert "whether 4 entries with 120 events" in limit
    refused = said(world, "rebuild")
    assert refused.returncode == 1
    assert "--accept-loss" in limit
    assert "--accept-loss" in refused.stderr
    assert "The archive has entries in files *.parquet.lost" in refused.stderr
    run(world, "tallystream rebuild --accept-loss", "", TALLYSTREAM_ARCHIVE_URL=world.store.url)
    report = world.verify(snapshot=False)
    assert any("whether 4 entries with 120 events" in each.text for each in report.limits)


def trim(world: World) -> None:
    """Remove all entries but two, as retention does."""
    removed = world.client.xtrim(world.keys.stream, maxlen=2, approximate=False)
    world.client.hincrby(world.keys.ledger, "entries:retired", removed)


@pytest.mark.parametrize("is_trimmed", [True, False])
def test_an_archive_of_other_data_is_not_compared(world: World, *, is_trimmed: bool) -> None:
    """If a server was emptied and counting began again, entries of the earlier data in the archive are no fault.

    The report states that the archive is not checked; it has no finding, and the counters are compared.
    """
    replaced(world)
    emit(world, 0)
    if is_trimmed:
        trim(world)
    report = world.verify(snapshot=False)
    assert (names(report), [each.check for each in report.failed], report.status) == (set(), ["archive"], 2)
    assert "archive of other data (different epoch)" in report.failed[0].text
    assert is_trimmed or [each for each in report.proofs if each.check == "counters"]
    assert not [each for each in report.limits if "no archive is configured" in each.text]


def test_no_command_counts_the_archive_of_other_data(world: World) -> None:
    """If entries are gone from the streams, a command that needs them refuses an archive of other data.

    The archive has more entries than are gone. A restore refuses it too: the snapshot is of the present data.
    """
    replaced(world)
    emit(world, 0)
    trim(world)
    database = Database(str(world.folder / "present.sqlite"))
    Snapshotter(world.client, database, Deployment.load(world.client)).run_once()
    database.close()
    before = totals(world)
    for command in (["rebuild"], ["rebuild", "--partitions", "2"], ["audit"], ["restore", "--force"]):
        done = said(world, *command, TALLYSTREAM_SNAPSHOT_URL=database.place)
        assert done.returncode == 1, command
        assert "is the archive of other data (different epoch)" in done.stderr, command
        run(world, "tallystream rebuild --drop", "") if command == ["rebuild", "--partitions", "2"] else None
        assert totals(world) == before, command


def test_lost_entries_of_an_earlier_topic_are_named(world: World) -> None:
    """After a change of the number of partitions, entries that were set aside before it are stated as not proved."""
    lose_the_end(world, is_copied=False, is_followed=False)
    archive(world)
    settings = Settings(RedisSettings(world.harness.url), rules=RULES)
    to_partitions(settings, Deployment.load(world.client), 2, "", accept_loss=False, json=True)
    deployment = Deployment.load(world.client)
    later = Store(world.store.url, log=deployment.layout.topic)
    Archive(world.client, later, deployment).run_once(settled=0)
    report = verify(world.client, "tally", Sources(later, None))
    assert "archive.set_aside" not in report.findings
    assert any(each.text.startswith("topic 1: whether 4 entries") for each in report.limits)
