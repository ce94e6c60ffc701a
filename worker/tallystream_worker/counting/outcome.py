"""The result of an applied batch: the value that metrics and other subscribers are called with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from tallystream.client.error_text import named_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.wire.codec import Payload
    from tallystream_worker.counting.fold_result import FoldResult


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The figures of one applied batch.

    Attributes:
        partition: The number of its partition.
        entries: The number of stream entries that the batch settled.
        counted: By metric, the number of events whose deltas were in the batch. The script may have rejected some of
            them by a limit, a vote or an id.
        dead: By reason, the number of events that became dead letters.
        keys: The estimated cost of the batch, as a number of totals (`Batch.counters`); not a number of keys.
        seconds: How long the script call took; network and the wait for durability are included.
        stale: How often a batch with these entries was stale before, and was folded again.
        sample: The payload of one of the entries, without dropped and retracted events; `None` if there is none.
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
        """The sum of `counted` and `dead`, without retracted events and late events that are not counted."""
        return sum(self.counted.values()) + sum(self.dead.values())


BatchSubscriber = Callable[[BatchResult], None]
"""A function that is called with the result of each applied batch."""


def batch_result(partition: int, batch: FoldResult, seconds: float) -> BatchResult:
    """Return the result of an applied batch of a partition; `seconds` is how long its script call took."""
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
    """Call each subscriber with the result of an applied batch.

    An error of a subscriber is passed to `on_error` and not raised, and the next subscriber is called: the batch is
    counted, whatever a subscriber does. An error of `on_error` is raised.
    """
    for subscriber in subscribers:
        try:
            subscriber(result)
        except Exception as error:  # noqa: BLE001  # a bug of a subscriber must not look like a failed batch
            on_error(error)


def log_subscriber_error(error: Exception) -> None:
    """Log an exception that a subscriber raised, with its traceback, as the event `subscriber.failed`."""
    structlog.get_logger().error("subscriber.failed", problem=named_text(error), exc_info=error)
