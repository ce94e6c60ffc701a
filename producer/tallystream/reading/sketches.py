"""Reads Count-Min Sketches: an estimate is never too low, and rarely (see `DELTA`) too high by more than a bound.

Both are true if no amount is negative. Only `max_subjects` allows negative amounts; then an estimate may be too low.

Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch and its applications" (2005).
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, Final

from tallystream.rules.batch import SKETCH_ROWS, SKETCH_WIDTH

if TYPE_CHECKING:
    from tallystream.reading.query import Command

EPSILON: Final = math.e / SKETCH_WIDTH
"""The bound of the error, as a share of the sum of all amounts in the sketch; `DELTA` is how often it is exceeded."""

DELTA: Final = math.exp(-SKETCH_ROWS)
"""The largest probability that an estimate is too high by more than the bound: about 2 %."""


def cells(subject: str) -> list[int]:
    """Return the numbers (from 0) of the cells of a sketch that count a subject: one in each row, as `sketches.lua`."""
    digest = hashlib.sha1(subject.encode(), usedforsecurity=False).hexdigest()
    return [row * SKETCH_WIDTH + int(digest[8 * row : 8 * row + 8], 16) % SKETCH_WIDTH for row in range(SKETCH_ROWS)]


def estimate_command(key: str, subject: str) -> Command:
    """Return the command that reads the cells of a subject from the sketch at `key`; `estimate` takes its reply."""
    return ("BITFIELD_RO", key, *(part for cell in cells(subject) for part in ("GET", "i64", f"#{cell}")))


def estimate(reply: Any) -> int:
    """Return the estimated total of a subject from the reply to `estimate_command`; 0 if the sketch does not exist."""
    return min(int(cell) for cell in reply)


def bound(sketched: int) -> int:
    """Return the amount by which an estimate is too high at most, except with a probability of at most `DELTA`.

    Args:
        sketched: The sum of all amounts in the sketch.
    """
    return math.ceil(EPSILON * sketched)


def error_of(estimated: int, sketched: int, *, was_reset: bool) -> int:
    """Return by how much an estimate may be too high, at least 0: the `bound` of the sketch.

    If the bound does not hold, return all of the estimate (its absolute value), if that is larger than the bound. It
    does not hold for a subject that was reset. Nor does it if the estimate is larger than the sum of all amounts: then
    some amounts are negative, or the ledger has lost the sum.

    Args:
        estimated: The estimate.
        sketched: The sum of all amounts in the sketch that the ledger has; 0 if it has none.
        was_reset: Whether the total was reset: a reset takes nothing out of a sketch.
    """
    return max(bound(sketched), 0, abs(estimated) if was_reset or estimated > sketched else 0)
