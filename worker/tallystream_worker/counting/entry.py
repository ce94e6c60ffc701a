"""One entry of a stream, as a worker has it in hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream.wire.codec import received_of

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Entry:
    """One stream entry as fetched; `deliveries` is how often it has been handed to a worker."""

    id: str
    fields: Mapping[bytes, bytes]
    deliveries: int = 1

    @property
    def received(self) -> int:
        """The millisecond at which the server took the entry: its clock, and it never changes."""
        return received_of(self.id, self.fields)
