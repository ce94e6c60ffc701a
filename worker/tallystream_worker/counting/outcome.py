"""The result of an applied batch: a value that metrics and logs subscribe to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.wire.codec import Payload
    from tallystream_worker.counting.fold_result import FoldResult


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One batch that was applied.

    Attributes:
        partition: The number of its partition.
        entries: Stream entries that it settled.
        counted: By metric, the events counted.
        dead: By reason, the events that became dead letters.
        keys: Counters that it touched.
        seconds: How long the script call took, network included.
        stale: How often the batch was stale before, and was folded again.
        sample: The events of one of the entries.
    """

    partition: int
    entries: int
    counted: Mapping[str, int]
    dead: Mapping[str, int]
    keys: int
    seconds: float
    stale: int
    sample: Payload | None = None

    @property
    def events(self) -> int:
        """Events settled in all."""
        return sum(self.counted.values()) + sum(self.dead.values())


BatchSubscriber = Callable[[BatchResult], None]


def batch_result(partition: int, batch: FoldResult, seconds: float) -> BatchResult:
    """Return the result of a batch whose script call took some seconds."""
    dead: Counter[str] = Counter()
    for part in batch.dead:
        dead[part.reason] += part.events
    return BatchResult(
        partition,
        len(batch.entries),
        dict(batch.settled),
        dead,
        batch.batch.counters,
        seconds,
        batch.conflicts,
        batch.sample,
    )


def publish(result: BatchResult, subscribers: Iterable[BatchSubscriber], on_error: Callable[[Exception], None]) -> None:
    """Call each subscriber with a result.

    The batch is counted, whatever a subscriber does: its error is handed to `on_error`, and never raised.
    """
    for subscriber in subscribers:
        try:
            subscriber(result)
        except Exception as error:  # noqa: BLE001  # any bug: it must not look like a batch that failed
            on_error(error)


def log_subscriber_error(error: Exception) -> None:
    """Write an error of a subscriber to the log."""
    structlog.get_logger().error("subscriber.failed", problem=f"{type(error).__name__}: {error}", exc_info=error)
