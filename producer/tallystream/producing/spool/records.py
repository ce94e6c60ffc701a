"""What a spool writes into its segments: events, and the plans by which they become entries."""

from __future__ import annotations

from typing import Final

import msgspec

from tallystream.producing.buffer import Event
from tallystream.storage.keys import FIRST_TOPIC

EVENT: Final = 1
STATE: Final = 2
PLAN: Final = 3
RENAME: Final = 4
SWITCH: Final = 5


class QueueState(msgspec.Struct, array_like=True):
    """The queues at this point: names, and the sequences given out.

    `planned_to` is the position up to which there are plans.
    """

    namespace: str
    planned_to: int
    names: list[str]
    sequences: list[int]
    topic: int = FIRST_TOPIC


class EntryPlan(msgspec.Struct, array_like=True):
    """The events from `start` to `end` are sealed: partition, sequence and number of events of each entry.

    What may be counted anywhere, which is what is `spread`, went to the partition `turn`.

    `left` says which of them a closed log has not taken: for each such log the number of its partitions, those that are
    left, and its `turn` and `spread`. Until they are sealed for partitions of the present one, there are no entries.
    """

    start: int
    end: int
    entries: list[tuple[int, int, int]]
    left: list[tuple[int, list[int], int, list[str]]] = []
    turn: int = 0
    spread: list[str] = []


class QueueRename(msgspec.Struct, array_like=True):
    """The queue begins again: sequence `base + 1` is 1 from here on, what came before is not sent any more."""

    partition: int
    name: str
    base: int


class TopicSwitch(msgspec.Struct, array_like=True):
    """The log goes on in log `log`: its queues' names and first sequences, and the last ones in the log before."""

    topic: int
    names: list[str]
    sequences: list[int]
    lasts: list[int]


encode: Final = msgspec.msgpack.Encoder().encode
read_event: Final = msgspec.msgpack.Decoder(Event).decode
read_state: Final = msgspec.msgpack.Decoder(QueueState).decode
read_plan: Final = msgspec.msgpack.Decoder(EntryPlan).decode
read_rename: Final = msgspec.msgpack.Decoder(QueueRename).decode
read_switch: Final = msgspec.msgpack.Decoder(TopicSwitch).decode
