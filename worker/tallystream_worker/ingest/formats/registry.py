"""Lists the file formats, and the parser of each format that consists of lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from tallystream_worker.ingest.formats import combined, csv_rows, ndjson_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tallystream_worker.ingest.lines import Line, LineOutcome, Mapping

Format: TypeAlias = Literal["combined", "ndjson", "csv", "parquet"]
"""The name of a file format."""

PARSERS: Final[dict[Format, Callable[[Iterable[Line], Mapping], Iterator[LineOutcome]]]] = {
    "combined": combined.parse,
    "ndjson": ndjson_lines.parse,
    "csv": csv_rows.parse,
}
"""The parser of each format of lines, so of every format but `parquet`."""


def format_of(name: str) -> Format:
    """Return the format of a file by the suffix of its name, before a `.gz`; `combined` if the suffix is not known."""
    suffixes = name.removesuffix(".gz").rpartition(".")[2].lower()
    return _BY_SUFFIX.get(suffixes, "combined")


_BY_SUFFIX: Final[dict[str, Format]] = {"parquet": "parquet", "csv": "csv", "ndjson": "ndjson", "jsonl": "ndjson"}
