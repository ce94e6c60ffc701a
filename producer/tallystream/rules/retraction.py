"""Retractions: events that are in the log and shall count as if they had never happened.

A retraction is a description, not a list: what it means depends on the entries alone, so every refold of the log
comes to the same counts. It reaches back from the moment at which it was made, and touches nothing appended later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tallystream.errors import EventError
from tallystream.wire.codec import Payload
from tallystream.wire.stream_id import parse_id
from tallystream.wire.window import MINUTE

if TYPE_CHECKING:
    from tallystream.wire.codec import Correction, Group, Single

_MINUTE_MS = MINUTE * 1000


class Retraction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which events are taken back: those that agree with everything that is stated.

    Attributes:
        until: By stream, the ID of the last entry that it reaches.
        metric: Of this metric.
        subject: Counted for this subject.
        actor: Done by this actor.
        id: With this id.
        begin: That happened at or after this millisecond, a whole minute: plain events are kept by the minute.
        end: That happened before this millisecond, a whole minute.

    Raises:
        EventError: nothing is stated, or a time is no whole minute.
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
            raise EventError("retract", "say which events: a metric, a subject, an actor, an id, or a time")
        for field, moment in (("from", self.begin), ("to", self.end)):
            if moment is not None and moment % _MINUTE_MS:
                raise EventError(field, "must be a whole minute: plain events are kept by the minute")

    def reaches(self, stream: str, entry_id: str) -> bool:
        """Tell whether an entry was appended before the retraction was made."""
        return parse_id(entry_id) <= parse_id(self.until.get(stream, "0-0"))

    def without(self, payload: Payload) -> Payload:
        """Return a payload without what is taken back."""
        payload = payload.by_singles()
        return Payload(
            [self.strip(group) for group in payload.groups],
            [single for single in payload.singles if not self.takes(single)],
            [correction for correction in payload.corrections if not self.takes_correction(correction)],
        )

    def strip(self, group: Group) -> Group:
        """Return a group without the events that are taken back."""
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
        """Tell whether an event is taken back."""
        return (
            self._concerns(single.metric, single.subject, single.at)
            and self.actor in (None, single.actor)
            and self.id in (None, single.id)
        )

    def takes_correction(self, correction: Correction) -> bool:
        """Tell whether a correction goes with its events: a reset of what was never counted would leave less than 0.

        One that took back the events of many actors stays when a single actor's are retracted.
        """
        return self._is_plain and self._concerns(correction.metric, correction.subject, correction.at)

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
