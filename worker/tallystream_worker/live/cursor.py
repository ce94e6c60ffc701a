"""How far a reader has come: one stream position for each partition, as the text of an event's `id`.

    <data>.<position>.<position>...        position = <milliseconds>[-<sequence>], all in hexadecimal

`data` is a checksum of what names this life of the data: positions in another life of it mean nothing.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Final

from tallystream.errors import EventError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.deployment import Deployment
    from tallystream.wire.stream_id import StreamID

Cursor = tuple["StreamID", ...]

_FORM: Final = re.compile(r"[0-9a-f]{8}(?:\.[0-9a-f]{1,16}(?:-[0-9a-f]{1,16})?){1,1024}")
_MAX_LENGTH: Final = 8 + 1024 * 34


def cursor_text(data: str, vector: Iterable[StreamID]) -> str:
    """Return the text of a vector."""
    return ".".join([data, *(f"{ms:x}-{sequence:x}" if sequence else f"{ms:x}" for ms, sequence in vector)])


def read(text: str, data: str, partitions: int) -> Cursor | None:
    """Return the vector that a text spells; `None` where it is one of other data.

    Raises:
        EventError: it spells none.
    """
    if len(text) > _MAX_LENGTH or _FORM.fullmatch(text) is None:
        raise EventError("last-event-id", "must be the id of an event of this stream, as it was sent")
    of, *positions = text.split(".")
    if of != data or len(positions) != partitions:
        return None
    return tuple(_position(position) for position in positions)


def data_of(deployment: Deployment) -> str:
    """Return the checksum of what names this life of the data: its epoch, and where its counters lie."""
    names = [deployment.epoch, *(keys.ledger for keys in deployment.layout.keys)]
    return f"{zlib.crc32(' '.join(names).encode()):08x}"


def _position(text: str) -> StreamID:
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds, 16), int(sequence or "0", 16)
