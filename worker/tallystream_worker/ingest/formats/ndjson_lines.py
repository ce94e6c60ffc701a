"""Parses NDJSON: one JSON object a line, with the keys `metric`, `subject`, `amount`, `actor`, `at` and `id`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from tallystream_worker.ingest.lines import (
    MAX_LINE_BYTES,
    TOO_LONG,
    VIEWS,
    BadLine,
    Line,
    LineOutcome,
    Mapping,
    ParsedLine,
    plain,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    subject: str
    metric: str | None = None
    amount: int = 1
    actor: str | None = None
    at: int | float | Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    id: str | None = None


_KEYS: Final = tuple(f'"{name}"'.encode() for name in _Row.__struct_fields__)
_decode: Final = msgspec.json.Decoder(_Row).decode


def parse(lines: Iterable[Line], mapping: Mapping = VIEWS) -> Iterator[LineOutcome]:
    """Yield, for each line of NDJSON, its event or the reason why the line is not an event.

    Only `subject` is required. An event without `metric` gets the metric of `mapping`, and one without `amount` gets 1.
    `at` is a number of seconds since 1970, or a text in RFC 3339 with its zone. A line with an unknown key, with a key
    twice, or with a value of a wrong type is not an event. Whether texts and numbers are in their limits is not
    checked.
    """
    for number, offset, text in lines:
        if len(text) > MAX_LINE_BYTES:
            yield BadLine(number, TOO_LONG)
            continue
        try:
            row = _decode(text)
            _refuse_repeated_keys(text)
            at = row.at.timestamp() if isinstance(row.at, datetime) else row.at
            metric = mapping.metric if row.metric is None else row.metric
            fields = (metric, row.subject, row.amount, row.actor, None if at is None else float(at), row.id)
        except (ValueError, OverflowError, RecursionError) as error:  # msgspec's own errors are ValueErrors
            yield BadLine(number, plain(error))
            continue
        yield ParsedLine(number, offset, fields)


def _refuse_repeated_keys(text: bytes) -> None:
    """Raise a `ValueError` if a key of an event occurs twice in a text that `_decode` has accepted.

    The decoder alone would use the last value of the key.
    """
    # Fast path for nearly every line: a key that is written without escapes and occurs twice is found twice.
    if b"\\" not in text and all(text.count(key) < 2 for key in _KEYS):  # noqa: PLR2004  # "twice" is the point
        return
    json.loads(text, object_pairs_hook=_only_once)


def _only_once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"Object contains the field `{key}` twice")
        seen.add(key)
