"""Tests of the signals that end a command."""

from __future__ import annotations

import subprocess
import sys

MANY = """
import os, signal, sys, threading
from tallystream_worker.process.signals import stop_on_signals

sys.setswitchinterval(0.00001)
for _ in range(500):
    with stop_on_signals() as stop:
        threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while not stop.wait(0):
            pass
"""


def test_a_signal_never_blocks_the_waiting_thread():
    """A signal that arrives while the main thread checks the event sets the event, and no thread blocks."""
    done = subprocess.run([sys.executable, "-c", MANY], timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
