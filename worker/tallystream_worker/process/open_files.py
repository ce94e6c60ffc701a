"""The limit of open files of this process, which connections count towards: who may open how many.

Many systems allow 1,024 files by default (the soft limit), and more to a process that asks (the hard limit).
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Final

if sys.platform != "win32":
    import resource

OTHERS: Final = 96
"""Files without a reservation: logs, archive, snapshot, requests, modules that are being imported."""


class OpenFiles:
    """Counts how many of the files that a process may open are reserved by its parts; safe across threads.

    A part of the process calls `reserve` before it opens files or connections, and `give_back` when it has closed them.
    All parts use one object, `OPEN_FILES`. Nothing is opened or closed here.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reserved = 0

    def reserve(self, wanted: int, least: int = 0) -> int:
        """Reserve `wanted` files, or as many as are free, but at least `least`; return how many were reserved.

        `OTHERS` (96) files are not free: they are for uses without a reservation. `least` files are reserved even if
        fewer are free. The soft limit of the process is raised as far as needed, at most to the hard limit, and never
        lowered. If the system refuses to raise it, it is unchanged.
        """
        with self._lock:
            room = _allow(OTHERS + self._reserved + wanted) - OTHERS - self._reserved
            granted = max(least, min(wanted, room))
            self._reserved += granted
        return granted

    def give_back(self, files: int) -> None:
        """Let others reserve some files that were reserved."""
        with self._lock:
            self._reserved -= files


OPEN_FILES: Final = OpenFiles()
"""The files of this process."""


def _allow(files: int) -> int:
    """Return how many of `files` files this process may open; raise its soft limit first, if that is too low.

    The limit is raised at most to the hard limit. If the system refuses this, it is unchanged. On Windows, return
    `files`.
    """
    if sys.platform == "win32":
        return files
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= files:
        return files
    raised = files if hard == resource.RLIM_INFINITY else min(hard, files)
    with contextlib.suppress(ValueError, OSError):  # some systems have a further limit, below the hard one
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
