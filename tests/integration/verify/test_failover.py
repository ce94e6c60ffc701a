"""A verification during which a server fails over compares different data, so it reports no fault."""

from __future__ import annotations

import pytest

from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.verify.verify import verify
from tests.harness import Harness


@pytest.fixture
def harness(server):
    """Provide one partition with a counted event."""
    with Harness(server.url, partitions=1) as found:
        found.client.xadd(found.layout.keys[0].stream, {"metric": "view", "subject": "a"})
        found.drain()
        yield found


@pytest.mark.parametrize("fails_over", [True, False])
def test_a_fault_that_a_failover_explains_is_no_finding(harness, fails_over):
    """If a promoted replica lacks a counter that the check of the log read with, the check is stated as failed."""

    def at(step: str) -> None:
        if step != "counters":
            return
        harness.client.delete(harness.layout.keys[0].total("view", "a"))
        if fails_over:
            harness.client.execute_command("REPLICAOF", "127.0.0.1", "1")
            harness.client.execute_command("REPLICAOF", "NO", "ONE")

    report = verify(harness.client, "tally", Sources(None, None), show=at)
    if fails_over:
        (failed,) = report.failed
        assert (report.findings, failed.check, report.status) == ({}, "deployment", 2)
        assert failed.text.endswith("run the verification again")
    else:
        assert (set(report.findings), report.failed) == ({"counters.differ"}, [])
