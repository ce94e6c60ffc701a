"""Places at which a test can have this process killed, as a crash would kill it.

`TALLYSTREAM_FAILPOINT=before-apply:3` sends SIGKILL when `before-apply` is reached for the third time. Without
the variable, which is read once at import, reaching a place calls a function that does nothing.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE: Final = "TALLYSTREAM_FAILPOINT"

PLACES: Final = ("after-fetch", "before-apply", "after-apply", "before-ingest", "after-ingest")
"""Entries are in hand; they are folded, and nothing is sent; they are applied, and nobody has been told. The same of
the stretches of a file."""

RARE_PLACES: Final = ("mid-claim", "before-parking", "after-parking")
"""Entries of another consumer are ours, and we do not know it yet; before and after an apply that parks something."""

ARCHIVE_PLACES: Final = ("before-archive", "after-archive")
"""A range of entries is claimed, and no file is there; the file is there, and its range is still claimed."""

REBUILD_PLACES: Final = (
    "rebuild-begun", "rebuild-filled", "rebuild-caught-up", "rebuild-switching", "rebuild-switched"
)  # fmt: skip
"""The groups are there; the archive is counted; all is; a partition is switched; the meta hash says so."""

MOVE_PLACES: Final = (
    "move-begun", "move-copying", "move-caught-up", "move-closed", "move-copied", "move-counted", "move-pointed"
)  # fmt: skip
"""A new log is there; some of the old one is copied; nearly all is; the old one is closed; its end is copied, and
counted; the new one holds."""

SNAPSHOT_PLACES: Final = ("after-cut", "before-commit", "after-commit")
"""A moment is read, and nothing written; it is written and not committed; it is committed, and nobody was told."""

RESTORE_PLACES: Final = ("after-load", "after-graft", "after-partition")
"""A partition's rows are loaded; its log is in place; what was in it is counted."""

_ALL: Final = (
    *PLACES, *RARE_PLACES, *ARCHIVE_PLACES, *REBUILD_PLACES, *MOVE_PLACES, *SNAPSHOT_PLACES, *RESTORE_PLACES
)  # fmt: skip


def _pass_by(_place: str) -> None:
    """Do nothing: the whole cost in production."""


def _armed(spec: str) -> Callable[[str], None]:
    wanted, _, nth = spec.partition(":")
    if wanted not in _ALL or not (nth or "1").isdecimal():
        raise ConfigurationError(f"{VARIABLE}={spec!r}: must be one of {', '.join(_ALL)}, with :N for the N-th time")
    times = itertools.count(1)  # its next() is one step even among threads

    def reach(place: str) -> None:
        if place == wanted and next(times) == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


reach: Final = _armed(os.environ[VARIABLE]) if VARIABLE in os.environ else _pass_by
"""Say that a place was reached."""
