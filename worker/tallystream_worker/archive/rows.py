"""Converts entries to columns and back. Pure: no Redis, no files.

A restored entry folds to the same batch as the original: it keeps its ID, the time that it states, its origin (through
the sequence gate, decided, or neither), and every event with the time, actor and id that the rules use. An entry that
cannot be decoded keeps its bytes.

Rows keep the order of the entries. Within an entry, rows of sums are sorted by metric, minute and subject, so that
neighbours share a prefix; rows of single events are sorted by metric and time, and those with the same metric and time
keep their order. Values of a whole entry compress to almost nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tallystream.errors import CodecError, EventError
from tallystream.wire.codec import (
    VERSION,
    Group,
    Payload,
    Reset,
    Single,
    decode,
    encode,
    retraction_field,
    retraction_marks,
    stated_events,
    stated_time,
)
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MOMENT: Final = pa.timestamp("ms")  # UTC; with a zone, every tool shows local time, and some need more packages

SCHEMA: Final = pa.schema(
    [
        pa.field("received", _MOMENT, nullable=False),  # the entry's stream ID: its millisecond ...
        pa.field("received_n", pa.uint64(), nullable=False),  # ... and its number within that
        pa.field("stated", _MOMENT),  # the server's time at the append, if the entry states one
        pa.field("kind", pa.string(), nullable=False),
        pa.field("metric", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("amount", pa.int64()),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("happened", _MOMENT),
        pa.field("actor", pa.string()),
        pa.field("id", pa.string()),
        pa.field("producer", pa.string()),
        pa.field("sequence", pa.int64()),
        pa.field("decided", pa.string()),
        pa.field("retracted", pa.string()),  # of a copy, the places of the retractions that remove events of it
        pa.field("raw", pa.binary()),
    ]
)
"""The columns of the archive. `kind` is the kind of a row:

