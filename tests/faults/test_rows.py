"""Every row of the fault table holds: one seed of each, drawn anew in each run and printed, the same in CI."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.faults.fork_server import ForkServer
from tests.faults.rows import ROWS
from tests.faults.run import run
from tests.servers import missing

SEED = int(os.environ.get("TALLYSTREAM_FAULT_SEED") or (1 if "CI" in os.environ else secrets.randbelow(10**6)))


@pytest.fixture(scope="module")
def fork_server():
    """One parent of all processes."""
    with ForkServer() as fork_server:
        yield fork_server


def test_the_suite_runs(fork_server):
    """One quick row, so that the fast suite notices when the fault suite cannot start what it needs."""
    result = run(ROWS[14], 1, fork_server)
    assert not result.failures, "\n".join(map(str, result.failures))


@pytest.mark.slow
@pytest.mark.parametrize("number", sorted(ROWS))
def test_a_row_of_the_table_holds(number, fork_server):
    """Whatever the fault, the books balance, and everything else that the row claims is so."""
    row = ROWS[number]
    if row.lacks:
        missing(row.lacks, unless="CI")
    result = run(row, SEED, fork_server)
    assert result.faults, "nothing was injected"
    assert not result.failures, f"make faults ROWS={number} SEED={SEED}\n" + "\n".join(map(str, result.failures))
