"""Whether memory stays flat: the resident sets of all processes, sampled, and what counts as growing."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MIB: Final = 2**20
FACTOR: Final = 1.05
ROOM: Final = 8.0
"""MiB by which a small process may differ from itself."""

_EVERY: Final = 0.5


class Memory(threading.Thread):
    """Samples the largest resident set of each role, in MiB.

    Flat means: the median of the last third of a run is at most the median of its middle third times 1.05, plus 8
    MiB. The first third is for warming up, and for the stream to reach the size at which it is trimmed. A leak of a
    byte an event at 100,000 events a second grows by 19 MiB in the 200 seconds between the two thirds' middles.

    Args:
        roles: Returns for each role the PIDs that have it now.
    """

    def __init__(self, roles: Callable[[], Iterable[tuple[str, int]]]) -> None:
        super().__init__(name="memory", daemon=True)
        self._roles = roles
        self._ended = threading.Event()
        self.samples: dict[str, list[float]] = defaultdict(list)

    def run(self) -> None:
        """Sample until stopped."""
        while not self._ended.wait(_EVERY):
            largest: dict[str, float] = {}
            for role, pid in self._roles():
                with contextlib.suppress(psutil.Error):  # it was killed in this moment
                    largest[role] = max(largest.get(role, 0.0), psutil.Process(pid).memory_info().rss / MIB)
            for role, size in largest.items():
                self.samples[role].append(size)

    def stop(self) -> None:
        """End the sampling."""
        self._ended.set()
        self.join()

    def thirds(self) -> dict[str, tuple[float, float]]:
        """Return for each role the medians of the middle and of the last third, in MiB."""
        return {role: middle_and_last(sizes) for role, sizes in self.samples.items() if len(sizes) >= 3}


def middle_and_last(sizes: list[float]) -> tuple[float, float]:
    """Return the medians of the middle and of the last third."""
    third = len(sizes) // 3
    return statistics.median(sizes[third : 2 * third]), statistics.median(sizes[2 * third :])


def is_flat(middle: float, last: float) -> bool:
    """Tell whether that is no growth."""
    return last <= middle * FACTOR + ROOM
