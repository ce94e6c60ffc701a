"""Turns SIGTERM and Ctrl-C into an event that the main thread waits on."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or SIGINT sets; a second one ends the process the hard way.

    What was set before is restored on leaving. For the main thread only.
    """
    stop = threading.Event()

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            # Somebody is out of patience. Nothing is lost: what is in hand stays pending.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(stop: threading.Event) -> None:
    """Wait until `stop` is set, and let signals through meanwhile."""
    while not stop.wait(0.5):
        pass
