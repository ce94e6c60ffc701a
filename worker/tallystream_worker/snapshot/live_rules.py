"""The rules that are live when a restore begins: they stay live if they can.

A snapshot has the rules of its moment. If the rules of the server are newer, an entry after the snapshot is counted by
the rules that counted it before the restore. The places at which the partitions began to follow rules show which ones.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace
from redis.exceptions import ResponseError

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DeploymentChanged, KeyLost
from tallystream.rules.metrics import publish
from tallystream.rules.metrics import read as read_rules
from tallystream.storage.deployment_hash import RESTORING, live_topic, restoring_number
from tallystream.storage.keys import FIRST_RULES, UNORDERED
from tallystream.storage.rule_changes import read_changes
from tallystream.wire.codec import was_decided
from tallystream.wire.stream_id import StreamID, id_text, parse_id
from tallystream.wire.stream_id import after as following
from tallystream_worker.snapshot.load_rules import LoadRules
from tallystream_worker.snapshot.rule_records import NUMBERS, recorded_changes, recorded_places

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.rules.retraction import Retraction
    from tallystream.storage.keys import Layout, PartitionKeys
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fold_result import FoldFault, FoldResult
    from tallystream_worker.counting.quarantine import FoldEntries
    from tallystream_worker.snapshot.point_in_time import SnapshotPosition

LIVE_RULES: Final = "restoring-rules"
"""The field of the root hash with the rules that were live before the restore, as JSON: see `LiveRules`. It exists only
with `RESTORING`, and not if no rules were published."""


class LiveRules(msgspec.Struct, frozen=True):
    """The rules of a server before a restore, and where its partitions began to follow them.

    Attributes:
        epoch: The epoch of the data.
        topic: The number of the live topic.
        generation: The number of its live generation.
        number: The number of the rules; 0 if they have none.
        newest: The highest number of rules that the server knows.
        published: The rules, in their published form.
        spread: The metrics whose events may be in any partition of the topic.
        changes: The recorded changes of the rules: the ID and the fields of each, oldest first.
        places: By partition, and by number of rules, where the partition began to follow these rules, in the form of
            `PartitionKeys.adopted`. If it has counted nothing by the live rules, their place is the first entry that it
            had not counted. A partition is missing if its places are not known. After `regain`, a place may be only
            the moment at which the rules were published: see `moment_of`.
        unordered: By partition, the numbers of the rules whose place does not show which entries they count: see
            `PartitionKeys.adopted`.
        firsts: By partition, the number of the first rules that counted it, if its ledger states it.
    """

    epoch: str
    topic: int
    generation: int
    number: int
    newest: int
    published: str
    spread: list[str]
    changes: list[tuple[str, dict[str, str]]]
    places: dict[int, dict[int, str]]
    unordered: dict[int, list[int]]
    firsts: dict[int, int]

    @property
    def rules(self) -> Rules:
        """The rules in `published`, read at each access.

        Raises:
            ConfigurationError: this release cannot read them.
        """
        return read_rules(self.published.encode())

    def recorded(self) -> dict[int, Rules]:
        """Return the rules that are recorded, by number, with the retractions and the retention of the live ones.

        A metric that the live rules lack keeps its retention. Rules that this release cannot read are left out. At the
        number of the live rules are the live rules, recorded or not.

        Raises:
            ConfigurationError: this release cannot read the live rules.
        """
        live, found = self.rules, {}
        for _, fields in self.changes:
            with suppress(ConfigurationError):  # this release cannot read them
                recorded = replace(read_rules(fields["rules"].encode()), retracted=live.retracted)
                found[int(fields["number"])] = _keeping(recorded, live)
        return found | {self.number: live}


def followed_rules(
    client: redis.Redis, layout: Layout, archived: Callable[[], Mapping[str, Mapping[str, str]]] = dict
) -> LiveRules | None:
    """Return the rules of a server, and where the partitions of its live topic began to follow them.

    See `find_live_rules`, also for `None` and the errors, and `with_earlier` for `archived`.
    """
    return with_earlier(find_live_rules(client, layout, client.execute_command("HGETALL", layout.root)), archived)


def with_earlier(live: LiveRules | None, archived: Callable[[], Mapping[str, Mapping[str, str]]]) -> LiveRules | None:
    """Return the rules of a server with the changes that it does not record any more, and that the archive has.

    These are the changes of the same data before the first one that the server records. If the server records the
    changes to all rules in `live.places` and `live.firsts`, or no change at all, return `live`, and do not call
    `archived`.

    Args:
        live: The rules of the server; `None` for none.
        archived: Returns the changes in the archive of the live topic, by ID: see `Store.rules`; none without an
            archive.

    Any error of `archived` is raised too.
    """
    if live is None or not live.changes:
        return live
    recorded = {int(fields["number"]) for _, fields in live.changes}
    if recorded.issuperset({number for places in live.places.values() for number in places} | {*live.firsts.values()}):
        return live
    first = parse_id(live.changes[0][0])
    earlier = sorted(
        (parse_id(name), name, dict(fields))
        for name, fields in archived().items()
        if fields.get("epoch") == live.epoch and parse_id(name) < first
    )
    return replace(live, changes=[*((name, fields) for _, name, fields in earlier), *live.changes])


def find_live_rules(client: redis.Redis, layout: Layout, root: Mapping[bytes, bytes]) -> LiveRules | None:
    """Return the rules of a server before a restore; of an interrupted restore, those that it has noted.

    If the hash that describes the topic to restore is lost, or lacks a field, they are those of the last recorded
    change. Return `None` if there are none, if this release cannot read them, or if another topic is live and its hash
    is lost or lacks a field. It is not checked whether the rules are of the data of the snapshot (see `kept_rules`),
    nor whether this release can read those that were noted.

    Args:
        client: The server to restore to.
        layout: The layout of the topic to restore.
        root: The fields of the server's root hash; empty if there is none.

    Raises:
        DamagedValue: a field that describes the deployment, or the live generation of a partition, has a value that
            tallystream never writes.
        redis.RedisError: the server did not answer, or refused a command.
    """
    if RESTORING.encode() in root:
        noted = root.get(LIVE_RULES.encode())
        return None if noted is None else msgspec.json.decode(noted, type=LiveRules)
    try:
        found = Deployment.find(client, layout.namespace)
    except KeyLost:
        found = Deployment(live_topic(root, layout.namespace))
    except (ConfigurationError, DeploymentChanged):
        return None
    if not found.is_stored:
        is_other = bool(root) and found.layout.topic != layout.topic
        return None if is_other else _last_recorded(client, layout)
    if found.declared is None:
        return None
    newest: Any = client.hget(found.layout.meta, NUMBERS[1])
    return LiveRules(
        found.epoch,
        found.layout.topic,
        found.generation,
        found.revision,
        max(int(newest or 0), found.revision),
        publish(found.declared).decode(),
        sorted(found.spread),
        _changes(client, found.layout),
        _all_places(client, found.layout, found.revision),
        *_of_ledgers(client, found.layout),
    )


def _last_recorded(client: redis.Redis, layout: Layout) -> LiveRules | None:
    """Return the rules of the last recorded change in a topic whose description is lost; `None` if there is none.

    Also return `None` if the change does not state its epoch, or if this release cannot read the rules.
    """
    changes = _changes(client, layout)
    if not changes or "epoch" not in changes[-1][1]:
        return None
    last = changes[-1][1]
    with suppress(ConfigurationError):  # this release cannot read them
        rules, generation, number = read_rules(last["rules"].encode()), int(last["generation"]), int(last["number"])
        return LiveRules(
            last["epoch"],
            layout.topic,
            generation,
            number,
            max(int(fields["number"]) for _, fields in changes),
            last["rules"],
            sorted(rules.spread),
            changes,
            _all_places(client, layout.of(generation), number),
            *_of_ledgers(client, layout.of(generation)),
        )
    return None


def _changes(client: redis.Redis, layout: Layout) -> list[tuple[str, dict[str, str]]]:
    return [
        (name.decode(), {field.decode(): text.decode() for field, text in each.items()})
        for name, each in read_changes(client, layout)
    ]


def _all_places(client: redis.Redis, layout: Layout, number: int) -> dict[int, dict[int, str]]:
    """Return `LiveRules.places` of the partitions of a layout, whose generations must be the live ones.

    `number` is that of the live rules. A partition that `_places` returns `None` for is left out.
    """
    found = {partition: _places(client, keys, number) for partition, keys in enumerate(layout.keys)}
    return {partition: places for partition, places in found.items() if places is not None}


def _of_ledgers(client: redis.Redis, layout: Layout) -> tuple[dict[int, list[int]], dict[int, int]]:
    """Return `LiveRules.unordered` and `LiveRules.firsts` of the partitions of a layout, from their ledgers.

    Of each partition, the ledger of the generation that `layout` names is read. The first dict has, by partition, the
    numbers of the rules whose place does not show which entries they count. The second has, by partition, the number of
    the first rules that counted it. A partition whose ledger does not state them is missing.

    Raises:
        redis.RedisError: the server did not answer, or refused a command.
    """
    unordered, firsts = {}, {}
    for partition, keys in enumerate(layout.keys):
        ledger: dict[bytes, bytes] = client.execute_command("HGETALL", keys.ledger)
        names = [field.decode(errors="replace") for field in ledger]
        if numbers := [int(name.removeprefix(UNORDERED)) for name in names if name.startswith(UNORDERED)]:
            unordered[partition] = numbers
        if (first := ledger.get(FIRST_RULES.encode())) is not None:
            firsts[partition] = int(first)
    return unordered, firsts


def encode_live_rules(live: LiveRules) -> bytes:
    """Return rules as JSON: the value of the field `LIVE_RULES`."""
    return msgspec.json.encode(live)


def kept_rules(live: LiveRules | None, facts: Mapping[str, str]) -> LiveRules | None:
    """Return the live rules of the server if they must stay live after the restore of a snapshot, else `None`.

    They must not if they are of other data, or if `live.newest` is below the number of the snapshot's rules: then the
    server has lost data. They cannot if they turn `spread` off for a metric whose events may be in any partition of the
    snapshot's topic.

    Args:
        live: The live rules; `None` if the server has none: then the result is `None` too.
        facts: The facts of the snapshot, as `Database.facts` returns them; not empty.

    Raises:
        ConfigurationError: this release cannot read the live rules.
    """
    if live is None or live.epoch != facts["epoch"] or live.newest < int(facts["revision"]):
        return None
    rules = live.rules
    gathered = (set(facts["spread"].split()) & rules.metric.keys()) - rules.spread
    return None if gathered else live


class Course:
    """The rules that count the entries of a partition, by place in the log.

    A place has two IDs, see `PartitionKeys.adopted`. Rules count the entries from the first ID on, up to the place of
    the next rules. But a decided event is counted when it is appended: rules count it only if its entry is after the
    second ID. `fold` counts entries so.

    Args:
        steps: The place at which the partition began to follow rules; their number; and the rules. The first step has
            the place `""`.
    """

    def __init__(self, steps: Sequence[tuple[str, int, Rules]]) -> None:
        self._steps = [steps[0], *sorted(steps[1:], key=lambda step: (_first(step[0]), step[1]))]
        self._firsts = [_first(place) for place, _, _ in self._steps[1:]]
        self._lasts = [_last(place) for place, _, _ in self._steps[1:]]

    @property
    def places(self) -> dict[int, str]:
        """By number of rules, the place at which the partition begins to follow them; the first step is left out."""
        return {number: place for place, number, _ in self._steps[1:]}

    @property
    def first(self) -> int:
        """The number of the rules before the first place; 0 if they have none."""
        return self._steps[0][1]

    @property
    def ranges(self) -> list[tuple[StreamID, StreamID]]:
        """The two IDs of each place at which the partition begins to follow other rules, by ascending first ID.

        The class explains the two. The rules before the first place have no pair.
        """
        return list(zip(self._firsts, self._lasts, strict=True))

    @cached_property
    def inexact(self) -> frozenset[str]:
        """The metrics with `max_subjects` or `seen = "bloom"` in any of the rules.

        Their counters depend on the order of the events.
        """
        return frozenset(
            name
            for _, _, rules in self._steps
            for name, rule in rules.metric.items()
            if rule.max_subjects is not None or rule.seen == "bloom"
        )

    def doubtful(self, unordered: Collection[int]) -> frozenset[str]:
        """Return the metrics of which some events may have been counted by the rules before.

        These are the metrics that the rules with a number in `unordered` have changed, compared with the rules before
        them. `unordered` has the numbers of the rules whose place does not show which entries they count.
        """
        pairs = zip(self._steps, self._steps[1:], strict=False)
        return frozenset().union(
            *(_changed(before, after) for (_, _, before), (_, number, after) in pairs if number in unordered)
        )

    def fold(self, make: Callable[[Rules], FoldEntries]) -> FoldEntries:
        """Return a fold that counts each entry by its rules; `make` returns the fold for given rules.

        One call of the fold counts only entries of the same rules: of the earliest rules that count any of its entries.
        It returns the result and the entries that are left, for the next call.
        """
        folds = [make(rules) for _, _, rules in self._steps]

        def fold(
            entries: Sequence[Entry], excluded: Mapping[FoldFault, str] | None = None
        ) -> tuple[FoldResult, Sequence[Entry]]:
            steps = [self._step(entry) for entry in entries]
            first = min(steps, default=0)
            result, rest = folds[first](
                [entry for entry, step in zip(entries, steps, strict=True) if step == first], excluded
            )
            return result, [*rest, *(entry for entry, step in zip(entries, steps, strict=True) if step != first)]

        return fold

    def _step(self, entry: Entry) -> int:
        """Return the index in `_steps` of the rules that count an entry; 0 for the rules before the first place.

        The ID of a decided entry is compared with the second ID of each place, that of any other entry with the first.
        """
        if was_decided(entry.fields):
            return bisect_left(self._lasts, parse_id(entry.id))
        return bisect_right(self._firsts, parse_id(entry.id))


class GenerationRules:
    """The rules that have counted the entries of a partition in the live generation, from its first entry on.

    Args:
        live: The live rules.
        partition: The number of the partition.
        first: The ID of the first entry of the partition; `""` if it is not known.

    Raises:
        ConfigurationError: this release cannot read the live rules.
    """

    def __init__(self, live: LiveRules, partition: int, first: str) -> None:
        self._rules = live.recorded()
        places = live.places.get(partition)
        self._is_known = places is not None and places.keys() <= self._rules.keys()
        self._places = {number: place for number, place in (places or {}).items() if number in self._rules}
        self._unordered = live.unordered.get(partition, [])
        self._firsts = [live.number]
        if self._places:
            self._firsts = self._unplaced(live, live.firsts.get(partition))
            self._is_known = self._is_known and bool(self._firsts)
        published = {int(fields["number"]): parse_id(name)[0] for name, fields in reversed(live.changes)}
        earlier = [number for number in self._firsts if first and published.get(number, 0) <= parse_id(first)[0]]
        self._first = (earlier or self._firsts[:1] or [min(self._places, default=live.number)])[-1]

    def _unplaced(self, live: LiveRules, stated: int | None) -> list[int]:
        """Return the numbers of the rules that may have counted the entries before the first place, the earliest first.

        `stated` is the number that the ledger states for these rules; `None` if it states none. If the rules `stated`
        are recorded, return only this number. Empty if no such rules are recorded. Call it only if there is a place.
        """
        if stated in self._rules:
            return [stated]
        earlier = [
            (int(fields["number"]), int(fields["generation"]))
            for _, fields in live.changes
            if int(fields["number"]) in self._rules and int(fields["number"]) < min(self._places)
        ]
        of_it = [number for number, generation in earlier if generation == live.generation]
        return list(dict.fromkeys(of_it or [number for number, _ in earlier[-1:]]))

    @property
    def course(self) -> Course:
        """The rules that count the entries, by place in the log."""
        later = [(place, number, self._rules[number]) for number, place in self._places.items()]
        return Course([("", self._first, self._rules[self._first]), *later])

    def doubtful(self) -> frozenset[str] | None:
        """Return the metrics of which some events may have been counted by other rules than those of `course`.

        Return `None` if it may be any metric, because the places or some rules are lost.
        """
        if not self._is_known:
            return None
        found = self.course.doubtful(self._unordered)
        return found.union(*(_changed(self._rules[self._first], self._rules[each]) for each in self._firsts))


def _changed(before: Rules, after: Rules) -> frozenset[str]:
    """Return the metrics whose rules differ, or that only one has; if the zone differs, every metric of both."""
    names = before.metric.keys() | after.metric.keys()
    return frozenset(
        name for name in names if before.zone != after.zone or before.metric.get(name) != after.metric.get(name)
    )


class RestoredRules:
    """The rules of a restore: those of the snapshot, and those of the server if they stay live.

    If the rules `live` cannot stay (see `kept_rules`), those of the snapshot are live after the restore.

    Args:
        facts: The facts of the snapshot.
        layout: The layout of the topic to restore.
        live: The rules that were live before the restore, also if they are of other data; `None` if there were none.
        lacking: The retractions that the counters of the snapshot lack.

    Raises:
        ConfigurationError: this release cannot read the rules of the snapshot, or those of `live`.
    """

    def __init__(
        self, facts: Mapping[str, str], layout: Layout, live: LiveRules | None, lacking: Sequence[Retraction]
    ) -> None:
        self._facts, self._topic = facts, layout.topic
        self._first = int(facts["revision"])
        self._kept = kept = kept_rules(live, facts)
        old = read_rules(facts["rules"].encode())
        retracted = (*old.retracted, *lacking)
        if kept is not None and kept.topic == layout.topic:
            retracted = kept.rules.retracted  # a retraction may have been undone
        self.live: Final = replace(old if kept is None else kept.rules, retracted=retracted)
        """The rules that are live after the restore."""
        self.of_snapshot: Final = replace(old, retracted=retracted)
        """The rules that the counters of the snapshot were counted by, with the retractions of `live`."""
        self.are_kept: Final = kept is not None
        """Whether `live` are the rules of the argument `live`, and not those of the snapshot."""
        spread = kept.spread if kept is not None and kept.topic == layout.topic else []
        self.spread: Final = {*facts["spread"].split(), *self.live.spread, *spread}
        """The metrics whose events may be in any partition of the restored topic."""

    def number(self, newest: int) -> int:
        """Return the number of the live rules; `newest` is the highest number that the server or the snapshot knows.

        It is the number that the rules had before, if they can keep it; else the one after `newest`.
        """
        if self._kept is not None:
            is_same = publish(self.live).decode() == self._kept.published and self._kept.topic == self._topic
            return self._kept.number if is_same and self._kept.number >= self._first else newest + 1
        is_same = publish(self.live).decode() == self._facts["rules"]
        return newest if is_same and newest == self._first else newest + 1

    def changes(self) -> list[tuple[str, dict[str, str]]]:
        """Return the changes of the rules that the snapshot or the kept rules record, oldest first: ID and fields."""
        found = {**dict(recorded_changes(self._facts)), **dict(self._kept.changes if self._kept is not None else [])}
        return sorted(found.items(), key=lambda change: parse_id(change[0]))

    def course(
        self, partition: int, position: SnapshotPosition, generations: Sequence[int], first: int | None
    ) -> Course:
        """Return the course of the rules in a partition after the snapshot.

        Without kept rules, its places are those in the snapshot. If the kept rules are of another topic, or lack the
        places of the partition, the moments at which changes were recorded are used as places after the snapshot.

        All rules have the retractions of `live`, and its retention for each metric that it has. The places before the
        snapshot are in the course, too, but its first rules are those that counted at the snapshot's moment.

        Args:
            partition: The number of the partition.
            position: The position of the snapshot.
            generations: The numbers that the generation of the snapshot has had.
            first: The number of the first rules that counted the partition, in the ledger of the snapshot; `None` if
                the ledger does not state it.
        """
        recorded = self._places(partition)
        begun = {each: place for each, place in recorded.items() if not _is_after(place, position)}
        number, kept = self._counting(partition, position, first), self._kept
        if kept is None:
            return self._course(number, recorded)
        after = id_text(following(parse_id(position.generated)))
        places = kept.places.get(partition) if kept.topic == self._topic else None
        if places is None:  # the places are lost, or of another topic: use the moments of publication
            places = {**recorded, **self._at_publication(kept.number)}
        elif kept.generation not in generations:  # a rebuild has counted all entries by other rules
            later = {each: place for each, place in places.items() if _is_after(place, position)}
            of_it = self._of_another_generation(kept, partition, places.keys() - later.keys())
            start = id_text(following(parse_id(position.floor)))
            if of_it != number or not (number in begun or number == first):
                later = {of_it: f"{start} {position.generated}", **later}
            places = {**begun, **later}
        elif parse_id(position.generated) == (0, 0):  # the first rules that count a partition have no place
            places = {**self._at_publication(min(places, default=kept.number + 1) - 1), **places}
        else:
            places = {**begun, **places}
        if kept.number not in places and (kept.number != number or self.live != self.of_snapshot):
            places = {**places, kept.number: f"{after} {position.generated}"}
        return self._course(number, places)

    @staticmethod
    def _of_another_generation(kept: LiveRules, partition: int, begun: Collection[int]) -> int:
        """Return the number of the rules that counted a partition in the generation of `kept` at the snapshot's moment.

        `begun` has the numbers of the rules that it followed there before that moment.
        """
        if begun:
            return max(begun)
        if partition in kept.firsts:
            return kept.firsts[partition]
        numbers = [int(fields["number"]) for _, fields in kept.changes if int(fields["generation"]) == kept.generation]
        return (numbers or [kept.number])[0]

    def to_load(self, partition: int, found: tuple[SnapshotPosition, int] | None, first: int | None) -> LoadRules:
        """Return the rules by which a partition of the snapshot is loaded.

        All of them keep buckets for as long as `live`. `found` has the position of the snapshot; `None` if there is no
        snapshot of the partition. For `first`, see `course`.
        """
        rules = self._by_number
        number = self._first if found is None else self._counting(partition, found[0], first)
        earlier = [rules[each] for each in sorted(rules, reverse=True) if each < self._first]
        return LoadRules(rules[self._first], rules[number], earlier)

    def _places(self, partition: int) -> dict[int, str]:
        """Return the places of a partition in the snapshot, by number, of the rules that are known."""
        found = recorded_places(self._facts).get(partition, {})
        return {number: place for number, place in found.items() if number in self._by_number}

    def _counting(self, partition: int, position: SnapshotPosition, first: int | None) -> int:
        """Return the number of the rules that counted a partition at the snapshot's moment; see `course`."""
        recorded = self._places(partition)
        begun = [(_first(place), each) for each, place in recorded.items() if not _is_after(place, position)]
        if begun:
            return max(begun)[1]
        if first is not None and first <= self._first and first in self._by_number:
            return first
        if self._first in recorded:  # the rules of the snapshot were published, and the partition did not follow them
            return max((each for each in self._by_number if each < self._first), default=self._first)
        return self._first

    def _course(self, number: int, places: Mapping[int, str]) -> Course:
        """Return a course whose first rules have the number `number`; places of unknown rules are left out."""
        rules = self._by_number
        later = [(place, each, rules[each]) for each, place in places.items() if each in rules]
        return Course([("", number, rules[number]), *later])

    @cached_property
    def _by_number(self) -> dict[int, Rules]:
        """The rules that may count an entry, by number: those in `_recorded`, and those of the snapshot.

        Those of the snapshot keep buckets for as long as `live`, too.
        """
        return {**self._recorded, self._first: _keeping(self.of_snapshot, self.live)}

    def doubtful(self, partition: int, course: Course) -> frozenset[str] | None:
        """Return the metrics of which some events may have been counted by other rules than those of their course.

        Return `None` if it may be any metric, because places or rules are not known; an empty set without kept rules.
        """
        kept = self._kept
        if kept is None:
            return frozenset()
        places = kept.places.get(partition) if kept.topic == self._topic else None
        if places is None or not all(each in self._recorded or each <= self._first for each in places):
            return None
        return course.doubtful(kept.unordered.get(partition, []))

    def _at_publication(self, newest: int) -> dict[int, str]:
        """Return, by number, the moments at which changes of the rules were recorded, as places: see `moment_of`.

        Only numbers above that of the rules of the snapshot are in it, up to and including `newest`.
        """
        return {
            int(fields["number"]): moment_of(name)
            for name, fields in self.changes()
            if self._first < int(fields["number"]) <= newest
        }

    @cached_property
    def _recorded(self) -> dict[int, Rules]:
        """Return the rules of all recorded changes, by number, with the retractions and the retention of `live`.

        A metric that `live` lacks keeps its retention. Rules that this release cannot read are left out. If the rules
        of the server stay live, the value at their number is `live`, recorded or not.
        """
        found = {}
        for _, fields in self.changes():
            with suppress(ConfigurationError):  # this release cannot read them
                recorded = replace(read_rules(fields["rules"].encode()), retracted=self.live.retracted)
                found[int(fields["number"])] = _keeping(recorded, self.live)
        if self._kept is not None:
            found[self._kept.number] = self.live
        return found


