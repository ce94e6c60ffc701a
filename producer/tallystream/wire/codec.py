"""The wire format: encodes and decodes the entries of a stream. No other module depends on the format of `b`.

A packed entry, version 1, as `append.lua` writes it:

    v 1   p <producer id>   q <sequence>   n <events>   b <msgpack>

An entry of `decide.lua` has `d` instead of `p` and `q`: `d <generation>`, the generation that has already counted it.

An entry of these scripts that got a stream ID later than the server's clock, because the clock was set back, states the
clock's time in milliseconds since 1970: `t <milliseconds>`. Without `t`, the clock's time is that of the stream ID.

    b = [groups, singles, resets, visits]
    group  = [metric, minute, ones, counts, sums]     events without actor and id, of which only the sum matters
               ones    [subject, ...]                 one event of amount 1 each
               counts  {subject: events}              several events of amount 1
               sums    {subject: [amount, events]}    events of other amounts: their sum and number
    single = [metric, subject, amount, at, actor, id] an event that is stored separately
    reset  = [metric, subject]                        an operator sets the subject's counters to 0
    visits = [metric, minute, subjects, actors, moments]  singles of amount 1 with an actor and no id, in columns

The events of an entry have an order, which decides between votes of one actor with the same `at`: visits come before
singles, and each list is in the order in which its events were emitted.

A reset is a place in the log: what the entries before it have added is taken away. It is no event, so an entry of
resets has `n 0`. It contains nothing else, and is written by `reset.lua` with `d`, like a decision.

`minute` is whole minutes since 1970: no rule needs the time of a group's events more exactly. `at` of a single is
milliseconds since 1970, and a moment is milliseconds since the beginning of the minute. A group has three forms, and
visits have columns, because each of them folds at the speed of C or close to it. A release that does not support visits
dead-letters their entry, because `n` states more events than it finds.

A dead letter of one event has `i <n>` if n events of the same metric, subject, actor and time were before it in its
entry: it keeps its place if it is retried.

A repartition marks each entry that it copies from an earlier topic with `p copy`, and `q` is the millisecond of the
original's stream ID; only the copy of a plain entry that cannot be decoded has no mark. A copy has the `t` of its
original. If retractions were made before the repartition, and remove events of the copy, it has `r <numbers>`: the
places of these retractions, from 0, in the rules, such as `0,2`.

A plain entry, from any Redis client, is one event in text:

    metric view   subject article:1   [amount 1] [actor u1] [at 1763900000.5] [id abc]
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from tallystream.errors import CodecError, UnknownVersion
from tallystream.wire.event import MAX_AMOUNT, Event
from tallystream.wire.window import MINUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

VERSION: Final = b"1"
"""The wire version that this release writes and reads: the field `v`."""

COPIED: Final = b"copy"
"""The producer ID in an entry that was copied from an earlier topic; no producer has this ID."""

MAX_EVENTS: Final = 1_000_000
"""The most events that one entry may state: it limits the number that a forged entry can claim."""

Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_EVENTS)]
"""A number of events."""

Amount = Annotated[int, msgspec.Meta(ge=-MAX_AMOUNT, le=MAX_AMOUNT)]
"""The amount of one event."""

Sum = Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
"""The sum of the amounts of several events."""

Moment = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_800_000)]
"""Milliseconds since 1970, up to the year 9999."""

Minute = Annotated[int, msgspec.Meta(ge=0, le=4_223_371_680)]
"""Whole minutes since 1970, up to the year 9999."""

_TIME_DIGITS: Final = 15
_MARKS: Final = re.compile(rb"[0-9]{1,9}(?:,[0-9]{1,9})*")
_PLAIN_FIELDS: Final = frozenset({b"metric", b"subject", b"amount", b"actor", b"at", b"id"})
_WHOLE: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_DECIMAL: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")


class Group(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Events of one metric in one minute without actor and id, summed by subject.

    Attributes:
        metric: The metric.
        minute: Whole minutes since 1970.
        ones: The subjects with one event of amount 1.
        counts: By subject, the number of its events of amount 1, if there are several.
        sums: By subject, the sum of the amounts of its other events (some may have the amount 1), and their number.
    """

    metric: str
    minute: Minute
    ones: list[str]
    counts: dict[str, Count]
    sums: dict[str, tuple[Sum, Count]]

    @property
    def events(self) -> int:
        """The number of events in the group."""
        return len(self.ones) + sum(self.counts.values()) + sum(n for _, n in self.sums.values())


