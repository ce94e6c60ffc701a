"""Lists, finds and drops the dead letters of a partition: entries that could not be counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import CodecError, ConfigurationError, EventError, StreamError
from tallystream.storage.deployment_hash import restoring_number
from tallystream.storage.keys import GROUP
from tallystream.storage.scripts import Script
from tallystream.wire.codec import decode
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.dropped import dropped_letters, record_of
from tallystream_worker.process.scan import pages_of_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import redis

    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.counting.dropped import DroppedLetter

_COPY_HOLD: Final = "move"
"""The name of a retention hold of a repartition, as `HOLDER` in `repartition/reading_marks.py`."""

_DROP: Final = Script("tallystream_worker.dead_letters", "drop")
_PAGE: Final = 100

GIVEN_UP: Final = "delivered "
"""The beginning of the reason of an entry that was delivered too often. A fold cannot find out that such an entry was
not counted, because the entry itself has no fault."""

RETRIED: Final = "entries:retried"
"""The field of the ledger with the time of the last retry of a dead letter, in microseconds since 1970."""


@dataclass(frozen=True)
class DeadLetter:
    """A dead letter: an entry, or a part of one, that could not be counted.

    Attributes:
        partition: The number of its partition.
        id: Its ID in the dead stream, with the millisecond at which it was added there. A failed retry adds it again.
        source: The stream ID of the original entry.
        reason: Why it could not be counted.
        events: How many events it contains.
        attempts: How often the entry was delivered to a worker, plus the number of retries that dead-lettered it again.
        metric: The metric of its events; `""` if it was not known, or not declared then.
        fields: The fields of the entry, or of an entry that contains only this part.
    """

    partition: int
    id: str
    source: str
    reason: str
    events: int
    attempts: int
    metric: str
    fields: Mapping[bytes, bytes]

    @property
    def name(self) -> str:
        """The name of the dead letter on the command line: `<partition>/<ID>`."""
        return f"{self.partition}/{self.id}"

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics of its events, also those that are not declared; empty if the entry cannot be decoded."""
        try:
            payload = decode(self.fields, parse_id(self.source)[0]).by_singles()
        except (CodecError, EventError, ValueError):
            return frozenset()
        return frozenset([*(each.metric for each in payload.groups), *(each.metric for each in payload.singles)])

    def ensure_source(self) -> None:
        """Raise a `CodecError` if `source` is not a stream ID: no time of an event can be read without it."""
        try:
            parse_id(self.source)
        except ValueError:
            raise CodecError(
                f"the source {self.source!r} of the dead letter {self.id} is not a stream ID: another client has "
                "changed it. Delete this entry from its stream of dead letters (redis-cli XDEL), then run the command "
                "again"
            ) from None

    @property
    def was_given_up(self) -> bool:
        """Whether the reason begins with `GIVEN_UP`: the entry was delivered too often, and no fault in it is known."""
        return self.reason.startswith(GIVEN_UP)


def letters(client: redis.Redis, layout: Layout, partition: int, first: str = "-") -> Iterator[DeadLetter]:
    """Yield the dead letters of a partition, oldest first; read 100 at a time.

    Args:
        client: The server.
        layout: The layout of the live topic, with the live generations.
        partition: The number of the partition.
        first: The ID in the dead stream of the first dead letter to yield, or of the next one if it does not exist; `-`
            for the oldest one.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command; raised while the letters are iterated.
    """
    start = first
    while page := _page(client, layout.keys[partition], start, "+"):
        yield from (letter_of(partition, id_.decode(), fields) for id_, fields in page)
        start = f"({page[-1][0].decode()}"


def find(client: redis.Redis, layout: Layout, partition: int, id_: str) -> DeadLetter | None:
    """Return the dead letter of a partition with this ID in the dead stream; `None` if it does not exist.

    Give the whole ID, `<milliseconds>-<number>`: without the number, another dead letter may be returned under `id_`.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command, for example because `id_` is not an ID.
    """
    found = _page(client, layout.keys[partition], id_, id_)
    return letter_of(partition, id_, found[0][1]) if found else None


