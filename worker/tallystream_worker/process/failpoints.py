"""Named places in the code at which a test can kill this process, as a crash would.

With `TALLYSTREAM_FAILPOINT=before-apply:3`, the process gets SIGKILL when it reaches `before-apply` for the third time;
without `:3`, for the first time. The variable is read once, at import, which raises a `ConfigurationError` if its value
is not valid. Without the variable, `reach` does nothing.
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
"""The environment variable that names the place at which to kill the process."""

PLACES: Final = ("after-fetch", "before-apply", "after-apply", "before-ingest", "after-ingest")
"""Places of counting and of ingest: after a fetch that returns entries; before and after the apply call of a batch
without dead letters; before and after some events of a file are appended."""

RARE_PLACES: Final = ("mid-claim", "before-dead-letter", "after-dead-letter")
"""Places that counting seldom reaches: after a claim, before its reply is used; before and after the apply call of a
batch with dead letters."""

ARCHIVE_PLACES: Final = ("before-archive", "after-archive")
"""Places of the archive: after a range of entries is claimed, before its file is written; after the file is written,
before the claim is released."""

LOSS_PLACES: Final = ("after-set-aside",)
"""Place of an archive whose server lost entries: after their files are set aside, before the group is moved."""

REBUILD_PLACES: Final = (
    "rebuild-begun", "rebuild-filled", "rebuild-caught-up", "rebuild-switching", "rebuild-switched"
)  # fmt: skip
"""Places of a rebuild: the groups are created; the archive of one partition is counted; all streams are counted; one
partition is switched; the meta hash names the new generation."""

DROP_PLACES: Final = ("drop-begun", "drop-removed")
"""Places of the removal of a generation: it is recorded; the keys of one partition are removed."""

MOVE_PLACES: Final = (
    "move-begun", "move-copying", "move-caught-up", "move-closed", "move-copied", "move-counted", "move-pointed"
)  # fmt: skip
"""Places of a repartition: the old topic has retention holds; some entries are copied; nearly all are copied and
counted; the old topic is closed; its last entries are copied; they are counted; the new topic is live."""

GIVE_UP_PLACES: Final = ("move-given-up", "move-reopened", "move-removed")
"""Places of a repartition that is given up: its topic cannot become live any more; the live topic is open again; the
keys of one of its partitions are removed."""

SNAPSHOT_PLACES: Final = ("after-cut", "before-commit", "after-commit")
"""Places of a snapshot of one partition: its counters are read, nothing is written; they are written, not committed;
they are committed."""

RESTORE_PLACES: Final = ("after-load", "after-graft", "after-partition")
"""Places of a restore: the rows of a partition are loaded; its stream is in place; the entries of the stream are
counted."""

_ALL: Final = (
    *PLACES, *RARE_PLACES, *ARCHIVE_PLACES, *LOSS_PLACES, *REBUILD_PLACES, *DROP_PLACES, *MOVE_PLACES, *GIVE_UP_PLACES,
    *SNAPSHOT_PLACES, *RESTORE_PLACES,
)  # fmt: skip


def _pass_by(_place: str) -> None:
    """Do nothing. The name `reach` is this function if `TALLYSTREAM_FAILPOINT` is not set, as in production."""


def _armed(spec: str) -> Callable[[str], None]:
    wanted, _, nth = spec.partition(":")
    if wanted not in _ALL or not (nth or "1").isdecimal():
        raise ConfigurationError(f"{VARIABLE}={spec!r}: must be one of {', '.join(_ALL)}, with :N for the N-th time")
    times = itertools.count(1)  # next() is atomic, also with several threads

    def reach(place: str) -> None:
        if place == wanted and next(times) == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


reach: Final = _armed(os.environ[VARIABLE]) if VARIABLE in os.environ else _pass_by
"""Call this with the name of each place that the process reaches: it kills the process at the place that
`TALLYSTREAM_FAILPOINT` names."""
