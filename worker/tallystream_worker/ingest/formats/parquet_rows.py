"""Packs the rows of Parquet files; rows without actor and id are summed in Arrow before they reach Python."""

from __future__ import annotations

import os
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import ConfigurationError, EventError
from tallystream.wire.event import MAX_AT
from tallystream_worker.ingest.formats.csv_rows import COLUMNS
from tallystream_worker.ingest.source import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tallystream_worker.ingest.packer import EventPacker

SEGMENT_ROWS: Final = 2**20
"""The number of rows in one segment: the part of a file that one job reads."""

_SLICE: Final = 8192
"""The number of rows that are summed together; it keeps an entry small if no subject repeats."""

_LARGE: Final = 2**40
"""The amount from which a row is packed alone, so that sums stay far below 64 bits."""


def _arrow() -> tuple[Any, Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra, and a heavy one
        import pyarrow.compute as pc  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError("Parquet needs pyarrow: pip install 'tallystream-worker[archive]'") from None
    return pa, pc, pq


def rows_of(path: str) -> int:
    """Return the number of rows of a Parquet file, after checking the names of its columns.

    Raises:
        SourceError: the file cannot be read, is not a Parquet file, has an unknown column, or has no column `subject`.
        ConfigurationError: pyarrow is not installed.
    """
    _, _, pq = _arrow()
    with _opened(pq, path) as file:
        names = file.schema_arrow.names
        if unknown := [name for name in names if name not in COLUMNS]:
            raise SourceError(f"{path}: there is an unknown column {unknown[0]!r}; use {', '.join(COLUMNS)}")
        if "subject" not in names:
            raise SourceError(f"{path}: there is no column 'subject'")
        return int(file.metadata.num_rows)


def head_and_tail(path: str, size: int) -> bytes:
    """Return the first and the last `size // 2` bytes of a file; the metadata of Parquet is at the end.

    If the file is shorter than `size`, some or all of its bytes are there twice.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(size // 2)
        file.seek(max(0, file.seek(0, os.SEEK_END) - size // 2))
        return head + file.read()


def pack_rows(
    path: str,
    metric: str,
    begin: int,
    end: int,
    packer: EventPacker,
    note: Callable[[int, str, int], None],
) -> Iterator[int]:
    """Pack the rows from `begin` to before `end`, slice by slice; yield the number of the row after each packed slice.

    No chunk is sealed: the caller must do this with the packer after each slice.

    Args:
        path: The Parquet file.
        metric: The metric of rows without one.
        begin: The first row, counted from 0.
        end: The row after the last one.
        packer: Packs the events; it skips those that were appended before.
        note: Called with rows that are not events: the number of the first of them, counted from 0 in the file, the
            reason, and how many they are.

    Raises:
        SourceError: the file cannot be opened, or a value of a column cannot be converted.
        ConfigurationError: pyarrow is not installed.
        OSError, pyarrow.ArrowException: a later part of the file cannot be read, or a column is a list or a struct.
    """
    pa, pc, pq = _arrow()
    row = 0
    with _opened(pq, path) as file:
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row + rows > begin and row < end:
                table = file.read_row_group(group)
                first, last = max(begin - row, 0), min(end - row, rows)
                columns = _columns(pa, pc, table.slice(first, last - first), metric, path)
                for at, part in _slices(columns, row + first, packer.boundaries):
                    _pack(pc, part, at, packer, note)
                    yield at + part.num_rows
            row += rows


def _slices(table: Any, row: int, done: set[int]) -> Iterator[tuple[int, Any]]:
    """Divide a table that begins at `row`; yield the first row and the table of each slice of at most `_SLICE` rows.

    A slice also ends at each row number in `done`.
    """
    end = row + table.num_rows
    cuts = sorted({row, *range(row + _SLICE, end, _SLICE), *(each for each in done if row < each < end)})
    for first, last in zip(cuts, [*cuts[1:], end], strict=True):
        yield first, table.slice(first - row, last - first)


def _columns(pa: Any, pc: Any, table: Any, metric: str, path: str) -> Any:
    """Return a table with all columns of an event in their types; a missing metric becomes `metric`, an amount 1.

    Raises:
        SourceError: a value of a column cannot be converted to its type.
        pyarrow.ArrowNotImplementedError: no value of a column can be converted, such as those of a list.
    """
    rows = table.num_rows

    def column(name: str, kind: Any) -> Any:
        if name not in table.column_names:
            return pa.nulls(rows, kind)
        found = table[name].combine_chunks()
        try:
            if name == "at" and pa.types.is_timestamp(found.type):
                found = pc.divide(pc.cast(pc.cast(found, pa.timestamp("us", tz=found.type.tz)), pa.int64()), 1e6)
            return pc.cast(found, kind)
        except pa.ArrowInvalid as error:
            raise SourceError(f"{path}: column {name!r} cannot be read as the {name} of events: {error}") from None

    return pa.table(
        {
            "metric": pc.fill_null(column("metric", pa.string()), metric),
            "subject": column("subject", pa.string()),
            "amount": pc.fill_null(column("amount", pa.int64()), 1),
            "actor": column("actor", pa.string()),
            "at": column("at", pa.float64()),
            "id": column("id", pa.string()),
        }
    )


def _pack(pc: Any, part: Any, row: int, packer: EventPacker, note: Callable[[int, str, int], None]) -> None:
    by_itself = pc.or_(pc.is_valid(part["actor"]), pc.is_valid(part["id"]))
    by_itself = pc.or_(by_itself, pc.is_null(part["subject"]))
    by_itself = pc.or_(by_itself, pc.greater_equal(pc.abs(part["amount"]), _LARGE))
    # A row without a time gets the time at which it is read; the packer rejects a time that is out of range.
    sound = pc.and_(pc.greater_equal(part["at"], 0.0), pc.less(part["at"], float(MAX_AT)))
    by_itself = pc.or_(by_itself, pc.invert(pc.fill_null(sound, fill_value=False)))
    numbered = part.append_column("row", _range(row, part.num_rows))
    for event in numbered.filter(by_itself).to_pylist():
        at = event.pop("row")
        fields = (event["metric"], event["subject"] or "", event["amount"], event["actor"], event["at"], event["id"])
        try:
            packer.pack(fields, at)
        except EventError as error:
            note(at, str(error), 1)
    summable = numbered.filter(pc.invert(by_itself))
    for metric in pc.unique(summable["metric"]).to_pylist():
        _pack_summed(pc, metric, summable.filter(pc.equal(summable["metric"], metric)), row, packer, note)


def _pack_summed(
    pc: Any, metric: str, rows: Any, row: int, packer: EventPacker, note: Callable[[int, str, int], None]
) -> None:
    """Sum the rows of one metric, of a slice that begins at `row`, by subject and minute, and pack the sums.

    The rows have a subject, a valid time, and an amount below 2^40 in size, and no actor or id. Of each subject, all
    rows were appended before, or none: no offset of `packer.boundaries` is within the slice. This is not checked.

    Rows that were appended before are not packed, but added to `packer.known`. Rows that break a rule are not packed;
    `note` is called with them as by `pack_rows`.
    """
    rows = _accepted(pc, metric, rows, packer, note)
    if not rows.num_rows:
        return
    are_units = packer.is_summable(metric) and pc.all(pc.equal(rows["amount"], 1)).as_py()
    subjects = pc.dictionary_encode(rows["subject"].combine_chunks())
    names, partitions, faults = [], [], {}
    for number, subject in enumerate(subjects.dictionary.to_pylist()):
        try:
            name, partition = packer.route(subject)
            if packer.is_known(name, partition, row):
                partition = _KNOWN
        except EventError as error:
            name, partition = "", _NOWHERE
            faults[number] = str(error)
        names.append(name)
        partitions.append(partition)
    pa, _, _ = _arrow()
    sums = (
        pa.table(
            {
                "partition": pa.array(partitions, pa.int32()).take(subjects.indices),
                "minute": pc.cast(pc.floor(pc.divide(rows["at"], 60.0)), "int64"),
                "number": subjects.indices,
                "amount": rows["amount"],
                "row": rows["row"],
            }
        )
        .group_by(["partition", "minute", "number"], use_threads=False)
        .aggregate(_UNITS if are_units else _SUMS)
        .sort_by([("partition", "ascending"), ("minute", "ascending")])
    )
    where, minutes, numbers, events, firsts, *amounts = (sums[name].to_pylist() for name in sums.column_names)
    begin = 0
    for (partition, minute), run in groupby(zip(where, minutes, strict=True)):
        end = begin + len(list(run))
        if partition == _NOWHERE:
            for number, n, first in zip(numbers[begin:end], events[begin:end], firsts[begin:end], strict=True):
                note(first, faults[number], n)
        elif are_units:
            of_run = [names[number] for number in numbers[begin:end]]
            try:
                packer.pack_units(metric, None if partition == _KNOWN else partition, minute, of_run, events[begin:end])
            except EventError as error:
                note(min(firsts[begin:end]), str(error), sum(events[begin:end]))
        else:
            for at in range(begin, end):
                try:
                    total, least, most = (column[at] for column in amounts)
                    packer.pack_sum(metric, names[numbers[at]], minute, (total, least, most), events[at], row)
                except EventError as error:
                    note(firsts[at], str(error), events[at])
        begin = end


def _accepted(pc: Any, metric: str, rows: Any, packer: EventPacker, note: Callable[[int, str, int], None]) -> Any:
    """Return the rows whose amount the rules of the metric accept; for the others, call `note` once for each amount.

    If the metric is not valid or not declared, return no rows, and call `note` once.
    """
    try:
        if packer.is_summable(metric):
            return rows
    except EventError as error:
        note(pc.min(rows["row"]).as_py(), str(error), rows.num_rows)
        return rows.slice(0, 0)
    pa, _, _ = _arrow()
    amounts = rows.select(["amount", "row"]).group_by("amount", use_threads=False).aggregate(_UNITS)
    rejected = []
    for amount, events, first in zip(*(amounts[name].to_pylist() for name in amounts.column_names), strict=True):
        try:
            packer.check_rules(metric, amount)
        except EventError as error:
            rejected.append(amount)
            note(first, str(error), events)
    return rows.filter(pc.invert(pc.is_in(rows["amount"], value_set=pa.array(rejected, pa.int64()))))


_NOWHERE: Final = -1
_KNOWN: Final = -2
_UNITS: Final = [("row", "count"), ("row", "min")]
_SUMS: Final = [*_UNITS, ("amount", "sum"), ("amount", "min"), ("amount", "max")]


def _range(begin: int, rows: int) -> Any:
    _, pc, _ = _arrow()
    return pc.add(_first_rows().slice(0, rows), begin)


@cache
def _first_rows() -> Any:
    pa, _, _ = _arrow()
    return pa.array(range(_SLICE), pa.int64())


def _opened(pq: Any, path: str) -> Any:
    pa, _, _ = _arrow()
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise SourceError(f"cannot read {path}: No such file or directory") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"cannot read {path}: {error}") from None
