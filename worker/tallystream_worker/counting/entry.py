"""The entry of a stream that a worker has fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream.wire.codec import id_time_of, received_of

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Entry:
    """A fetched stream entry.

    Attributes:
        id: The stream ID.
        fields: The fields of the entry; empty if the entry was trimmed while it was pending.
        deliveries: How often the group has delivered the entry to a worker.
    """

    id: str
    fields: Mapping[bytes, bytes]
    deliveries: int = 1

    @property
    def received(self) -> int:
        """The millisecond, by the server's clock, at which the entry was first appended; it never changes.

        It is the time that the entry states, or, if it states no valid one, that of `id_time`, and never later than
        `id_time`. A copy that a repartition made has the time of its original.
        """
        return received_of(self.id, self.fields)

    @property
    def id_time(self) -> int:
        """The millisecond of the stream ID, or of the original's if the entry is a copy; it never changes.

        It is never earlier than `received`. It is later if the entry states an earlier time than that of its stream
        ID, which it does if the server's clock was set back before a script of tallystream appended it.
        """
        return id_time_of(self.id, self.fields)