def drop(client: redis.Redis, keys: PartitionKeys, letters: Iterable[DeadLetter]) -> tuple[int, int]:
    """Delete dead letters for good, and add their events to the ledger's `dropped`; they also stay in its `dead`.

    No later rebuild counts these events.

    Args:
        client: The server.
        keys: The keys of the partition.
        letters: Dead letters of this partition; one that does not exist any more is ignored.

    Returns:
        The number of the dead letters that existed and were dropped, and of their events.

    Raises:
        ConfigurationError: another generation or topic exists, and may have counted the events already; nothing was
            dropped. Not raised if none of the dead letters exists.
        StreamError: a repartition has closed the partition, or a restore replaces its counters; nothing was dropped.
        KeyLost: the partition has lost a key; nothing was dropped.
        redis.RedisError: the dead letters may or may not have been dropped; dropping them again is safe.
        CodecError: the `source` of a dead letter is not a stream ID; nothing was dropped.
    """
    done = _drop(client, keys, [(letter, _record(letter)) for letter in letters])
    if done is None:
        live: bytes = client.execute_command("GET", keys.live) or b""
        reason = "a restore replaces its counters" if restoring_number(live) else "a repartition has closed it"
        raise StreamError(
            f"{keys.dead}: nothing was dropped in this partition, because {reason}. When the command has ended, list "
            "the dead letters again"
        )
    entries, events, left = done
    if left:
        is_moving = client.execute_command("HEXISTS", keys.retention_holds, _COPY_HOLD)
        other = "another topic has copies of their events, because a repartition is running or the topic before is kept"
        if not is_moving:
            other = "other counters may have their events, because a rebuild is running or the counters before are kept"
        raise ConfigurationError(
            f"cannot drop {left:,} of the dead letters of {keys.stream}: {other}. Run tallystream rebuild --drop, then "
            "drop the dead letters again"
        )
    return entries, events


def dropped(client: redis.Redis, keys: PartitionKeys) -> dict[str, list[DroppedLetter]]:
    """Return the dropped dead letters of a partition whose events no fold may count, by stream ID of their entry.

    These are the ones with a record: those that `shorten` dropped are only included if they were given up.

    Raises:
        ScanBroken, redis.RedisError: see `records_of_dropped`.
        CodecError: a stored record is damaged.
    """
    return dropped_letters(records_of_dropped(client, keys).values())