class Single(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One event that is not summed.

    It has an actor or an id, its amount is 2^40 or more, or -2^40 or less, or it is the only event of its entry, such
    as a decision, a plain entry or a dead letter.

    Attributes:
        metric: The metric.
        subject: The subject.
        amount: The amount.
        at: The time of the event, in milliseconds since 1970.
        actor: The actor; `None` if the event has none.
        id: The id; `None` if the event has none.
    """

    metric: str
    subject: str
    amount: Amount
    at: Moment
    actor: str | None
    id: str | None


class Reset(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """A place in the log at which an operator sets the counters of a subject to 0; later events count from 0.

    The counters are its total, its buckets and its votes. Limits, ids and unique actors do not change, nor does the
    part of a total that is in a sketch.

    Attributes:
        metric: The metric.
        subject: The subject.
    """

    metric: str
    subject: str


class ActorColumns(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Events of one metric in one minute, each of amount 1, with an actor and without an id: one in each row.

    The columns mean the same as a list of `Single`, but are faster to read and to sum.

    Attributes:
        metric: The metric.
        minute: Whole minutes since 1970.
        subjects: The subject of each event.
        actors: The actor of each event.
        moments: The time of each event, in milliseconds since the beginning of the minute.
    """

    metric: str
    minute: Minute
    subjects: list[str]
    actors: list[str]
    moments: list[Annotated[int, msgspec.Meta(ge=0, lt=MINUTE * 1000)]]

    def singles(self) -> Iterator[Single]:
        """Yield each event as a `Single`, in order.

        Raises:
            ValueError: the columns differ in length; raised after the last complete row was yielded.
        """
        begin = self.minute * MINUTE * 1000
        for subject, actor, moment in zip(self.subjects, self.actors, self.moments, strict=True):
            yield Single(self.metric, subject, 1, begin + moment, actor, None)


class Payload(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The content of one entry.

    Attributes:
        groups: Events that are summed by metric, minute and subject.
        singles: Events that are stored separately.
        resets: Resets; a payload with resets has no events.
        visits: Events of amount 1 with an actor and no id, in columns: one element for each metric and minute.
    """

    groups: list[Group]
    singles: list[Single]
    resets: list[Reset] = []
    visits: list[ActorColumns] = []

    @property
    def events(self) -> int:
        """The number of events in the entry; a reset is none."""
        columns = sum(len(visits.subjects) for visits in self.visits)
        return sum(group.events for group in self.groups) + len(self.singles) + columns

    @property
    def by_metric(self) -> Counter[str]:
        """The number of events in the entry, by metric; a reset is none."""
        events = Counter(single.metric for single in self.singles)
        for group in self.groups:
            events[group.metric] += group.events
        for visits in self.visits:
            events[visits.metric] += len(visits.subjects)
        return events

    def by_singles(self) -> Payload:
        """Return a payload of the same events, in which every event stored in columns (`visits`) is a `Single` instead.

        Each row of `visits` becomes one element at the beginning of `singles`, in order, and the new payload has no
        `visits`. This payload does not change; it is returned itself if `visits` is empty.

        Raises:
            ValueError: the columns of an element of `visits` differ in length.
        """
        if not self.visits:
            return self
        spelled = [single for visits in self.visits for single in visits.singles()]
        return Payload(self.groups, spelled + self.singles, self.resets)


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Payload).decode


def encode(payload: Payload) -> bytes:
    """Return the msgpack form of a payload."""
    return _encode(payload)


def decode_packed(body: bytes) -> Payload:
    """Return the payload of a msgpack form that `encode` made, with the events of `visits` as singles.

    Raises:
        ValueError: the bytes are not a payload (`msgspec.DecodeError`), or columns differ in length.
        RecursionError: the bytes have arrays in arrays, too deep to read.
    """
    return _decode(body).by_singles()


def decode(fields: Mapping[bytes, bytes], received: int) -> Payload:
    """Return the payload of one entry, packed or plain, with every event stored in columns (`visits`) as a single.

    `received` is the millisecond at which the server received the entry: the time of a plain event that states none.
    The checks are those of `decode_columns`.

    Raises:
        UnknownVersion: the entry has a wire version that this release does not read.
        CodecError: the entry is not valid for another reason.
        EventError: a plain entry has a field with a value that is not allowed.
    """
    return decode_columns(fields, received).by_singles()


def decode_columns(fields: Mapping[bytes, bytes], received: int) -> Payload:
    """Return the payload of one entry, packed or plain; events that are in columns stay in `visits`.

    An entry with a field `v` is packed. Of it types, ranges, the lengths of columns, and the number of events are
    checked, and that it has either events or resets; the text of metrics, subjects, actors and ids is not. A plain
    entry is checked as an `Event`.

    Args:
        fields: The fields of the entry, as Redis returns them.
        received: The millisecond at which the server received the entry: the time of a plain event that states none.

    Raises:
        UnknownVersion: the entry has a wire version that this release does not read.
        CodecError: the entry is not valid for another reason.
        EventError: a plain entry has a field with a value that is not allowed.
    """
    version = fields.get(b"v")
    if version is None:
        return Payload([], [_plain(fields, received)])
    if version != VERSION:
        raise UnknownVersion(f"wire version {version[:16]!r} is unknown: this release reads version 1")
    try:
        payload = _decode(fields[b"b"])
    except KeyError:
        raise CodecError("field b is missing") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # msgspec.ValidationError is a DecodeError; deep nesting raises RecursionError instead.
        raise CodecError(f"field b: {error}") from None
    for each in payload.visits:
        if not len(each.subjects) == len(each.actors) == len(each.moments):
            raise CodecError("field b: the columns of visits differ in length")
    if stated_events(fields) != payload.events:
        raise CodecError(f"field n does not equal the {payload.events} events in field b")
    if bool(payload.resets) != is_reset(fields):
        raise CodecError("field b: an entry has either events or resets")
    return payload


def split(payload: Payload, home: Callable[[str, str, bool], int]) -> dict[int, Payload]:
    """Return the parts of a payload by partition number, with the events of `visits` as singles.

    A partition that gets no event and no reset is missing in the result.

    Args:
        payload: The payload to split.
        home: Returns the number of the partition for a metric, a subject, and whether the event has an id; it is called
            with `False` for a reset.

    Raises:
        ValueError: the columns of an element of `visits` differ in length.
    """
    payload = payload.by_singles()
    parts: dict[int, Payload] = {}

    def part(number: int) -> Payload:
        return parts.setdefault(number, Payload([], [], []))

    for group in payload.groups:
        groups: dict[int, Group] = {}

        def of(subject: str, group: Group = group, groups: dict[int, Group] = groups) -> Group:
            number = home(group.metric, subject, False)  # noqa: FBT003  # it goes by position
            if number not in groups:
                groups[number] = Group(group.metric, group.minute, [], {}, {})
                part(number).groups.append(groups[number])
            return groups[number]

        for subject in group.ones:
            of(subject).ones.append(subject)
        for subject, events in group.counts.items():
            of(subject).counts[subject] = events
        for subject, pair in group.sums.items():
            of(subject).sums[subject] = pair
    for single in payload.singles:
        part(home(single.metric, single.subject, single.id is not None)).singles.append(single)
    for reset in payload.resets:
        part(home(reset.metric, reset.subject, False)).resets.append(reset)  # noqa: FBT003  # as above
    return parts


def stated_events(fields: Mapping[bytes, bytes]) -> int:
    """Return the number of events that an entry states in field `n`; 1 if it is missing or not 0 to `MAX_EVENTS`.

    So a plain entry has 1. The content is not read.
    """
    stated = fields.get(b"n", b"")
    return int(stated) if stated.isdigit() and len(stated) <= 7 and int(stated) <= MAX_EVENTS else 1  # noqa: PLR2004  # 7 digits


def own_events(fields: Mapping[bytes, bytes]) -> int:
    """Return the number of events that an entry states (see `stated_events`); 0 if it is marked as a copy (`p`)."""
    return 0 if fields.get(b"p") == COPIED else stated_events(fields)


def is_reset(fields: Mapping[bytes, bytes]) -> bool:
    """Return whether a packed entry states that it has resets: its `n` is `0`. The content is not read."""
    return fields.get(b"n") == b"0" and b"v" in fields


def earlier_events(fields: Mapping[bytes, bytes]) -> int:
    """Return the number in field `i` of a dead letter: equal events that were before it in its original entry.

    Equal events have the same metric, subject, actor and time. The result is 0 if there is no such field, or it is not
    a number of at most 7 digits.
    """
    earlier = fields.get(b"i", b"")
    return int(earlier) if earlier.isdigit() and len(earlier) <= 7 else 0  # noqa: PLR2004  # 7 digits


def id_time_of(entry_id: str, fields: Mapping[bytes, bytes]) -> int:
    """Return the millisecond of the stream ID of an entry; if it is marked as a copy, that of the original's ID."""
    if fields.get(b"p") == COPIED and (taken := fields.get(b"q", b"")).isdigit():
        return int(taken)
    return int(entry_id.partition("-")[0])


def received_of(entry_id: str, fields: Mapping[bytes, bytes]) -> int:
    """Return the millisecond, by the server's clock, at which an entry was first appended: `t`, or the time of its ID.

    Of a copy, the ID is that of the original. The result is never later than the time of that ID. A `t` that is not
    valid, or that is in a plain entry, is ignored.
    """
    id_time = id_time_of(entry_id, fields)
    if b"t" not in fields:
        return id_time
    stated = stated_time(fields)
    return id_time if stated is None else min(stated, id_time)


def stated_time(fields: Mapping[bytes, bytes]) -> int | None:
    """Return the time that a packed entry states in `t`, in milliseconds; `None` if it states no valid one."""
    stated = fields.get(b"t")
    if stated is None or b"v" not in fields or not stated.isdigit() or len(stated) > _TIME_DIGITS:
        return None
    return int(stated)


def time_fields(fields: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields by which another entry states the times of this one: a valid `t`, and `p` and `q` of a copy.

    The result is empty if only the stream ID states the time: the other entry, which has another ID, loses this time.
    """
    found = {b"t": b"%d" % stated} if (stated := stated_time(fields)) is not None else {}
    if fields.get(b"p") == COPIED and b"q" in fields:
        found |= {b"p": COPIED, b"q": fields[b"q"]}
    return found


def retraction_marks(fields: Mapping[bytes, bytes]) -> frozenset[int]:
    """Return the places in the rules of the retractions that a copy states in a valid `r`; otherwise an empty set."""
    marks = fields.get(b"r")
    if marks is None or fields.get(b"p") != COPIED or not _MARKS.fullmatch(marks):
        return frozenset()
    return frozenset(map(int, marks.split(b",")))


def retraction_field(marks: Collection[int]) -> dict[bytes, bytes]:
    """Return the field `r` that states retractions by their places in the rules; `{}` if there are none."""
    return {b"r": b",".join(b"%d" % mark for mark in sorted(marks))} if marks else {}


def was_decided(fields: Mapping[bytes, bytes], generation: int | None = None) -> bool:
    """Return whether `decide.lua` or `reset.lua` wrote the entry, and counted it in `generation` as it appended it.

    `None` stands for any generation. Only the fields `v` and `d` are read.
    """
    decided = fields.get(b"d", b"")
    if b"v" not in fields or not decided.isdigit():
        return False  # a plain entry of another client may have a field of this name
    return generation is None or decided == b"%d" % generation


def was_sequenced(fields: Mapping[bytes, bytes]) -> bool:
    """Return whether one of our scripts wrote the entry, and has added its events to `appended` in the ledger.

    An entry of a producer or of an ingested file, a marked copy (`p copy`), and an entry of `decide.lua` or `reset.lua`
    are such entries. A plain entry is not. Only the fields are read: `p` with a numeric `q`, or `v` with a numeric `d`.
    """
    return (b"p" in fields and fields.get(b"q", b"").isdigit()) or was_decided(fields)


def _plain(fields: Mapping[bytes, bytes], received: int) -> Single:
    if extra := fields.keys() - _PLAIN_FIELDS:
        raise CodecError(f"field {min(extra)[:32]!r} is not one of metric, subject, amount, actor, at, id")
    try:
        text = {name.decode(): value.decode() for name, value in fields.items()}
    except UnicodeDecodeError as error:
        raise CodecError(f"not UTF-8: {error.reason}") from None
    if missing := {"metric", "subject"} - text.keys():
        raise CodecError(f"field {min(missing)} is missing")
    amount = text.get("amount", "1")
    if _WHOLE.fullmatch(amount) is None:
        raise CodecError("field amount must be a whole number within +-(2^53 - 1)")
    at = text.get("at")
    if at is not None and _DECIMAL.fullmatch(at) is None:
        raise CodecError("field at must be seconds since 1970, such as 1763900000.5")
    event = Event(  # the message of its EventError is better than that of a CodecError, so it is not converted
        text["metric"],
        text["subject"],
        int(amount),
        text.get("actor"),
        None if at is None else float(at),
        text.get("id"),
    )
    moment = received if event.at is None else int(event.at * 1000)
    return Single(event.metric, event.subject, event.amount, moment, event.actor, event.id)
