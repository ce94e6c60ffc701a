"""Alerts: conditions on a counter, declared as `[[alert]]` and published with the rules.

The script that counts checks alerts on a total or a bucket, because it has the new value. A sum over a range or a rate
also falls as time passes, so a worker checks those every few seconds. The state of an alert and its notification (an
entry in the outbox of the partition) are written in one call: so each change of state makes one notification, whichever
worker finds it.
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
"""The most subjects that have a state of one alert in one partition; with `window`, in one bucket of the partition.

When there are so many, the alert does not begin to fire for another subject. `ENDED` is a state, too."""

MAX_OUTBOX: Final = 10_000
"""The most notifications that may wait in one partition; at this number, no alert changes state until some leave."""

ENDED: Final = "ended"
"""The state of an alert that still fired for a subject when its bucket ended: it does not fire any more."""


class Alert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A condition that fires for a subject when its value is above (or below) a bound, until it is back at `clear`.

    The value is the total; with `window` the sum in a bucket, with `over` the sum over a range that ends now, with
    `rate` such a sum divided by the seconds of its range. All are sums of amounts. A range begins at the beginning of a
    bucket, so it may be longer than declared. With `window`, each bucket is compared by itself, and the alert also ends
    when a worker finds that the bucket has ended.

    The constructor checks no value; `check` rejects an alert that is not valid, and `Rules` calls it.

    Attributes:
        name: The name of the alert.
        metric: The metric whose counters it watches.
        subject: One subject, or a pattern with `*`, `?` or `[...]`; `*` is every subject.
        window: The window whose buckets are compared.
        over: The length of the range whose sum is compared, such as `1h`.
        rate: The length of the range whose rate is compared, such as `5m`.
        above: The bound, if the alert fires above it.
        below: The bound, if the alert fires below it.
        clear: The value at which the alert ends; `None` means the bound.
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
        """The declared range, `over` or `rate`, such as `1h`; `None` for an alert on a total or a window."""
        return self.over or self.rate

    @property
    def bound(self) -> float:
        """The value beyond which the alert fires: `above`, or else `below`; 0 if neither is declared."""
        return self.above if self.above is not None else self.below or 0

    @property
    def cleared_at(self) -> float:
        """The value at which the alert ends: `clear`, or the bound if `clear` is not declared."""
        return self.bound if self.clear is None else self.clear

    @property
    def names_one(self) -> bool:
        """Whether `subject` is one subject, not a pattern: it has no `*`, `?` or `[`."""
        return not set("*?[") & set(self.subject)

    def fires(self, value: float) -> bool:
        """Return whether `value` makes the alert fire: it is above the bound `above`, or below the bound `below`.

        A value equal to the bound does not.
        """
        return value > self.bound if self.above is not None else value < self.bound

    def clears(self, value: float) -> bool:
        """Return whether `value` ends a firing alert.

        With `above`, it does if it is at most `cleared_at`; with `below`, if it is at least `cleared_at`.
        """
        return value <= self.cleared_at if self.above is not None else value >= self.cleared_at

    def matches(self, subject: str) -> bool:
        """Return whether the alert watches `subject`: whether all of `subject` matches the pattern `self.subject`."""
        return self.subject == "*" or _pattern(self.subject).match(subject) is not None

    def label(self, now: float, zone: str) -> str:
        """Return the label of the bucket that is current at `now`; `""` if the alert has no window.

        Args:
            now: Seconds since 1970.
            zone: The time zone in which days and months begin; it is not used for other windows.

        Raises:
            ConfigurationError: the window is `day` or `month`, and there is no time zone `zone`.
        """
        return bucket(self.window, int(now) // 60, zone).label if self.window else ""

    def check(self, windows: Sequence[Window]) -> None:
        """Reject an alert that has a value that is not allowed, contradicts itself, or needs a window that is missing.

        The metric and the subject are not checked.

        Args:
            windows: The declared windows of the metric.

        Raises:
            ValueError: the alert is not valid; the message contains what to change.
        """
        if METRIC.fullmatch(self.name) is None:
            raise ValueError("name: must be 1 to 64 of a-z, 0-9, '_', '.', '-', starting with a letter or digit")
        if (self.above is None) == (self.below is None):
            raise ValueError("give either above or below")
        if sum(kind is not None for kind in (self.window, self.over, self.rate)) > 1:
            raise ValueError("give one of window, over and rate, or none for the total")
        if not all(abs(value) <= MAX_AMOUNT for value in (self.bound, self.cleared_at)):
            raise ValueError("above, below and clear must be within +-(2^53 - 1)")
        if self.above is not None and self.cleared_at > self.above:
            raise ValueError(f"clear: must be at most above, {self.above:g}")
        if self.below is not None and self.cleared_at < self.below:
            raise ValueError(f"clear: must be at least below, {self.below:g}")
        if self.window is not None and self.window not in windows:
            raise ValueError(f"window: {self.metric} has the windows {', '.join(windows) or '(none)'}: use one of them")
        if self.window is not None and self.below is not None:
            raise ValueError("below: not possible with window, because every bucket begins at 0; use over or rate")
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
