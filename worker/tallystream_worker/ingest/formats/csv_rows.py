"""Parses comma-separated values with a header row: the columns `metric,subject,amount,actor,at,id` in any order."""

from __future__ import annotations

import csv
import math
import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from tallystream_worker.ingest.lines import (
    MAX_LINE_BYTES,
    TOO_LONG,
    VIEWS,
    BadLine,
    EventFields,
    Line,
    LineOutcome,
    Mapping,
    ParsedLine,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COLUMNS: Final = ("metric", "subject", "amount", "actor", "at", "id")
"""The columns that CSV and Parquet files may have."""

# At most 16 digits: enough for 2^53, and fast to convert.
_WHOLE: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_SECONDS: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]


def parse(lines: Iterable[Line], mapping: Mapping = VIEWS) -> Iterator[LineOutcome]:
    """Yield, for each row after the header, its event or the reason why the row is not an event.

    The first line is the header; if it is not valid, its reason is the only result. A missing column or an empty cell
    means "not given"; only the column `subject` is required, and its cell is used even if it is empty. A row
    without a metric gets that of `mapping`, and one without an amount gets 1. `at` is a number of seconds since 1970,
    or a text in RFC 3339 with its zone. A row is one line: a cell cannot contain a line break, even if it is quoted.
    A row with more or fewer cells than the header is not an event. The event is not checked.
    """
    rows = iter(lines)
    for header in rows:
        try:
            columns = _columns(_cells(header.text.removeprefix(b"\xef\xbb\xbf")))  # Excel's byte order mark
        except (ValueError, csv.Error) as error:
            yield BadLine(header.number, plain(error))
            return
        break
    else:
        return
    for number, offset, text in rows:
        try:
            fields = _fields(columns, _cells(text), mapping.metric)
        except (ValueError, OverflowError, csv.Error) as error:
            yield BadLine(number, plain(error))
            continue
        yield ParsedLine(number, offset, fields)


def _cells(text: bytes) -> list[str]:
    if len(text) > MAX_LINE_BYTES:
        raise ValueError(TOO_LONG)
    return next(csv.reader((text.decode(),), strict=True), [])


def _columns(header: list[str]) -> list[str]:
    names = [name.strip() for name in header]
    if unknown := [name for name in names if name not in COLUMNS]:
        raise ValueError(f"the header row names the unknown column {unknown[0]!r}; use {', '.join(COLUMNS)}")
    if len(set(names)) < len(names):
        raise ValueError("the header row names a column twice")
    if "subject" not in names:
        raise ValueError("the header row names no column 'subject'")
    return names


def _fields(columns: list[str], row: list[str], metric: str) -> EventFields:
    if len(row) != len(columns):
        raise ValueError(f"has {len(row)} cells under {len(columns)} columns")
    cells = dict(zip(columns, row, strict=True))
    amount, at = cells.get("amount"), cells.get("at")
    if amount and not _WHOLE.fullmatch(amount):
        raise ValueError("amount: must be a whole number of at most 16 digits")
    return (
        cells.get("metric") or metric,
        cells["subject"],
        int(amount) if amount else 1,
        cells.get("actor") or None,
        _seconds(at) if at else None,
        cells.get("id") or None,
    )


def _seconds(text: str) -> float:
    """Return the seconds since 1970 in a text: a decimal number of seconds, or a time in RFC 3339 with its zone.

    Raises:
        ValueError: the text is neither.
    """
    if _SECONDS.fullmatch(text) and math.isfinite(seconds := float(text)):
        return seconds
    try:
        return msgspec.convert(text, _Moment).timestamp()
    except msgspec.ValidationError:
        raise ValueError("at: must be seconds since 1970, or like 2015-05-17T10:05:03Z") from None
