"""Packs the events of a plan: the same plan makes the same entries in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.errors import SpoolError
from tallystream.producing.buffer import partition_for
from tallystream.producing.spool import records
from tallystream.wire.packer import EntryBuilder

if TYPE_CHECKING:
    from tallystream.producing.spool.segments import SegmentedLog


def pack(
    segments: SegmentedLog, plan: records.EntryPlan, partitions: int, limits: tuple[int, int] | None
) -> tuple[dict[int, EntryBuilder], int, int]:
    """Pack the events of a plan by partition, except those that a closed topic already has (`EntryPlan.left`).

    Args:
        segments: Segments with the events.
        plan: Plan that selects the events.
        partitions: Number of partitions.
        limits: Numbers of events and of bytes: stop as soon as one entry has reached either. `None` packs the whole
            plan.

    Returns:
        The packs by partition (none for a partition without events), the position after the last record that was read
        (`plan.start` if there was none), and the number of packed events. Records of other kinds are read and left out.

    Raises:
        SpoolError: a record is damaged. With `limits`, this is raised only if no event is before it.
        OSError: a file cannot be read.
    """
    packs: dict[int, EntryBuilder] = {}
    at, events = plan.start, 0
    for kind, body, after in segments.read(plan.start, plan.end):
        at = after
        if kind != records.EVENT:
            continue
        event = records.read_event(body)
        if any(partition_for(event, of, spread, turn) not in left for of, left, turn, spread in plan.left):
            continue
        partition = partition_for(event, partitions, plan.spread, plan.turn)
        entry = packs.get(partition)
        if entry is None:
            entry = packs[partition] = EntryBuilder()
        entry.add(*event)
        events += 1
        if limits is not None and (entry.events >= limits[0] or entry.size >= limits[1]):
            break
    else:
        if at < plan.end and (limits is None or not events):
            raise SpoolError(
                f"{segments.folder} is damaged at position {at:,}: the events from there on are kept, but cannot be "
                "sent; inspect it"
            )
    return packs, at, events
