"""What a scenario found to be untrue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CHECKS: Final = {
    "B": "balance: confirmed <= total <= confirmed + unknown, for every counter",
    "P": "pairs: the two metrics of a pair are equal whenever anyone looks",
    "R": "replay: the log alone gives the same totals, by the system and by the oracle",
    "D": "drain: after healing, without a restart, lag, pending and unaccounted go to 0",
    "M": "monotone: no reading falls, except where the data was rewound or begun anew",
    "L": "ledger: no outcome exceeds what was appended, and the books agree with the counters",
    "X": "expectation: what this row besides demands",
}
"""What is checked, by the letter that reports use."""


@dataclass(frozen=True)
class Failure:
    """A check that did not hold."""

    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


class ExpectationFailed(AssertionError):
    """A scenario's own demand was not met."""
