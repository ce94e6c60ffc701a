"""The files that a process may open are shared among its parts; the limit is raised as far as the system allows."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from tallystream_worker.process import open_files
from tallystream_worker.process.open_files import OTHERS, OpenFiles


def test_parts_get_what_is_left(monkeypatch):
    """A part gets what the parts before it have left, at least what it cannot do without, and may give it back."""
    monkeypatch.setattr(open_files, "_allow", lambda files: min(files, OTHERS + 100))
    files = OpenFiles()
    assert files.reserve(60) == 60
    assert files.reserve(60) == 40
    assert files.reserve(60) == 0
    assert files.reserve(60, least=1) == 1
    files.give_back(40)
    assert files.reserve(60) == 39


@pytest.mark.parametrize(("hard", "granted", "soft"), [(1000, 300, OTHERS + 300), (200, 200 - OTHERS, 200)])
def test_the_limit_is_raised(hard, granted, soft):
    """The soft limit of a process becomes what it needs, or the hard limit if that is less."""
    code = (
        "import json, resource; from tallystream_worker.process.open_files import OPEN_FILES; "
        "print(json.dumps([OPEN_FILES.reserve(300), *resource.getrlimit(resource.RLIMIT_NOFILE)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard)),
    )
    assert json.loads(done.stdout) == [granted, soft, hard]
