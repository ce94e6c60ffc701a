"""Faults that are known and not mended yet: the moves avoid them, so that the machine finds others.

Each member is removed when its fault is mended, and with it the condition in the move that asks for it. `--hunt` avoids
none: it shows what the machine finds by itself.
"""

from __future__ import annotations

from enum import Enum


class Known(Enum):
    """A fault that the moves avoid, with the issue and its item."""

    CALLER_CLOCK = "15.6: decide looks at the caller's clock"
    LARGE_SUMS = "g10: sums near 2^53"
    LARGE_TOTALS = "g10: the total of a metric above 2^53"
    NEGATIVE_SKETCHES = "f06: sketches with negative amounts"
    LIKE_FILES = "f22: a file that begins like another one is taken for it"
    HALF_CHARACTERS = "m04: half an emoji in one of many events refuses the whole list"


UNDEFINED = frozenset({Known.LARGE_SUMS})
"""Faults that a hunt avoids as well, because the model has no answer for them."""

_avoided: set[Known] = set(Known)


def avoid(faults: set[Known]) -> None:
    """Avoid these faults and no others, in this process."""
    _avoided.clear()
    _avoided.update(faults)


def avoided(fault: Known) -> bool:
    """Return whether the moves must avoid a fault."""
    return fault in _avoided
