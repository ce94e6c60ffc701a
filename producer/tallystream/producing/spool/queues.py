"""What the records of a spool add up to: the queues of its entries, and the plans that are sealed before anything new.

Nothing here reads or writes a file, so a spool that is written and one that is read back change in the same way.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tallystream.producing.partition_queue import new_name
from tallystream.producing.spool import records
from tallystream.storage.keys import FIRST_TOPIC

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.storage.keys import Layout


class SpoolQueues:
    """One queue for each partition, as the gates in the server see it. Not safe across threads: the spool locks."""

    def __init__(self) -> None:
        self.topic = FIRST_TOPIC
        self.names: list[str] = []
        """The queues' names, by partition; none before the partitions are known."""
        self.sequences: list[int] = []
        """By partition, the last sequence that was given out."""
        self.planned: deque[records.EntryPlan] = deque()
        """Plans of a dead process, and plans that are made again because the log goes on in another one."""

    def begin(self, layout: Layout) -> None:
        """Begin a new queue for each partition."""
        self.names = [new_name() for _ in layout.keys]
        self.sequences = [0] * layout.partitions
        self.topic = layout.topic

    def state(self, namespace: str, planned_to: int) -> records.QueueState:
        """Return the record from which a reader of the files that follow begins."""
        return records.QueueState(namespace, planned_to, self.names, self.sequences, self.topic)

    def restore(self, state: records.QueueState) -> None:
        """Take the queues of a state record."""
        self.names, self.sequences, self.topic = state.names, state.sequences, state.topic

    @property
    def confirmed_sequences(self) -> list[int]:
        """By partition, the sequence before the first that is to be sent."""
        first = list(self.sequences)
        for plan in reversed(self.planned):
            for partition, sequence, _ in plan.entries:
                if sequence > 0:
                    first[partition] = sequence - 1
        return first

    def give_out(self, plan: records.EntryPlan) -> None:
        """Remember the sequences of a plan's entries."""
        for partition, sequence, _ in plan.entries:
            self.sequences[partition] = sequence

    def rename(self, rename: records.QueueRename, sealed: Iterable[records.EntryPlan] = ()) -> None:
        """Begin a queue again under another name, in the plans that are sealed and in those that are not."""
        self.names[rename.partition] = rename.name
        self.sequences[rename.partition] -= rename.base
        for plan in (*sealed, *self.planned):
            plan.entries = [(p, s - rename.base if p == rename.partition else s, n) for p, s, n in plan.entries]

    def switch(self, switch: records.TopicSwitch) -> None:
        """Go on in another log: leave of each plan what the closed log has not taken, to be planned again."""
        partitions = len(self.names)
        self.topic, self.names, self.sequences = switch.topic, switch.names, switch.sequences
        planned, self.planned = self.planned, deque()
        for plan in planned:
            if not plan.entries:  # it came from yet another log, and nothing of it was sent to this one
                self.planned.append(plan)
            elif left := [partition for partition, sequence, _ in plan.entries if sequence > switch.lasts[partition]]:
                left_in = (partitions, left, plan.turn, plan.spread)
                self.planned.append(records.EntryPlan(plan.start, plan.end, [], [*plan.left, left_in]))
