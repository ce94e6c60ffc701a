"""Tests of `tallystream spool`: it lists the spools of dead processes, and sends them with --send."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tallystream.producing.buffer import BufferSettings
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.settings import SpoolSettings
from tests.harness import Harness

PROGRAM = Path(sys.executable).with_name("tallystream")


def run(*arguments) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run([PROGRAM, "spool", *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture
def left(tmp_path):
    """Provide a spool with five events of a dead process."""
    spool = Spool(BufferSettings(), SpoolSettings(tmp_path, 2**20, "os", "tally"))
    for number in range(5):
        spool.put(-1, "view", f"article:{number}", 1, 60.0, None, None)
    spool.abandon()
    return tmp_path


def test_what_waits_is_listed_and_sent(server, left):
    """Without --send nothing changes; with it all events are sent once, and the spool is empty."""
    listed = json.loads(run(left, "--json").stdout)
    assert [(row["events"], row["problem"]) for row in listed["waiting"]] == [(5, None)]
    with Harness(server.url) as harness:
        assert harness.ledger() == {}
        done = run(left, "--send", "--json", "--redis", server.url)
        assert (done.returncode, json.loads(done.stdout)) == (0, {"waiting": [], "sent": 5}), done.stderr
        assert harness.ledger() == {"appended": 5}
        assert json.loads(run(left, "--send", "--json", "--redis", server.url).stdout)["sent"] == 0
        assert harness.ledger() == {"appended": 5}


def test_a_folder_that_is_none(tmp_path):
    """A misspelt folder is an error of one line, not an empty list."""
    done = run(tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not a folder" in done.stderr


def test_a_spool_that_cannot_be_read(left):
    """A spool whose file the system cannot read is listed with the problem, and the exit status is 1."""
    (file,) = left.glob("*/*.log")
    file.unlink()
    file.mkdir()
    done = run(left, "--json")
    (row,) = json.loads(done.stdout)["waiting"]
    assert (done.returncode, row["events"]) == (1, 0)
    assert row["problem"].startswith(f"{file.parent} cannot be read: ")
    assert "Traceback" not in done.stderr
