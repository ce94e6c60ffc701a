"""The entries of producers that a snapshot does not contain, although they were appended before its moment.

If the server loses such an entry, its producer sends it again, and a restore must count that copy. A copy of any other
entry up to the snapshot's moment is left out, because the snapshot contains its events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tallystream.wire.codec import COPIED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tallystream_worker.counting.entry import Entry


def origin(fields: Mapping[bytes, bytes]) -> tuple[str, int] | None:
    """Return the producer of an entry and its sequence; `None` if the entry has none, or a repartition copied it.

    Of an ingested file, return the source (`file:...`) and the offset at which the events of the entry end. A plain or
    a decided entry has no producer.
    """
    producer, sequence = fields.get(b"p"), fields.get(b"q", b"")
    if producer is None or producer == COPIED or not sequence.isdigit():
        return None
    return producer.decode(errors="replace"), int(sequence)


def encode_uncounted(entries: Iterable[Entry]) -> str:
    """Return the producers and sequences of entries as JSON: by producer, ranges as `[first, last]`; `""` for none.

    Entries without an `origin` are left out. The entries of each producer must be in order.
    """
    found: dict[str, list[list[int]]] = {}
    for entry in entries:
        if (known := origin(entry.fields)) is not None:
            producer, sequence = known
            ranges = found.setdefault(producer, [])
            if ranges and ranges[-1][1] == sequence - 1:
                ranges[-1][1] = sequence
            else:
                ranges.append([sequence, sequence])
    return msgspec.json.encode(found).decode() if found else ""


def decode_uncounted(text: str) -> set[tuple[str, int]]:
    """Return the producers and sequences in the text of `encode_uncounted`."""
    found = msgspec.json.decode(text, type=dict[str, list[tuple[int, int]]]) if text else {}
    return {
        (producer, sequence)
        for producer, ranges in found.items()
        for first, last in ranges
        for sequence in range(first, last + 1)
    }
