"""Leaves out events whose dead letters were dropped for good: no fold of their entries counts them. Pure: no Redis.

A dead letter contains whole *items* of its entry: a subject of a group, or a single event. Its record has a digest of
each item, so the same items are found in the entry whatever the rules are now, and a record is much smaller than the
dead letter.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.errors import CodecError, EventError
from tallystream.wire.codec import Group, Payload, decode, earlier_events
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tallystream.wire.codec import Single

_DIGEST_BYTES: Final = 8
_SHOWN: Final = 64
"""The most characters of a damaged record in an error."""

_encode: Final = msgspec.msgpack.Encoder().encode


class DroppedLetter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The record of a dropped dead letter.

    Attributes:
        source: The stream ID of the original entry.
        events: The number of events in the dead letter.
        metric: The metric that the ledger had added them to; `""` for none.
        items: The digests of the items in the dead letter, 8 bytes each, one after the other; empty if the dead letter
            was the whole entry, or could not be decoded.
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
        whole: Whether the dead letter is the whole entry, which no fold could read or which was given up. The record
            is also that of a whole entry if `fields` cannot be decoded.

    Raises:
        ValueError: `source` is not a stream ID, and `whole` is false.
    """
    letter = DroppedLetter(source, events, metric, b"" if whole else _items_of(source, fields))
    return b64encode(_encode(letter)).decode()


def dropped_letters(records: Iterable[str]) -> dict[str, list[DroppedLetter]]:
    """Decode records that `record_of` made; return the dropped dead letters by the stream ID of their original entry.

    Raises:
        CodecError: a record has another form.
    """
    found: dict[str, list[DroppedLetter]] = {}
    for record in records:
        try:
            letter = _decode(b64decode(record))
        except (ValueError, msgspec.DecodeError) as error:
            raise CodecError(
                f"the record {record[:_SHOWN]!r} of a dropped dead letter is damaged ({error}): another client has "
                "changed it. Delete the field with this value from the hash of these records, a key that ends with "
                ":dropped; a later rebuild then counts the events of this dead letter"
            ) from None
        found.setdefault(letter.source, []).append(letter)
    return found


def is_whole(letters: Sequence[DroppedLetter]) -> bool:
    """Return whether one of these dropped dead letters of an entry was the whole entry, or could not be decoded.

    Then no event of the entry may be counted. The result is false for no dead letters.
    """
    return any(not letter.items for letter in letters)


def without(payload: Payload, letters: Sequence[DroppedLetter]) -> Payload:
    """Return the payload of an entry without the events of its dropped dead letters, with each visit as a single.

    The argument does not change; it is returned itself if `letters` is empty and it has no visits. A dead letter that
    is the whole entry removes nothing here: call `is_whole` first.
    """
    payload = payload.by_singles()
    if not letters:
        return payload
    left = Counter(chain.from_iterable(_split(letter.items) for letter in letters))

    def stays(*item: Any) -> bool:
        digest = _digest(item)
        if left[digest]:
            left[digest] -= 1
            return False
        return True

    # Of single events that are alike, leave out the one in the place of the dead letter. Only dead letters of metrics
    # with votes state their place; the others state 0, and of these metrics any of the events that are alike will do.
    singles = [
        single
        for single, place in zip(payload.singles, places(payload.singles), strict=True)
        if stays(single, place) and (not place or stays(single, 0))
    ]

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
        singles,
        payload.resets,
    )


def _items_of(source: str, fields: Mapping[bytes, bytes]) -> bytes:
    try:
        payload = decode(fields, parse_id(source)[0])
    except (CodecError, EventError):
        return b""
    return b"".join(map(_digest, _items(payload, earlier_events(fields))))


def places(singles: Iterable[Single], first: int = 0) -> Iterator[int]:
    """Yield, for each event, how many events of the same metric, subject, actor and time are before it.

    Args:
        singles: All single events of an entry, in order.
        first: A number to add to each: of a dead letter, how many such events were before it in the original entry.
    """
    seen: Counter[tuple[str, str, str | None, int]] = Counter()
    for single in singles:
        key = single.metric, single.subject, single.actor, single.at
        yield first + seen[key]
        seen[key] += 1


def _items(payload: Payload, first: int) -> Iterator[tuple[Any, ...]]:
    """Yield each item of a payload as the tuple whose digest identifies it in the record of a dropped dead letter.

    An item is a subject of a group, or a single event; resets are not yielded. `without` compares these digests. The
    payload must have no `visits`, because they are not yielded. The tuple of a single event contains its place, to
    which `first` is added: see `places`.
    """
    for group in payload.groups:
        yield from ((group.metric, group.minute, subject) for subject in group.ones)
        yield from ((group.metric, group.minute, subject, events) for subject, events in group.counts.items())
        yield from ((group.metric, group.minute, subject, *pair) for subject, pair in group.sums.items())
    yield from zip(payload.singles, places(payload.singles, first), strict=True)


def _digest(item: tuple[Any, ...]) -> bytes:
    return blake2b(_encode(item), digest_size=_DIGEST_BYTES).digest()


def _split(items: bytes) -> Iterator[bytes]:
    return (items[at : at + _DIGEST_BYTES] for at in range(0, len(items), _DIGEST_BYTES))
