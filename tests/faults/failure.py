"""The checks of the fault suite by letter, and the failure of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CHECKS: Final = {
    "B": "balance: confirmed <= total <= confirmed + unknown, for every counter",
    "P": "pairs: the two metrics of a pair are equal at every reading",
    "R": "replay: the topic alone gives the same totals, counted by the system and by the oracle",
    "D": "drain: after healing, without a restart, lag, pending and unaccounted go to 0",
    "M": "monotone: no counter falls, unless the data was rewound or replaced",
    "L": "ledger: no more events have an outcome than were appended, and the ledger agrees with the counters",
    "X": "expectation: a demand of this row only",
}
"""The description of each check, by the letter that reports use."""


@dataclass(frozen=True)
class Failure:
    """A check that failed: its letter and a message."""

    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


class ExpectationFailed(AssertionError):
    """A demand that only this row makes was not met."""
