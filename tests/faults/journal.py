"""The journal of a producer: a file with the events that it was about to emit, and with the outcome of each.

The journal survives SIGKILL of the producer: each line is appended with one `write`, so every line is whole, and the
page cache keeps it. The lines are:

    i <chunk> <millisecond> <subject>=<amount> ...   about to emit; each is a pair: a view and a like of that amount
    o <chunk>                                        this chunk and all before it are confirmed: they are in the stream
    d <chunk> <index> ...                            these pairs of the chunk were refused by a full buffer
    m <chunk>                                        emit has returned for all events of this chunk and all before it
    e <statistics>                                   the application has finished; the producer's statistics, as JSON

A chunk without `o` is unknown: it may be in the stream or not. Chunks are numbered from 1.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Pair = tuple[str, int]
"""A subject and an amount, for one view and one like of that amount."""


class Journal:
    """The writer of a journal file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def intend(self, chunk: int, moment: float, pairs: Sequence[Pair]) -> None:
        """Record the pairs of a chunk that is about to be emitted; `moment` is in seconds."""
        told = " ".join(f"{subject}={amount}" for subject, amount in pairs)
        self._write(f"i {chunk} {moment * 1000:.0f} {told}")

    def confirm(self, chunk: int) -> None:
        """Record that this chunk and all before it were confirmed."""
        self._write(f"o {chunk}")

    def emitted(self, chunk: int) -> None:
        """Record that `emit` has returned for every event of a chunk."""
        self._write(f"m {chunk}")

    def refuse(self, chunk: int, indices: Iterable[int]) -> None:
        """Record the pairs of a chunk that a full buffer refused, by their indices."""
        self._write(f"d {chunk} {' '.join(map(str, indices))}")

    def end(self, statistics: dict[str, Any]) -> None:
        """Record the producer's statistics as the last line."""
        self._write(f"e {json.dumps(statistics)}")

    def close(self) -> None:
        """Close the journal file."""
        os.close(self._file)

    def _write(self, line: str) -> None:
        os.write(self._file, line.encode() + b"\n")


@dataclass
class Account:
    """The sums of several journals, in pairs and, by subject, in amounts.

    Attributes:
        confirmed: Amounts whose append the server confirmed.
        unknown: Amounts that may be in the stream or not.
        taken: Amounts that are confirmed or for which `emit` has returned; with a spool, they survive the producer.
        pairs: The number of confirmed pairs.
        unknown_pairs: The number of unknown pairs.
        refused_pairs: The number of pairs that `emit` refused and reported.
        doubtful: The unknown pairs: the second at which each was recorded, its subject and its amount.
        youngest_unknown: The second at which the last unknown pair was recorded.
        statistics: The statistics of each producer that finished.
    """

    confirmed: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    unknown_pairs: int = 0
    refused_pairs: int = 0
    doubtful: list[tuple[float, str, int]] = field(default_factory=list)
    youngest_unknown: float = 0.0
    statistics: list[dict[str, Any]] = field(default_factory=list)

    def read(self, path: Path) -> Self:
        """Add a journal file and return the account; ignore an incomplete last line: the producer did not act on it."""
        intended: dict[int, tuple[float, list[Pair]]] = {}
        confirmed = taken = 0
        for line in path.read_text().split("\n")[:-1]:
            kind, *parts = line.split(" ")
            if kind == "i":
                pairs = [(subject, int(amount)) for subject, amount in (part.split("=") for part in parts[2:])]
                intended[int(parts[0])] = (int(parts[1]) / 1000, pairs)
            elif kind == "o":
                confirmed = max(confirmed, int(parts[0]))
            elif kind == "m":
                taken = max(taken, int(parts[0]))
            elif kind == "d":
                moment, pairs = intended[int(parts[0])]
                refused = {int(index) for index in parts[1:]}
                self.refused_pairs += len(refused)
                kept = [pair for index, pair in enumerate(pairs) if index not in refused]
                intended[int(parts[0])] = (moment, kept)
            else:
                self.statistics.append(json.loads(line[2:]))
        for chunk, (moment, pairs) in intended.items():
            amounts = self.confirmed if chunk <= confirmed else self.unknown
            for subject, amount in pairs:
                amounts[subject] += amount
                self.taken[subject] += amount if chunk <= max(confirmed, taken) else 0
            if chunk <= confirmed:
                self.pairs += len(pairs)
            else:
                self.unknown_pairs += len(pairs)
                self.youngest_unknown = max(self.youngest_unknown, moment)
                self.doubtful += [(moment, subject, amount) for subject, amount in pairs]
        return self
