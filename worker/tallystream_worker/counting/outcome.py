"""What became of one pass of the loop: a value that logs and metrics subscribe to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystream.wire.codec import Payload


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One batch that was applied.

    Attributes:
        partition: Where.
        entries: Stream entries that it settled.
        counted: By metric, the events counted.
        parked: By reason, the events parked.
        keys: Counters that it touched.
        seconds: How long the script call took, the way there and back included.
        stale: Times that it came too late and was folded again.
        sample: The events of one of the entries.
    """

    partition: int
    entries: int
    counted: Mapping[str, int]
    parked: Mapping[str, int]
    keys: int
    seconds: float
    stale: int
    sample: Payload | None = None

    @property
    def events(self) -> int:
        """Events settled in all."""
        return sum(self.counted.values()) + sum(self.parked.values())


BatchSubscriber = Callable[[BatchResult], None]
