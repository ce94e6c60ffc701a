"""Turns SIGTERM and Ctrl-C into an event that the main thread waits on."""

from __future__ import annotations

import os
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
    ear, mouth = os.pipe()
    was_told = False

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal was_told
        if was_told:
            # Somebody is out of patience. Nothing is lost: what is in hand stays pending.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        was_told = True
        # Not stop.set(): a signal that comes while the main thread is inside stop.wait(), and holds the event's
        # lock, would wait for that lock for ever. Writing a byte takes none.
        os.write(mouth, b"\0")

    def listen() -> None:
        if os.read(ear, 1):
            stop.set()

    listener = threading.Thread(target=listen, name="tallystream-signals", daemon=True)
    listener.start()
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(mouth)
        listener.join()
        os.close(ear)


def wait_for(stop: threading.Event) -> None:
    """Wait until `stop` is set, and let signals through meanwhile."""
    while not stop.wait(0.5):
        pass
