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
    """Yield an event that the first SIGTERM or SIGINT sets; a second signal ends the process at once.

    The previous signal handlers are restored at the end of the context. Only the main thread may enter the context.
    """
    stop = threading.Event()
    ear, mouth = os.pipe()
    was_told = False

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal was_told
        if was_told:
            # End at once, by the default handler. Nothing is lost: unapplied entries stay pending.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        was_told = True
        # Not stop.set(): if the signal arrives while the main thread is in stop.wait() and has the event's lock, the
        # handler would wait for that lock forever. Writing a byte takes no lock.
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
    """Block until `stop` is set. The wait has steps of 0.5 s, so that signal handlers run meanwhile."""
    while not stop.wait(0.5):
        pass
