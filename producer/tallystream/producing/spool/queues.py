"""The state that the records of a spool add up to: the queues of its entries, and the plans to seal before new events.

This module reads and writes no files: writing a record and reading it back change the state in the same way.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tallystream.producing.gate import SPOOL, START
from tallystream.producing.partition_queue import new_name
from tallystream.producing.spool import records
from tallystream.storage.keys import FIRST_TOPIC

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tallystream.storage.keys import Layout


class SpoolQueues:
    """Holds the name and the last sequence of each partition's queue, and the plans whose entries must be packed again.

    A plan (`EntryPlan`) states which spooled events become which entries. Plans to pack again (to seal) are those of a
    dead process, and those that must be made again for another topic. `restore` sets the queues from a state, such as
    one of `new_state`; `give_out`, `rename` and `switch` change them as a plan, a rename or a switch record states.
    This class makes no plans and packs nothing. Not safe across threads: the spool locks.
    """

    def __init__(self) -> None:
        self.topic = FIRST_TOPIC
        """The topic that the queues belong to."""
        self.names: list[str] = []
        """The name of each partition's queue; empty before the partitions are known."""
        self.sequences: list[int] = []
        """By partition, the last sequence that a planned entry has."""
        self.since: list[str] = []
        """By partition, a stream ID that no entry of the queue precedes."""
        self.planned: deque[records.EntryPlan] = deque()
        """Plans of a dead process, and plans that must be made again for another topic; oldest first."""

    def state(self, namespace: str, planned_to: int) -> records.QueueState:
        """Return the record of the present queues, without the plans; the caller begins each new file with one.

        `planned_to` is the position up to which the events are planned. The record shares the lists of this object.
        """
        return records.QueueState(namespace, planned_to, self.names, self.sequences, self.topic, self.since)

    def restore(self, state: records.QueueState) -> None:
        """Replace the names, sequences, topic and `since` by those of a state record.

        If `state.since` is empty, `since` becomes `0-0` for each partition. `planned` does not change, and
        `state.planned_to` is ignored: recovery finds the plans in the plan records.
        """
        self.names, self.sequences, self.topic = state.names, state.sequences, state.topic
        self.since = state.since or [START] * len(state.names)

    @property
    def sequences_before_plans(self) -> list[int]:
        """By partition, the sequence before that of its first entry in `planned`.

        A partition without an entry there has its value of `sequences`. Entries with the sequence 0 or lower are left
        out: after a `rename`, they are not sent. Entries in flight, and the entries that are sent before the planned
        ones after a `switch`, have the returned sequence or a lower one.
        """
        first = list(self.sequences)
        for plan in reversed(self.planned):
            for partition, sequence, _ in plan.entries:
                if sequence > 0:
                    first[partition] = sequence - 1
        return first

    def give_out(self, plan: records.EntryPlan) -> None:
        """For each entry of a plan, set the last sequence of its partition's queue to the sequence of the entry.

        Queues without an entry in the plan do not change.
        """
        for partition, sequence, _ in plan.entries:
            self.sequences[partition] = sequence

    def rename(self, rename: records.QueueRename, sealed: Iterable[records.EntryPlan] = ()) -> None:
        """Set the name and `since` of a queue; lower its sequences by `base`, also in the plans `sealed` and `planned`.

        The plans are changed in place. An entry whose sequence is then 0 or lower must not be sent any more.
        """
        self.names[rename.partition] = rename.name
        self.since[rename.partition] = rename.since
        self.sequences[rename.partition] -= rename.base
        for plan in (*sealed, *self.planned):
            plan.entries = [(p, s - rename.base if p == rename.partition else s, n) for p, s, n in plan.entries]

    def switch(self, switch: records.TopicSwitch) -> None:
        """Replace the queues by those of another topic; reduce the plans to the events that the closed topic lacks.

        The closed topic lacks the entries of `planned` after `switch.lasts`. A plan with such entries stays, but with
        no entries: it must be sealed again. A plan of which the closed topic has all entries is dropped, and
        one that had no entries before does not change.
        """
        partitions = len(self.names)
        self.topic, self.names, self.sequences = switch.topic, switch.names, switch.sequences
        self.since = switch.since or [START] * len(switch.names)
        planned, self.planned = self.planned, deque()
        for plan in planned:
            if not plan.entries:  # from an earlier topic still, and never sent to the closed one
                self.planned.append(plan)
            elif left := [partition for partition, sequence, _ in plan.entries if sequence > switch.lasts[partition]]:
                left_in = (partitions, left, plan.turn, plan.spread)
                self.planned.append(records.EntryPlan(plan.start, plan.end, [], [*plan.left, left_in]))


def new_state(namespace: str, planned_to: int, layout: Layout, since: Sequence[str] = ()) -> records.QueueState:
    """Return the record of a new queue for each partition of a layout: a new name each, and no entries.

    `since` has, by partition, a stream ID that no entry of the new queue precedes; if it is empty, each is `0-0`.
    """
    names = [new_name(SPOOL) for _ in layout.keys]
    begun = list(since) or [START] * layout.partitions
    return records.QueueState(namespace, planned_to, names, [0] * layout.partitions, layout.topic, begun)
