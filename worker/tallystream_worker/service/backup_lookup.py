"""Looks up for `/readyz` which backup has the data of an emptied server, so that probes cannot overload the backup."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT: Final = 10.0
"""Seconds for which the result of a lookup is kept."""

PATIENCE: Final = 1.0
"""Seconds for which a request waits for a lookup."""


class BackupLookup:
    """Returns the text on the backup that has the data of an emptied server.

    At most one lookup runs at a time, in a separate thread: the database may not answer for minutes, and other work
    must not wait for it. The thread does not keep the process from its end.

    Args:
        look_up: Returns the text, with the command that restores the backup; `""` if no backup is known to have the
            data.
    """

    def __init__(self, look_up: Callable[[], str]) -> None:
        self._look_up = look_up
        self._lookup: Future[str] | None = None
        self._ended = 0.0

    async def text(self) -> str:
        """Return the text; `""` if the backups are not known after `PATIENCE` seconds.

        A text of the last `KEPT` seconds is returned at once. Call it in one event loop. Errors of the lookup are
        raised.
        """
        if self._lookup is None or (self._lookup.done() and time.monotonic() - self._ended >= KEPT):
            self._lookup = Future()
            threading.Thread(target=self._run, args=(self._lookup,), name="backup-lookup", daemon=True).start()
        lookup = self._lookup
        await asyncio.wait([asyncio.wrap_future(lookup)], timeout=PATIENCE)  # does not cancel the lookup
        return lookup.result() if lookup.done() else ""

    def _run(self, lookup: Future[str]) -> None:
        lookup.set_running_or_notify_cancel()  # so that it cannot be cancelled
        try:
            found = self._look_up()
        except BaseException as error:  # noqa: BLE001  # the request raises it
            self._ended = time.monotonic()
            lookup.set_exception(error)
        else:
            self._ended = time.monotonic()
            lookup.set_result(found)
