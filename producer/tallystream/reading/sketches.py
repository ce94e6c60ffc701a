"""Reads Count-Min Sketches: estimates that are never too low, and too high by a stated bound at most.

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
"""An estimate is too high by more than this share of everything sketched only with probability `DELTA`."""

DELTA: Final = math.exp(-SKETCH_ROWS)


def cells(subject: str) -> list[int]:
    """Return where a subject is counted: one cell in each row, by SHA-1, as `sketches.lua` does."""
    digest = hashlib.sha1(subject.encode(), usedforsecurity=False).hexdigest()
    return [row * SKETCH_WIDTH + int(digest[8 * row : 8 * row + 8], 16) % SKETCH_WIDTH for row in range(SKETCH_ROWS)]


def estimate_command(key: str, subject: str) -> Command:
    """Return the command whose reply `estimate` reads."""
    return ("BITFIELD_RO", key, *(part for cell in cells(subject) for part in ("GET", "i64", f"#{cell}")))


def estimate(reply: Any) -> int:
    """Return the estimate: the least of the subject's cells."""
    return min(int(cell) for cell in reply)


def bound(sketched: int) -> int:
    """Return by how much an estimate may be too high (with probability 1 - `DELTA`), given the sum of all amounts."""
    return math.ceil(EPSILON * sketched)
