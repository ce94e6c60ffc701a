"""Appends the events of files: parses lines into events, and gives a reason for each line that is not an event.

    with open_source("access.log.gz") as source:
        for outcome in PARSERS["combined"](source, Mapping(metric="view", subject="path")):
            match outcome:
                case ParsedLine(event=fields): event = Event(*fields)
                case BadLine(number=number, reason=reason): ...

The parsers of lines are pure functions; `source` opens and reads files of lines, and `formats.parquet_rows` Parquet.
"""

from __future__ import annotations

from tallystream_worker.ingest.formats.registry import PARSERS, Format
from tallystream_worker.ingest.lines import (
    MAX_LINE_BYTES,
    VIEWS,
    BadLine,
    EventFields,
    Field,
    Line,
    LineOutcome,
    Mapping,
    ParsedLine,
)
from tallystream_worker.ingest.source import Source, SourceError, open_source

__all__ = [
    "MAX_LINE_BYTES",
    "PARSERS",
    "VIEWS",
    "BadLine",
    "EventFields",
    "Field",
    "Format",
    "Line",
    "LineOutcome",
    "Mapping",
    "ParsedLine",
    "Source",
    "SourceError",
    "open_source",
]
