"""Retractions: descriptions of events that are in the topic and must not be counted, as if they had never happened.

A retraction describes events and does not list them. Its effect depends only on the entries, so every rebuild of the
topic gives the same counts. It applies to entries that were appended before it was made, not to later ones: those up to
the IDs in `until`. A repartition copies entries to other IDs, so it marks each copy with the retractions that apply.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tallystream.errors import EventError
from tallystream.wire.codec import Payload, retraction_marks
from tallystream.wire.stream_id import parse_id
from tallystream.wire.window import MINUTE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tallystream.wire.codec import Group, Single

_MINUTE_MS = MINUTE * 1000


class Retraction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A description of the events to retract: those that match every attribute that is not `None`.

    Times are whole minutes, because the time of an event without actor and id is stored by the minute. `applying` finds
    the retractions that apply to an entry, and `without` removes the retracted events from its payload.

    Attributes:
        until: By stream, the ID of the last entry that the retraction applies to. A retraction that was made before the
            last repartition has none: it applies to marked copies alone.
        metric: The metric of the events.
        subject: The subject of the events.
        actor: The actor of the events.
        id: The id of the events.
        begin: The events happened at or after this time, in milliseconds since 1970.
        end: The events happened before this time, in milliseconds since 1970.

    Raises:
        EventError: every attribute except `until` is `None`, or a time is not a whole minute.
    """

    until: dict[str, str]
    metric: str | None = None
    subject: str | None = None
    actor: str | None = None
    id: str | None = None
    begin: int | None = None
    end: int | None = None

    def __post_init__(self) -> None:
        if (self.metric, self.subject, self.actor, self.id, self.begin, self.end) == (None,) * 6:
            raise EventError("retract", "name the events by a metric, a subject, an actor, an id, or a time")
        for field, moment in (("from", self.begin), ("to", self.end)):
            if moment is not None and moment % _MINUTE_MS:
                raise EventError(field, "must be a whole minute: events without actor and id are stored by the minute")

    def reaches(self, stream: str, entry_id: str) -> bool:
        """Return whether the retraction applies to an entry by its ID: it is at most the one in `until` for its stream.

        Return `False` if `until` does not name the stream. The marks of a copy are not looked at: see `applying`.

        Args:
            stream: The key of the stream.
            entry_id: The stream ID of the entry.

        Raises:
            ValueError: one of the IDs is not a stream ID.
        """
        return parse_id(entry_id) <= parse_id(self.until.get(stream, "0-0"))

    def without(self, payload: Payload) -> Payload:
        """Return a copy of a payload without the retracted events, with `visits` as singles; `until` is not checked.

        A group may be left without events. Resets stay.

        Raises:
            ValueError: the columns of an element of `visits` differ in length.
        """
        payload = payload.by_singles()
        return Payload(
            [self.strip(group) for group in payload.groups],
            [single for single in payload.singles if not self.takes(single)],
            payload.resets,
        )

    def strip(self, group: Group) -> Group:
        """Return a copy of a group without the retracted events; it may be empty. `until` is not checked.

        Return the group itself if its metric or minute does not match, or if the retraction names an actor or an id,
        because the events of a group have neither.
        """
        if not self._concerns(group.metric, None, group.minute * _MINUTE_MS) or not self._is_plain:
            return group
        if self.subject is None:
            return msgspec.structs.replace(group, ones=[], counts={}, sums={})
        return msgspec.structs.replace(
            group,
            ones=[subject for subject in group.ones if subject != self.subject],
            counts={subject: events for subject, events in group.counts.items() if subject != self.subject},
            sums={subject: pair for subject, pair in group.sums.items() if subject != self.subject},
        )

    def takes(self, single: Single) -> bool:
        """Return whether a single event matches the retraction; `until` is not checked."""
        return (
            self._concerns(single.metric, single.subject, single.at)
            and self.actor in (None, single.actor)
            and self.id in (None, single.id)
        )

    @property
    def _is_plain(self) -> bool:
        return self.actor is None and self.id is None

    def _concerns(self, metric: str, subject: str | None, at: int) -> bool:
        return (
            self.metric in (None, metric)
            and (subject is None or self.subject in (None, subject))
            and (self.begin is None or at >= self.begin)
            and (self.end is None or at < self.end)
        )


def applying(
    retractions: Sequence[Retraction], stream: str, entry_id: str, fields: Mapping[bytes, bytes]
) -> dict[int, Retraction]:
    """Return the retractions that apply to an entry, by their place in `retractions`.

    A retraction applies by the ID of the entry, or because the entry is a copy that is marked with its place.

    Args:
        retractions: The retractions of the rules.
        stream: The key of the stream.
        entry_id: The stream ID of the entry.
        fields: The fields of the entry.

    Raises:
        ValueError: `entry_id` or an ID in `until` is not a stream ID.
    """
    if not retractions:
        return {}
    marks = retraction_marks(fields)
    return {place: each for place, each in enumerate(retractions) if place in marks or each.reaches(stream, entry_id)}


def after_copying(retractions: Sequence[Retraction]) -> tuple[Retraction, ...]:
    """Return copies of retractions for a new topic, in the same order, with an empty `until`.

    So each applies to the copies that are marked with its place, and to nothing else.
    """
    return tuple(msgspec.structs.replace(each, until={}) for each in retractions)