def _keeping(rules: Rules, live: Rules) -> Rules:
    """Return `rules` with the retention of the live rules; a metric that the live rules lack keeps its own."""
    metric = {
        name: replace(rule, retention=live.metric[name].retention) if name in live.metric else rule
        for name, rule in rules.metric.items()
    }
    return replace(rules, metric=metric)


def _places(client: redis.Redis, keys: PartitionKeys, number: int) -> dict[int, str] | None:
    """Return, by number of rules, where the live generation of a partition began to follow them.

    See `LiveRules.places`. If the live rules do not count the partition yet, and have no place, theirs is the first
    entry that is not counted. Return `None` if the partition has lost places, or the key of its live generation, or if
    a restore is replacing its counters.

    Args:
        client: The server.
        keys: The keys of the partition, in its live generation.
        number: The number of the live rules; 0 if they have none: then no place is added for them.

    Raises:
        redis.RedisError: the server did not answer, or refused a command.
    """
    live: Any = client.get(keys.live)
    if live is None or restoring_number(live):
        return None
    found: dict[bytes, bytes] = client.execute_command("HGETALL", keys.adopted)
    if len(found) < int(client.hget(keys.ledger, "entries:adopted") or 0):
        return None
    places = {int(name): place.decode() for name, place in found.items()}
    counting = live.split()[1:]
    if number and counting != [b"%d" % number] and (place := uncounted(client, keys)) is not None:
        places.setdefault(number, place)
    return places


