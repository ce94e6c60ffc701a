"""CloudEvents (specification 1.0, JSON format) as events.

| event | is the CloudEvent's |
| --- | --- |
| metric | `data.metric`, else `type` |
| subject | `subject` |
| id | `source` and `id`, which together name an occurrence: it counts once, however often it is delivered |
| at | `time`, else the moment it arrives |
| amount, actor | `data.amount`, `data.actor` |

Extension attributes, and whatever else is in `data`, are the sender's own affair.
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


class CloudEvent(msgspec.Struct, frozen=True):
    """The attributes that say something to us; unknown ones are extensions, and allowed."""

    specversion: str
    id: str
    source: str
    type: str
    subject: str
    time: dt.datetime | None = None
    data: Any = None


_decode: Final[Callable[[bytes | msgspec.Raw], CloudEvent]] = msgspec.json.Decoder(CloudEvent).decode


def read(text: bytes | msgspec.Raw) -> Event:
    """Return a CloudEvent as an event.

    Raises:
        EventError: it is none, or none that can be counted; names the attribute.
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
    """Return the name of an occurrence: readable where it is short enough, else a digest of it."""
    name = f"{source} {id_}"
    if len(name.encode(errors="replace")) <= MAX_ID_BYTES:
        return name
    return "sha256:" + hashlib.sha256(f"{len(source)} {name}".encode(errors="replace")).hexdigest()
