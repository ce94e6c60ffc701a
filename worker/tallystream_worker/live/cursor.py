"""Encodes and decodes the position of a reader: one stream ID for each partition, as the text of a message's `id`.

    <data>.<position>.<position>...        position = <milliseconds>[-<sequence>], all in hexadecimal

`data` is a checksum of the epoch and of the counters' keys: a position is valid only for the data it was made from.
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
"""The position of a reader: one stream ID for each partition."""

_FORM: Final = re.compile(r"[0-9a-f]{8}(?:\.[0-9a-f]{1,16}(?:-[0-9a-f]{1,16})?){1,1024}")
_MAX_LENGTH: Final = 8 + 1024 * 34


def cursor_text(data: str, vector: Iterable[StreamID]) -> str:
    """Return the text of a position, from the checksum of the data and the stream ID of each partition in order."""
    return ".".join([data, *(f"{ms:x}-{sequence:x}" if sequence else f"{ms:x}" for ms, sequence in vector)])


def read(text: str, data: str, partitions: int) -> Cursor | None:
    """Return the position in a text.

    Args:
        text: The id of a message, as a reader sends it back.
        data: The checksum of the present data.
        partitions: The present number of partitions.

    Returns:
        The stream ID of each partition; `None` if the text is a position of other data, or has another number of
        partitions.

    Raises:
        EventError: the text is not a position.
    """
    if len(text) > _MAX_LENGTH or _FORM.fullmatch(text) is None:
        raise EventError("last-event-id", "must be the unchanged id of an event of this stream")
    of, *positions = text.split(".")
    if of != data or len(positions) != partitions:
        return None
    return tuple(_position(position) for position in positions)


def data_of(deployment: Deployment) -> str:
    """Return the checksum of the epoch and the names of the ledger keys, as 8 hexadecimal digits.

    It changes when another generation or topic becomes live, and with a new deployment after all data was lost. A
    restore may leave it unchanged, because it sets the epoch of the snapshot: compare the positions too.
    """
    names = [deployment.epoch, *(keys.ledger for keys in deployment.layout.keys)]
    return f"{zlib.crc32(' '.join(names).encode()):08x}"


def _position(text: str) -> StreamID:
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds, 16), int(sequence or "0", 16)
