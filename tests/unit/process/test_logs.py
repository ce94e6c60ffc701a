"""A program that cannot write its log continues."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tallystream_worker.process import logs

if TYPE_CHECKING:
    import pytest

_LOGS = "from tallystream_worker.process import logs; logs.configure().error('lost'); print('continued')"


def test_a_program_continues_if_nobody_reads_its_log() -> None:
    """If the reader of standard error has gone, lines are left out."""
    read, write = os.pipe()
    os.close(read)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", _LOGS], stdout=subprocess.PIPE, stderr=write, text=True, check=False
        )
    finally:
        os.close(write)
    assert ran.stdout == "continued\n"


def test_a_log_continues_after_its_file_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If standard error is closed, lines are left out; if it is replaced, later lines are written."""
    log = logs.configure()
    closed, kept = io.StringIO(), io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    log.error("lost")
    monkeypatch.setattr(sys, "stderr", kept)
    log.error("written")
    assert '"event": "written"' in kept.getvalue()
    assert "lost" not in kept.getvalue()
