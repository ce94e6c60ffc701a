"""Folds entries into batches: how much to add to which counter. Pure: no Redis, no clock.

The fast path sums whole groups (events that the producer has summed by subject) in C and checks each distinct subject
once. If a subject is not valid, or its sum in the batch would overflow, the same entries are folded again with this
metric and subject *excluded*: their events become dead letters, and every other event is counted.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from tallystream.errors import CodecError, EventError
from tallystream.rules.batch import Batch, BucketResolver
from tallystream.rules.retraction import applying
from tallystream.wire.codec import decode_columns, is_reset, stated_events, was_decided, was_sequenced
from tallystream.wire.event import MAX_AMOUNT
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.dropped import is_whole, without
from tallystream_worker.counting.fold_payload import PayloadFold, dead_entry_of
from tallystream_worker.counting.fold_result import OVERFLOW, FoldFault, FoldResult
from tallystream_worker.counting.validation import SubjectCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tallystream.rules.metrics import Rules
    from tallystream.rules.retraction import Retraction
    from tallystream.storage.keys import Layout
    from tallystream.wire.codec import Payload, Single
    from tallystream_worker.counting.dropped import DroppedLetter
    from tallystream_worker.counting.entry import Entry


class Fold:
    """A callable object that folds entries of one partition into batches, one batch with each call.

    A call with a list of entries returns the batch and its dead letters as a `FoldResult`, and the entries that are not
    in it: call the object again with these. An entry that cannot be decoded, and events that cannot be counted, become
    dead letters of the batch; no error is raised for them.

    Args:
        layout: The keys of the generation that is counted, and the number of partitions.
        partition: The number of the partition.
        rules: The declared metrics.
        max_keys: A batch is closed when its estimated cost, as a number of totals (`Batch.counters`), is about this.
            This bounds the time for which one script call blocks the server.
        max_deliveries: An entry that was delivered more often than this becomes a dead letter without being decoded,
            unless it is an entry of resets, this generation counted it when it was appended, or it has dropped dead
            letters (see `dropped`).
        begun: The last stream ID before the generation began; `0-0` for the first generation. The events of entries up
            to it, like those of plain entries, are added to `appended` in the ledger of the generation.
        watching: Whether alerts may fire. A rebuild turns them off: the alerts of its events have fired before.
        dropped: By stream ID of an entry, its dead letters that were dropped for good: their events are not counted
            again. A worker needs none, because its consumer group does not deliver these entries again.
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
        dropped: Mapping[str, Sequence[DroppedLetter]] = MappingProxyType({}),
    ) -> None:
        self._dropped = dropped
        self._alerts = rules.alerts if watching else {}
        self._keys = layout.keys[partition]
        self._rules = rules
        self._max_keys = max_keys
        self._max_deliveries = max_deliveries
        self._begun = parse_id(begun)
        self._subjects = SubjectCache(layout, partition)
        self._add_payload = PayloadFold(rules, BucketResolver(rules), self._subjects)

    def __call__(
        self, entries: Sequence[Entry], excluded: Mapping[FoldFault, str] | None = None
    ) -> tuple[FoldResult, Sequence[Entry]]:
        """Fold entries into one batch, in the given order; stop when its estimated cost is about `max_keys` totals.

        An entry of resets is alone in its batch, because everything before it must be counted first. In the generation
        that counted the resets when they were appended, it is an entry like others. The first entry is always in the
        batch, whatever its cost.

        Args:
            entries: The entries, in any order of IDs; an ID that occurs twice is folded once.
            excluded: The metrics and subjects whose events must become dead letters, each with the reason.

        Returns:
            The batch with its dead letters, and the entries that are not in it.
        """
        excluded = excluded or {}
        # Deduplicate by ID: apply.lua checks each ID separately, so a repeated ID would pass twice in one call.
        entries = list({entry.id: entry for entry in entries}.values())
        self._subjects.may_be_outdated = False
        while True:
            result, rest = self._fill(entries, excluded)
            faults = self._faults(result)
            if not faults:
                result.may_be_outdated = self._subjects.may_be_outdated
                return result, rest
            excluded = {**excluded, **faults}

    def _fill(self, entries: Sequence[Entry], excluded: Mapping[FoldFault, str]) -> tuple[FoldResult, Sequence[Entry]]:
        result = FoldResult(Batch(self._keys, self._rules.zone, self._alerts), excluded)
        if self._alerts:
            result.batch.received = min((entry.received for entry in entries), default=0)
        before = 0
        for end, entry in enumerate(entries, 1):
            is_place = is_reset(entry.fields) and not was_decided(entry.fields, self._keys.generation)
            if is_place and end > 1:
                result.entries = entries[: end - 1]
                return result, entries[end - 1 :]
            self._add(result, entry)
            if is_place:
                result.entries = entries[:1]
                return result, entries[1:]
            counters = result.batch.counters
            # The next entry may add as many counters as this one. Stop here if that is closer to the bound.
            if counters + (counters - before) // 2 >= self._max_keys:
                result.entries = entries[:end]
                return result, entries[end:]
            before = counters
        result.entries = entries
        return result, []

    def _add(self, result: FoldResult, entry: Entry) -> None:
        fields = entry.fields
        if was_decided(fields, self._keys.generation):
            return  # decide.lua counted it when it wrote it
        payload = None
        letters = self._dropped.get(entry.id, ())
        may_give_up = not letters or is_whole(letters)
        if entry.deliveries > self._max_deliveries and may_give_up and not is_reset(fields):
            reason = f"delivered {entry.deliveries - 1} times without success"
        else:
            try:
                payload = decode_columns(fields, entry.received)
            except (CodecError, EventError) as error:
                reason = str(error)
        events = stated_events(fields) if payload is None else payload.events
        is_plain = not was_sequenced(fields)
        if is_plain or (self._begun != (0, 0) and parse_id(entry.id) <= self._begun):
            result.appended += events
            result.plain += 1
        if is_plain:
            result.plain_events += events
        if letters:
            result.dropped += letters
            if is_whole(letters):
                return
        if payload is None:
            result.dead.append(dead_entry_of(entry, reason, events, fields))
            return
        retractions = applying(self._rules.retracted, self._keys.stream, entry.id, fields)
        if letters or retractions:
            self._add_payload(result, entry, *_without(result, payload, letters, retractions.values()))
            return
        result.sample = result.sample or payload
        self._add_payload(result, entry, payload)

    def _faults(self, result: FoldResult) -> dict[FoldFault, str]:
        """Return each metric and subject with a sum in the batch that cannot be counted, with the reason.

        The subject is not valid or belongs to another partition, or the sum in one bucket set is beyond +-`MAX_AMOUNT`.
        """
        faults: dict[FoldFault, str] = {}
        for place, sums in (*result.batch.sums.items(), *result.batch.limited.items()):
            anywhere = place.rule.spread
            for subject in sums.keys() - self._subjects.subjects(anywhere=anywhere):
                try:
                    self._subjects.subject(subject, anywhere=anywhere)
                except EventError as error:
                    faults[place.metric, subject] = str(error)
            if sums and (max(sums.values()) > MAX_AMOUNT or min(sums.values()) < -MAX_AMOUNT):
                faults |= {(place.metric, s): OVERFLOW for s, total in sums.items() if abs(total) > MAX_AMOUNT}
        return faults


def _without(
    result: FoldResult, payload: Payload, letters: Sequence[DroppedLetter], retractions: Iterable[Retraction]
) -> tuple[Payload, list[Single]]:
    """Return a payload without its dropped and retracted events; also return all single events of the whole payload.

    In both, each visit is a single. Also add the numbers of retracted events, by metric, to the result. If the result
    has no sample, the returned payload becomes its sample.

    Args:
        result: The result of the fold so far.
        payload: The events of an entry.
        letters: The dead letters of this entry that were dropped.
        retractions: The retractions that apply to this entry.
    """
    whole = payload.by_singles()
    left = without(whole, letters)
    for retraction in retractions:
        before, left = left.by_metric, retraction.without(left)
        result.retracted += before - left.by_metric
    result.sample = result.sample or left
    return left, whole.singles
