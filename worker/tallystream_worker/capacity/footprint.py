"""Lists the server memory that each rule of a metric needs, for `tallystream check` and `tallystream plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.rules.batch import board_length

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.rules.metrics import Metric
    from tallystream_worker.capacity.costs import MemoryCosts

SKETCH_BYTES: Final = 2.5 * 2**20
"""Bytes that are planned for a Count-Min Sketch in one partition, as a maximum."""

UNIQUE_BYTES: Final = 12_336
"""Maximum bytes of a HyperLogLog; it has them from a few thousand actors on."""


@dataclass(frozen=True)
class MemoryPart:
    """The memory of one rule of a metric.

    Attributes:
        text: A description for people.
        subject: Bytes for each subject that is active in a bucket.
        actor: Bytes for each actor of a subject in a bucket.
        most: Maximum bytes of all actors of a subject in a bucket.
        partition: Bytes for each partition and bucket, independent of the number of subjects.
        window: The length of a bucket, such as `hour` or `30d`; `None` if there is one bucket for all time.
        kept: Seconds for which a bucket is kept after its end; `None` if it is kept without limit.
    """

    text: str
    subject: float = 0.0
    actor: float = 0.0
    most: float = float("inf")
    partition: float = 0.0
    window: str | None = None
    kept: int | None = None


def parts(metric: Metric, memory: MemoryCosts) -> Iterator[MemoryPart]:
    """Yield the memory of each rule of a metric, at the given costs.

    A metric with `exact = false` has only its sketch. The memory of a leaderboard is in the part of its total or
    window, and a part without figures is only a text: `top`, `floor`, and ids in a Bloom filter. Exact ids are not
    included.
    """
    board = memory.member * board_length(metric.top)
    if not metric.exact:
        yield MemoryPart("sketch of 1 MiB for each partition, any number of subjects", partition=SKETCH_BYTES + board)
        return
    yield MemoryPart("total", memory.total, partition=board)
    for window in metric.windows:
        stated = metric.retention.get(window)
        text = f"{window}s" + (f" for {stated}" if stated else "")
        yield MemoryPart(text, memory.field, partition=board, window=window, kept=metric.retention_seconds(window))
    if metric.top:
        yield MemoryPart(f"top {metric.top}")
    if metric.limit is not None:
        text = f"limit {metric.limit:,} per {metric.per}"
        yield MemoryPart(
            text, memory.field, window=None if metric.per == "total" else metric.per, kept=metric.late_seconds
        )
    if metric.once is not None:
        text = f"a vote per actor ({metric.once}), {memory.vote:.0f} bytes each"
        period = None if metric.once == "forever" else metric.once
        yield MemoryPart(text, memory.votes, memory.vote, window=period, kept=metric.late_seconds)
    if metric.unique is not None:
        text = f"unique actors by {metric.unique}, up to 12 KiB"
        kept = metric.retention_seconds(metric.unique)
        yield MemoryPart(text, memory.unique, memory.actor, most=UNIQUE_BYTES, window=metric.unique, kept=kept)
    if metric.ids is not None and metric.seen == "bloom":
        yield MemoryPart(
            f"ids of a {metric.ids} in a Bloom filter, an approximation: 1 to 3 MiB for each partition; "
            "with 400,000 ids, 1 new event in 6,600 is taken for a copy"
        )
    if metric.floor is not None:
        yield MemoryPart(f"shown from {metric.floor}")