def uncounted(client: redis.Redis, keys: PartitionKeys) -> str | None:
    """Return the place of the first entry that the generation of `keys` has not counted: two IDs with a space between.

    The first ID is that of the first pending entry or, if none is pending, the one after the last delivered ID. The
    second is the last ID of the stream. Return `None` without the stream or its consumer group.

    Raises:
        redis.RedisError: the server did not answer.
    """
    with suppress(ResponseError):  # no stream
        about: Any = client.xinfo_stream(keys.stream)
        last = about["last-generated-id"].decode()
        for group in client.xinfo_groups(keys.stream):
            if group["name"].decode() == keys.group:
                pending: Any = client.xpending(keys.stream, keys.group)
                first = pending["min"] if pending["pending"] else None
                delivered = group["last-delivered-id"].decode()
                return f"{first.decode() if first else '{}-{}'.format(*following(parse_id(delivered)))} {last}"
    return None


def _first(place: str) -> tuple[int, int]:
    return parse_id(place.partition(" ")[0])


def _last(place: str) -> tuple[int, int]:
    return parse_id(place.partition(" ")[2])


def _is_after(place: str, position: SnapshotPosition) -> bool:
    """Return whether the first ID of a place is after the floor of a position, or its second ID after `generated`."""
    is_later = _last(place) > parse_id(position.generated)
    return is_later or _first(place) >= following(parse_id(position.floor))


def moment_of(name: str) -> str:
    """Return the place that stands for a lost one: the moment at which a change of the rules was recorded.

    `name` is the ID of the change. Both IDs of the place are the first one of its millisecond.
    """
    return "{0}-0 {0}-0".format(name.partition("-")[0])
