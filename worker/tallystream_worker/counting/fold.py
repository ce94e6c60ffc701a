"""Folds entries into a batch: how much to add to what. Pure: no Redis, no clock.

The hot path sums whole groups at the speed of C and looks at each distinct subject once. Whatever turns out to
be at fault (a subject that breaks a rule, a total that would overflow) is handled by folding the same entries
again with it *excluded*: its events go to the parked side of the batch, everything beside it counts.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tallystream.errors import CodecError, EventError
from tallystream.rules.batch import Batch, BucketResolver
from tallystream.wire.codec import (
    VERSION,
    ActorColumns,
    Correction,
    Group,
    Payload,
    Single,
    decode_columns,
    encode,
    stated_events,
    was_decided,
    was_sequenced,
)
from tallystream.wire.event import MAX_ACTOR_BYTES, MAX_AHEAD, MAX_AMOUNT, MAX_ID_BYTES
from tallystream.wire.stream_id import parse_id
from tallystream.wire.window import MINUTE
from tallystream_worker.counting.fold_result import DeadEntry, FoldResult
from tallystream_worker.counting.validation import SubjectCache, check_normal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tallystream.rules.metrics import Metric, Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.entry import Entry

_REASON_BYTES: Final = 300

FoldFault = tuple[str, str]
"""A metric and a subject of it."""


class Fold:
    """Folds the entries of one partition.

    Args:
        layout: How many partitions there are.
        partition: The one whose entries come.
        rules: The declared metrics.
        max_keys: A batch is closed once it touches this many counters: what bounds the time for which one
            script call holds the server.
        max_deliveries: An entry handed out more often than this, without success, is parked unread.
        begun: The last stream ID before the generation that is counted began.
        watching: Whether alerts may fire; a rebuild counts what has been noticed before.
    """

    def __init__(
        self,
        layout: Layout,
        partition: int,
        rules: Rules,
        *,
        max_keys: int = 3000,
        max_deliveries: int = 10,
        begun: str = "0-0",
        watching: bool = True,
    ) -> None:
        self._alerts = rules.alerts if watching else {}
        self._layout = layout
        self._partition = partition
        self._rules = rules
        self._places = BucketResolver(rules)
        self._max_keys = max_keys
        self._max_deliveries = max_deliveries
        self._generation = layout.keys[partition].generation
        self._stream = layout.keys[partition].stream
        self._begun = parse_id(begun)
        self._checked = SubjectCache(layout, partition)

    def __call__(
        self, entries: Sequence[Entry], excluded: Mapping[FoldFault, str] | None = None
    ) -> tuple[FoldResult, Sequence[Entry]]:
        """Fold entries from the first on.

        Args:
            entries: In any order.
            excluded: What must not be counted, with the reason.

        Returns:
            The batch, and the entries that it has no room for.
        """
        excluded = dict(excluded or {})
        # The gate asks whether an entry is pending, and it is as often as it is asked within one call.
        entries = list({entry.id: entry for entry in entries}.values())
        self._checked.has_misrouted = False
        while True:
            folded, rest = self._pass(entries, excluded)
            faults = self._faults(folded)
            if not faults:
                return folded, rest
            excluded |= faults

    @property
    def has_misrouted(self) -> bool:
        """Whether the last call left something out because it belongs to another partition, by these rules."""
        return self._checked.has_misrouted

    def _pass(self, entries: Sequence[Entry], excluded: Mapping[FoldFault, str]) -> tuple[FoldResult, Sequence[Entry]]:
        batch = Batch(self._layout.keys[self._partition], self._rules.zone, self._alerts)
        if self._alerts:
            batch.received = min((entry.received for entry in entries), default=0)
        folded = FoldResult(batch)
        before = 0
        for index, entry in enumerate(entries):
            self._add(folded, entry, excluded)
            counters = folded.batch.counters
            # The next entry may bring as many new ones as this one did: stop where that would be further off.
            if counters + (counters - before) // 2 >= self._max_keys:
                return folded, entries[index + 1 :]
            before = counters
        return folded, []

    def _add(self, folded: FoldResult, entry: Entry, excluded: Mapping[FoldFault, str]) -> None:
        folded.ids.append(entry.id)
        if was_decided(entry.fields, self._generation):
            return  # its effect came with it: see decide.lua
        payload = None
        if entry.deliveries > self._max_deliveries:
            reason = f"delivered {entry.deliveries - 1} times without success"
        else:
            try:
                payload = decode_columns(entry.fields, entry.received)
            except (CodecError, EventError) as error:
                reason = str(error)
        events = stated_events(entry.fields) if payload is None else payload.events
        is_plain = not was_sequenced(entry.fields)
        if is_plain or (self._begun != (0, 0) and parse_id(entry.id) <= self._begun):
            folded.appended += events
            folded.plain += 1
        if is_plain:
            folded.plain_events += events
        if payload is None:
            folded.parked.append(DeadEntry(entry.id, reason[:_REASON_BYTES], events, entry.deliveries, entry.fields))
            return
        for retraction in self._rules.retracted:
            if retraction.reaches(self._stream, entry.id):
                before, payload = payload.by_metric, retraction.without(payload)
                folded.retracted += before - payload.by_metric
        folded.sample = folded.sample or payload
        for group in payload.groups:
            self._add_group(folded, entry, group, excluded)
        for visits in payload.visits:
            self._add_visits(folded, entry, visits, excluded)
        for single in payload.singles:
            self._add_single(folded, entry, single, excluded)
        for correction in payload.corrections:
            self._add_correction(folded, entry, correction, excluded)

    def _add_group(self, folded: FoldResult, entry: Entry, group: Group, excluded: Mapping[FoldFault, str]) -> None:
        metric = group.metric
        rule = self._rules.metric.get(metric)
        if rule is None or rule.once is not None or group.minute * MINUTE * 1000 > entry.received + MAX_AHEAD * 1000:
            self._park(folded, entry, Payload([group], []), self._refusal(metric, group.minute * 60_000, entry))
            return
        if group.sums and (rule.limit is not None or not rule.exact):
            group = self._without_amounts(folded, entry, group, rule)
        if excluded:
            group = self._sift(folded, entry, group, excluded)
        events = group.events
        if not events or self._is_late(folded, entry, metric, rule, group.minute * 60_000 + 59_999, events):
            return
        place = self._places(metric, group.minute)
        sums = folded.batch.sums[place] if rule.limit is None else folded.batch.limited[place]
        sums.update(group.ones)
        get = sums.get  # a Counter's own answer for what is missing is a slow one
        for subject, count in group.counts.items():
            sums[subject] = get(subject, 0) + count
        for subject, (amount, _) in group.sums.items():
            sums[subject] = get(subject, 0) + amount
        folded.settled[metric] += events
        if rule.limit is None:
            folded.counted[metric] += events

    def _add_visits(
        self, folded: FoldResult, entry: Entry, visits: ActorColumns, excluded: Mapping[FoldFault, str]
    ) -> None:
        metric = visits.metric
        rule = self._rules.metric.get(metric)
        if rule is None or excluded or not self._are_sound(entry, visits, rule):
            for single in visits.singles():
                self._add_single(folded, entry, single, excluded)
            return
        folded.batch.add_visits(self._places(metric, visits.minute), visits.minute, visits.subjects, visits.actors)
        events = len(visits.subjects)
        folded.settled[metric] += events
        if rule.limit is None:
            folded.counted[metric] += events

    def _are_sound(self, entry: Entry, visits: ActorColumns, rule: Metric) -> bool:
        """Tell whether visits may be counted together: none can be ahead, late or a vote, and the actors are sound."""
        begin, accepted = visits.minute * MINUTE * 1000, rule.late_seconds
        if rule.once is not None or begin + MINUTE * 1000 > entry.received + MAX_AHEAD * 1000:
            return False
        if accepted is not None and entry.received - begin > accepted * 1000:
            return False
        return self._checked.are_actors(visits.actors)

    def _add_single(self, folded: FoldResult, entry: Entry, single: Single, excluded: Mapping[FoldFault, str]) -> None:
        metric, subject, amount, at, actor, id_ = (
            single.metric,
            single.subject,
            single.amount,
            single.at,
            single.actor,
            single.id,
        )
        rule = self._rules.metric.get(metric)
        reason = excluded.get((metric, subject))
        if rule is None or at > entry.received + MAX_AHEAD * 1000:
            reason = self._refusal(metric, at, entry)
        elif reason is None:
            try:
                # Copies of an id find each other at home.
                self._checked.subject(subject, anywhere=rule.spread and id_ is None)
                if actor is not None:
                    check_normal("actor", actor, MAX_ACTOR_BYTES)
                if id_ is not None:
                    check_normal("id", id_, MAX_ID_BYTES)
                self._rules.refuse(metric, amount, actor)
            except EventError as error:
                reason = str(error)
        if reason is not None or rule is None:
            self._park(folded, entry, Payload([], [single]), reason or "")
            return
        if self._is_late(folded, entry, metric, rule, at, 1):
            return
        folded.batch.add(self._places(metric, at // 60_000), subject, amount, at, actor, id_)
        folded.settled[metric] += 1
        if rule.once is None and rule.limit is None and (id_ is None or rule.ids is None or not rule.exact):
            folded.counted[metric] += 1

    def _add_correction(
        self, folded: FoldResult, entry: Entry, correction: Correction, excluded: Mapping[FoldFault, str]
    ) -> None:
        metric, subject = correction.metric, correction.subject
        reason = excluded.get((metric, subject))
        if metric not in self._rules.metric:
            reason = self._refusal(metric, correction.at, entry)
        if reason is not None:
            self._park(folded, entry, Payload([], [], [correction]), reason)
            return
        place = self._places(metric, correction.at // 60_000)
        if correction.finest is not None:
            place = self._places.without_finer(place, correction.finest)
        folded.batch.sums[place][subject] += correction.amount
        folded.settled[metric] += 1
        folded.counted[metric] += 1

    def _is_late(self, folded: FoldResult, entry: Entry, metric: str, rule: Metric, at: int, events: int) -> bool:
        """Tell whether events are set aside as too late; lateness is a fact of the entry, not of the moment."""
        accepted = rule.late_seconds
        if accepted is None or entry.received - at <= accepted * 1000:
            return False
        if rule.sets_late_aside:
            folded.late[metric] += events
            return True
        folded.late_counted[metric] += events
        return False

    def _refusal(self, metric: str, at: int, entry: Entry) -> str:
        """Return why no event of a metric and time can be counted from this entry."""
        try:
            self._rules.refuse_undeclared(metric)
            if at > entry.received + MAX_AHEAD * 1000:
                return f"at: lies more than {MAX_AHEAD:,} seconds after the server took the entry"
            self._rules.refuse(metric, 1, None)
        except EventError as error:
            return str(error)
        return ""

    def _without_amounts(self, folded: FoldResult, entry: Entry, group: Group, rule: Metric) -> Group:
        """Park the part of a group whose amounts the rule has no place for; return the rest."""
        faulty = {s: pair for s, pair in group.sums.items() if rule.limit is not None or pair[0] < 0}
        if not faulty:
            return group
        try:
            self._rules.refuse(group.metric, -1, None)
        except EventError as error:
            part = Group(group.metric, group.minute, [], {}, faulty)
            self._park(folded, entry, Payload([part], []), str(error))
        rest = {s: pair for s, pair in group.sums.items() if s not in faulty}
        return Group(group.metric, group.minute, group.ones, group.counts, rest)

    def _sift(self, folded: FoldResult, entry: Entry, group: Group, excluded: Mapping[FoldFault, str]) -> Group:
        """Park what is excluded of a group and return what is left."""
        faulty: dict[str, set[str]] = defaultdict(set)  # by reason
        for subject in {*group.ones, *group.counts, *group.sums}:
            if (reason := excluded.get((group.metric, subject))) is not None:
                faulty[reason].add(subject)
        for reason, subjects in faulty.items():
            self._park(folded, entry, Payload([_part(group, subjects, keep=True)], []), reason)
        return _part(group, set().union(*faulty.values()), keep=False)

    def _park(self, folded: FoldResult, entry: Entry, payload: Payload, reason: str) -> None:
        events = payload.events
        fields = {b"v": VERSION, b"n": str(events).encode(), b"b": encode(payload)}
        parts: tuple[Group | Single | Correction, ...] = (*payload.groups, *payload.singles, *payload.corrections)
        metric = parts[0].metric if parts[0].metric in self._rules.metric else ""
        folded.parked.append(DeadEntry(entry.id, reason[:_REASON_BYTES], events, entry.deliveries, fields, metric))

    def _faults(self, folded: FoldResult) -> dict[FoldFault, str]:
        """Look at each distinct counter of the batch once; return what must not be counted, with the reason."""
        faults: dict[FoldFault, str] = {}
        for place, sums in (*folded.batch.sums.items(), *folded.batch.limited.items()):
            anywhere = place.rule.spread
            for subject in sums.keys() - self._checked.subjects(anywhere=anywhere):
                try:
                    self._checked.subject(subject, anywhere=anywhere)
                except EventError as error:
                    faults[place.metric, subject] = str(error)
            if sums and (max(sums.values()) > MAX_AMOUNT or min(sums.values()) < -MAX_AMOUNT):
                faults |= {(place.metric, s): OVERFLOW for s, total in sums.items() if abs(total) > MAX_AMOUNT}
        return faults


OVERFLOW: Final = "the total would leave +-(2^53 - 1), or its key holds something else than a whole number"


def _part(group: Group, subjects: set[str], *, keep: bool) -> Group:
    """Return the group with only these subjects, or (`keep=False`) without them."""
    return Group(
        group.metric,
        group.minute,
        [subject for subject in group.ones if (subject in subjects) is keep],
        {subject: n for subject, n in group.counts.items() if (subject in subjects) is keep},
        {subject: pair for subject, pair in group.sums.items() if (subject in subjects) is keep},
    )
