"""The rules that are live when a restore begins: they stay live.

A snapshot has the rules of its moment. If the rules of the server are newer, an entry after the snapshot is counted by
the rules that counted it before the restore. The places at which the partitions began to follow rules show which ones.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import replace
from redis.exceptions import ResponseError

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DeploymentChanged, KeyLost
from tallystream.rules.metrics import publish
from tallystream.rules.metrics import read as read_rules
from tallystream.storage.deployment_hash import RESTORING
from tallystream.storage.rule_changes import read_changes
from tallystream.wire.stream_id import after as following
from tallystream.wire.stream_id import parse_id
from tallystream_worker.snapshot.rule_records import NUMBERS, recorded_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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
            had not counted. A partition that has lost its keys is missing.
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

    @property
    def rules(self) -> Rules:
        """The rules."""
        return read_rules(self.published.encode())


def find_live_rules(client: redis.Redis, namespace: str, root: Mapping[bytes, bytes]) -> LiveRules | None:
    """Return the rules of a server before a restore; of an interrupted restore, those that it has noted.

    Return `None` if there are none, or if this release cannot read them.

    Args:
        client: The server to restore to.
        namespace: The namespace.
        root: The fields of the server's root hash.
    """
    if RESTORING.encode() in root:
        noted = root.get(LIVE_RULES.encode())
        return None if noted is None else msgspec.json.decode(noted, type=LiveRules)
    with suppress(ConfigurationError, DeploymentChanged, KeyLost):
        found = Deployment.find(client, namespace)
        if found.declared is None:
            return None
        newest: Any = client.hget(found.layout.meta, NUMBERS[1])
        changes = [
            (name.decode(), {field.decode(): text.decode() for field, text in each.items()})
            for name, each in read_changes(client, found.layout)
        ]
        return LiveRules(
            found.epoch,
            found.layout.topic,
            found.generation,
            found.revision,
            max(int(newest or 0), found.revision),
            publish(found.declared).decode(),
            sorted(found.spread),
            changes,
            {
                partition: places
                for partition, keys in enumerate(found.layout.keys)
                if (places := _places(client, keys, found.revision)) is not None
            },
        )
    return None


def encode_live_rules(live: LiveRules) -> bytes:
    """Return the value of the field `LIVE_RULES`."""
    return msgspec.json.encode(live)


def newer_rules(live: LiveRules | None, facts: Mapping[str, str]) -> LiveRules | None:
    """Return the live rules of the server if they must stay live after the restore of a snapshot, else `None`.

    They must not if they are of other data, or older than those of the snapshot because the server has lost data. They
    cannot if they turn `spread` off for a metric whose events are in every partition of the snapshot's topic.
    """
    if live is None or live.epoch != facts["epoch"] or live.newest < int(facts["revision"]):
        return None
    if live.number == int(facts["revision"]) and live.published == facts["rules"]:
        return None
    rules = live.rules
    gathered = (set(facts["spread"].split()) & rules.metric.keys()) - rules.spread
    return None if gathered else live


class Course:
    """The rules that count the entries of a partition after a snapshot, by place in the log.

    Args:
        steps: The ID of the first entry that rules count, in the form of `PartitionKeys.adopted` with the last entry of
            the stream at that time; their number; and the rules. The first step has the place `""`.
    """

    def __init__(self, steps: Sequence[tuple[str, int, Rules]]) -> None:
        self._steps = [steps[0], *sorted(steps[1:], key=lambda step: (_first(step[0]), step[1]))]
        self._firsts = [_first(place) for place, _, _ in self._steps[1:]]

    @property
    def places(self) -> dict[int, str]:
        """By number of rules, the place at which the partition begins to follow them; without the first ones."""
        return {number: place for place, number, _ in self._steps[1:]}

    def fold(self, make: Callable[[Rules], FoldEntries]) -> FoldEntries:
        """Return a fold that counts each entry by its rules; `make` returns the fold for given rules."""
        folds = [make(rules) for _, _, rules in self._steps]

        def fold(
            entries: Sequence[Entry], excluded: Mapping[FoldFault, str] | None = None
        ) -> tuple[FoldResult, Sequence[Entry]]:
            steps = [bisect_right(self._firsts, parse_id(entry.id)) for entry in entries]
            first = min(steps, default=0)
            result, rest = folds[first](
                [entry for entry, step in zip(entries, steps, strict=True) if step == first], excluded
            )
            return result, [*rest, *(entry for entry, step in zip(entries, steps, strict=True) if step != first)]

        return fold


class RestoredRules:
    """The rules of a restore: those of the snapshot, and the newer ones of the server, which stay live.

    Args:
        facts: The facts of the snapshot.
        layout: The layout of the topic to restore.
        live: The rules that were live before the restore; `None` if there were none.
        lacking: The retractions that the counters of the snapshot lack.
    """

    def __init__(
        self, facts: Mapping[str, str], layout: Layout, live: LiveRules | None, lacking: Sequence[Retraction]
    ) -> None:
        self._facts, self._topic = facts, layout.topic
        self._first = int(facts["revision"])
        self._newer = newer = newer_rules(live, facts)
        old = read_rules(facts["rules"].encode())
        retracted = (*old.retracted, *lacking)
        if newer is not None and newer.topic == layout.topic:
            retracted = newer.rules.retracted  # a retraction may have been undone
        self.live: Final = replace(old if newer is None else newer.rules, retracted=retracted)
        """The rules that are live after the restore."""
        self.of_snapshot: Final = replace(old, retracted=retracted)
        """The rules that the counters of the snapshot were counted by, with the retractions of `live`."""
        self.are_kept: Final = newer is not None
        """Whether `live` are the rules that were live before the restore, and not those of the snapshot."""
        spread = newer.spread if newer is not None and newer.topic == layout.topic else []
        self.spread: Final = {*facts["spread"].split(), *self.live.spread, *spread}
        """The metrics whose events may be in any partition of the restored topic."""

    def number(self, newest: int) -> int:
        """Return the number of the live rules; `newest` is the highest one of the server and the snapshot.

        Different rules never have the same number, and in each partition the number only rises.
        """
        if self._newer is not None:
            is_same = publish(self.live).decode() == self._newer.published
            return self._newer.number if is_same and self._newer.number > self._first else newest + 1
        is_same = publish(self.live).decode() == self._facts["rules"]
        return newest if is_same and newest == self._first else newest + 1

    def changes(self) -> list[tuple[str, dict[str, str]]]:
        """Return the recorded changes of the rules, oldest first: the ID and the fields of each."""
        found = {**dict(recorded_changes(self._facts)), **dict(self._newer.changes if self._newer is not None else [])}
        return sorted(found.items(), key=lambda change: parse_id(change[0]))

    def course(self, partition: int, position: SnapshotPosition, generations: Sequence[int]) -> Course:
        """Return the course of the rules in a partition after the snapshot; all of them have the same retractions.

        Args:
            partition: The number of the partition.
            position: The position of the snapshot.
            generations: The numbers that the generation of the snapshot has had.
        """
        first, newer = ("", self._first, self.of_snapshot), self._newer
        if newer is None:
            return Course([first])
        after = "{}-{}".format(*following(parse_id(position.generated)))
        places = newer.places.get(partition) if newer.topic == self._topic else None
        if places is None:  # the places are lost, or of another topic: use the moments of publication
            places = {
                int(fields["number"]): "{0}-0 {0}-0".format(name.partition("-")[0])
                for name, fields in newer.changes
                if self._first < int(fields["number"]) <= newer.number
            }
        elif newer.generation not in generations:  # a rebuild has counted all entries by other rules
            begun = [
                int(fields["number"]) for _, fields in newer.changes if int(fields["generation"]) == newer.generation
            ]
            start = "{}-{}".format(*following(parse_id(position.floor)))
            places = {(begun or [newer.number])[0]: f"{start} {position.generated}", **places}
        if newer.number not in places and (newer.number != self._first or self.live != self.of_snapshot):
            places = {**places, newer.number: f"{after} {position.generated}"}
        rules = self._recorded()
        return Course([first, *((place, number, rules[number]) for number, place in places.items() if number in rules)])

    def _recorded(self) -> dict[int, Rules]:
        """Return the rules that are recorded, by number, with the retractions of `live`."""
        found = {}
        for _, fields in self.changes():
            with suppress(ConfigurationError):  # this release cannot read them
                recorded = read_rules(fields["rules"].encode())
                found[int(fields["number"])] = replace(recorded, retracted=self.live.retracted)
        if self._newer is not None:
            found[self._newer.number] = self.live
        return found


def _places(client: redis.Redis, keys: PartitionKeys, number: int) -> dict[int, str] | None:
    """Return the places of a partition in its live generation, see `LiveRules.places`; `None` if its keys are lost."""
    live: Any = client.get(keys.live)
    if live is None:
        return None
    found: dict[bytes, bytes] = client.execute_command("HGETALL", keys.adopted)
    places = {int(name): place.decode() for name, place in found.items()}
    counting = live.split()[1:]
    if number and counting != [b"%d" % number] and (place := _uncounted(client, keys)) is not None:
        places.setdefault(number, place)
    return places


def _uncounted(client: redis.Redis, keys: PartitionKeys) -> str | None:
    """Return the first entry that the live generation has not counted, and the last ID; `None` without the group."""
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
