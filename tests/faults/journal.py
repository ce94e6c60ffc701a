"""What a producer knows of its events, on disk, so that it outlives the producer: intent, then what became of it.

One line each, appended with one `write`: a killed process leaves whole lines, the page cache keeps them.

    i <chunk> <millisecond> <subject>=<amount> ...   about to emit; each is a pair: a view and a like of that amount
    o <chunk>                                        this chunk and all before it are confirmed: they are in the stream
    d <chunk> <index> ...                            these pairs of the chunk were refused at once, by a full buffer
    m <chunk>                                        emit has returned for all of this chunk, and all before it
    e <statistics>                                   the end: the producer was closed in order

A chunk without `o` is unknown: in the stream or not. Chunks are numbered from 1.
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
"""A subject and an amount: one view and one like of it."""


class Journal:
    """The writing side."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def intend(self, chunk: int, moment: float, pairs: Sequence[Pair]) -> None:
        """Note what is about to be emitted, before it is."""
        told = " ".join(f"{subject}={amount}" for subject, amount in pairs)
        self._write(f"i {chunk} {moment * 1000:.0f} {told}")

    def confirm(self, chunk: int) -> None:
        """Note that everything up to a chunk was confirmed."""
        self._write(f"o {chunk}")

    def emitted(self, chunk: int) -> None:
        """Note that the producer has taken a chunk."""
        self._write(f"m {chunk}")

    def refuse(self, chunk: int, indices: Iterable[int]) -> None:
        """Note which pairs were not taken."""
        self._write(f"d {chunk} {' '.join(map(str, indices))}")

    def end(self, statistics: dict[str, Any]) -> None:
        """Note that the producer was closed."""
        self._write(f"e {json.dumps(statistics)}")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, line: str) -> None:
        os.write(self._file, line.encode() + b"\n")


@dataclass
class Account:
    """What journals add up to, in pairs and, by subject, in amounts.

    Attributes:
        confirmed: In the stream, as the server said.
        unknown: In the stream or not.
        taken: Confirmed, or at least taken by a producer: with a spool they survive it.
        pairs: How many were confirmed.
        unknown_pairs: How many are unknown.
        refused_pairs: How many were refused at emit, and said so.
        doubtful: The unknown ones: when they were intended, subject and amount.
        youngest_unknown: The second at which the last of them was intended.
        statistics: What each producer that ended in order said of itself.
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
        """Add one journal; a torn last line was never acted upon."""
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
