"""Compares archived entries, with all their events, with the same entries of the stream.

The columns of an archived entry depend only on the entry (see `archive.rows`). So an entry of the stream is converted
to columns again, and must give exactly the rows that the archive has. One value is not compared: the generation that
decided an entry, because a restore writes another one. That both entries were decided, or neither, is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from tallystream_worker.counting.entry import Entry

_MOST_ROWS: Final = 20_000
_LONGEST: Final = 100
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class ArchivedRows:
    """The rows of one archived entry.

    Attributes:
        table: The rows of its file, with the columns of `archive.rows.SCHEMA`.
        start: Its first row.
        end: The row after its last one.
    """

    table: pa.Table
    start: int
    end: int


class RowComparison:
    """Compares pairs of an entry of the stream and the archived rows of this entry; call `finish` after the last one.

    At most about 20,000 rows are kept until they are compared, and the rows of one more entry.

    Args:
        differs: Called for each entry that differs, with its ID and with the first difference as text.
    """

    def __init__(self, differs: Callable[[str, str], None]) -> None:
        self._differs = differs
        self._pairs: list[tuple[Entry, ArchivedRows]] = []
        self._rows = 0

    def add(self, entry: Entry, archived: ArchivedRows) -> None:
        """Compare an entry of the stream with its archived rows, now or in a later call."""
        self._pairs.append((entry, archived))
        self._rows += archived.end - archived.start
        if self._rows >= _MOST_ROWS:
            self.finish()

    def finish(self) -> None:
        """Compare all pairs that were added and not compared yet."""
        import pyarrow as pa  # noqa: PLC0415  # pyarrow is an extra

        from tallystream_worker.archive.rows import Rows  # noqa: PLC0415  # as above

        pairs, self._pairs, self._rows = self._pairs, [], 0
        if not pairs:
            return
        expected = Rows()
        for entry, _ in pairs:
            expected.add(entry)
        found = _comparable(pa.concat_tables(_slices([rows for _, rows in pairs])))
        if found.equals(_comparable(expected.table())):  # nearly always, and much faster than row by row
            return
        for entry, rows in pairs:
            alone = Rows()
            alone.add(entry)
            archived = _comparable(rows.table.slice(rows.start, rows.end - rows.start)).to_pylist()
            if (text := _first_difference(_comparable(alone.table()).to_pylist(), archived)) is not None:
                self._differs(entry.id, text)


def _comparable(table: pa.Table) -> pa.Table:
    """Return the rows with `decided` as `True` or `False`: whether the entry was decided, by whatever generation."""
    at = table.schema.get_field_index("decided")
    return table if at < 0 else table.set_column(at, "decided", table.column(at).is_valid())


def _slices(rows: list[ArchivedRows]) -> list[pa.Table]:
    """Return the rows of the entries as few tables as possible, without a copy: neighbours become one slice."""
    joined: list[ArchivedRows] = []
    for each in rows:
        if joined and joined[-1].table is each.table and joined[-1].end == each.start:
            joined[-1] = ArchivedRows(each.table, joined[-1].start, each.end)
        else:
            joined.append(each)
    return [each.table.slice(each.start, each.end - each.start) for each in joined]


def _first_difference(expected: list[dict[str, Any]], archived: list[dict[str, Any]]) -> str | None:
    """Return a text on the first value that differs, with both values; `None` if all rows are equal.

    If only the numbers of rows differ, the text states these. Columns that `expected` does not have are not compared.
    """
    for wanted, found in zip(expected, archived, strict=False):
        for name, value in wanted.items():
            other = found.get(name, _ABSENT)
            if other is _ABSENT or type(value) is not type(other) or value != other:
                of = "" if name == "subject" else f" of {wanted['metric']} {_text(wanted['subject'])}"
                stored = "missing" if other is _ABSENT else _text(other)
                return f"{name}{of} is {_text(value)}, archived as {stored}"
    if len(expected) != len(archived):
        return f"{len(expected):,} rows, archived as {len(archived):,}"
    return None


def _text(value: Any) -> str:
    return str(value)[:_LONGEST]
