"""Pauses between attempts at something that fails: they grow up to a cap, and a random part of each is left out."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_JITTER: Final = 0.5


class Backoff:
    """Returns how long to wait after each failure; it reads no clock and does not wait itself.

    Each pause is twice the one before, at most `cap`. A random part is left out of each, so that clients which lost a
    server in the same moment do not all come back in the same moment. The pause is doubled rather than computed from
    the number of failures: a power of two overflows after 1,024 of them, before any cap could apply.

    Args:
        first: Seconds to wait after the first failure.
        cap: The most seconds to wait.
        jitter: The largest part of a pause that may be left out, 0 to 1; 0 leaves nothing to chance.
        source: Returns a random number from 0 to 1.

    Raises:
        ValueError: `first` is not positive, `cap` is less than `first`, or `jitter` is no part.
    """

    def __init__(
        self, first: float, cap: float, jitter: float = _JITTER, *, source: Callable[[], float] = random.random
    ) -> None:
        if not 0 < first <= cap:
            raise ValueError(f"the first pause must be more than 0 and at most the cap: {first} and {cap}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be 0 to 1, not {jitter}")
        self._first = first
        self._cap = cap
        self._jitter = jitter
        self._source = source
        self._pause = first

    def next(self) -> float:
        """Return how many seconds to wait after one more failure."""
        pause, self._pause = self._pause, min(self._cap, self._pause * 2)
        return pause * (1 - self._jitter * self._source())

    def reset(self) -> None:
        """Begin with the first pause again: an attempt has succeeded."""
        self._pause = self._first
