"""The entry of a stream that a worker has fetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream.wire.codec import received_of

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
        """The millisecond, on the server's clock, at which the entry was first appended; it never changes.

        A repartition copies entries: a copy has the time of its original.
        """
        return received_of(self.id, self.fields)
