"""The progress of an ingest: events appended, bad lines, and why nothing is appended at the moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from tallystream_worker.ingest.sent import SentSegment

_SHOWN: Final = 10
_CHUNK: Final = 2**20


@dataclass
class IngestProgress:
    """The outcomes of the lines that were read so far. Of a Parquet file, lines are rows, also in the attributes.

    Attributes:
        events: The number of events that this run appended.
        known: The number of events that were appended before, and skipped; added when a segment is read to its end.
        bad: The number of lines that are not events.
        read: `Source.bytes_read` of the file; rows read for Parquet.
        examples: At most 10 bad lines, as dicts of `file`, `line` and `reason`. Until `number_from_file` is called, a
            line that is counted from an offset other than 0 also has this offset, as `begin`. `line` is `None` if it is
            not known. Lines that were noted together have one example.
        last_ids: By topic and partition, the stream ID of the last entry that this run is known to have appended. An
            entry is left out if its reply was lost, or if `ChunkSender` did not append all of its burst.
        waiting_for: Why nothing is appended at the moment; `None` if nothing prevents it.
        segments: The segments that were read to their end and appended; `add` leaves them out.
    """

    events: int = 0
    known: int = 0
    bad: int = 0
    read: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)
    last_ids: dict[tuple[int, int], str] = field(default_factory=dict)
    waiting_for: str | None = None
    segments: tuple[SentSegment, ...] = ()

    def note(self, name: str, number: int, reason: str, lines: int = 1, *, begin: int = 0) -> None:
        """Add bad lines that have the same reason; keep one example of them, unless there are 10.

        Args:
            name: The name of the file.
            number: The number of the first of the lines, counted from 1; of Parquet, that of the row.
            reason: Why the lines are not events.
            lines: The number of lines or rows.
            begin: The offset in the file, in bytes, from which the lines are numbered; see `number_from_file`. 0 for
                the beginning of the file, and for Parquet.
        """
        self.bad += lines
        if len(self.examples) < _SHOWN:
            example = {"file": name, "line": number, "reason": reason}
            self.examples.append(example | {"begin": begin} if begin else example)

    def number_from_file(self) -> None:
        """Change the line of each example that is counted from an offset to one counted from the beginning of its file.

        Read each file once, up to its last such offset. If the file cannot be opened, or a read fails before the offset
        of an example, the line of this example becomes `None`; no error is raised.
        """
        begins: dict[str, set[int]] = defaultdict(set)
        for example in self.examples:
            if "begin" in example:
                begins[example["file"]].add(example["begin"])
        before = {name: lines_before(name, sorted(offsets)) for name, offsets in begins.items()}
        for example in self.examples:
            if "begin" in example:
                lines = before[example["file"]].get(example.pop("begin"))
                example["line"] = None if lines is None else lines + example["line"]

    def add(self, other: IngestProgress) -> None:
        """Add the figures of another job to those of this object.

        Of the examples of both, the first 10 are kept. For each partition of a topic, the larger of the two last stream
        IDs is kept. `waiting_for` and `segments` stay unchanged.
        """
        self.events += other.events
        self.known += other.known
        self.bad += other.bad
        self.read += other.read
        self.examples = (self.examples + other.examples)[:_SHOWN]
        self.wait_for(other.last_ids)

    def wait_for(self, last_ids: Mapping[tuple[int, int], str]) -> None:
        """Add the last stream IDs of an earlier attempt: for each partition of a topic, keep the larger of the two."""
        for place, id_ in last_ids.items():
            self.last_ids[place] = max(id_, self.last_ids.get(place, ""), key=_order)


def lines_before(path: str, offsets: Sequence[int]) -> dict[int, int]:
    """Return, by offset, the number of lines of a file that begin before it.

    If the file cannot be opened, the result is empty; if a read fails, it lacks this offset and the later ones. No
    `OSError` is raised.

    Args:
        path: The path of the file, which is not compressed.
        offsets: Offsets in bytes, more than 0, strictly ascending, not beyond the end of the file.
    """
    found: dict[int, int] = {}
    at = ends = 0
    with suppress(OSError), Path(path).open("rb") as file:
        for offset in offsets:
            last = b""
            while at < offset and (chunk := file.read(min(_CHUNK, offset - at))):
                at, ends, last = at + len(chunk), ends + chunk.count(b"\n"), chunk
            found[offset] = ends + (not last.endswith(b"\n"))
    return found


Report = Callable[[IngestProgress], bool]
"""A function that is called with the progress from time to time, and returns whether to continue."""


def _order(stream_id: str) -> tuple[int, int]:
    return parse_id(stream_id) if stream_id else (0, 0)
