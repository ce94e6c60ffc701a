"""A report proves nothing that a fault contradicts, and has one exit status."""

from __future__ import annotations

from tallystream_worker.verify.findings import SHOWN
from tallystream_worker.verify.report import Verification


def test_a_fault_contradicts_the_statements_that_depend_on_it():
    """A statement is proved only if no fault was found since the given count; otherwise it is a limit."""
    report = Verification(1.0)
    report.prove("log", "first", faults_before=report.faults)
    before = report.faults
    report.find("log.gap", "entry 1-1", times=2)
    report.prove("log", "second", faults_before=before)
    report.prove("dead", "third", faults_before=report.faults)
    assert [each.text for each in report.proofs] == ["first", "third"]
    assert [each.text for each in report.limits] == ["second: a fault above contradicts it"]
    assert report.faults == 2


def test_the_status_tells_faults_from_checks_that_were_not_made():
    """The status is 0, 2 if a check could not be made, and 1 if a fault was found, whatever else is in the report."""
    report = Verification(1.0)
    report.limit("counters", "trimmed entries")
    assert report.status == 0
    report.fail("dead", "no answer")
    assert report.status == 2
    report.find("keys.lost", "tally:seq")
    assert report.status == 1
    assert report.said() == {"findings": "keys.lost", "failed": "dead", "proofs": 0, "limits": 1}
    summary = report.summary()
    assert (summary["status"], [each["name"] for each in summary["findings"]]) == (1, ["keys.lost"])
    assert (len(summary["proved"]), len(summary["not_proved"]), len(summary["not_checked"])) == (0, 1, 1)


def test_only_the_first_details_of_a_kind_are_kept():
    """The count of a finding has every fault; its details are those of the first ones."""
    report = Verification(1.0)
    for number in range(SHOWN + 3):
        report.find("log.repeated", f"entry {number}")
    found = report.findings["log.repeated"]
    assert (found.count, found.details) == (SHOWN + 3, [f"entry {number}" for number in range(SHOWN)])
