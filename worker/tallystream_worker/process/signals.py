"""Turns SIGTERM and Ctrl-C into an event that the main thread waits on; ends a process that is not working by Ctrl-C.

This module imports only modules that Python has loaded when it starts, or that load in a moment.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess
    from types import FrameType

INTERRUPTED: Final = 130
"""The exit status after Ctrl-C."""


def exit_on_interrupt() -> None:
    """Make Ctrl-C end this process at once, with one line and the status 130, without a clean-up.

    It is for the time in which nothing has begun, or everything has ended. A `KeyboardInterrupt` would print a
    traceback then, because it may be raised within an import or the exit of the interpreter. If SIGINT is ignored, or
    has a handler of the caller, do nothing.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """End the effect of `exit_on_interrupt`, if it has one: Ctrl-C raises `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"tallystream: stopped\n")
    os._exit(INTERRUPTED)


def start_child(process: BaseProcess) -> None:
    """Start a child process that never gets SIGINT, so that its parent alone decides what Ctrl-C does.

    A terminal sends SIGINT to all processes of its group, also to a child that still imports its modules. Call this in
    the main thread. The parent must end the child in another way.
    """
    from multiprocessing import resource_tracker  # noqa: PLC0415  # seldom needed

    resource_tracker.ensure_running()  # the first start of a process would start it, and unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits this
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
