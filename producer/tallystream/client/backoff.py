"""Back-off: the pauses between failing attempts, which grow up to a cap, less a random part of each."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_JITTER: Final = 0.5


class Backoff:
    """A sequence of pauses between failing attempts: `next` returns one, `reset` begins again. It does not wait itself.

    The first pause is `first`; each later one is twice the one before, at most `cap`. `next` takes a random part off
    each, so that clients that lost a server at the same moment do not all reconnect at the same moment.

    Args:
        first: Seconds to wait after the first failure.
        cap: Most seconds to wait.
        jitter: Largest fraction of a pause that may be left out, 0 to 1; 0 for no random part.
        source: Returns a random number from 0 to 1.

    Raises:
        ValueError: `first` is not positive, `cap` is less than `first`, or `jitter` is not from 0 to 1.
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
        """Return the seconds to wait after one more failure: the pause, less a random part of at most `jitter` of it.

        Then double the pause for the next call, up to `cap`.
        """
        pause, self._pause = self._pause, min(self._cap, self._pause * 2)
        return pause * (1 - self._jitter * self._source())

    def reset(self) -> None:
        """Begin the sequence again, with a pause of `first` (less a random part). Call it after a success."""
        self._pause = self._first
