"""Clocks that a test sets: libfaketime reads the time of a process from a file, which the test writes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.faults.table import faketime

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """The wall clock of one process: the real time plus an offset, which the test may change at any moment.

    The clock advances with the real time. The monotonic clock of the process is the real one, so its timeouts are real.

    Args:
        file: File for the offset; the process reads it whenever it reads its clock.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0.0)

    def set(self, offset: float) -> None:
        """Set the difference to the real time, in seconds."""
        self.offset = offset
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset:+.3f}")
        fresh.replace(self._file)  # the process never reads half a number

    def now(self) -> float:
        """Return the second since 1970 that the process reads now."""
        return time.time() + self.offset

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that give a process this clock."""
        library = faketime()
        assert library is not None, "no libfaketime"
        return {
            # libc comes before the jemalloc of Debian's Redis, which reads the clock before libfaketime is ready.
            # The library for threads: in the other one, two threads that read the clock at once may read a wrong time.
            "LD_PRELOAD": f"{library.with_name('libfaketimeMT.so.1')} libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
