"""The formats of files of lines, and the parser of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from tallystream_worker.ingest.formats import combined, csv_rows, ndjson_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tallystream_worker.ingest.lines import Line, LineOutcome, Mapping

Format: TypeAlias = Literal["combined", "ndjson", "csv", "parquet"]

PARSERS: Final[dict[Format, Callable[[Iterable[Line], Mapping], Iterator[LineOutcome]]]] = {
    "combined": combined.parse,
    "ndjson": ndjson_lines.parse,
    "csv": csv_rows.parse,
}
"""The parser of each format of lines."""


def format_of(name: str) -> Format:
    """Return the format that a file's name suggests: an access log, where it suggests nothing else."""
    suffixes = name.removesuffix(".gz").rpartition(".")[2].lower()
    return _BY_SUFFIX.get(suffixes, "combined")


_BY_SUFFIX: Final[dict[str, Format]] = {"parquet": "parquet", "csv": "csv", "ndjson": "ndjson", "jsonl": "ndjson"}
