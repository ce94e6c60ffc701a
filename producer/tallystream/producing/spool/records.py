"""The records in the segments of a spool: events, and the plans by which they become entries."""

from __future__ import annotations

from typing import Final

import msgspec

from tallystream.producing.buffer import Event
from tallystream.producing.gate import START
from tallystream.storage.keys import FIRST_TOPIC

EVENT: Final = 1
"""Kind of a record: an event."""
STATE: Final = 2
"""Kind of a record: a `QueueState`."""
PLAN: Final = 3
"""Kind of a record: an `EntryPlan`."""
RENAME: Final = 4
"""Kind of a record: a `QueueRename`."""
SWITCH: Final = 5
"""Kind of a record: a `TopicSwitch`."""


class QueueState(msgspec.Struct, array_like=True):
    """Record of the queues at one position of the spool.

    Attributes:
        namespace: Namespace of the deployment.
        planned_to: Position up to which the events are planned.
        names: By partition, the name of its queue.
        sequences: By partition, the last sequence that was given to an entry; 0 if there is none.
        topic: The number of the topic that the queues belong to.
        since: By partition, a stream ID that no entry of its queue precedes; an empty list if none is known.
    """

    namespace: str
    planned_to: int
    names: list[str]
    sequences: list[int]
    topic: int = FIRST_TOPIC
    since: list[str] = []


class EntryPlan(msgspec.Struct, array_like=True):
    """Record of a plan: the events between the positions `start` and `end` become the entries of `entries`.

    Events that a closed topic already has are not in them: see `left`.

    Attributes:
        start: Position at which the events begin; records of other kinds may be between them.
        end: Position after the last record.
        entries: Partition, sequence and number of events of each entry; empty until a plan made for an earlier topic
            is sealed for the present one.
        left: For each closed topic that the plan was sealed for, the events that it does not have: its number of
            partitions, the partitions whose events it lacks, and the `turn` and `spread` of the plan there.
        turn: Partition of the spread events.
        spread: Metrics whose events are spread.
    """

    start: int
    end: int
    entries: list[tuple[int, int, int]]
    left: list[tuple[int, list[int], int, list[str]]] = []
    turn: int = 0
    spread: list[str] = []


class QueueRename(msgspec.Struct, array_like=True):
    """Record of a queue's new name: sequence `base + 1` becomes 1, and earlier entries are not sent any more.

    Attributes:
        partition: Partition of the queue.
        name: The new name.
        base: The last sequence under the old name that is not sent again.
        since: A stream ID that no entry of the new name precedes.
    """

    partition: int
    name: str
    base: int
    since: str = START


class TopicSwitch(msgspec.Struct, array_like=True):
    """Record of a move to another topic.

    Attributes:
        topic: The number of the topic that is appended to from now on.
        names: By partition of the new topic, the name of its queue.
        sequences: By partition of the new topic, the last sequence of the entries that are sent before those of the
            plans, which `Spool.seal` packs again; 0 if there are none.
        lasts: By partition of the closed topic, the last sequence that it has of the partition's queue.
        since: By partition of the new topic, a stream ID that no entry of its queue precedes; an empty list if none is
            known.
    """

    topic: int
    names: list[str]
    sequences: list[int]
    lasts: list[int]
    since: list[str] = []


encode: Final = msgspec.msgpack.Encoder().encode
"""Return the body of a record of any kind, in MessagePack."""
read_event: Final = msgspec.msgpack.Decoder(Event).decode
"""Return the event in the body of an `EVENT` record."""
read_state: Final = msgspec.msgpack.Decoder(QueueState).decode
"""Return the `QueueState` in the body of a `STATE` record."""
read_plan: Final = msgspec.msgpack.Decoder(EntryPlan).decode
"""Return the `EntryPlan` in the body of a `PLAN` record."""
read_rename: Final = msgspec.msgpack.Decoder(QueueRename).decode
"""Return the `QueueRename` in the body of a `RENAME` record."""
read_switch: Final = msgspec.msgpack.Decoder(TopicSwitch).decode
"""Return the `TopicSwitch` in the body of a `SWITCH` record."""
