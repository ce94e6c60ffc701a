"""Leaves out events whose dead letters were dropped for good: no fold of their entries counts them. Pure: no Redis.

A dead letter contains whole *items* of its entry: a subject of a group, a single event or a correction. Its record has
a digest of each item, so the same items are found in the entry whatever the rules are now, and a record is much smaller
than the dead letter.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.errors import CodecError, EventError
from tallystream.wire.codec import Group, Payload, decode
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_DIGEST_BYTES: Final = 8
_encode: Final = msgspec.msgpack.Encoder().encode


class DroppedLetter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The record of a dropped dead letter.

    Attributes:
        source: The stream ID of the original entry.
        events: The number of its events.
        metric: The metric that the ledger had added them to; `""` for none.
        items: The digests of its items, one after the other; empty if it was the whole entry.
    """

    source: str
    events: int
    metric: str
    items: bytes


_decode: Final = msgspec.msgpack.Decoder(DroppedLetter).decode


def record_of(source: str, fields: Mapping[bytes, bytes], events: int, metric: str, *, whole: bool) -> str:
    """Return the record of a dead letter as ASCII text, in the form that `dropped_letters` reads.

    Args:
        source: The stream ID of the original entry.
        fields: The fields of an entry with the events of the dead letter.
        events: The number of these events.
        metric: The declared metric of the dead letter; `""` if it is not known.
        whole: Whether the dead letter is the whole entry, which no fold could read or which was given up.
    """
    letter = DroppedLetter(source, events, metric, b"" if whole else _items_of(source, fields))
    return b64encode(_encode(letter)).decode()


def dropped_letters(records: Iterable[str]) -> dict[str, list[DroppedLetter]]:
    """Return the dropped dead letters by the stream ID of their entry."""
    found: dict[str, list[DroppedLetter]] = {}
    for letter in (_decode(b64decode(record)) for record in records):
        found.setdefault(letter.source, []).append(letter)
    return found


def is_whole(letters: Sequence[DroppedLetter]) -> bool:
    """Return whether the dropped dead letters of an entry include the whole entry."""
    return any(not letter.items for letter in letters)


def without(payload: Payload, letters: Sequence[DroppedLetter]) -> Payload:
    """Return a copy of a payload without the events of dropped dead letters, with each visit as a single."""
    payload = payload.by_singles()
    if not letters:
        return payload
    left = Counter(chain.from_iterable(_split(letter.items) for letter in letters))

    def stays(*item: Any) -> bool:
        digest = _digest(item)
        left[digest] -= 1
        return left[digest] < 0

    groups = [
        Group(
            group.metric,
            group.minute,
            [subject for subject in group.ones if stays(group.metric, group.minute, subject)],
            {s: n for s, n in group.counts.items() if stays(group.metric, group.minute, s, n)},
            {s: pair for s, pair in group.sums.items() if stays(group.metric, group.minute, s, *pair)},
        )
        for group in payload.groups
    ]
    return Payload(
        [group for group in groups if group.events],
        [single for single in payload.singles if stays(single)],
        [correction for correction in payload.corrections if stays(correction)],
    )


def _items_of(source: str, fields: Mapping[bytes, bytes]) -> bytes:
    try:
        payload = decode(fields, parse_id(source)[0])
    except (CodecError, EventError):
        return b""
    return b"".join(map(_digest, _items(payload)))


def _items(payload: Payload) -> Iterator[tuple[Any, ...]]:
    """Yield the items of a payload; `without` names them in the same way."""
    for group in payload.groups:
        yield from ((group.metric, group.minute, subject) for subject in group.ones)
        yield from ((group.metric, group.minute, subject, events) for subject, events in group.counts.items())
        yield from ((group.metric, group.minute, subject, *pair) for subject, pair in group.sums.items())
    yield from ((single,) for single in payload.singles)
    yield from ((correction,) for correction in payload.corrections)


def _digest(item: tuple[Any, ...]) -> bytes:
    return blake2b(_encode(item), digest_size=_DIGEST_BYTES).digest()


def _split(items: bytes) -> Iterator[bytes]:
    return (items[at : at + _DIGEST_BYTES] for at in range(0, len(items), _DIGEST_BYTES))
