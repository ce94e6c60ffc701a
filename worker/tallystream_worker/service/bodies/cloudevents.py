"""Reads CloudEvents (specification 1.0, JSON format) as events.

| event | CloudEvent |
| --- | --- |
| metric | `data.metric`, else `type` |
| subject | `subject` |
| id | `source` and `id`, which together name an occurrence: a metric with `ids` counts it once |
| at | `time`, else the time of arrival |
| amount, actor | `data.amount`, `data.actor` |

Extension attributes and other members of `data` are ignored.
"""

import datetime as dt
import hashlib
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tallystream.errors import EventError
from tallystream.wire.event import MAX_ID_BYTES, Event
from tallystream_worker.service.bodies.strict_json import decode_strictly

SPECIFICATION: Final = "1.0"
"""The supported version of the specification."""


class CloudEvent(msgspec.Struct, frozen=True):
    """The attributes of a CloudEvent that are read; other attributes are allowed and ignored."""

    specversion: str
    """Version of the specification; must be `SPECIFICATION`."""

    id: str
    """Name of the occurrence, unique within the source."""

    source: str
    """Origin of the occurrence."""

    type: str
    """The metric, unless `data` has one."""

    subject: str
    """The subject of the event."""

    time: dt.datetime | None = None
    """Time of the occurrence; must have an offset."""

    data: Any = None
    """An object that may have `metric`, `amount` and `actor`; a value that is no object is ignored."""


_decode: Final[Callable[[bytes | msgspec.Raw], CloudEvent]] = msgspec.json.Decoder(CloudEvent).decode


def read(text: bytes | msgspec.Raw) -> Event:
    """Return the event of a CloudEvent in JSON, not checked against the declared rules.

    Raises:
        EventError: the text is not a CloudEvent, or its event is not valid; `field` of the error has the attribute of
            the CloudEvent, the field of the event or a repeated key, or else `body`.
    """
    given = decode_strictly(text, _decode)
    if given.specversion != SPECIFICATION:
        raise EventError("specversion", f"must be {SPECIFICATION}")
    if not given.id or not given.source:
        raise EventError("id" if given.source else "source", "must not be empty")
    if given.time is not None and given.time.tzinfo is None:
        raise EventError("time", "must have an offset, such as 2026-01-31T12:00:00Z")
    data = given.data if isinstance(given.data, dict) else {}
    return Event(
        metric=data.get("metric", given.type),
        subject=given.subject,
        amount=data.get("amount", 1),
        actor=data.get("actor"),
        at=None if given.time is None else given.time.timestamp(),
        id=_name(given.source, given.id),
    )


def _name(source: str, id_: str) -> str:
    """Return an event id for an occurrence: its source and id, or a SHA-256 of both if they are too long together."""
    name = f"{source} {id_}"
    if len(name.encode(errors="replace")) <= MAX_ID_BYTES:
        return name
    return "sha256:" + hashlib.sha256(f"{len(source)} {name}".encode(errors="replace")).hexdigest()
