"""Replays a topic as events for other tools, such as `tallystream ingest`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tallystream.errors import CodecError, EventError
from tallystream.storage.keys import FIRST_TOPIC
from tallystream.wire.codec import decode
from tallystream_worker.counting.dropped import is_whole, without
from tallystream_worker.dead_letters.store import dropped
from tallystream_worker.rebuild.source import entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis

    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.dropped import DroppedLetter
    from tallystream_worker.counting.entry import Entry


@dataclass(frozen=True)
class ReplaySelection:
    """Selects the events to replay, by time, metric and subject.

    Attributes:
        begin: The first second (since 1970) of the selected time.
        end: The first second after the selected time.
        metrics: The selected metrics; empty for all.
        subjects: The selected subjects; empty for all.
    """

    begin: float = 0.0
    end: float = float("inf")
    metrics: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()

    def takes(self, metric: str, subject: str, at: float) -> bool:
        """Return whether an event is selected; `at` is its time in seconds since 1970."""
        return (
            self.begin <= at < self.end
            and (not self.metrics or metric in self.metrics)
            and (not self.subjects or subject in self.subjects)
        )


@dataclass
class Left:
    """Counts what a replay leaves out.

    Attributes:
        unreadable: The number of entries that cannot be decoded, without those that were dropped as a whole.
        dropped: The number of events, selected or not, of dead letters that were dropped with a record.
        resets: The number of resets of selected metrics and subjects, at any time; they are not events.
    """

    unreadable: int = 0
    dropped: int = 0
    resets: int = 0


def replay(
    client: redis.Redis, layout: Layout, wanted: ReplaySelection, left: Left, archive: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield the selected events as `ingest` reads them: metric, subject, amount, at, and actor and id if present.

    The events come partition by partition, not in order of time. Events that were packed by minute are selected by the
    first second of their minute, and have it as `at`. If the amounts of such events of a subject were not all 1, one
    event has their sum, and the others have 0. `at` is in seconds since 1970. Rejected, duplicate and retracted events
    are yielded too, and those of dead letters, if they can be decoded and the dead letter was not dropped with a record
    (see `dead_letters.store.dropped`). If entries are neither in the stream nor in the archive when their partition is
    begun, they are missing without an error, unless the archive lacks a file between two others.

    Args:
        client: Client of the server of the streams.
        layout: The partitions to replay.
        wanted: The events to yield.
        left: The caller's object, to which this adds what is left out; complete when the iterator has ended.
        archive: URL of the archive to read first, `""` for none.

    Raises:
        ArchiveError: the archive cannot be read, or a file of it is missing between two others, or directly after an
            entry that was read.
        CodecError: a row of the archive, or the record of a dropped dead letter, is damaged.
        ConfigurationError: the URL of the archive cannot be used.
        ImportError: an archive is named, and the package pyarrow is not installed.
        EntriesTrimmed: entries were trimmed before they were read, and the archive lacks them.
        KeyLost, StreamError: a stream was deleted or replaced before all its entries were read, or a node failed over
            while the records of dropped dead letters were read.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    for partition, keys in enumerate(layout.keys):
        gone = dropped(client, keys)
        for entry in entries(client, keys, archive, partition):
            yield from _events(entry, wanted, left, gone.get(entry.id, ()))


def replay_archive(url: str, namespace: str, wanted: ReplaySelection, left: Left) -> Iterator[dict[str, Any]]:
    """Yield the selected events of an archive alone, as `replay` does: those of its latest topic.

    A repartition has copied the events of each earlier topic to the next one. Events of dropped dead letters are
    yielded too, because only a server has their records. If the topic's archive has no manifest, nothing is yielded,
    without an error. Entries that are missing at the beginning or the end of the archive are not noticed.

    Args:
        url: Folder or URL of the archive.
        namespace: The namespace of the deployment whose entries are archived.
        wanted: The events to yield.
        left: The caller's object, to which this adds what is left out; complete when the iterator has ended.

    Raises:
        ArchiveError, CodecError: the archive cannot be read, a file of it is missing between two others, or a row is
            damaged.
        ConfigurationError: the URL of the archive cannot be used.
        ImportError: the package pyarrow is not installed.
    """
    from tallystream_worker.archive.entries import entries as archived  # noqa: PLC0415  # pyarrow is an extra
    from tallystream_worker.archive.store import Store  # noqa: PLC0415  # as above

    store = Store(url, namespace, max(Store(url, namespace).later_topics(), default=FIRST_TOPIC))
    for partition in range((store.manifest() or {}).get("partitions", 0)):
        for entry in archived(store, partition):
            yield from _events(entry, wanted, left, ())


def _events(
    entry: Entry, wanted: ReplaySelection, left: Left, gone: Sequence[DroppedLetter]
) -> Iterator[dict[str, Any]]:
    left.dropped += sum(letter.events for letter in gone)
    if is_whole(gone):
        return
    try:
        payload = without(decode(entry.fields, entry.received), gone)
    except (CodecError, EventError):
        left.unreadable += 1
        return
    for group in payload.groups:
        at = group.minute * 60
        if not wanted.begin <= at < wanted.end or (wanted.metrics and group.metric not in wanted.metrics):
            continue
        units = ((subject, 1, n) for subject, n in (*((s, 1) for s in group.ones), *group.counts.items()))
        # Events of amount 0 change no total; they keep the number of events the same.
        sums = ((subject, amount, 1) for subject, (amount, _) in group.sums.items())
        zeros = ((subject, 0, n - 1) for subject, (_, n) in group.sums.items())
        for subject, amount, n in (*units, *sums, *zeros):
            if wanted.takes(group.metric, subject, at):
                event = {"metric": group.metric, "subject": subject, "amount": amount, "at": at}
                for _ in range(n):
                    yield event
    for single in payload.singles:
        at_ = single.at / 1000
        if wanted.takes(single.metric, single.subject, at_):
            event = {"metric": single.metric, "subject": single.subject, "amount": single.amount, "at": at_}
            yield event | {
                name: value for name, value in (("actor", single.actor), ("id", single.id)) if value is not None
            }
    left.resets += sum(
        (not wanted.metrics or each.metric in wanted.metrics)
        and (not wanted.subjects or each.subject in wanted.subjects)
        for each in payload.resets
    )
