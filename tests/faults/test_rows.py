"""Every row of the fault table passes with one seed: a random one, printed on failure, or always 1 in CI."""

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
    """Provide the fork server that starts all processes."""
    with ForkServer() as fork_server:
        yield fork_server


def test_the_suite_runs(fork_server):
    """A quick row of the fault table passes, so the fault suite can start its processes; this is in the fast suite."""
    result = run(ROWS[14], 1, fork_server)
    assert not result.failures, "\n".join(map(str, result.failures))


@pytest.mark.slow
@pytest.mark.parametrize("number", sorted(ROWS))
def test_a_row_of_the_table_holds(number, fork_server):
    """After the fault of a row, the ledger balances, and every other check of the row passes."""
    row = ROWS[number]
    if row.lacks:
        missing(row.lacks, unless="CI")
    result = run(row, SEED, fork_server)
    assert result.faults, "nothing was injected"
    assert not result.failures, f"make faults ROWS={number} SEED={SEED}\n" + "\n".join(map(str, result.failures))
