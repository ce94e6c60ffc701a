"""Finds the counters that entries may have changed, which a snapshot must read again. Pure: no Redis, no clock.

Too many counters may be found, because events may be rejected, dead-lettered or duplicates. To read a counter again is
harmless.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from tallystream.errors import CodecError, EventError
from tallystream.rules.batch import BucketResolver
from tallystream.rules.parts import id_label
from tallystream.rules.windows import LABEL_LENGTHS, bucket, id_period
from tallystream.wire.codec import COPIED, decode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tallystream.rules.batch import BucketSet
    from tallystream.rules.metrics import Metric, Rules
    from tallystream_worker.counting.entry import Entry

Group = tuple[str, ...]
"""Names the counters that Redis keeps in one hash, or under one key prefix: the name of a snapshot's table, then all
parts but the last of the primary key of their rows. The last part (of `ids`: the last two), the item, names one counter
of the group."""

SEPARATOR: Final = "\n"
"""Separates subject and id in a field of the hash of ids."""

RESET: Final = ""
"""The field of a hash of votes that has the subject's last reset, in place of an actor."""


class ChangedKeys:
    """Collects the counters that entries may have changed.

    Call `add` for each entry; then `reset` for each of `resets`, and `replaced` for the stored records of the votes and
    ids in `items`.

    Args:
        rules: The declared metrics.

    Attributes:
        items: By group (see `Group`), the items.
        producers: By producer, the last sequence that was added, and the ID of its entry.
        unsent: The ID of the last entry that no producer sends again if the server loses it; `None` if none was added.
        resets: The metrics and subjects that were reset. `add` does not add the counters that a reset changes.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._places = BucketResolver(rules)
        self.items: dict[Group, set[str]] = defaultdict(set)
        self.producers: dict[str, tuple[int, str]] = {}
        self.unsent: str | None = None
        self.resets: set[tuple[str, str]] = set()

    def add(self, entry: Entry) -> None:
        """Add the producer of an entry, and the counters that it may have changed and its resets, of declared metrics.

        If the entry cannot be decoded, add none of these. If no producer would send it again, set `unsent` in any case.
        The counters that a reset changes are left to `reset`, and the other buckets of replaced votes and ids to
        `replaced`. Leaderboards and Count-Min sketches are not added.
        """
        producer, sequence = entry.fields.get(b"p"), entry.fields.get(b"q", b"")
        is_of_producer = producer is not None and sequence.isdigit() and producer != COPIED
        if not is_of_producer:
            self.unsent = entry.id
        try:
            payload = decode(entry.fields, entry.received)
        except (CodecError, EventError):
            return
        if producer is not None and is_of_producer:
            self.producers[producer.decode(errors="replace")] = (int(sequence), entry.id)
        metrics = self._rules.metric
        for group in payload.groups:
            if group.metric in metrics:
                place = self._places(group.metric, group.minute)
                for subjects in (group.ones, group.counts, group.sums):
                    self._sums(place, subjects)
        for single in payload.singles:
            if (rule := metrics.get(single.metric)) is not None:
                self._sums(self._places(single.metric, single.at // 60_000), (single.subject,))
                self._remembered(rule, single.metric, single.subject, single.at, single.actor, single.id)
        self.resets.update((reset.metric, reset.subject) for reset in payload.resets if reset.metric in metrics)

    def reset(self, metric: str, subject: str, labels: Iterable[str]) -> None:
        """Add every counter that a reset of a subject may have changed; leaderboards are not added.

        Args:
            metric: The metric, which must be declared.
            subject: The subject.
            labels: The labels of the metric's buckets and periods, as in the set of `PartitionKeys.labels`.
        """
        self.items["totals", metric].add(subject)
        self.items["upvotes", metric].add(subject)
        for each in labels:
            kind, label = each.split(":", 1)
            if kind == "once":
                self.items["votes", metric, label, subject].add(RESET)
            else:
                self.items["windows", kind, metric, label].add(subject)

    def replaced(self, metric: str, subject: str, labels: str) -> None:
        """Add the buckets that a vote or an event with an id was counted in, because a later one may take it back.

        Buckets of windows that the metric no longer has are left out.

        Args:
            metric: The metric; an undeclared one is ignored.
            subject: The subject.
            labels: The labels in the stored record of the vote or id, separated by spaces: that of the limit, then one
                for each window that the metric had then; `-` if it was not counted there. If empty, nothing is added.
        """
        rule = self._rules.metric.get(metric)
        if rule is None or not labels:
            return
        limit, *windows = ("" if label == "-" else label for label in labels.split(" "))
        if limit:
            self.items["limits", metric, limit].add(subject)
        by_length = {len(label): label for label in windows}
        for window in rule.windows:
            if label := by_length.get(LABEL_LENGTHS[window]):
                self.items["windows", window, metric, label].add(subject)

    def _sums(self, place: BucketSet, subjects: Iterable[str]) -> None:
        rule, metric = place.rule, place.metric
        self.items["totals", metric].update(subjects)
        if place.limit is not None:
            self.items["limits", metric, place.limit.label].update(subjects)
        for window, each in zip(rule.windows, place.buckets, strict=True):
            if each is not None:
                self.items["windows", window, metric, each.label].update(subjects)

    def _remembered(self, rule: Metric, metric: str, subject: str, at: int, actor: str | None, id_: str | None) -> None:
        zone, minute = self._rules.zone, at // 60_000
        if rule.once is not None and actor is not None:
            self.items["votes", metric, bucket(rule.once, minute, zone).label, subject].update((actor, RESET))
            self.items["upvotes", metric].add(subject)
        elif id_ is not None and rule.ids is not None:
            label = id_period(rule.ids, minute).label
            if rule.seen == "bloom":
                self.items[("structures",)].add(f"seen:{metric}:{id_label(rule, label)}")
            else:
                self.items["ids", metric, label].add(f"{subject}{SEPARATOR}{id_}")
        if rule.unique is not None and actor is not None:
            self.items["uniques", metric, bucket(rule.unique, minute, zone).label].add(subject)
