"""Runs `tallystream up`, as the README shows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.waiting import until


@contextlib.contextmanager
def up(folder, until_printed="Ctrl-C"):
    """Run `tallystream up` in a folder, as the README shows, on a free port; end it by Ctrl-C.

    The context begins when it has printed a text.
    """
    command = [str(Path(sys.executable).parent / "tallystream"), "up", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    with (folder / "printed").open("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=printed, stderr=printed)
        try:
            until(
                lambda: until_printed in (folder / "printed").read_text(encoding="utf-8"), timeout=60, what="everything"
            )
            yield (folder / "printed").read_text(encoding="utf-8")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
