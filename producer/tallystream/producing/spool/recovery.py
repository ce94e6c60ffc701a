"""What a dead process has left in a spool: it is claimed, read back, and sent as its owner would have sent it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream.errors import SpoolError
from tallystream.producing.spool import records
from tallystream.producing.spool.queues import SpoolQueues
from tallystream.producing.spool.segments import MAX_BODY, SegmentedLog

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Recovered:
    """What was read back.

    Attributes:
        queues: The queues, with the plans whose entries are not all confirmed.
        planned_to: Position up to which events are in a plan.
        confirmed_to: Position up to which all is confirmed.
        events: Events after that position.
    """

    queues: SpoolQueues
    planned_to: int
    confirmed_to: int
    events: int


def orphaned_segments(spool: Path, known: Collection[str] = ()) -> Iterator[SegmentedLog]:
    """Claim, one by one, the folders whose owners have died; not those whose names are `known`."""
    for folder in sorted(spool.iterdir()) if spool.is_dir() else ():
        if folder.name not in known and folder.is_dir() and (segments := SegmentedLog.claim(folder)) is not None:
            yield segments


def recover(segments: SegmentedLog, namespace: str) -> Recovered:
    """Read back what a dead process has written, up to its last whole record; what is torn behind it is cut off.

    Raises:
        SpoolError: it is of another namespace, or damaged.
    """
    queues = SpoolQueues()
    at = planned_to = confirmed_to = segments.start
    for kind, body, after in segments.read(segments.start, segments.end):
        at = after
        if kind == records.STATE:
            state = records.read_state(body)
            if state.namespace != namespace:
                raise SpoolError(f"{segments.folder} holds events of {state.namespace}, not {namespace}")
            if not queues.names:
                queues.restore(state)
        elif kind == records.PLAN:
            plan = records.read_plan(body)
            queues.give_out(plan)
            planned_to = max(planned_to, plan.end)
            again = next((each for each in queues.planned if not each.entries and each.start == plan.start), None)
            if again is not None:
                again.entries, again.turn, again.spread = plan.entries, plan.turn, plan.spread
            elif plan.start >= segments.start:
                queues.planned.append(plan)
            else:  # its first events are gone: they were removed because all of it was confirmed
                confirmed_to = max(confirmed_to, plan.end)
        elif kind == records.RENAME:
            queues.rename(records.read_rename(body))
        elif kind == records.SWITCH:
            queues.switch(records.read_switch(body))
    if segments.end - at > MAX_BODY:
        raise SpoolError(f"{segments.folder} is damaged at position {at:,}: look at it before it is delivered")
    segments.end_at(at)
    events = sum(kind == records.EVENT for kind, _, _ in segments.read(confirmed_to, at))
    return Recovered(queues, max(confirmed_to, planned_to), confirmed_to, events)
