"""Folds the payload of one entry: groups, columns, single events and resets. Pure: no Redis, no clock.

Events of the entry that cannot be counted become a dead letter with a reason: an entry that contains only these events.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tallystream.errors import EventError
from tallystream.wire.codec import (
    VERSION,
    ActorColumns,
    Group,
    Payload,
    Single,
    earlier_events,
    encode,
    retraction_field,
    retraction_marks,
    time_fields,
)
from tallystream.wire.event import MAX_ACTOR_BYTES, MAX_AHEAD, MAX_ID_BYTES
from tallystream.wire.stream_id import parse_id
from tallystream.wire.window import MINUTE
from tallystream_worker.counting.fold_result import DeadEntry
from tallystream_worker.counting.lateness import is_late, record_if_late
from tallystream_worker.counting.validation import check_normal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tallystream.rules.batch import BucketResolver, BucketSet
    from tallystream.rules.metrics import Metric, Rules
    from tallystream.wire.codec import Reset
    from tallystream.wire.stream_id import StreamID
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fold_result import FoldResult
    from tallystream_worker.counting.validation import SubjectCache

_REASON_BYTES: Final = 300


class PayloadFold:
    """Adds the events of one entry to the result of a fold.

    Args:
        rules: The declared metrics.
        places: Returns the bucket set of a metric and a minute.
        subjects: Checks subjects and actors.
    """

    def __init__(self, rules: Rules, places: BucketResolver, subjects: SubjectCache) -> None:
        self._rules = rules
        self._places = places
        self._subjects = subjects
        self._stream_id: StreamID | None = None  # of the present entry; parsed when a vote needs it
        self._first = 0
        self._earlier: dict[tuple[str, str, str | None, int], int] = {}
        self._whole: Iterator[Single] | None = None  # single events not passed yet, if some are left out

    def __call__(
        self, result: FoldResult, entry: Entry, payload: Payload, whole: Sequence[Single] | None = None
    ) -> None:
        """Add the events of an entry to the batch of a result, and their numbers to its `settled` and `counted`.

        Excluded events, and events that cannot be counted, are added to the dead letters of the result. For late
        events, see `record_if_late`. The subjects of groups and columns are not checked here: `Fold` does this. Resets
        are added to the batch; a reset is ignored if it is excluded, or if its metric is not declared or not exact.

        Args:
            result: The result to add to.
            entry: The entry.
            payload: The events to add.
            whole: All single events of the entry, if some of them may be left out of `payload`, which then must have no
                `visits`: an event that is left out still has its place in the log. The singles of `payload` must be the
                same objects, in the same order.
        """
        self._stream_id, self._first, self._earlier = None, earlier_events(entry.fields), {}
        self._whole = None if whole is None else iter(whole)
        for group in payload.groups:
            self._add_group(result, entry, group)
        for columns in payload.visits:
            self._add_columns(result, entry, columns)
        for single in payload.singles:
            self._add_single(result, entry, single)
        for reset in payload.resets:
            self._add_reset(result, entry, reset)

    def _add_group(self, result: FoldResult, entry: Entry, group: Group) -> None:
        metric = group.metric
        rule = self._rules.metric.get(metric)
        if rule is None or rule.once is not None or group.minute * MINUTE * 1000 > entry.id_time + MAX_AHEAD * 1000:
            self._add_dead(result, entry, Payload([group], []), self._refusal(metric, group.minute * 60_000, entry))
            return
        if group.sums and (rule.limit is not None or not rule.exact):
            group = self._without_amounts(result, entry, group, rule)
        if result.excluded:
            group = self._without_excluded(result, entry, group)
        events = group.events
        if not events or record_if_late(result, entry, metric, rule, group.minute * 60_000 + 59_999, events):
            return
        place = self._open(result, entry, metric, group.minute)
        sums = result.batch.sums[place] if rule.limit is None else result.batch.limited[place]
        sums.update(group.ones)
        get = sums.get  # faster than Counter.__missing__
        for subject, count in group.counts.items():
            sums[subject] = get(subject, 0) + count
        for subject, (amount, _) in group.sums.items():
            sums[subject] = get(subject, 0) + amount
        result.settled[metric] += events
        if rule.limit is None:
            result.counted[metric] += events

    def _add_columns(self, result: FoldResult, entry: Entry, columns: ActorColumns) -> None:
        metric = columns.metric
        rule = self._rules.metric.get(metric)
        if rule is None or result.excluded or not self._can_add_together(entry, columns, rule):
            for single in columns.singles():
                self._add_single(result, entry, single)
            return
        place = self._open(result, entry, metric, columns.minute)
        result.batch.add_visits(place, columns.minute, columns.subjects, columns.actors, received=entry.received)
        events = len(columns.subjects)
        result.settled[metric] += events
        if rule.limit is None:
            result.counted[metric] += events

    def _can_add_together(self, entry: Entry, columns: ActorColumns, rule: Metric) -> bool:
        """Return whether no event of the columns needs a check by itself.

        The metric has no `once`, no part of the minute is late or more than `MAX_AHEAD` seconds ahead, and every actor
        is valid. Subjects are checked later.
        """
        begin = columns.minute * MINUTE * 1000
        if rule.once is not None or begin + MINUTE * 1000 > entry.id_time + MAX_AHEAD * 1000:
            return False
        if is_late(entry, rule, begin):
            return False
        return self._subjects.are_actors(columns.actors)

    def _add_single(self, result: FoldResult, entry: Entry, single: Single) -> None:
        metric, subject, amount, at, actor, id_ = (
            single.metric,
            single.subject,
            single.amount,
            single.at,
            single.actor,
            single.id,
        )
        rule = self._rules.metric.get(metric)
        earlier = self._count_earlier(single) if actor is not None and (rule is None or rule.once is not None) else 0
        reason = result.why_excluded(metric, subject) if result.excluded else None
        if rule is None or at > entry.id_time + MAX_AHEAD * 1000:
            reason = self._refusal(metric, at, entry)
        elif reason is None:
            try:
                # Events with the same id must be in the same partition, or the second would not be found.
                self._subjects.subject(subject, anywhere=rule.spread and id_ is None)
                if actor is not None:
                    check_normal("actor", actor, MAX_ACTOR_BYTES)
                if id_ is not None:
                    check_normal("id", id_, MAX_ID_BYTES)
                self._rules.refuse(metric, amount, actor)
            except EventError as error:
                reason = str(error)
        if reason is not None or rule is None:
            self._add_dead(result, entry, Payload([], [single]), reason or "", earlier)
            return
        if record_if_late(result, entry, metric, rule, at, 1, has_id=id_ is not None):
            return
        logged = None
        if rule.once is not None:
            if self._stream_id is None:
                self._stream_id = parse_id(entry.id)
            logged = (*self._stream_id, earlier)
        place = self._open(result, entry, metric, at // 60_000)
        result.batch.add(place, subject, amount, at, actor, id_, logged, received=entry.received)
        result.settled[metric] += 1
        if rule.once is None and rule.limit is None and (id_ is None or rule.ids is None):
            result.counted[metric] += 1

    def _count_earlier(self, single: Single) -> int:
        """Return how many events of the same metric, subject, actor and time are before an event in its entry.

        If the entry is a dead letter of one event, those before it in the original entry are included. Call this once
        for each event whose place is needed, in order: it counts the event for the later ones.
        """
        for passed in self._whole or ():
            if passed is single:
                break
            self._count(passed)
        return self._count(single)

    def _count(self, single: Single) -> int:
        key = (single.metric, single.subject, single.actor, single.at)
        earlier = self._earlier.get(key, self._first)
        self._earlier[key] = earlier + 1
        return earlier

    def _add_reset(self, result: FoldResult, entry: Entry, reset: Reset) -> None:
        """Add a reset to the batch; ignore it if its metric is not declared or not exact, or if it is excluded."""
        rule = self._rules.metric.get(reset.metric)
        if rule is not None and rule.exact and result.why_excluded(reset.metric, reset.subject) is None:
            result.batch.add_reset(self._places(reset.metric, entry.received // 60_000), reset.subject, entry.id)

    def _open(self, result: FoldResult, entry: Entry, metric: str, minute: int) -> BucketSet:
        """Return the bucket set of a metric and a minute, without the buckets that had closed when the entry arrived.

        The batch of the result records these closed buckets.
        """
        place = self._places(metric, minute)
        if entry.received < place.closes_first:
            return place
        result.batch.leave_out(place, entry.received)
        return self._places.open(place, entry.received)

    def _refusal(self, metric: str, at: int, entry: Entry) -> str:
        """Return why an event of amount 1 without actor cannot be counted; `""` if it can.

        The reasons are that its metric is not declared, its time is too far ahead of the entry's, or its rule forbids
        it. If the metric is not declared, also note that the rules may be outdated.

        Args:
            metric: The metric, which may be undeclared.
            at: The time of the event, in milliseconds since 1970.
            entry: The entry of the event.
        """
        self._subjects.may_be_outdated |= metric not in self._rules.metric
        try:
            self._rules.refuse_undeclared(metric)
            if at > entry.id_time + MAX_AHEAD * 1000:
                return f"at: is more than {MAX_AHEAD:,} seconds after the server received the entry"
            self._rules.refuse(metric, 1, None)
        except EventError as error:
            return str(error)
        return ""

    def _without_amounts(self, result: FoldResult, entry: Entry, group: Group, rule: Metric) -> Group:
        """Add a dead letter of the sums that the rule forbids; return the group without them.

        The metric must have a limit, or not be exact. A limit forbids every amount except 1, so all of `group.sums`; a
        metric that is not exact forbids negative sums.
        """
        faulty = {s: pair for s, pair in group.sums.items() if rule.limit is not None or pair[0] < 0}
        if not faulty:
            return group
        try:
            self._rules.refuse(group.metric, -1, None)
        except EventError as error:
            part = Group(group.metric, group.minute, [], {}, faulty)
            self._add_dead(result, entry, Payload([part], []), str(error))
        rest = {s: pair for s, pair in group.sums.items() if s not in faulty}
        return Group(group.metric, group.minute, group.ones, group.counts, rest)

    def _without_excluded(self, result: FoldResult, entry: Entry, group: Group) -> Group:
        """Return the group without its excluded events; add these to the result, as one dead letter for each reason."""
        faulty: dict[str, set[str]] = defaultdict(set)  # by reason
        for subject in {*group.ones, *group.counts, *group.sums}:
            if (reason := result.why_excluded(group.metric, subject)) is not None:
                faulty[reason].add(subject)
        for reason, subjects in faulty.items():
            self._add_dead(result, entry, Payload([_part(group, subjects, keep=True)], []), reason)
        return _part(group, set().union(*faulty.values()), keep=False)

    def _add_dead(self, result: FoldResult, entry: Entry, payload: Payload, reason: str, earlier: int = 0) -> None:
        """Add a dead letter to the result: an entry that contains only `payload`, a part of the original entry.

        The payload has at least one group or single event. Give `earlier` only if it has one single event and nothing
        else: the number of events of the same metric, subject, actor and time before this one in the original entry.
        If it is not 0, the new entry states it, to tell apart events that are alike.
        """
        events = payload.events
        fields = {b"v": VERSION, b"n": str(events).encode(), b"b": encode(payload)} | time_fields(entry.fields)
        fields |= retraction_field(retraction_marks(entry.fields))
        if earlier:
            fields[b"i"] = b"%d" % earlier
        parts: tuple[Group | Single, ...] = (*payload.groups, *payload.singles)
        metric = parts[0].metric if parts[0].metric in self._rules.metric else ""
        result.dead.append(dead_entry_of(entry, reason, events, fields, metric))


def dead_entry_of(entry: Entry, reason: str, events: int, fields: Mapping[bytes, bytes], metric: str = "") -> DeadEntry:
    """Return a dead letter of an entry, with the reason cut to 300 characters.

    Args:
        entry: The entry that could not be counted, in whole or in part.
        reason: Why it could not be counted.
        events: The number of events in `fields`.
        fields: The entry's fields, or those of an entry that contains only the events that could not be counted.
        metric: The declared metric of the events; `""` if it is not known.
    """
    return DeadEntry(entry.id, reason[:_REASON_BYTES], events, entry.deliveries, fields, metric)


def _part(group: Group, subjects: set[str], *, keep: bool) -> Group:
    """Return a copy of the group with only these subjects (`keep=True`), or without them (`keep=False`)."""
    return Group(
        group.metric,
        group.minute,
        [subject for subject in group.ones if (subject in subjects) is keep],
        {subject: n for subject, n in group.counts.items() if (subject in subjects) is keep},
        {subject: pair for subject, pair in group.sums.items() if (subject in subjects) is keep},
    )
