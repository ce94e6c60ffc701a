"""Events from files: lines in, events out, and a reason for every line that is none.

    with open_source("access.log.gz") as source:
        for outcome in PARSERS["combined"](source, Mapping(metric="view", subject="path")):
            match outcome:
                case ParsedLine(event=fields): event = Event(*fields)
                case BadLine(number=number, reason=reason): ...

The parsers are pure functions over lines; only `readers` touches files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from tallystream_worker.ingest import combined, csv_rows, ndjson_lines
from tallystream_worker.ingest.lines import (
    MAX_LINE_BYTES,
    VIEWS,
    BadLine,
    EventFields,
    Field,
    Line,
    Mapping,
    Outcome,
    ParsedLine,
)
from tallystream_worker.ingest.readers import Source, SourceError, open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "MAX_LINE_BYTES",
    "PARSERS",
    "VIEWS",
    "BadLine",
    "EventFields",
    "Field",
    "Format",
    "Line",
    "Mapping",
    "Outcome",
    "ParsedLine",
    "Source",
    "SourceError",
    "open_source",
]

Format: TypeAlias = Literal["combined", "ndjson", "csv"]

PARSERS: Final[dict[Format, Callable[[Iterable[Line], Mapping], Iterator[Outcome]]]] = {
    "combined": combined.parse,
    "ndjson": ndjson_lines.parse,
    "csv": csv_rows.parse,
}
"""The parser of each format."""
