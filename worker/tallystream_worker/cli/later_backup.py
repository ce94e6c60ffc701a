"""Finds out whether a configured backup has entries that the server has lost, by the position of each partition."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.errors import TallyError
from tallystream.reading.query import Query
from tallystream.storage.keys import RESTORED, RESTORED_AT, SNAPSHOTS
from tallystream.wire.stream_id import StreamID, parse_id
from tallystream_worker.process.moments import format_moment
from tallystream_worker.runtime.backups import read_archive, read_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.deployment import Deployment
    from tallystream.reading.totals import Totals
    from tallystream_worker.settings.settings import Settings
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

_GO_BACK: Final = "stop the workers that archive, then: tallystream restore --force"
_REPLACE: Final = "tallystream snapshot --once --accept-loss"
_OF_SNAPSHOT: Final = f"{_GO_BACK}; or, to accept the loss: {_REPLACE}"
_OF_BOTH: Final = "do what is stated for the snapshot: the restore counts the later entries of the archive, too"
_OF_EITHER: Final = "tallystream verify names the command"
_OF_ARCHIVE: Final = (
    "tallystream archive --once, which moves these entries to files *.parquet.lost; then see the page on the archive, "
    '"Count lost entries"'
)


@dataclass(frozen=True)
class BackedUpLoss:
    """Data that the server has lost, and a backup has.

    Attributes:
        text: The loss, the backup that has the data, and what to do, in a few sentences.
        is_certain: Whether the backup has later entries than a stream. If not, producers may have sent the lost entries
            again, or the server may have them.
    """

    text: str
    is_certain: bool


@dataclass(frozen=True)
class _Position:
    """The position of a backup in one partition.

    Attributes:
        backup: The name of the backup, for people.
        remedy: What to do if the server has lost entries that the backup has.
        stream: The key of the stream.
        sequences: The key of the hash in which the server keeps the marks of snapshots.
        last: The last stream ID that the backup knows.
        snapshot: The position of the snapshot, whose mark the server has too unless it has lost it; `None` for an
            archive.
        is_later: Whether the snapshot is of a later topic than the live one. The stream and the sequences are then of
            the live topic, and only a restore is looked for there.
    """

    backup: str
    remedy: str
    stream: str
    sequences: str
    last: StreamID
    snapshot: SnapshotPosition | None = None
    is_later: bool = False


def find_losses(settings: Settings, totals: Totals) -> list[BackedUpLoss]:
    """Return what the server has lost, at most one loss for the snapshot and one for the archive of the settings.

    Also return one for each partition with archived entries that were set aside, and not sent again before.

    If another snapshot was restored after that of the settings was taken, the loss is that of this snapshot: see
    `_passed_over`.

    Only the positions of the snapshot and the names of the archive's files are compared with the streams. A backup that
    cannot be read (also because its package is not installed), or that is not of this data, is passed over, and so are
    a snapshot of an earlier topic and a partition that cannot be read. Of a snapshot of a later topic, only a restore
    of another one is found.

    Args:
        settings: The configuration, which names the backups.
        totals: The reader of the server.

    Raises:
        TallyError, redis.RedisError: the server cannot be read: see `Totals.run`.
    """
    found = [*_of_snapshot(settings, totals.deployment), *_of_archive(settings, totals.deployment)]
    aside = list(_set_aside(settings, totals.deployment))
    if not found:
        return aside
    # The server is read after the backups: these may be written meanwhile.
    fields = (SNAPSHOTS, RESTORED, RESTORED_AT)
    commands = [
        command for each in found for command in (("XINFO STREAM", each.stream), ("HMGET", each.sequences, *fields))
    ]

    def parse(replies: list[Any]) -> list[BackedUpLoss]:
        ahead: dict[str, list[tuple[_Position, str]]] = {}
        unmarked: dict[str, list[_Position]] = {}
        passed: list[tuple[_Position, int]] = []
        is_further = False
        for position, about, records in zip(found, replies[::2], replies[1::2], strict=True):
            if isinstance(about, RedisError) or isinstance(records, RedisError):
                continue  # the stream is lost, or its node does not answer: other lines of the command state that
            marks, restored, at = records
            last = about["last-generated-id"].decode()
            is_ahead, snapshot = position.last > parse_id(last), position.snapshot
            is_unmarked = snapshot is not None and snapshot.mark not in (marks or b"").decode().split()
            since = (
                snapshot.passed_over(position.sequences, restored, at) if snapshot is not None and is_unmarked else 0
            )
            if since:
                passed.append((position, since))
                is_further = is_further or is_ahead or position.is_later
            elif position.is_later:
                continue
            elif is_ahead:
                ahead.setdefault(position.backup, []).append((position, last))
            elif is_unmarked:
                unmarked.setdefault(position.backup, []).append(position)
        in_snapshot = any(position.snapshot for each in ahead.values() for position, _ in each)
        has_snapshot = bool(settings.snapshot.url)  # also if it cannot be read now
        certain = [
            _certain(*each[0], len(each), in_snapshot=in_snapshot, has_snapshot=has_snapshot) for each in ahead.values()
        ]
        if passed:
            certain.append(_passed_over(*max(passed, key=itemgetter(1)), len(passed), is_certain=is_further))
        return [*certain, *(_possible(each) for backup, each in unmarked.items() if backup not in ahead), *aside]

    return totals.run(Query(commands, parse))


def _certain(position: _Position, last: str, streams: int, *, in_snapshot: bool, has_snapshot: bool) -> BackedUpLoss:
    """Return the loss of `streams` streams, of which `position` is one.

    An archive's lost entries must not be set aside before a restore: it would leave out those after the snapshot.

    Args:
        position: The position of the backup in one of these streams.
        last: The last ID of this stream.
        streams: The number of streams.
        in_snapshot: Whether the snapshot has later entries than a stream.
        has_snapshot: Whether a snapshot is configured.
    """
    remedy = position.remedy
    if has_snapshot and position.snapshot is None:
        remedy = _OF_BOTH if in_snapshot else _OF_EITHER
    return BackedUpLoss(
        f"lost: {position.backup} has entries of {position.stream} up to {format_moment(position.last[0] / 1000)}, but "
        f"the stream ends at {last} (such streams: {streams:,}). The server has lost the later entries, for example "
        f"because older data was put back. Unless producers send them again: {remedy}",
        is_certain=True,
    )


def _possible(positions: list[_Position]) -> BackedUpLoss:
    first = positions[0]
    return BackedUpLoss(
        f"lost: the server has lost data of {first.stream} that {first.backup} has (such streams: {len(positions):,}), "
        "for example because older data was put back. Producers may have sent it again: tallystream verify states what "
        "is missing",
        is_certain=False,
    )


def _passed_over(position: _Position, restored: int, streams: int, *, is_certain: bool) -> BackedUpLoss:
    """Return a text about a snapshot after which another one was restored, in `streams` streams.

    Args:
        position: The position of the snapshot in one of these streams.
        restored: When the other one was restored, in milliseconds since 1970.
        streams: The number of these streams.
        is_certain: Whether the snapshot has later entries than one of the streams, or is of a later topic.
    """
    return BackedUpLoss(
        f"passed over: another snapshot was restored at {format_moment(restored / 1000)}, after {position.backup} was "
        f"taken (such streams: {streams:,}). While the server lacks entries of it, it is not replaced. To keep the "
        f"present counters: {_REPLACE}; or, to go back to it: {_GO_BACK}",
        is_certain=is_certain,
    )


def _of_snapshot(settings: Settings, deployment: Deployment) -> Iterator[_Position]:
    layout = deployment.layout
    try:
        found = read_snapshot(settings)
        if found is None or found.epoch != deployment.epoch or found.topic < layout.topic:
            return
        ends = [(each, parse_id(each.generated)) if each is not None else None for each in found.last]
    except (TallyError, ValueError):  # another program may have changed a position
        return
    place = f"the snapshot {found.place}"
    if found.topic > layout.topic:
        oldest = min((each for each in found.last if each is not None), key=attrgetter("taken"), default=None)
        if oldest is not None:
            for keys in layout.keys:
                yield _Position(place, _OF_SNAPSHOT, keys.stream, keys.sequences, (0, 0), oldest, is_later=True)
        return
    for keys, end in zip(layout.keys, ends, strict=False):
        if end is not None:
            position, last = end
            yield _Position(place, _OF_SNAPSHOT, keys.stream, keys.sequences, last, position)


def _of_archive(settings: Settings, deployment: Deployment) -> Iterator[_Position]:
    layout = deployment.layout
    try:
        found = read_archive(settings, layout.topic)
    except (ImportError, TallyError):
        return
    if found is None or found.epoch != deployment.epoch:
        return
    for keys, file in zip(layout.keys, found.last, strict=False):
        if file is not None:
            yield _Position(f"the archive {found.place}", _OF_ARCHIVE, keys.stream, keys.sequences, file.last)


def _set_aside(settings: Settings, deployment: Deployment) -> Iterator[BackedUpLoss]:
    """Yield a loss for each partition with entries in files `*.parquet.lost`, unless all of them were sent again.

    The entries that were sent again are those of the moment at which the files were written, so no loss is certain. If
    a file cannot be read, yield no further loss. If the archive is of other data, yield none.
    """
    if not settings.archive.url:
        return
    layout = deployment.layout
    try:
        from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

        store = Store(settings.archive.url, layout.namespace, layout.topic)
        if (store.manifest() or {}).get("epoch") != deployment.epoch:
            return
        for number, keys in enumerate(layout.keys):
            if missing := store.missing(number):
                tables = [store.columns(file, ["events"]) for file in store.set_aside(number)]
                events = sum(sum(table.column("events").to_pylist()) for table in tables)
                yield BackedUpLoss(
                    f"lost: the archive {store.place} has entries with {events:,} events in files *.parquet.lost, "
                    f"which {keys.stream} had lost; {missing:,} of these entries were not sent again when they were "
                    "set aside. tallystream verify states how many of them do not count",
                    is_certain=False,
                )
    except (ImportError, TallyError):
        return
