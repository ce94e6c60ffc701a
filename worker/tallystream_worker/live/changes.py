"""Finds the counters that changed between two positions: reads and decodes the entries, within a budget of bytes."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tallystream.errors import CodecError, EventError
from tallystream.reading.query import Query, raise_on_error
from tallystream.wire.codec import decode
from tallystream.wire.stream_id import after, parse_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.aio import Totals
    from tallystream.storage.keys import Layout
    from tallystream.wire.stream_id import StreamID
    from tallystream_worker.live.cursor import Cursor

Changes = dict[str, set[str]]
"""By metric, the subjects whose counters may have changed: those with events or resets in the entries."""

MAX_CHANGES: Final = 10_000
"""The largest number of changed subjects of one metric; if more changed, `changed_between` returns `None`."""


class Found(NamedTuple):
    """What may have changed between two positions.

    Attributes:
        subjects: By metric, the subjects with events or resets in the entries between the positions.
        is_unbroken: Whether each stream that was read still had the entry at its first position, or just after it (a
            stream that was read from `(0, 0)` on counts as one that had it). If not, the server lost this entry, or it
            was trimmed, and counters that are not in `subjects` may have changed too.
    """

    subjects: Changes
    is_unbroken: bool


_PAGE: Final = 64
"""The number of entries in one reply: at most 4 MiB with the largest entries that a producer makes."""


async def changed_between(
    totals: Totals, layout: Layout, start: Cursor, end: Cursor, budget: int, metrics: frozenset[str]
) -> Found | None:
    """Read the entries after `start` and up to `end`; return their subjects by metric, and whether entries may be lost.

    Entries that this release cannot decode are skipped.

    Args:
        totals: Reads the streams.
        layout: The keys of the partitions.
        start: The stream ID of each partition after which to read. It is the ID of an entry, the ID just before an
            entry, or `(0, 0)`.
        end: The stream ID of each partition up to which to read.
        budget: About how many bytes of entries to read at most.
        metrics: The metrics to return.

    Returns:
        What may have changed; `None` if the budget is used up before all entries are read, or if these have more than
        `MAX_CHANGES` (10,000) subjects of a metric.

    Raises:
        RedisError: the streams cannot be read.
    """
    changed: Changes = defaultdict(set)
    cursors = {number: position for number, position in enumerate(start) if position < end[number]}
    unproved = {number for number, position in cursors.items() if position != (0, 0)}
    is_unbroken = True
    while cursors:
        for number, entries in (await totals.run(_query_page(layout, cursors, end))).items():
            if number in unproved:
                unproved.remove(number)
                is_unbroken = is_unbroken and _begins_at(cursors[number], entries)
            for id_, fields in entries:
                if id_ == b"%d-%d" % cursors[number]:
                    continue
                budget -= sum(map(len, fields.values()))
                _touch(changed, metrics, id_, fields)
            if len(entries) < _PAGE:
                del cursors[number]
            else:
                cursors[number] = parse_id(entries[-1][0].decode())
        if any(len(subjects) > MAX_CHANGES for subjects in changed.values()) or (cursors and budget < 0):
            return None
    return Found(changed, is_unbroken)


def _begins_at(position: StreamID, entries: list[Any]) -> bool:
    return bool(entries) and parse_id(entries[0][0].decode()) in (position, after(position))


def _query_page(layout: Layout, cursors: Mapping[int, StreamID], end: Cursor) -> Query[dict[int, Any]]:
    commands = [
        ("XRANGE", layout.keys[number].stream, "{}-{}".format(*position), "{}-{}".format(*end[number]), "COUNT", _PAGE)
        for number, position in cursors.items()
    ]
    return Query(commands, lambda replies: dict(zip(list(cursors), map(raise_on_error, replies), strict=True)))


def _touch(changed: Changes, metrics: frozenset[str], id_: bytes, fields: Any) -> None:
    try:
        payload = decode(fields, int(id_.partition(b"-")[0]))
    except (CodecError, EventError):
        return  # the worker dead-letters this entry, so it changes no counter
    for group in payload.groups:
        if group.metric not in metrics:
            continue
        subjects = changed[group.metric]
        subjects.update(group.ones)
        subjects.update(group.counts)
        subjects.update(group.sums)
    for single in payload.singles:
        if single.metric in metrics:
            changed[single.metric].add(single.subject)
    for reset in payload.resets:
        if reset.metric in metrics:
            changed[reset.metric].add(reset.subject)
