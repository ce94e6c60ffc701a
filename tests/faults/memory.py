"""Sample the resident memory of the processes of a soak, and decide whether it stayed flat."""

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
"""The factor by which the last third may exceed the middle third."""
ROOM: Final = 8.0
"""MiB that are allowed in addition, since the memory of a small process varies."""

_EVERY: Final = 0.5


class Memory(threading.Thread):
    """A thread that samples the largest resident set of each role every 0.5 seconds, in MiB.

    Memory is flat if the median of the last third of a run is at most the median of its middle third times 1.05, plus
    8 MiB. In the first third, processes warm up and the stream grows to the size at which it is trimmed. In a run of 10
    minutes at 100,000 events a second, a leak of one byte per event grows by 19 MiB in the 200 seconds between the
    middles of the two thirds.

    Args:
        roles: A function that returns the role and PID of each process that runs now.

    Attributes:
        samples: The samples of each role, in MiB.
    """

    def __init__(self, roles: Callable[[], Iterable[tuple[str, int]]]) -> None:
        super().__init__(name="memory", daemon=True)
        self._roles = roles
        self._ended = threading.Event()
        self.samples: dict[str, list[float]] = defaultdict(list)

    def run(self) -> None:
        """Sample the memory until stopped."""
        while not self._ended.wait(_EVERY):
            largest: dict[str, float] = {}
            for role, pid in self._roles():
                with contextlib.suppress(psutil.Error):  # the process was killed meanwhile
                    largest[role] = max(largest.get(role, 0.0), psutil.Process(pid).memory_info().rss / MIB)
            for role, size in largest.items():
                self.samples[role].append(size)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self.join()

    def thirds(self) -> dict[str, tuple[float, float]]:
        """Return the medians of the middle third and of the last third of each role with three samples, in MiB."""
        return {role: middle_and_last(sizes) for role, sizes in self.samples.items() if len(sizes) >= 3}


def middle_and_last(sizes: list[float]) -> tuple[float, float]:
    """Return the median of the middle third and the median of the last third of the samples."""
    third = len(sizes) // 3
    return statistics.median(sizes[third : 2 * third]), statistics.median(sizes[2 * third :])


def is_flat(middle: float, last: float) -> bool:
    """Return whether the median of the last third is at most 1.05 times that of the middle third, plus 8 MiB."""
    return last <= middle * FACTOR + ROOM
