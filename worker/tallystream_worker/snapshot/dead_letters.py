"""Reads the dead letters of a partition for a snapshot, and writes them back in a restore.

The ledger of a snapshot has their number, so they are those of the same moment: while a view is open, the scripts that
remove a dead letter store it first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.wire.stream_id import parse_id
from tallystream_worker.dead_letters.store import dropped_among, letter_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.snapshot.point_in_time import PointInTimeView, SnapshotPosition
    from tallystream_worker.snapshot.restore_lock import Fence

_PAGE: Final = 100
_FIRST: Final = "0-0"
_GROUP: Final = "restoring"


class DeadLetterReader:
    """Reads the dead letters of a partition at the moment of an open view.

    Call `read`, close the view, then call `settle`, which returns them, and `recorded`.

    Args:
        cut: The open view.
        keys: The keys of the partition.
        before: The position of the last snapshot, which the next one changes; `None` to read all dead letters. All are
            also read if one was removed since. In both cases, `is_anew` is true.
    """

    def __init__(self, cut: PointInTimeView, keys: PartitionKeys, before: SnapshotPosition | None) -> None:
        self._cut = cut
        self._keys = keys
        self._until = _State(cut.position.dead)
        stored = None if before is None else _State(before.dead)
        self.is_anew = stored is None or not self._until.has_only_grown(stored)
        """Whether all dead letters are read, and not only those since the last snapshot."""
        self._after = _FIRST if stored is None or self.is_anew else stored.last
        self._rows: dict[str, bytes] = {}

    def read(self) -> None:
        """Read the dead letters of the moment that still exist; unless `is_anew`, only those since the last snapshot.

        Those that were removed since the moment are added by `settle`.

        Raises:
            ViewLost: the view is no longer open.
            redis.RedisError: the server did not answer, or refused a command.
        """
        after, client = self._after, self._cut.client
        while parse_id(after) < parse_id(self._until.last):
            page: Any = client.xrange(self._keys.dead, f"({after}", self._until.last, count=_PAGE)
            for id_, fields in page:
                after = id_.decode()
                self._rows[after] = _encode([part for pair in fields.items() for part in pair])
            if len(page) < _PAGE:
                break
            self._cut.take()

    def settle(self) -> dict[str, bytes]:
        """Return the dead letters of the moment, by ID in the dead stream, as `schema.dead` stores them.

        Unless `is_anew`, only those since the last snapshot. Call it after `read`, and after the view was closed.
        """
        first, last = parse_id(self._after), parse_id(self._until.last)
        self._rows |= {
            id_: _encode(fields) for id_, fields in self._cut.removed.items() if first < parse_id(id_) <= last
        }
        return self._rows

    def recorded(self, records: Mapping[str, str]) -> dict[str, str]:
        """Return the records of dropped dead letters (see `records_of_dropped`) without those made since the moment.

        Call it after the view was closed, with records that were read before that.
        """
        since = {f"{self._keys.group} {id_}" for id_ in self._cut.removed}
        return {field: record for field, record in records.items() if field not in since}


class _State:
    """The state of a dead stream at one moment.

    Args:
        text: The state as `open.lua` returns it: the attributes in the order below, separated by spaces.

    Attributes:
        added: The number of dead letters that were ever added.
        length: The number of dead letters that the stream has.
        first: The ID of the first of these; `0-0` if there is none.
        last: The ID of the last dead letter that was ever added; `0-0` if none was.

    Raises:
        ValueError: the text has another form.
    """

    def __init__(self, text: str) -> None:
        added, length, self.first, self.last = text.split()
        self.added, self.length = int(added), int(length)

    def has_only_grown(self, before: _State) -> bool:
        """Return whether no dead letter was removed since an earlier state of the same stream; some may be new."""
        return (
            self.added - self.length == before.added - before.length
            and (self.first == before.first or before.length == 0)
            and parse_id(self.last) >= parse_id(before.last)
        )


def decode_letter(value: bytes) -> dict[bytes, bytes]:
    """Return the fields of a dead letter by name, from a value of `schema.dead`."""
    words = msgspec.msgpack.decode(value, type=list[bytes])
    return dict(zip(words[::2], words[1::2], strict=True))


def restore_dead_letters(
    fence: Fence, keys: PartitionKeys, stored: Mapping[str, bytes], state: str, records: Iterable[str]
) -> int:
    """Write the dead letters of a snapshot, except those with a record, to the dead stream, which must not exist.

    Return the number of events in those that are left out. The dead stream gets the last ID, and the number of dead
    letters that were ever added, of the snapshot's moment. If it never had a dead letter, write nothing, and return 0.

    Args:
        fence: Runs the writes to the partition.
        keys: The keys of the partition.
        stored: By ID in the dead stream, the values of `schema.dead`.
        state: The state of the dead stream in the position of the snapshot.
        records: The records of dead letters that were dropped after the snapshot. A dead letter that was dropped
            without a record is written.

    Raises:
        RestoreOvertaken: another restore has taken over.
        CodecError: a record, or the `source` of a dead letter, is damaged; nothing was written.
        redis.RedisError: the server did not answer, or refused a command.
    """
    found = {id_: decode_letter(stored[id_]) for id_ in sorted(stored, key=parse_id)}
    was = _State(state)
    if not was.added:
        return 0
    out = dropped_among((letter_of(0, id_, fields) for id_, fields in found.items()), records)
    fence("XGROUP", "CREATE", keys.dead, _GROUP, _FIRST, "MKSTREAM")  # the stream exists even if it stays empty
    fence("XGROUP", "DESTROY", keys.dead, _GROUP)
    commands = [
        ("XADD", keys.dead, id_, *(part for pair in fields.items() for part in pair))
        for id_, fields in found.items()
        if id_ not in out
    ]
    for first in range(0, len(commands), _PAGE):
        fence.run(commands[first : first + _PAGE])
    fence("XSETID", keys.dead, was.last, "ENTRIESADDED", was.added)
    return sum(out.values())


def _encode(fields: list[bytes]) -> bytes:
    return msgspec.msgpack.encode(fields)
