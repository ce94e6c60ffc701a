"""Recovers the spool of a dead process: claims its segments, and reads its queues and plans back to continue them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tallystream.errors import SpoolError
from tallystream.producing.spool import records
from tallystream.producing.spool.queues import SpoolQueues
from tallystream.producing.spool.segments import MAX_BODY, SegmentedLog

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Recovered:
    """The state that was read back from the segments of a dead process.

    Attributes:
        queues: The queues, with the plans whose entries are not known to be confirmed.
        planned_to: Position up to which the events are planned.
        confirmed_to: Position up to which all events are known to be confirmed: those in removed files, and the other
            events of a plan that begins in one.
        events: Number of events after `confirmed_to`; the server may have some of them.
        events_to: Position after the last event.
    """

    queues: SpoolQueues
    planned_to: int
    confirmed_to: int
    events: int
    events_to: int


def orphaned_segments(spool: Path, known: Collection[str] = ()) -> Iterator[SegmentedLog]:
    """Claim (lock) and yield the segments of each dead process in a spool folder, except folders named in `known`.

    Segments are locked only when the caller takes them from the iterator; the caller must close them. Folders without a
    file for records are left out. If `spool` is not a folder, nothing is yielded.

    Raises:
        OSError: the folder cannot be listed.
    """
    for folder in sorted(spool.iterdir()) if spool.is_dir() else ():
        if folder.name not in known and folder.is_dir() and (segments := SegmentedLog.claim(folder)) is not None:
            yield segments


def recover(segments: SegmentedLog, namespace: str) -> Recovered:
    """Read the records of a dead process back; end `segments` after the last whole record, without changing files.

    Raises:
        SpoolError: the records are of another namespace; or a record is damaged, and there are more than 64 KiB from
            its first byte to the end (up to 64 KiB are taken for a record that the process did not write completely,
            and left out); or a whole record cannot be decoded, or is about queues whose names are missing.
        OSError: a file cannot be read.
    """
    queues = SpoolQueues()
    at = planned_to = confirmed_to = events_to = segments.start
    for kind, body, after in segments.read(segments.start, segments.end):
        if kind in (records.PLAN, records.RENAME, records.SWITCH) and not queues.names:
            raise _damage(segments, at, "the names of the queues are missing")
        try:
            if kind == records.EVENT:
                events_to = after
            elif kind == records.STATE:
                state = records.read_state(body)
                if state.namespace != namespace:
                    raise SpoolError(f"{segments.folder} has events of namespace {state.namespace}, not {namespace}")
                if not queues.names:
                    queues.restore(state)
            elif kind == records.PLAN:
                plan = records.read_plan(body)
                planned_to = max(planned_to, plan.end)
                if not _take(queues, plan, segments.start):
                    confirmed_to = max(confirmed_to, plan.end)
            elif kind == records.RENAME:
                queues.rename(records.read_rename(body))
            elif kind == records.SWITCH:
                queues.switch(records.read_switch(body))
        except msgspec.DecodeError as error:
            raise _damage(segments, at, f"a record cannot be decoded ({error})") from None
        at = after
    if segments.end - at > MAX_BODY:
        raise _damage(segments, at, "a record is not whole")
    segments.end_at(at)
    events = sum(kind == records.EVENT for kind, _, _ in segments.read(confirmed_to, at))
    return Recovered(queues, max(confirmed_to, planned_to), confirmed_to, events, events_to)


def _take(queues: SpoolQueues, plan: records.EntryPlan, start: int) -> bool:
    """Take over a plan that was read: set the last sequences of its queues, and add it to the plans to pack again.

    A plan that was made again for another topic replaces the earlier one. Any other plan that begins before position
    `start` is not added: its events were removed, because all its entries are confirmed. Then return `False`, otherwise
    `True`.
    """
    queues.give_out(plan)
    again = next((each for each in queues.planned if not each.entries and each.start == plan.start), None)
    if again is not None:
        again.entries, again.turn, again.spread = plan.entries, plan.turn, plan.spread
    elif plan.start >= start:
        queues.planned.append(plan)
    return again is not None or plan.start >= start


def _damage(segments: SegmentedLog, position: int, what: str) -> SpoolError:
    return SpoolError(f"{segments.folder} is damaged at position {position:,}: {what}; inspect it; it is not delivered")
