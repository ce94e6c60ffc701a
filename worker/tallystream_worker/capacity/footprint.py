"""Lists the server memory that each rule of a metric needs, for `tallystream check` and `tallystream plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.rules.batch import id_period_kept
from tallystream.rules.parts import board_length
from tallystream.rules.windows import id_length, id_period
from tallystream.wire.window import DAY, HOUR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.rules.metrics import Metric
    from tallystream_worker.capacity.costs import MemoryCosts

SKETCH_BYTES: Final = 2.5 * 2**20
"""Bytes that are planned for a Count-Min Sketch in one partition, as a maximum."""

UNIQUE_BYTES: Final = 12_336
"""Maximum bytes of a HyperLogLog; it has them from a few thousand actors on."""


PERIOD_BYTES: Final = 110
"""Bytes of the member of `periods` that registers one key of votes or unique actors: see decision 0039."""

_REMOVED: Final = 3 * HOUR
"""Seconds within which the scripts remove the state of a period after they may remove it, if entries are counted."""


@dataclass(frozen=True)
class MemoryPart:
    """The memory of one rule of a metric.

    Attributes:
        name: A name for people, different for each part of a metric.
        subject: Bytes for each subject that is active in a bucket.
        actor: Bytes for each actor of a subject in a bucket.
        most: Maximum bytes of all actors of a subject in a bucket; infinity if there is no maximum.
        partition: Bytes for each partition and bucket, independent of the number of subjects.
        window: The length of a bucket, such as `hour` or `30d`; `None` if there is one bucket for all time.
        kept: Seconds for which a bucket is kept after its end; `None` if it is kept without limit. It has no meaning if
            `window` is `None`.
        detail: More for people; may be empty.
    """

    name: str
    subject: float = 0.0
    actor: float = 0.0
    most: float = float("inf")
    partition: float = 0.0
    window: str | None = None
    kept: int | None = None
    detail: str = ""

    @property
    def text(self) -> str:
        """The name and the detail."""
        return f"{self.name}, {self.detail}" if self.detail else self.name


def parts(metric: Metric, memory: MemoryCosts) -> Iterator[MemoryPart]:
    """Yield the memory of each rule of a metric, at the given costs.

    Alerts, and the sketch of a metric with `max_subjects`, are not included. A metric with `exact = false` has only the
    parts of its sketch and its ids. The memory of a leaderboard is in the part of its total, window or sketch. The
    parts of `top`, of `floor` and of ids, whose number is not known, are only texts, with the memory 0.
    """
    board = memory.member * board_length(metric.top)
    if not metric.exact:
        name, detail = "sketch of 1 MiB for each partition", "any number of subjects"
        yield MemoryPart(name, partition=SKETCH_BYTES + board, detail=detail)
        yield from _ids(metric, memory)
        return
    yield MemoryPart("total", memory.total, partition=board)
    for window in metric.windows:
        stated = metric.retention.get(window)
        name = f"{window}s" + (f" for {stated}" if stated else "")
        yield MemoryPart(name, memory.field, partition=board, window=window, kept=metric.retention_seconds(window))
    if metric.top:
        yield MemoryPart(f"top {metric.top}")
    if metric.limit is not None:
        name = f"limit {metric.limit:,} per {metric.per}"
        length = None if metric.per == "total" else metric.per
        yield MemoryPart(name, memory.field, window=length, kept=_state_kept(metric))
    if metric.once is not None:
        name, detail = f"a vote per actor ({metric.once})", f"{memory.vote:.0f} bytes each"
        period = None if metric.once == "forever" else metric.once
        of_subject = memory.votes + (PERIOD_BYTES if period is not None else 0)
        yield MemoryPart(name, of_subject, memory.vote, window=period, kept=_state_kept(metric), detail=detail)
    if metric.unique is not None:
        name, detail, window = f"unique actors by {metric.unique}", "up to 12 KiB", metric.unique
        kept = metric.retention_seconds(metric.unique)
        of_subject = memory.unique + (PERIOD_BYTES if kept is not None else 0)
        most = UNIQUE_BYTES + PERIOD_BYTES
        yield MemoryPart(name, of_subject, memory.actor, most=most, window=window, kept=kept, detail=detail)
    yield from _ids(metric, memory)
    if metric.floor is not None:
        yield MemoryPart(f"shown from {metric.floor}")


def _state_kept(metric: Metric) -> int | None:
    """Return for how many seconds after its end a period of a limit or of votes is kept at most, for a plan.

    `None` if it is never removed. It is kept longer if no entries are counted.
    """
    return None if metric.late_seconds is None else metric.late_seconds + _REMOVED


def _ids(metric: Metric, memory: MemoryCosts) -> Iterator[MemoryPart]:
    """Yield one part for the ids of a metric; nothing if the metric keeps no ids.

    Only its name and detail are set: they state the bytes of an id, or of a Bloom filter. The number of ids is not
    known.
    """
    if not metric.keeps_ids or metric.ids is None:
        return
    kept = id_period_kept(metric, id_period(metric.ids, 0))
    length = id_length(metric.ids)
    if metric.seen == "bloom":
        periods = "each period" if kept == 0 else f"each of {-(-kept // 1000 // length)} periods"
        yield MemoryPart(
            "ids in a Bloom filter",
            detail=f"an approximation: 1 to 3 MiB for {periods} in each partition; with 400,000 ids in a period, 1 new "
            "event in 3,300 is taken for a copy",
        )
        return
    time = "forever" if kept == 0 else f"for up to {_span(kept // 1000)}"
    yield MemoryPart("ids", detail=f"{memory.id:.0f} bytes for each event that has one, {time}")


def _span(seconds: int) -> str:
    """Return a number of seconds, at least 2, as text in whole days, hours or seconds, rounded up.

    A unit is used from more than one of it: exactly a day is `24 hours`, and exactly an hour is `3600 seconds`.
    """
    unit, name = next((unit, name) for unit, name in ((DAY, "days"), (HOUR, "hours"), (1, "seconds")) if seconds > unit)
    return f"{-(-seconds // unit)} {name}"
