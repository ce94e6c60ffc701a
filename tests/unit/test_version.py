"""The version has one source."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import tallystream
from tests.paths import ROOT


def test_the_version_has_one_source():
    """Every place that repeats the version of `producer/pyproject.toml` agrees with it."""
    check = [sys.executable, str(ROOT / ".ci" / "version")]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_library_names_its_version():
    """`tallystream.__version__` is the version of the installed distribution."""
    assert tallystream.__version__ == version("tallystream") == version("tallystream-worker")