def records_of_dropped(client: redis.Redis, keys: PartitionKeys) -> dict[str, str]:
    """Return the records of the dropped dead letters of a partition as they are stored, by field.

    A field is the consumer group that was live at the drop, a space, and the ID that the dead letter had in the dead
    stream.

    Raises:
        ScanBroken: another server would continue the scan of the records, so some may be missing. Call it again.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    return {
        field.decode(errors="replace"): record.decode(errors="replace")
        for page in pages_of_fields(client, keys.dropped)
        for field, record in page.items()
    }


def shorten(client: redis.Redis, keys: PartitionKeys, most_bytes: int) -> tuple[float, int, int]:
    """Drop the 100 oldest dead letters if the dead stream uses more than `most_bytes` bytes of memory (0: no limit).

    One call may not be enough: call again until the returned fraction is at most 1, or no dead letter was dropped. The
    events of those that were dropped are added to the ledger's `dropped`. Only entries that were given up get a record,
    so that no rebuild counts them; while another generation or topic exists, they are not dropped. A later rebuild that
    reads the entries of the others counts their events, if it can. If the partition is closed, or a restore replaces
    its counters, none is dropped.

    Returns:
        The memory of the dead stream before the call, as a fraction of `most_bytes` (0 without a limit, or if the dead
        stream does not exist); the number of dead letters, and of their events, that were dropped.

    Raises:
        KeyLost: the partition has lost a key; nothing was dropped.
        CodecError: the `source` of one that was given up is not a stream ID; nothing was dropped.
        redis.RedisError: the server does not reply, or rejects a command; the dead letters may or may not be dropped.
    """
    used = (client.memory_usage(keys.dead) or 0) / most_bytes if most_bytes else 0.0
    if used <= 1:
        return used, 0, 0
    oldest = [letter_of(0, id_.decode(), fields) for id_, fields in _page(client, keys, "-", "+")]
    done = _drop(client, keys, [(each, _record(each) if each.was_given_up else "") for each in oldest])
    entries, events, _ = done or (0, 0, 0)
    return used, entries, events


def dropped_among(letters: Iterable[DeadLetter], records: Iterable[str]) -> dict[str, int]:
    """Return which dead letters were dropped according to records: by ID in the dead stream, the number of events.

    A record belongs to a dead letter with the same events of the same entry, whatever its ID, and to one at most. A
    dead letter without a record is left out.

    Raises:
        CodecError: a record, or the `source` of a dead letter, is damaged.
    """
    left = Counter(_events_in(record) for record in records)
    found = {}
    for letter in letters:
        events = _events_in(_record(letter))
        if left[events]:
            left[events] -= 1
            found[letter.id] = letter.events
    return found


def taken_from(before: Iterable[DeadLetter], present: Iterable[DeadLetter], records: Iterable[str]) -> list[DeadLetter]:
    """Return the dead letters of `before` that are not in `present` and have no record: most of them were retried.

    Dead letters are the same if they have the same events of the same entry, whatever their IDs are. So one that a
    retry has added again unchanged is not returned. One that `shorten` dropped without a record is returned.

    Args:
        before: The earlier dead letters.
        present: The present ones.
        records: The records of those that were dropped: see `records_of_dropped`.

    Raises:
        CodecError: a record, or the `source` of a dead letter, is damaged.
    """
    left = Counter(_events_in(_record(letter)) for letter in present)
    found = []
    for letter in before:
        events = _events_in(_record(letter))
        if left[events]:
            left[events] -= 1
        else:
            found.append(letter)
    was_dropped = dropped_among(found, records)
    return [letter for letter in found if letter.id not in was_dropped]


def letter_of(partition: int, id_: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
    """Return the dead letter of a partition that has this ID and these fields in the dead stream.

    A text that is missing is `""`, and a number that is missing or not valid is 0. Bytes of a text that are not UTF-8
    are replaced.
    """

    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    def number(name: bytes) -> int:
        return int(fields[name]) if fields.get(name, b"").isdigit() else 0

    entry = {name[2:]: value for name, value in fields.items() if name.startswith(b"e.")}
    return DeadLetter(
        partition, id_, text(b"source"), text(b"reason"), number(b"events"), number(b"attempts"), text(b"metric"), entry
    )


def _drop(
    client: redis.Redis, keys: PartitionKeys, records: Iterable[tuple[DeadLetter, str]]
) -> tuple[int, int, int] | None:
    """Drop dead letters, each with its record (`""` for no record).

    If another generation exists, or the entries are copied to another topic, those with a record are left; those
    without one are dropped nevertheless. A dead letter that does not exist any more is in none of the numbers.

    Returns:
        The number of dead letters that were dropped, the number of their events, and the number of those that were
        left; `None`, with nothing dropped, if the partition is closed or a restore replaces its counters.

    Raises:
        KeyLost: the partition has lost a key; nothing was dropped.
        redis.RedisError: the dead letters may or may not have been dropped.
    """
    names = [keys.dead, keys.ledger, keys.dropped, keys.stream, keys.retention_holds, keys.live]
    flat = [part for letter, record in records for part in (letter.id, record)]
    answer, *numbers = _DROP(client, names, [GROUP, keys.group, *flat])
    if answer == b"closed":
        return None
    entries, events, left = numbers
    return entries, events, left


def _events_in(record: str) -> tuple[str, int, bytes]:
    """Return what identifies the events in a record: their entry, their number and their digests."""
    ((letter,),) = dropped_letters([record]).values()
    return letter.source, letter.events, letter.items


def _record(letter: DeadLetter) -> str:
    letter.ensure_source()
    return record_of(letter.source, letter.fields, letter.events, letter.metric, whole=letter.was_given_up)


def _page(client: redis.Redis, keys: PartitionKeys, first: str, last: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    page: Any = client.xrange(keys.dead, min=first, max=last, count=_PAGE)
    return page or []