unit        `events` events of amount 1, without actor and id, in the minute `happened`; `amount` is their sum
sum         `events` events of any amounts, without actor and id, in the minute `happened`; `amount` is their sum
single      one event with its own time
reset       the place at which an operator set the counters of a subject to 0; it is no event
raw         an entry that cannot be decoded, with the number of `events` that it states: fields and values as msgpack
"""

_MOST: Final = 2**63


class Rows:
    """Collects entries, in the order of their IDs, as the columns of `SCHEMA`.

    Attributes:
        entries: The number of entries that were added.
        events: The number of events in them.
    """

    def __init__(self) -> None:
        self.entries = 0
        self.events = 0
        self._columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._columns["kind"])

    def add(self, entry: Entry) -> None:
        """Add the rows of one entry; one that cannot be decoded, or whose origin is not valid, becomes one `raw` row.

        The number of events of a `raw` row is the one that its entry states, or 1 if it states no valid one.
        """
        milliseconds, number = parse_id(entry.id)
        first = len(self)
        producer = sequence = decided = stated = retracted = None
        try:
            payload = decode(entry.fields, milliseconds)
            producer, sequence, decided = _origin(entry)
            stated = stated_time(entry.fields)
            if marks := retraction_field(retraction_marks(entry.fields)):
                retracted = marks[b"r"].decode()
        except (CodecError, EventError):
            payload = None
        if payload is None:
            events = stated_events(entry.fields)
            raw = _pack([part for field in entry.fields.items() for part in field])
            self._extend("raw", 1, events=[events], raw=[raw])
        else:
            events = payload.events
            self._add_payload(payload)
        n = len(self) - first
        self._columns["received"].extend(repeat(milliseconds, n))
        self._columns["received_n"].extend(repeat(number, n))
        self._columns["stated"].extend(repeat(stated, n))
        self._columns["producer"].extend(repeat(producer, n))
        self._columns["sequence"].extend(repeat(sequence, n))
        self._columns["decided"].extend(repeat(decided, n))
        self._columns["retracted"].extend(repeat(retracted, n))
        self.entries += 1
        self.events += events

    def table(self) -> pa.Table:
        """Return the rows of all added entries as a table with the columns of `SCHEMA`."""
        return pa.table([pa.array(self._columns[f.name], f.type) for f in SCHEMA], schema=SCHEMA)

    def _add_payload(self, payload: Payload) -> None:
        for group in sorted(payload.groups, key=lambda group: (group.metric, group.minute)):
            self._add_group(group)
        for single in sorted(payload.singles, key=lambda single: (single.metric, single.at)):
            self._extend(
                "single", 1, single.metric, [single.at], [single.subject], [single.amount], [1],
                actor=[single.actor], id=[single.id],
            )  # fmt: skip
        for each in payload.resets:
            self._extend("reset", 1, each.metric, subject=[each.subject], events=[0])

    def _add_group(self, group: Group) -> None:
        at = group.minute * 60_000
        units = dict.fromkeys(group.ones, 1)
        if len(units) < len(group.ones):  # only other producers name a subject twice
            units = Counter(group.ones)
        for subject, events in group.counts.items():
            units[subject] = units.get(subject, 0) + events
        if units:
            subjects = sorted(units)
            events_ = [units[subject] for subject in subjects]
            self._extend("unit", len(subjects), group.metric, repeat(at, len(subjects)), subjects, events_, events_)
        if group.sums:
            subjects = sorted(group.sums)
            amounts, counts = zip(*(group.sums[subject] for subject in subjects), strict=True)
            self._extend("sum", len(subjects), group.metric, repeat(at, len(subjects)), subjects, amounts, counts)

    def _extend(
        self,
        kind: str,
        n: int,
        metric: str | None = None,
        at: Any = (None,),
        subject: Sequence[str | None] = (None,),
        amount: Sequence[int | None] = (None,),
        events: Sequence[int] = (1,),
        **more: Sequence[Any],
    ) -> None:
        columns = self._columns
        columns["kind"].extend(repeat(kind, n))
        columns["metric"].extend(repeat(metric, n))
        columns["happened"].extend(at)
        columns["subject"].extend(subject)
        columns["amount"].extend(amount)
        columns["events"].extend(events)
        for name in ("actor", "id", "raw"):
            columns[name].extend(more.get(name) or repeat(None, n))


def entries_of(table: pa.Table) -> Iterator[Entry]:
    """Yield entries equal in effect to those that a table was made from, in the same order, with the same IDs.

    The fields of an entry may differ from those of the original, but not those of a `raw` row. `deliveries` is 1.

    Args:
        table: A table with the columns of `SCHEMA`, its rows in the order of `Rows.table`.

    Raises:
        CodecError: a row `raw` has another form than `Rows` writes; raised when its entry is asked for.
    """
    table = table.combine_chunks()
    runs = {name: _Runs(table, name) for name in ("received", "received_n", "kind", "metric", "producer", "sequence")}
    runs |= {"at": _Runs(table, "happened"), "decided": _Runs(table, "decided"), "stated": _Runs(table, "stated")}
    runs["retracted"] = _Runs(table, "retracted")
    values = {name: table.column(name).to_pylist() for name in ("subject", "amount", "events")}
    bounds = sorted({0, *(end for each in runs.values() for end in each.ends)})
    payload, current = Payload([], [], []), None
    for start, end in pairwise(bounds):
        head = (runs["received"][start], runs["received_n"][start])
        if head != current:
            if payload.groups or payload.singles or payload.resets:
                yield _entry(runs, start - 1, payload)
            payload, current = Payload([], [], []), head
        if runs["kind"][start] == "raw":
            for row in range(start, end):
                yield Entry(f"{head[0]}-{head[1]}", raw_fields(table.column("raw")[row].as_py()))
        else:
            _restore(payload, table, runs, values, start, end)
    if payload.groups or payload.singles or payload.resets:
        yield _entry(runs, bounds[-1] - 1, payload)


class _Runs:
    """A column as runs of equal values: `runs[row]` is the value of a row, and `ends` has the row after each run.

    A time is a number of milliseconds since 1970.
    """

    def __init__(self, table: pa.Table, name: str) -> None:
        column = table.column(name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        encoded = [pc.run_end_encode(chunk, run_end_type=pa.int64()) for chunk in chunks]
        self.ends: list[int] = [end for chunk in encoded for end in chunk.run_ends.to_pylist()]
        self._values: list[Any] = [value for chunk in encoded for value in chunk.values.to_pylist()]

    def __getitem__(self, row: int) -> Any:
        return self._values[bisect_right(self.ends, row)]


def _restore(
    payload: Payload, table: pa.Table, runs: dict[str, _Runs], values: dict[str, list[Any]], start: int, end: int
) -> None:
    """Add the events or resets of the rows from `start` to before `end` to a payload.

    The rows must be of one kind, metric and time, and not of the kind `raw`.
    """
    kind, metric, at = runs["kind"][start], runs["metric"][start], runs["at"][start]
    subjects, amounts, events = (values[name][start:end] for name in ("subject", "amount", "events"))
    if kind in ("unit", "sum") and len(set(subjects)) < len(subjects):
        # Only other producers write two groups of one metric and minute. A break of the order begins the second.
        second = next(row for row in range(1, len(subjects)) if subjects[row] <= subjects[row - 1])
        _restore(payload, table, runs, values, start, start + second)
        _restore(payload, table, runs, values, start + second, end)
        return
    if kind == "unit":
        ones = [subject for subject, n in zip(subjects, events, strict=True) if n == 1]
        counts = {subject: n for subject, n in zip(subjects, events, strict=True) if n > 1}
        payload.groups.append(Group(metric, at // 60_000, ones, counts, {}))
    elif kind == "sum":
        sums = dict(zip(subjects, zip(amounts, events, strict=True), strict=True))
        payload.groups.append(Group(metric, at // 60_000, [], {}, sums))
    elif kind == "single":
        actors, ids = (table.column(name).slice(start, end - start).to_pylist() for name in ("actor", "id"))
        for subject, amount, actor, id_ in zip(subjects, amounts, actors, ids, strict=True):
            payload.singles.append(Single(metric, subject, amount, at, actor, id_))
    else:
        payload.resets.extend(Reset(metric, subject) for subject in subjects)


def _entry(runs: dict[str, _Runs], row: int, payload: Payload) -> Entry:
    fields = {b"v": VERSION}
    if (decided := runs["decided"][row]) is not None:
        fields[b"d"] = decided.encode()
    elif (producer := runs["producer"][row]) is not None:
        fields |= {b"p": producer.encode(), b"q": str(runs["sequence"][row]).encode()}
    if (stated := runs["stated"][row]) is not None:
        fields[b"t"] = str(stated).encode()
    if (retracted := runs["retracted"][row]) is not None:
        fields[b"r"] = retracted.encode()
    fields |= {b"n": str(payload.events).encode(), b"b": encode(payload)}
    return Entry(f"{runs['received'][row]}-{runs['received_n'][row]}", fields)


def _origin(entry: Entry) -> tuple[str | None, int | None, str | None]:
    """Return the producer, the sequence, and the generation in which an entry was decided; `None` for what it lacks.

    A decided entry has only the generation. Without a producer or a sequence, both are `None`.

    Raises:
        CodecError: a value is not UTF-8, or the sequence is not a whole number below 2^63.
    """
    producer, sequence, decided = (entry.fields.get(name) for name in (b"p", b"q", b"d"))
    try:
        if decided is not None:
            return None, None, decided.decode()
        if producer is None or sequence is None:
            return None, None, None
        if sequence.isdigit() and int(sequence) < _MOST:
            return producer.decode(), int(sequence), None
    except UnicodeDecodeError:
        pass
    raise CodecError("the entry has a producer and a sequence, but did not come through the sequence gate")


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(list[bytes]).decode


def raw_fields(raw: bytes) -> dict[bytes, bytes]:
    """Return the fields of an entry from the column `raw`.

    Raises:
        CodecError: the value has another form than `Rows` writes.
    """
    try:
        parts = _unpack(raw)
        return dict(zip(parts[::2], parts[1::2], strict=True))
    except (msgspec.DecodeError, ValueError):
        raise CodecError("the column raw of an archived entry has another form than archivers write") from None
