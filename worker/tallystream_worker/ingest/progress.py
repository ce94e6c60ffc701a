"""How far a job has come: events appended, lines that are no events, and why nothing moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from tallystream.wire.stream_id import parse_id

_SHOWN: Final = 10


@dataclass
class IngestProgress:
    """What has become of the lines so far.

    Attributes:
        events: Appended now.
        known: Appended before, and passed over.
        bad: Lines that are no events.
        read: Bytes taken from the file; of Parquet, rows.
        examples: The first bad lines: where, and why.
        last_ids: Per partition, the stream ID of the last entry of ours.
        waiting_for: Why nothing moves at the moment, if so.
    """

    events: int = 0
    known: int = 0
    bad: int = 0
    read: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    last_ids: dict[int, str] = field(default_factory=dict)
    waiting_for: str | None = None

    def note(self, name: str, number: int, reason: str, lines: int = 1) -> None:
        """Take note of a line that is no event, and of others that share its fault."""
        self.bad += lines
        if len(self.examples) < _SHOWN:
            self.examples.append({"file": name, "line": number, "reason": reason})

    def add(self, other: IngestProgress) -> None:
        """Take in what another job has done."""
        self.events += other.events
        self.known += other.known
        self.bad += other.bad
        self.read += other.read
        self.examples = (self.examples + other.examples)[:_SHOWN]
        for partition, id_ in other.last_ids.items():
            self.last_ids[partition] = max(id_, self.last_ids.get(partition, ""), key=_order)


Report = Callable[[IngestProgress], bool]
"""Told of the progress now and then; the run ends early where it answers `False`."""


def _order(stream_id: str) -> tuple[int, int]:
    return parse_id(stream_id) if stream_id else (0, 0)
