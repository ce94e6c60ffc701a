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
        deliveries: How often the group has delivered the entry to a worker; 1 if this is not known.
    """

    id: str
    fields: Mapping[bytes, bytes]
    deliveries: int = 1

    @property
    def received(self) -> int:
        """The millisecond (since 1970) at which the server received the entry, as far as is known; it never changes.

        It is the time that the entry states, or, if it states no valid one, that of `id_time`, and never later than
        `id_time`. A copy that a repartition made has the time of its original.
        """
        return received_of(self.id, self.fields)

    @property
    def id_time(self) -> int:
        """The millisecond of the stream ID, or, of a copy that a repartition made, of the original's ID.

        It never changes, and is never earlier than `received`.
        """
        return id_time_of(self.id, self.fields)
