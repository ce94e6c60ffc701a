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


def test_an_unreadable_snapshot_leaves_both_cases_in_the_remedies():
    """If it is not known whether there is a snapshot, no remedy names only `reopen`, which would lose its counters."""
    report = Verification(1.0, has_snapshot=None)
    report.find("log.missing", "tally:log")
    report.find("deployment.missing", "tally:meta")
    for finding in report.in_order():
        assert "tallystream restore --force" in report.remedy(finding)
        assert "tallystream reopen" in report.remedy(finding)


def test_an_unreadable_file_is_mended_first_of_all():
    """A file that cannot be read keeps its remedy, also if entries are lost: the other commands need the file."""
    report = Verification(1.0, has_snapshot=True)
    report.find("archive.ahead", "entry 1-1")
    report.find("archive.unreadable", "a.parquet")
    report.explain("archive.ahead")
    assert not report.remedy(report.findings["archive.unreadable"]).startswith("first mend")
    ahead = report.remedy(report.findings["archive.ahead"])
    assert ahead == report.findings["archive.ahead"].kind.remedy  # which entries are lost is not known
