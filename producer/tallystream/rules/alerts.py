"""What is to be noticed: a condition on a counter, declared as `[[alert]]` and published with the rules.

A total or a bucket is looked at where it is counted, in the script that knows the new value; a sum over a range or a
rate also falls as time passes, so a worker looks at those every few seconds. What is noticed is written down, in one
call with the state, as an entry of the partition's outbox: so each crossing is noticed once, whoever counts.
"""

from __future__ import annotations

import fnmatch
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from tallystream.rules.windows import bucket, seconds
from tallystream.wire.event import MAX_AMOUNT, METRIC
from tallystream.wire.window import WINDOWS, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_FIRING: Final = 10_000
"""The most subjects for which one alert fires in one partition; the next fires once another has cleared."""

MAX_OUTBOX: Final = 10_000
"""The most notifications that may wait in one partition; what would add one is noticed once there is room."""

ENDED: Final = "ended"
"""The record of a bucket's alert whose bucket has ended: it neither fires nor can it fire again."""


class Alert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fires for a subject while its value is above (or below) a bound, until it is back at `clear`.

    The value is the total; with `window` the sum in the current bucket, with `over` the sum over a range that ends now,
    with `rate` the events a second over such a range.
    """

    name: str
    metric: str
    subject: str = "*"
    window: Window | None = None
    over: str | None = None
    rate: str | None = None
    above: float | None = None
    below: float | None = None
    clear: float | None = None

    @property
    def span(self) -> str | None:
        """The range over which the value is taken; `None` where it is looked at as it is counted."""
        return self.over or self.rate

    @property
    def bound(self) -> float:
        """The value beyond which it fires."""
        return self.above if self.above is not None else self.below or 0

    @property
    def cleared_at(self) -> float:
        """The value at which it ends."""
        return self.bound if self.clear is None else self.clear

    @property
    def names_one(self) -> bool:
        """Tell whether `subject` is one subject rather than a pattern."""
        return not set("*?[") & set(self.subject)

    def fires(self, value: float) -> bool:
        """Tell whether a value is beyond the bound."""
        return value > self.bound if self.above is not None else value < self.bound

    def clears(self, value: float) -> bool:
        """Tell whether a value ends it."""
        return value <= self.cleared_at if self.above is not None else value >= self.cleared_at

    def matches(self, subject: str) -> bool:
        """Tell whether a subject is watched."""
        return self.subject == "*" or _pattern(self.subject).match(subject) is not None

    def label(self, now: float, zone: str) -> str:
        """Return the bucket that is looked at in second `now`, empty for what has none."""
        return bucket(self.window, int(now) // 60, zone).label if self.window else ""

    def check(self, windows: Sequence[Window]) -> None:
        """Refuse a condition that contradicts itself, or that needs a window which its metric does not keep.

        Raises:
            ValueError: says which setting, and what is allowed.
        """
        if METRIC.fullmatch(self.name) is None:
            raise ValueError("name: must be 1 to 64 of a-z, 0-9, '_', '.', '-', starting with a letter or digit")
        if (self.above is None) == (self.below is None):
            raise ValueError("give either above or below")
        if sum(kind is not None for kind in (self.window, self.over, self.rate)) > 1:
            raise ValueError("give one of window, over and rate, or none for the total")
        if not all(abs(value) <= MAX_AMOUNT for value in (self.bound, self.cleared_at)):
            raise ValueError("above, below and clear must lie within +-(2^53 - 1)")
        if self.above is not None and self.cleared_at > self.above:
            raise ValueError(f"clear: must be at most above, {self.above:g}")
        if self.below is not None and self.cleared_at < self.below:
            raise ValueError(f"clear: must be at least below, {self.below:g}")
        if self.window is not None and self.window not in windows:
            raise ValueError(f"window: {self.metric} keeps {', '.join(windows) or 'none'}")
        if self.window is not None and self.below is not None:
            raise ValueError("below: every bucket begins at 0; take over or rate")
        if self.span is not None:
            length = seconds(self.span)
            if not windows:
                raise ValueError(f"over and rate need windows: declare some in [metric.{self.metric}]")
            finest = next(window for window in WINDOWS if window in windows)
            if length is None or not _SECONDS[finest] <= length <= _LONGEST:
                raise ValueError(f"over, rate: must be from one {finest} (the metric's finest window) to 90d")


_SECONDS: Final = {"minute": 60, "hour": 3600, "day": 86_400, "month": 28 * 86_400}
_LONGEST: Final = 90 * 86_400


@lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))
