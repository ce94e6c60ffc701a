"""Reads the events of a body: a valid list in one step, anything else event by event, to find the invalid ones."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.errors import EventError
from tallystream.wire.event import Event, check_at
from tallystream_worker.service.bodies import cloudevents
from tallystream_worker.service.bodies.body import CLOUD_EVENT, CLOUD_EVENTS, NDJSON
from tallystream_worker.service.bodies.strict_json import decode_strictly
from tallystream_worker.service.problems import bad_request, problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tallystream.rules.metrics import Rules

MAX_EVENTS: Final = 1000
"""Largest number of events in one body."""

SHOWN_FAULTS: Final = 20
"""Largest number of invalid events that one response lists."""

_SHOWN: Final = 200

_decode: Final[Callable[[bytes | msgspec.Raw], Event]] = msgspec.json.Decoder(Event).decode
_split_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_events: Final = msgspec.json.Decoder(list[Event]).decode
_objects: Final = msgspec.json.Decoder(list[dict[str, Any]]).decode


class BadEvent(msgspec.Struct, frozen=True):
    """One invalid event: its index in the body, from 0, the field, and the limit that the field breaks."""

    index: int
    """Position in the body, from 0; blank lines of NDJSON are not counted."""

    field: str
    """The invalid field; `body` if no single field is invalid."""

    limit: str
    """The requirement for the field."""


class Read(msgspec.Struct, frozen=True):
    """The result of reading a body: its valid events, and the faults of the invalid ones."""

    events: list[Event]
    """The valid events."""

    faults: list[BadEvent]
    """One fault for each invalid event."""


def read_event(text: bytes | msgspec.Raw, rules: Rules) -> Event:
    """Return the event of a JSON object, after checking it.

    Args:
        text: The JSON text.
        rules: The declared rules, which the event must fit.

    Raises:
        EventError: the text is not an event, its metric is not declared or its rules do not allow the event, or its
            time is too far ahead.
    """
    event = decode_strictly(text, _decode)
    _refuse(event, rules, time.time())
    return event


def read_events(kind: str, text: bytes, rules: Rules) -> Read:
    """Return the valid events of a body, and one fault for each invalid event.

    If `kind` is `NDJSON`, each line is one event, and blank lines are skipped. Any other body is a list of events if
    `kind` is `CLOUD_EVENTS` or the body begins with `[`, else one event. An empty body that should be one event is a
    fault.

    Args:
        kind: Media type of the body, one of `KINDS`.
        text: The body, decompressed.
        rules: The declared rules, which each event must fit.

    Raises:
        EventError: the body should be a list of events, but is not a JSON list.
        ProblemDetailsException: 400 if lines or a list have no event, or more than `MAX_EVENTS`.
    """
    many = kind in (NDJSON, CLOUD_EVENTS) or text.lstrip()[:1] == b"["
    items: Iterable[Event | msgspec.Raw] | None = None
    if many and kind not in (NDJSON, CLOUD_EVENTS):
        items = all_at_once(text)
    if items is None:
        items = _split(kind, text) if many else [msgspec.Raw(text)]
    items = list(items)
    if not 1 <= len(items) <= MAX_EVENTS:
        raise bad_request("body", f"must be 1 to {MAX_EVENTS:,} events, not {len(items):,}")
    decode = cloudevents.read if kind in (CLOUD_EVENT, CLOUD_EVENTS) else _one
    now = time.time()
    read = Read([], [])
    for index, item in enumerate(items):
        try:
            event = item if isinstance(item, Event) else decode(item)
            _refuse(event, rules, now)
        except EventError as error:
            read.faults.append(BadEvent(index, error.field, error.problem))
        else:
            read.events.append(event)
    return read


def at_fault(faults: Sequence[BadEvent], **members: Any) -> Exception:
    """Return the exception for the response 400: its detail has the first invalid event, its `faults` the first 20.

    Args:
        faults: The invalid events, at least one.
        members: More members of the problem.
    """
    first = faults[0]
    detail = f"event {first.index}: {first.field}: {first.limit}"
    if len(faults) > 1:
        detail += f"; {len(faults) - 1:,} more events are invalid"
    return problem(
        HTTPStatus.BAD_REQUEST, detail,
        field=first.field, limit=first.limit, index=first.index, faults=list(faults[:SHOWN_FAULTS]), **members,
    )  # fmt: skip


def all_at_once(text: bytes) -> list[Event] | None:
    """Return the events of a JSON list, not checked against rules, or `None` if its items must be read one by one.

    `None` does not mean that an item is invalid: the text may only have a backslash.

    This is faster than reading the items one by one. A repeated key is found by counting quotes: without escapes, a
    list has two quotes for each key and each text. If the list has more quotes than the decoded keys and texts need, a
    key is repeated.
    """
    if b"\\" in text:
        return None
    try:
        events = _events(text)
        keys = sum(map(len, _objects(text)))
    except (ValueError, RecursionError):
        return None
    texts = 2 * len(events) + sum((event.actor is not None) + (event.id is not None) for event in events)
    return events if text.count(b'"') == 2 * (keys + texts) else None


def _split(kind: str, text: bytes) -> list[msgspec.Raw]:
    if kind == NDJSON:
        return [msgspec.Raw(line) for line in text.splitlines() if not line.isspace() and line]
    try:
        return _split_list(text)
    except (ValueError, RecursionError) as error:
        raise EventError("body", str(error)[:_SHOWN]) from None


def _one(text: msgspec.Raw) -> Event:
    return decode_strictly(text, _decode)


def _refuse(event: Event, rules: Rules, now: float) -> None:
    rules.refuse_undeclared(event.metric)
    rules.refuse(event.metric, event.amount, event.actor)
    if event.at is not None:
        check_at(event.at, now)
