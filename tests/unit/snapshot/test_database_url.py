"""A URL of a snapshot that cannot be used is named in an error, before any connection is made."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tallystream.errors import ConfigurationError
from tallystream_worker.snapshot.database import Database, SnapshotError


@pytest.mark.parametrize("url", ["postgresql://u:p@h:abc/x", "postgresql://u:p@[::1/x", "nothing://x"])
def test_a_url_that_cannot_be_used(url):
    """The error names the setting and the forms that can be used."""
    with pytest.raises(ConfigurationError, match=r"^snapshot\.url cannot be used: "):
        Database(url)


def test_a_file_that_cannot_be_looked_for():
    """If the system refuses the name of the file, the error names the snapshot."""
    with pytest.raises(SnapshotError, match=r"^x+ cannot be used: File name too long"):
        Database("x" * 300).facts()


def test_a_driver_that_cannot_be_loaded():
    """If a library of the driver is missing, the error names the setting, as without the driver."""
    code = "from tallystream_worker.snapshot.database import Database; Database('postgresql://u:p@localhost/x')"
    environment = os.environ | {"PSYCOPG_IMPL": "missing"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ConfigurationError: snapshot.url cannot be used: " in done.stderr
    assert "pip install" in done.stderr
