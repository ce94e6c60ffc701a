"""The report of a verification: what is proved, what is wrong, and what is not proved and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tallystream.errors import KeyLost
from tallystream_worker.verify.findings import CAUSES, EITHER, KINDS, REBUILD, SHOWN, SNAPSHOT, Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream_worker.archive.lost import LostEntries


@dataclass(frozen=True)
class Proof:
    """A statement that a check has proved.

    Attributes:
        check: The name of the check.
        text: The statement, with what was checked and how much.
        figures: The figures of the text, for programs.
    """

    check: str
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotProved:
    """A statement that a verification does not prove, or a check that it could not make.

    Attributes:
        check: The name of the check.
        text: What is not proved or could not be checked, and why.
    """

    check: str
    text: str


@dataclass
class Verification:
    """Collects the result of a verification; `find`, `prove`, `limit` and `fail` add to it.

    Attributes:
        at: When the verification began, in seconds since 1970.
        findings: By name, what is wrong: how often, and the first details.
        proofs: What is proved.
        limits: What is not proved, and why.
        failed: What could not be checked, and why.
        differing: The counters that do not have the value that the entries give, each as its stream and its
            `Difference.counter`. The checks add to it, so that later checks do not report the same counter again.
        lost: The keys that `lose` has added to the findings.
        proves_counters: Whether every live counter was compared with what the entries give, except expired ones.
        cause: The name of the finding that must be mended first, because it can explain the others; `""` for none.
        has_snapshot: Whether there is a snapshot that can be restored; `None` if this is not known.
        ahead: By number of a partition, the archived entries that the server has lost, and that are not set aside yet.
        is_ahead_of_snapshot: Whether a restore of the snapshot counts all entries in `ahead`.
        has_lost_rules: Whether the snapshot has a change of the rules that the server has lost.
        lost_keys_remedy: What brings the keys in `lost` back; a general text until `mends.note` has replaced it.
        recount: What mends counters in this deployment; a general text until `mends.note` has replaced it.
    """

    at: float
    findings: dict[str, Finding] = field(default_factory=dict)
    proofs: list[Proof] = field(default_factory=list)
    limits: list[NotProved] = field(default_factory=list)
    failed: list[NotProved] = field(default_factory=list)
    differing: set[tuple[str, str]] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    proves_counters: bool = False
    cause: str = ""
    has_snapshot: bool | None = None
    ahead: dict[int, LostEntries] = field(default_factory=dict)
    is_ahead_of_snapshot: bool = False
    has_lost_rules: bool = False
    lost_keys_remedy: str = KINDS["keys.lost"].remedy
    recount: str = REBUILD

    def find(self, name: str, detail: str, *, times: int = 1) -> None:
        """Add `times` to the count of a kind of finding; of each kind, only the first five details are kept.

        Args:
            name: The name of the kind, a key of `KINDS`; another name is an error only when `Finding.kind` is read.
            detail: Where, and what; one text, whatever `times` is.
            times: How many faults this call reports.
        """
        found = self.findings.setdefault(name, Finding(name))
        found.count += times
        if len(found.details) < SHOWN:
            found.details.append(detail)

    def explain(self, name: str) -> None:
        """Note that a finding can explain others; if several can, the first one in `CAUSES` is to be mended first.

        Raises:
            ValueError: `name` is not in `CAUSES`.
        """
        self.cause = min((name, *([self.cause] if self.cause else [])), key=CAUSES.index)

    def lose(self, key: str) -> None:
        """Add a lost key to the findings; do nothing if it was added before."""
        if key not in self.lost:
            self.lost.add(key)
            self.find("keys.lost", f"{key} was deleted or evicted, or has lost fields")

    def lose_field(self, key: str, field: str, remedy: str) -> None:
        """Add a field that a hash has lost to the findings; `remedy` states what to do, in a whole sentence."""
        self.find("fields.lost", f"{key} has lost its field {field}. {remedy}")

    def mistype(self, key: str, kind: str, *, is_replaced: bool) -> None:
        """Add to the findings a key of another type than the one that is needed; a second call adds it again.

        Args:
            key: The name of the key.
            kind: The type that it has.
            is_replaced: Whether a rebuild replaces the key; if not, the detail is the text of `KeyLost`, which has a
                remedy.
        """
        self.find("keys.mistyped", f"{key} has the type {kind}" if is_replaced else str(KeyLost(key, kind)))

    @property
    def faults(self) -> int:
        """How many faults were found so far: the sum of the counts of all findings."""
        return sum(found.count for found in self.findings.values())

    def prove(self, check: str, text: str, *, faults_before: int, **figures: Any) -> None:
        """Add a statement as proved; if a fault was found since `faults` was `faults_before`, as not proved.

        Args:
            check: The name of the check.
            text: The statement.
            faults_before: `faults` before the first check that the statement depends on.
            figures: The figures of the text, for programs.
        """
        if self.faults == faults_before:
            self.proofs.append(Proof(check, text, figures))
        else:
            self.limit(check, f"{text}: a fault above contradicts it")

    def limit(self, check: str, text: str) -> None:
        """Add a statement about what is not proved, and why."""
        self.limits.append(NotProved(check, text))

    def fail(self, check: str, text: str) -> None:
        """Add the reason for which a check could not be made."""
        self.failed.append(NotProved(check, text))

    @property
    def status(self) -> int:
        """The exit status: 1 if something is wrong, else 2 if a check could not be made, else 0.

        The `limits` do not change it.
        """
        return 1 if self.findings else 2 if self.failed else 0

    def in_order(self) -> list[Finding]:
        """Return the findings: first the one that can explain the others, then those in the order of the checks."""
        return sorted(self.findings.values(), key=lambda finding: finding.name != self.cause)

    def remedy(self, finding: Finding) -> str:
        """Return what mends a finding of this report: the text of `_chosen`, with `recount` as what mends counters.

        If another finding can explain it, the text names only that one, to be mended first; not so for a file of the
        archive that cannot be read, because other remedies need it. If the remedy includes a new snapshot, and counters
        were found to be wrong, the text states to mend these first: else the snapshot would have their values. If no
        counter is wrong, and `proves_counters`, the text replaces a choice between the live value and that of the
        snapshot by a new snapshot.

        Raises:
            KeyError: the finding has a name that is not in `KINDS`.
        """
        if self.cause in self.findings and finding.name not in (self.cause, "archive.unreadable"):
            return f"first mend {self.cause}, which can be the reason for this fault; then verify again"
        text = self._chosen(finding).replace(REBUILD, self.recount)
        if self.differing and SNAPSHOT in text:
            return f"first mend the counters: a new snapshot would have their wrong values; then: {text}"
        return text.replace(EITHER, SNAPSHOT) if self.proves_counters else text

    def _chosen(self, finding: Finding) -> str:
        """Return the remedy of the kind of a finding, or its `restore` or `without`, if one of these is right.

        For lost keys, return `lost_keys_remedy`. `restore` is right if there is a snapshot whose restore mends the
        finding. If it is not known whether there is a snapshot, return the remedy of the kind, which states both cases.
        """
        if finding.name == "keys.lost":
            return self.lost_keys_remedy
        kind, has_snapshot = finding.kind, self.has_snapshot
        if finding.name == "archive.ahead" and not self.ahead:
            return kind.remedy  # it is not known which entries are lost
        if finding.name == "archive.ahead" and has_snapshot:
            is_missing = any(lost.entries > lost.sent_again for lost in self.ahead.values())
            has_snapshot = self.is_ahead_of_snapshot and is_missing
        if finding.name == "rules.missing" and has_snapshot:
            has_snapshot = self.has_lost_rules  # else a restore may leave those of the archive out
        if has_snapshot is None:
            return kind.remedy
        return (kind.restore if has_snapshot else kind.without) or kind.remedy

    def said(self) -> dict[str, object]:
        """Return the fields of a log line.

        `findings` has the sorted names of the kinds of findings, joined by `, `, and `failed` those of the checks that
        could not be made. `proofs` and `limits` are numbers.
        """
        return {
            "findings": ", ".join(sorted(self.findings)),
            "failed": ", ".join(sorted({each.check for each in self.failed})),
            "proofs": len(self.proofs),
            "limits": len(self.limits),
        }

    def summary(self) -> dict[str, object]:
        """Return the report for programs, as JSON can have it.

        The keys are `status` and `at` (the attributes); `findings`, `proved`, `not_proved` (the limits) and
        `not_checked` (what failed), each a list of objects. An object of `findings` has `name`, `count`, `details`,
        `meaning` and `remedy`; one of the other lists has `check` and `text`, and in `proved` also its figures.

        Raises:
            KeyError: a finding has a name that is not in `KINDS`.
        """
        return {
            "status": self.status,
            "at": self.at,
            "findings": [
                {
                    "name": each.name, "count": each.count, "details": each.details,
                    "meaning": each.kind.meaning, "remedy": self.remedy(each),
                }
                for each in self.in_order()
            ],
            "proved": [{"check": each.check, "text": each.text, **each.figures} for each in self.proofs],
            "not_proved": [{"check": each.check, "text": each.text} for each in self.limits],
            "not_checked": [{"check": each.check, "text": each.text} for each in self.failed],
        }  # fmt: skip
