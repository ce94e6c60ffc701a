"""Takes snapshots: reads the counters that changed since the last one, and writes them partition by partition.

Each partition is read at one moment and written in one transaction. The entries of the stream tell which counters
changed, so the scripts that count record no changes. A crash before the commit leaves the last snapshot and its
retention hold, and the next round begins there. A crash after the commit leaves a retention hold that is too low until
the next round, so the entries of one interval are kept for longer.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.rules.metrics import publish
from tallystream.rules.parts import PARTS, counts_in_sketch
from tallystream.rules.windows import next_id_label
from tallystream.storage.deployment_hash import SNAPSHOT_AT
from tallystream.storage.keys import DUE, FIRST_TOPIC, HORIZONS, LAYOUT, UNTIL, Layout
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.entry import Entry
from tallystream_worker.dead_letters.store import RETRIED, records_of_dropped
from tallystream_worker.process import failpoints
from tallystream_worker.process.description import note
from tallystream_worker.process.scan import ScanBroken, pages_of_fields
from tallystream_worker.process.stream_facts import stream_facts
from tallystream_worker.snapshot import alerts
from tallystream_worker.snapshot.changed_keys import SEPARATOR, ChangedKeys
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.dead_letters import DeadLetterReader
from tallystream_worker.snapshot.ingested_files import FILES, ingested_files
from tallystream_worker.snapshot.lost_log import HOLDER, LogLost, has_everything, last_closing, next_mark, put_mark
from tallystream_worker.snapshot.names import was_removed
from tallystream_worker.snapshot.point_in_time import PointInTimeView, SnapshotPosition, ViewLost, open_view
from tallystream_worker.snapshot.retractions import RETRACTED, encode_retractions
from tallystream_worker.snapshot.rule_records import PLACES, RECORDS, recorded_changes, rule_places, rule_records
from tallystream_worker.snapshot.schema import FORMAT
from tallystream_worker.snapshot.uncounted import encode_uncounted
from tallystream_worker.snapshot.values import ValueReader
from tallystream_worker.snapshot.write import Taken

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys

_ALL: Final = "0-0"
"""The stream ID in the retention hold before the first snapshot: nothing is trimmed."""

_READ: Final = 64

_ATTEMPTS: Final = 3
"""The most times that a partition is read because its node changes."""


@dataclass(frozen=True)
class Round:
    """The result of one snapshot of all partitions.

    Attributes:
        rows: Number of values of counters that were written, changed or not, or that do not exist and were removed.
        whole: Number of partitions of which every counter was read, and not only the changed ones.
        taken: The earliest moment of a partition, in milliseconds since 1970.
        replaced: The format of the snapshot of an earlier release that this one has replaced; empty if there was none.
    """

    rows: int
    whole: int
    taken: int
    replaced: str = ""


class Snapshotter:
    """Takes snapshots of one deployment into one database.

    `run_once` takes a snapshot of every partition and writes it; `take` only reads one partition. The deployment is not
    read again: after a change of its rules, generation or topic, make another snapshotter.

    Args:
        client: The server of the counters.
        database: The database of the snapshots.
        deployment: The deployment, just loaded, with the published rules.

    Raises:
        SnapshotError: the database contains a snapshot of other data or of a later release, or cannot be used.
        ConfigurationError: no worker has published the rules yet; or the database was opened with `is_there`, and its
            SQLite file does not exist.
    """

    def __init__(self, client: redis.Redis, database: Database, deployment: Deployment) -> None:
        self._client = client
        self._database = database
        self._deployment = deployment
        self._rules = deployment.rules
        self._facts = facts_of(deployment)
        found = database.facts()
        differing = [
            name
            for name in ("format", "namespace", "partitions", "epoch")
            if found and found.get(name) != self._facts[name]
        ]
        self._moved = bool(found) and found.get("log") != self._facts.get("log")
        if self._moved and not {"namespace", "epoch"} & {*differing}:
            differing = [name for name in differing if name != "partitions"]  # the same data, after a repartition
        self._files = "{}"
        self._replaced = ""
        if differing == ["format"] and found["format"].isdecimal() and int(found["format"]) < int(FORMAT):
            self._replaced, differing = found["format"], []  # the same data, in the tables of an earlier release
        if differing:
            what = "a snapshot"
            if "format" in differing:
                what = f"a snapshot of format {found['format']} (this release writes {FORMAT})"
                differing.remove("format")
            if differing:
                what += f" of other data ({', '.join(differing)} differs)"
            raise SnapshotError(
                f"{database.place} contains {what}. "
                "Name another database; or, if this server has lost its counters, run: tallystream restore"
            )

    def run_once(self, *, whole: bool = False, accept_loss: bool = False) -> Round:
        """Take a snapshot of every partition, one after the other, and move their retention holds.

        Also store the mark of the snapshot in each partition, the facts of the deployment in the database, and, for
        monitoring, the earliest moment in the hash `meta`.

        If a partition no longer has the mark of its last snapshot (see `lost_log`), and no entry of that snapshot is
        lost or all were sent again, every counter of the partition is read. A snapshot of an earlier release or of
        another topic is replaced in one transaction; without a check for lost entries if this release cannot read its
        tables.

        Args:
            whole: Whether to read every counter, and not only those that changed. Every counter is also read if the
                facts of the deployment (such as its rules) or its generation have changed since the last snapshot, and
                in the cases that `take` names.
            accept_loss: Whether to replace a snapshot that contains entries that the server has lost. Every counter is
                read then, even if no entry is lost.

        Raises:
            LogLost: the server has lost entries that the last snapshot of a partition contains, and they were not all
                sent again; or (`PassedOver`) lacks them because another snapshot was restored since. That snapshot is
                unchanged.
            ViewLost: the values of one moment could not be read; nothing was written for that partition.
            ScanBroken: see `take`; nothing was written for that partition.
            KeyLost: a partition has lost a key; nothing was written for it, so its last snapshot can repair it. Or a
                hash that describes the deployment is lost or lacks a field.
            DamagedValue: a stored value has a form that tallystream never writes.
            SnapshotError: the database cannot be used, or another process wrote a snapshot meanwhile.
            DeploymentChanged: the server has other data now, or a restore has not finished; nothing more was written.
            ConfigurationError: this release cannot read the description that the server has now.
            redis.RedisError: the server did not answer, or refused a command.

        After an error, the partitions before the one that failed have their new snapshot. If a snapshot of an earlier
        release or another topic was to be replaced, it is unchanged instead.
        """
        # If the rules changed, entries since the last snapshot may have changed buckets that these rules do not name.
        stored = self._database.facts()
        self._files = stored.get(FILES, "{}")
        whole = whole or {name: stored[name] for name in stored if name not in {*RECORDS, FILES}} != self._facts
        if self._replaced:
            if not accept_loss:
                self._refuse_lost(stored)
            with self._database.at_once():  # until the commit, the snapshot of the earlier release stays
                self._database.renew()
                done = replace(self._round(whole=True, accept_loss=accept_loss), replaced=self._replaced)
            self._replaced = ""
        elif self._moved:
            if not accept_loss:
                self._refuse_lost(stored)
            with self._database.at_once():  # until the commit, the snapshot of the topic before stays
                self._database.clear()
                done = self._round(whole=True, accept_loss=accept_loss)
            self._moved = False
        else:
            done = self._round(whole=whole, accept_loss=accept_loss)
        self._database.settle()
        return done

    def _round(self, *, whole: bool, accept_loss: bool) -> Round:
        rows, wholes, moments, files = 0, 0, [], -1
        records = rule_records(self._client, self._deployment)
        numbers = {int(fields["number"]) for _, fields in recorded_changes(records)}
        places: dict[int, dict[int, str]] = {}
        for partition, keys in enumerate(self._deployment.layout.keys):
            before = self._database.position(partition)
            # Also before the first commit: if the process crashes after it, later entries must still exist.
            self._client.hsetnx(keys.retention_holds, HOLDER, _ALL)
            closing = last_closing(self._client, keys)
            known = "" if before is None or accept_loss else self._known(partition, keys, before[0])
            builds_on = known and not whole and before is not None and before[1] == keys.generation
            taken = self.take(partition, before[0] if before and builds_on else None)
            found, stated = rule_places(self._client, keys, taken.position, numbers)
            if found:
                places[partition] = found
            taken = replace(taken, ledger={**taken.ledger, **stated})
            # After the rows were read, and before they are committed: so each committed offset has its identity.
            files = self._state_files(files)
            # If data was lost while it was read, do not overwrite the snapshot that can restore it. The mark shows it
            # of this partition: it is written after everything that was read, and is lost before anything of that.
            self._deployment.ensure_same(self._client)
            mark = next_mark(known)
            if not put_mark(self._client, keys, known, mark, closing):
                raise ViewLost(
                    f"{keys.stream}: the server lost data while a snapshot was taken, or a restore or a repartition "
                    "has closed the partition; take it again"
                )
            taken = replace(taken, position=replace(taken.position, mark=mark))
            rows += self._database.put(partition, taken, before[0] if before else None)
            wholes += taken.whole
            moments.append(taken.position.taken)
            self._client.hset(keys.retention_holds, HOLDER, taken.position.floor)
        records[PLACES] = msgspec.json.encode(places).decode()
        records[FILES] = ingested_files(self._client, self._deployment.layout, self._files)
        if whole:
            self._database.state({**self._facts, **records}, whole=True)
        elif records.items() - self._database.facts().items():
            self._database.state(records)
        now = min(moments)
        note(self._client, self._deployment, {SNAPSHOT_AT: f"{now / 1000:.3f}"})
        return Round(rows, wholes, now)

    def _state_files(self, stated: int) -> int:
        """Add new identities of ingested files to the stored facts; return how many identities the server has.

        Write nothing if the server has `stated` of them, the result of the last call, or if no facts are stored yet:
        the first snapshot gets them at its end.
        """
        number = self._client.hlen(self._deployment.layout.files)
        if number != stated and (stored := self._database.facts()):
            self._files = ingested_files(self._client, self._deployment.layout, self._files)
            if stored.get(FILES) != self._files:
                self._database.state({FILES: self._files})
        return number

    def _known(self, partition: int, keys: PartitionKeys, before: SnapshotPosition) -> str:
        """Return the mark of the last snapshot, or `""` if the server has lost it, so that every counter must be read.

        Raises:
            LogLost: the server has also lost entries of the snapshot, and they were not all sent again.
            SnapshotError: the database cannot be used.
            redis.RedisError: the server did not answer, or refused a command.
        """
        live = self._deployment.layout
        is_there = has_everything(self._client, keys, before, self._database, partition, live)
        return before.mark if is_there else ""

    def _refuse_lost(self, facts: Mapping[str, str]) -> None:
        """Check for lost entries of a snapshot of an earlier release or another topic, which is replaced as a whole.

        `facts` are those of the snapshot. If this release cannot read its tables, or the database cannot be used, check
        no more, and return without an error.

        Raises:
            LogLost: see `_known`.
            redis.RedisError: the server did not answer, or refused a command.
        """
        try:
            for partition, keys in enumerate(layout_of(facts).keys):
                if (before := self._database.position(partition)) is not None:
                    self._known(partition, keys, before[0])
        except LogLost:
            raise
        except SnapshotError:
            return  # its tables have other columns

    def take(self, partition: int, before: SnapshotPosition | None) -> Taken:
        """Read a partition at one moment, and return its values; the database is not changed, and no mark is put.

        A view of the partition is open on the server meanwhile: see `open_view`. If the partition moves to another node
        while its keys are listed, or its node fails over or restarts, it is read again, up to three times in all.

        Args:
            partition: The number of the partition.
            before: The position of the snapshot in the database, to read only what changed since; `None` to read
                everything. Give it only if that snapshot is of the same rules and generation, and `put_mark` has found
                its mark in the partition. Neither is checked here: otherwise, changed values may be missing. Everything
                is also read if entries since it were trimmed or lost, or a dead letter was retried.

        Returns:
            The values and their position, whose `mark` is empty. Before `Database.put`, the caller must put a new mark
            in the partition (`put_mark`), and into this position.

        Raises:
            ViewLost: the values of one moment could not be read.
            ScanBroken: the node changed in each attempt.
            KeyLost: the partition has lost a key.
            SnapshotError: `before` is given, and the database cannot be read.
            redis.RedisError: the server did not answer, or refused a command; TRYAGAIN if the slot of the partition was
                on two nodes for more than 2 seconds.
        """
        for _ in range(_ATTEMPTS - 1):
            with suppress(ScanBroken):
                return self._take(partition, before)
        return self._take(partition, before)

    def _take(self, partition: int, before: SnapshotPosition | None) -> Taken:
        """Read a partition as `take` does, but raise the first `ScanBroken`."""
        keys = self._deployment.layout.keys[partition]
        known = self._database.ledger(partition).get(RETRIED) if before is not None else None
        touched = ChangedKeys(self._rules)
        if before is not None and not self._reaches(keys, before):
            before = None  # entries since the last snapshot were trimmed
        producers: dict[str, str] = {}
        if before is None:
            read = self._generated(keys)
            producers = self._producers(keys)
        else:
            # Read most of the entries before the view is opened, so that it is open for a short time only.
            read = self._touch(touched, keys, before.floor, "+")
            self._touch_reset(touched, keys)
            self._touch_replaced(touched)
        copy = self._structures(keys)
        counters = keys.ledger.removesuffix("ledger")
        cut = open_view(self._client, keys, [counters + name for name in copy])
        if before is not None and _retried(cut) != known:
            # A retry of a dead letter changes counters, and no entry shows which ones.
            cut.give_up()
            cut.remove_copies(counters + name for name in copy)
            return self._take(partition, None)
        # If stream IDs are ahead of the server's clock, they do not tell when the first uncounted entry was appended.
        first = floor if (floor := parse_id(cut.position.floor)[0]) <= cut.position.taken else 0
        try:
            states = alerts.read(self._client, keys, self._rules, first, cut.position.taken)
            cut.take()  # each step may take a while: show that this snapshot is alive
            dead = DeadLetterReader(cut, keys, before)
            dead.read()
            records = records_of_dropped(self._client, keys)
            found: Any = self._client.hgetall(keys.resets)
            if resets := {name.decode(): place.decode() for name, place in found.items()}:
                states[keys.resets.removeprefix(keys.counters)] = (msgspec.json.encode(resets).decode(), 0)
            reading = self._read(cut, keys, touched, read, copy, whole=before is None)
            if records := dead.recorded(records):
                states[keys.dropped.removeprefix(keys.prefix)] = (msgspec.json.encode(records).decode(), 0)
            # After the values: a bucket that was removed while they were read may be missing in them.
            found = self._client.hgetall(keys.forgotten)
            removed = {name.decode(): value.decode() for name, value in found.items()}
            if ends := {name: end for name, end in removed.items() if name != DUE}:
                states[keys.forgotten.removeprefix(keys.counters)] = (msgspec.json.encode(ends).decode(), 0)
        except BaseException:
            cut.give_up()
            raise
        finally:
            cut.remove_copies(counters + name for name in copy)
        failpoints.reach("after-cut")
        producers |= {name: f"{sequence} {id_}" for name, (sequence, id_) in touched.producers.items()}
        producers |= self._horizons(keys)
        ledger = {name.decode(): int(value) for name, value in cut.ledger.items()}
        # The entries before a whole snapshot are not read, so any of them may be one that no producer sends again.
        unsent = cut.position.generated if before is None else touched.unsent or before.unsent
        return Taken(
            replace(cut.position, unsent=unsent, uncounted=encode_uncounted(self._uncounted(keys, cut.position))),
            keys.generation,
            reading.values,
            reading.expires,
            ledger,
            producers,
            whole=before is None,
            alerts=states,
            forgotten=int(removed.get(UNTIL, 0)),
            dead=dead.settle(),
            dead_anew=dead.is_anew,
            was_removed=partial(was_removed, rules=self._rules, ends=removed),
        )

    def _structures(self, keys: PartitionKeys) -> list[str]:
        """Return the names of the sketches of a partition, and of the leaderboards that its totals do not give.

        These are the sketch and the leaderboard of each metric that the rules, or those that counted it last, count in
        a sketch. Of another metric, it is the sketch that earlier rules have left. Some keys may not exist.

        Raises:
            redis.RedisError: the server did not answer, or refused a command.
        """
        stored: Any = self._client.hgetall(keys.forgotten)
        counted = {
            name.decode().removeprefix(PARTS): parts.decode()
            for name, parts in stored.items()
            if name.startswith(PARTS.encode())
        }
        sketched = {
            name for name, rule in self._rules.metric.items() if rule.max_subjects is not None or not rule.exact
        }
        sketched |= {name for name, parts in counted.items() if counts_in_sketch(parts)}
        others = sorted({*self._rules.metric, *counted} - sketched)
        with self._client.pipeline(transaction=False) as pipeline:
            for metric in others:
                pipeline.exists(keys.sketch(metric))
            left = [metric for metric, found in zip(others, pipeline.execute(), strict=True) if found]
        names = [name for metric in sorted(sketched) for name in (f"sketch:{metric}", f"top:{metric}")]
        return names + [f"sketch:{metric}" for metric in left]

    def _read(
        self,
        cut: PointInTimeView,
        keys: PartitionKeys,
        touched: ChangedKeys,
        read: str,
        copy: list[str],
        *,
        whole: bool,
    ) -> ValueReader:
        reading = ValueReader(cut, self._rules)
        reading.copies(copy)
        if whole:
            reading.everything()
            self._touch(touched, keys, read, cut.position.generated)
        else:
            reading.some(touched.items)
            late = ChangedKeys(self._rules)
            self._touch(late, keys, read, cut.position.generated)
            self._touch_reset(late, keys)
            self._touch_replaced(late)
            cut.take()
            reading.some(late.items)
            touched.producers |= late.producers
            touched.unsent = late.unsent or touched.unsent
        cut.close()
        reading.settle()
        return reading

    def _touch(self, touched: ChangedKeys, keys: PartitionKeys, after: str, until: str) -> str:
        """Add the entries after the ID `after`, up to `until`, to `touched`; return the ID of the last one.

        Return `after` if there are none.
        """
        while True:
            found: Any = self._client.xrange(keys.stream, f"({after}", until, count=_READ)
            for id_, fields in found:
                after = id_.decode()
                touched.add(Entry(after, fields))
            if len(found) < _READ:
                return after

    def _uncounted(self, keys: PartitionKeys, position: SnapshotPosition) -> Iterator[Entry]:
        """Yield the entries of the stream that were appended before the moment of a position and not applied at it."""
        after = position.floor
        while parse_id(after) < parse_id(position.generated):
            found: Any = self._client.xrange(keys.stream, f"({after}", position.generated, count=_READ)
            entries = [Entry(id_.decode(), fields) for id_, fields in found]
            yield from (entry for entry in entries if not position.includes(entry, keys.generation))
            after = entries[-1].id if entries else position.generated

    def _touch_reset(self, touched: ChangedKeys, keys: PartitionKeys) -> None:
        """Add to `touched.items` the counters that the resets in `touched.resets` may have changed.

        The labels of the buckets and periods of their metrics are read from the server. See `ChangedKeys.reset`.

        Raises:
            redis.RedisError: the server did not answer, or refused the command.
        """
        for metric, subject in touched.resets:
            found: Any = self._client.smembers(keys.labels(metric))
            touched.reset(metric, subject, (each.decode() for each in found))

    def _touch_replaced(self, touched: ChangedKeys) -> None:
        """Add to `touched.items` the counters of windows and limits that the votes and ids in it had changed before.

        Their records in the last snapshot state these: a new vote or event may replace the recorded one. A new event
        may also make the recorded event with the same id in the next period a duplicate, so the records of that period
        are read too.

        Raises:
            SnapshotError: the database cannot be used.
        """
        for group, items in list(touched.items.items()):
            if group[0] not in ("votes", "ids"):
                continue
            rule = self._rules.metric[group[1]]
            if not rule.windows and rule.limit is None:
                continue
            old = list(self._database.records(group, items).items())
            if group[0] == "ids" and rule.ids is not None:
                after = next_id_label(rule.ids, group[2])
                old += self._database.records((*group[:2], after), items).items()
            for item, record in old:
                subject = group[3] if group[0] == "votes" else item.split(SEPARATOR, 1)[0]
                touched.replaced(group[1], subject, record.split(" ", 2)[2] if record.count(" ") > 1 else "")

    def _reaches(self, keys: PartitionKeys, before: SnapshotPosition) -> bool:
        """Return whether no entry that the last snapshot lacks was trimmed from the stream; `False` if this is unknown.

        Also return `False` if the last ID of the stream is before that of the snapshot, because the stream has lost
        data then. Entries that another client removed are not noticed.

        Raises:
            KeyLost: the partition has lost its stream.
            redis.RedisError: the server did not answer, or refused a command.
        """
        is_further = parse_id(self._generated(keys)) >= parse_id(before.generated)
        return is_further and before.is_reached(self._client, keys)

    def _generated(self, keys: PartitionKeys) -> str:
        return str(stream_facts(self._client, keys)["last-generated-id"].decode())

    def _horizons(self, keys: PartitionKeys) -> dict[str, str]:
        """Return the fields of the sequences that state how far records of producers were removed.

        Read them after the records: then each record that is missing was removed before the horizon.
        """
        found: Any = self._client.hmget(keys.sequences, HORIZONS)
        return {name: value.decode() for name, value in zip(HORIZONS, found, strict=True) if value is not None}

    def _producers(self, keys: PartitionKeys) -> dict[str, str]:
        return {
            name.decode(): value.decode()
            for page in pages_of_fields(self._client, keys.sequences)
            for name, value in page.items()
            if not name.startswith(b"!")
        }


def _retried(cut: PointInTimeView) -> int | None:
    found = cut.ledger.get(RETRIED.encode())
    return None if found is None else int(found)


def layout_of(facts: Mapping[str, str]) -> Layout:
    """Return the layout of the topic that a snapshot is of, with the keys of the first generation, by its facts."""
    return Layout(int(facts["partitions"]), facts["namespace"], topic=int(facts.get("log", FIRST_TOPIC)))


def facts_of(deployment: Deployment) -> dict[str, str]:
    """Return the facts that a snapshot stores about its deployment, by name: format, namespace, epoch, rules and so on.

    The facts that change no counter, `RECORDS` and `FILES`, are not among them.

    Raises:
        ConfigurationError: no worker has published the rules yet.
    """
    facts = {
        "format": FORMAT,
        "layout": str(LAYOUT),
        "namespace": deployment.layout.namespace,
        "partitions": str(deployment.layout.partitions),
        "epoch": deployment.epoch,
        "rules": publish(deployment.rules).decode(),
        RETRACTED: encode_retractions(deployment.rules.retracted),
        "revision": str(deployment.revision),
        "spread": " ".join(sorted(deployment.spread)),
    }
    if deployment.layout.topic != FIRST_TOPIC:
        facts["log"] = str(deployment.layout.topic)
        facts["earlier"] = " ".join(f"{log}:{partitions}" for log, partitions in sorted(deployment.earlier.items()))
    return facts
