"""Opens a point-in-time view of one partition: while the view is open, scripts store the old value of what they change.

So the counters of the moment at which the view was opened can be read, although counting continues.

For this, each script call of the hot path runs one PTTL; only while a view is open, it does more.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import DamagedValue, TallyError
from tallystream.storage.keys import RESTORED, RESTORED_AT
from tallystream.storage.scripts import Script
from tallystream.storage.stored_values import RESTORATION, stored_number
from tallystream.wire.codec import was_decided
from tallystream.wire.stream_id import before, id_text, parse_id
from tallystream_worker.process.stream_facts import stream_facts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.entry import Entry

SILENCE: Final = 30_000
"""Milliseconds without a call of `take` after which the server removes a view and its old values."""

TAKEOVER: Final = 3_000
"""Milliseconds without a call of `take` after which another snapshot replaces a view."""

PATIENCE: Final = 5.0
"""Seconds for which `open_view` waits for another snapshot; more than `TAKEOVER`, so a killed one holds up none."""

_LOOK: Final = 0.05

MOST_PENDING: Final = 10_000
"""The number of pending entries from which no view is opened; `open.lua` returns no more of them."""

_WORDS: Final = 5000

_OPEN: Final = Script("tallystream_worker.snapshot", "open")
_TAKE: Final = Script("tallystream_worker.snapshot", "take")
_CLOSE: Final = Script("tallystream_worker.snapshot", "close")
_GIVE_UP: Final = Script("tallystream_worker.snapshot", "give_up")


class ViewLost(TallyError):
    """Raised if the values of one moment cannot be read.

    Another snapshot of the partition is being taken, 10,000 or more entries are pending, the server lost data
    meanwhile, a restore or a repartition has closed the partition meanwhile, or this snapshot made no call for 30
    seconds, or for 3 seconds and another one began.
    """


@dataclass(frozen=True)
class SnapshotPosition:
    """The entries that are applied at one moment, in one partition.

    These are all entries up to `delivered` that are not pending, and all entries up to `generated` whose event was
    decided (counted in the call that appended it).

    Attributes:
        taken: The moment, in milliseconds since 1970, by the server's clock.
        delivered: The ID of the last entry that was delivered to a worker.
        generated: The ID of the last entry that was appended.
        pending: The IDs of the pending entries, in order.
        mark: The mark of the snapshot in the partition, a text that `next_mark` has returned (see `mark.lua`); `""`
            before the mark is put, or if the view is no snapshot.
        unsent: The ID of an entry. If the server loses an entry after it, up to `generated`, a producer sends that
            entry again. `0-0` if this is known for all entries. The ID may be later than needed.
        uncounted: The producers and sequences of the entries up to `generated` that are not applied, as
            `encode_uncounted` returns them: JSON with a list of ranges `[first, last]` by producer; `""` for none.
        dead: The state of the dead stream: the number of entries that were ever added, its length, its first ID and its
            last generated ID, separated by spaces (see `open.lua`).
    """

    taken: int
    delivered: str
    generated: str
    pending: tuple[str, ...] = ()
    mark: str = ""
    unsent: str = "0-0"
    uncounted: str = ""
    dead: str = "0 0 0-0 0-0"

    @property
    def floor(self) -> str:
        """The ID up to which every entry is applied; a restore needs the entries after it."""
        if not self.pending:
            return self.delivered
        return id_text(min(before(parse_id(self.pending[0])), parse_id(self.delivered)))

    def includes(self, entry: Entry, generation: int) -> bool:
        """Return whether an entry had been applied by this moment to the counters that the position is of.

        Args:
            entry: An entry of the stream of the position.
            generation: The generation of these counters; for another one, the result is wrong.
        """
        if was_decided(entry.fields, generation):
            return parse_id(entry.id) <= parse_id(self.generated)
        return parse_id(entry.id) <= parse_id(self.delivered) and entry.id not in self.pending

    def is_reached(self, client: redis.Redis, keys: PartitionKeys) -> bool:
        """Return whether a stream surely still has every entry that was not applied at this moment: none was trimmed.

        The result may be `False` although no such entry was trimmed, because the server does not record which entries
        were trimmed. Only trimming is found: if the server has lost the stream and has a new one, or another client has
        removed entries, the result may be `True`.

        Raises:
            KeyLost: the partition has lost its stream.
            DamagedValue: another client has changed the record of the last restore.
            redis.RedisError: the server did not answer, or refused a command.
        """
        about = stream_facts(client, keys)
        gone = about["entries-added"] - about["length"]
        if gone == 0:
            return True
        last = parse_id(self.pending[0] if self.pending else self.delivered)
        if about["first-entry"] is None:
            if not self.pending and parse_id(about["last-generated-id"].decode()) <= last:
                return True
        elif parse_id(about["first-entry"][0].decode()) <= last:
            return True
        return self._is_restored(keys.sequences, client.execute_command("HGET", keys.sequences, RESTORED), gone)

    def passed_over(self, sequences: str, restored: bytes | None, at: bytes | None) -> int:
        """Return when the last restore ran, if it ran after this moment and restored another snapshot; else 0.

        The result is in milliseconds since 1970. Earlier restores do not count.

        Args:
            sequences: The name of the partition's key of sequences.
            restored: The field `RESTORED` of this key; `None` if there is none.
            at: The field `RESTORED_AT`; `None` if there is none.

        Raises:
            DamagedValue: another client has changed one of the fields.
        """
        if restored is None or at is None:
            return 0
        moment = stored_number(sequences, at, field=RESTORED_AT)
        is_other = _parse_restored(sequences, restored)[0] != self.mark
        return moment if is_other and moment > self.taken else 0

    def _is_restored(self, sequences: str, restored: bytes | None, gone: int) -> bool:
        """Return whether a stream lacks exactly as many entries as its last restore left out, so that none was trimmed.

        The restored snapshot contains these entries. Return `False` also if there was no restore, or if it restored
        another snapshot with a later `floor` than this position.

        Args:
            sequences: The name of the partition's key of sequences.
            restored: The field `RESTORED` of this key; `None` if there is none.
            gone: The number of entries that the stream lacks.

        Raises:
            DamagedValue: another client has changed the field.
        """
        if restored is None:
            return False
        mark, floor, then = _parse_restored(sequences, restored)
        return gone == then and (mark == self.mark or parse_id(floor) <= parse_id(self.floor))


def _parse_restored(sequences: str, value: bytes) -> tuple[str, str, int]:
    """Return the mark, the stream ID and the number in the field `RESTORED` of the key `sequences`.

    Raises:
        DamagedValue: another client has changed the field.
    """
    if (found := RESTORATION.fullmatch(value)) is None:
        raise DamagedValue(sequences, value, field=RESTORED)
    mark, id_, number = found.groups()
    return mark.decode(errors="replace"), id_.decode(), int(number)


@dataclass
class PointInTimeView:
    """An open view of one partition at one moment; it collects the old values of what was written since.

    `strings`, `fields`, `copies` and `removed` are filled by `take` and `close`, and complete only after `close`.

    Attributes:
        client: The server of the counters.
        key: The key `cut` of the partition; the view is open as long as the value of this key is `token`.
        token: A random text, different for each view.
        position: The entries that are applied at the moment.
        ledger: The ledger at the moment, by field. In a later generation than the first, `appended` also has that of
            the topic's ledger (less its `plain`), and `plain` is left out.
        strings: By key, the value at the moment of each string written since; `None` if it did not exist.
        fields: By key and field, the value at the moment of each field written since; `None` if it did not exist.
        copies: By key of a structure written since: `True` if a script copied it before the write, `False` if it did
            not exist. Copies that `open_view` has made are not included.
        removed: By ID of each dead letter removed since, the names and values of its fields; it may have been added
            since.
    """

    client: redis.Redis
    key: str
    token: str
    position: SnapshotPosition
    ledger: dict[bytes, bytes]
    strings: dict[bytes, bytes | None] = field(default_factory=dict)
    fields: dict[tuple[bytes, bytes], bytes | None] = field(default_factory=dict)
    copies: dict[bytes, bool] = field(default_factory=dict)
    removed: dict[str, list[bytes]] = field(default_factory=dict)
    _words: list[bytes] = field(default_factory=list)

    def copy_of(self, key: str) -> str:
        """Return the key of the copy of a structure, given its key; no other view has a copy with this key."""
        return f"{self.key}:copy:{self.token}:{key}"

    def take(self) -> None:
        """Fetch some of the old values that the server has stored, and keep the view open for 30 seconds from now.

        After 3 seconds without a call, another snapshot of the partition may close it.

        Raises:
            ViewLost: the view is no longer open.
            redis.RedisError: the server did not answer, or refused a command.
        """
        answer, *words = _TAKE(self.client, [self.key], [self.token, SILENCE, _WORDS])
        if answer == b"lost":
            raise self._lost()
        self._words += words
        self._hear()

    def close(self) -> None:
        """Close the view, and fetch the old values that are left; this object then has every old value.

        The copies stay on the server: read them, then call `remove_copies`.

        Raises:
            ViewLost: the view is no longer open.
            redis.RedisError: the server did not answer, or refused a command.
        """
        while True:
            answer, *words = _CLOSE(self.client, [self.key], [self.token])
            if answer == b"closed":
                self._words += words
                self._hear()
                return
            if answer == b"lost":
                raise self._lost()
            self.take()

    def give_up(self) -> None:
        """Remove the view, its old values and the copies that scripts have made from the server.

        Do nothing if the view is no longer open, or another one was opened since. Copies that `open_view` has made
        stay: see `remove_copies`.

        Raises:
            redis.RedisError: the server did not answer, or refused the command. The server removes the view itself, 30
                seconds after the last `take`.
        """
        _GIVE_UP(self.client, [self.key], [self.token])

    def remove_copies(self, names: Iterable[str]) -> None:
        """Remove the copies of this view: those of the keys `names`, and those that scripts have made since.

        Those of scripts are known only as far as `take` and `close` have fetched them.

        Raises:
            redis.RedisError: the server did not answer, or refused the command.
        """
        names = {*names, *(key.decode() for key, was_copied in self.copies.items() if was_copied)}
        if names:
            self.client.unlink(*map(self.copy_of, names))

    def _lost(self) -> ViewLost:
        return ViewLost(
            f"{self.key}: the snapshot paused for more than {SILENCE // 1000} s, or for more than {TAKEOVER // 1000} s "
            "and another snapshot began; take it again"
        )

    def _hear(self) -> None:
        """Parse the fetched words (the parts of records of old values), and remove them, up to an incomplete record.

        If there are several old values of a key or field, the first is the one at the moment of the view.
        """
        words, at = self._words, 0
        while at + 2 < len(words):
            match words[at]:
                case b"s":
                    end = at + 2 + 2 * int(words[at + 1])
                    if end > len(words):
                        break
                    for name, value in zip(words[at + 2 : end : 2], words[at + 3 : end : 2], strict=True):
                        self.strings.setdefault(name, value or None)
                case b"h":
                    end = at + 3 + 2 * int(words[at + 2])
                    if end > len(words):
                        break
                    key = words[at + 1]
                    for name, value in zip(words[at + 3 : end : 2], words[at + 4 : end : 2], strict=True):
                        self.fields.setdefault((key, name), value or None)
                case b"d":
                    end = at + 3 + int(words[at + 2])
                    if end > len(words):
                        break
                    self.removed[words[at + 1].decode()] = words[at + 3 : end]
                case _:
                    end = at + 3
                    self.copies.setdefault(words[at + 1], words[at + 2] == b"1")
            at = end
        del words[:at]


def open_view(client: redis.Redis, keys: PartitionKeys, copy: Sequence[str]) -> PointInTimeView:
    """Open a view of a partition at this moment, and return it.

    Wait about 5 seconds at most for another open view. Remove it if its snapshot has made no call for 3 seconds: that
    snapshot then fails with `ViewLost`. So the caller must call `take` of the returned view at least every 3 seconds,
    end with `close` or `give_up`, and then call `remove_copies` with the keys `copy`.

    Args:
        client: The server of the counters.
        keys: The keys of the generation in the partition.
        copy: Keys of the few structures of which each write changes many parts, such as sketches: they are copied at
            the moment, under keys that expire after ten minutes.

    Raises:
        ViewLost: another snapshot of the partition was still being taken after 5 seconds, or 10,000 or more entries are
            pending; this call leaves no view open, but copies that it made stay until they expire.
        KeyLost: the partition has lost a key; no view was opened.
        redis.RedisError: the server did not answer, or refused a command; `NOGROUP` if the consumer group does not
            exist.
    """
    key = keys.ledger.removesuffix("ledger") + "cut"
    token = uuid.uuid4().hex
    names = [keys.stream, key, keys.ledger, keys.topic_ledger, keys.dead]
    deadline = time.monotonic() + PATIENCE
    while True:
        answer, *state = _OPEN(client, names, [keys.group, token, SILENCE, TAKEOVER, *copy])
        if answer != b"busy" or time.monotonic() > deadline:
            break
        time.sleep(_LOOK)
    if answer == b"busy":
        raise ViewLost(f"{key}: another snapshot of this partition is being taken; try again when it has finished")
    taken, delivered, generated, pending, ledger, log, dead = state
    if len(pending) >= MOST_PENDING:
        _GIVE_UP(client, [key], [token])
        raise ViewLost(f"{keys.stream}: {MOST_PENDING:,} or more entries are pending; try again when fewer are")
    position = SnapshotPosition(
        int(taken),
        delivered.decode(),
        generated.decode(),
        tuple(each.decode() for each in pending),
        dead=dead.decode(),
    )
    account = _pairs(ledger)
    if keys.ledger != keys.topic_ledger:
        # Entries that the sequence gate let in are in the topic's ledger: see tallystream.reading.ledger.
        appended, plain = (int(events or 0) for events in log)
        account[b"appended"] = b"%d" % (int(account.get(b"appended", 0)) + appended - plain)
        account.pop(b"plain", None)
    return PointInTimeView(client, key, token, position, account)


def _pairs(reply: Any) -> dict[bytes, bytes]:
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
