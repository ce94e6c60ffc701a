"""The command line prints an error of the operating system in a line, and no traceback."""

from __future__ import annotations

import errno
import importlib
import os

import pytest


def test_an_error_of_the_operating_system_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The status is 1, and the line has the reason and what to do."""
    main = importlib.import_module("tallystream_worker.cli.main")

    def full() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")  # noqa: S108

    monkeypatch.setattr(main, "_command", full)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tallystream: [Errno 28] No space left on device: '/tmp/x'. Remove the cause")
