"""Brings back the changes of the rules that a server has lost, and that the snapshot or the archive has.

If older data is put back on a server, it has older rules: it lacks the later changes and their places, and its workers
count by the older rules again. A restore then goes on as if nothing had been lost: the lost changes were made, the loss
took them back, and the restore makes them again. So each entry is counted by the rules that counted it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from tallystream.client.server_time import server_time
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Rules, publish
from tallystream.rules.metrics import read as read_rules
from tallystream.wire.stream_id import StreamID, before, id_text, parse_id
from tallystream.wire.stream_id import after as following
from tallystream_worker.process.publisher import publisher
from tallystream_worker.snapshot.live_rules import LiveRules, moment_of, uncounted
from tallystream_worker.snapshot.rule_records import NUMBERS, recorded_changes, recorded_places

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import redis

    from tallystream.rules.retraction import Retraction
    from tallystream.storage.keys import Layout, PartitionKeys

Changes = dict[str, dict[str, str]]
"""Changes of the rules: by ID, the recorded fields."""

_Value = TypeVar("_Value")


def regain(
    client: redis.Redis,
    layout: Layout,
    live: LiveRules | None,
    facts: Mapping[str, str],
    archived: Mapping[str, Mapping[str, str]],
    taken: int,
    generation: int,
    noted: Callable[[Sequence[Retraction]], Sequence[Retraction]],
) -> tuple[LiveRules | None, list[int], bool]:
    """Return the rules of a server together with the changes that it has lost, and the numbers of these changes.

    Also return whether the rules of the last lost change are live again: see `merged`. Without a lost change, return
    `live`, an empty list and `False`.

    A change is lost if the server lacks it, it is later than every change that the server and the snapshot both have,
    and it is in the snapshot, or it is in the archive and was made after the snapshot. If they have no change in
    common, no change is lost. A server without rules of this data counts as one that has the changes of the snapshot.

    The rules that are returned are those of the last lost change, with what was changed on the server after the loss.
    If the two together are not valid (see `merged`), they are those of the server. What `noted` returns is added to
    their retractions. They may have a new number, as a new change: then the entries counted until now keep the rules
    that counted them. Nothing is written to the server.

    Args:
        client: The server to restore to.
        layout: The layout of the topic to restore.
        live: The rules of the server; `None` if it has none.
        facts: The facts of the snapshot.
        archived: The changes in the archive of the topic, by ID; empty without an archive.
        taken: The millisecond at which the snapshot was taken.
        generation: The number of the generation of the snapshot's counters.
        noted: Called with the retractions of the rules to return; returns those that were noted elsewhere and are not
            among them. It is called only if a change is lost and the server has no rules of this data.

    Raises:
        ConfigurationError: this release cannot read the rules of a change that it needs.
        redis.RedisError: the server did not answer, or refused a command.

    Any error of `noted` is raised too.
    """
    recorded = _ordered(dict(recorded_changes(facts)))
    later = {
        name: dict(fields)
        for name, fields in archived.items()
        if fields.get("epoch") == facts["epoch"] and parse_id(name)[0] > taken
    }
    is_ours = live is not None and live.epoch == facts["epoch"]
    known = _ordered(dict(live.changes)) if live is not None and is_ours else recorded
    shared = [parse_id(name) for name in recorded if name in known]
    lost = {
        name: fields
        for name, fields in _ordered({**later, **recorded}).items()
        if shared and name not in known and parse_id(name) > max(shared)
    }
    if not lost:
        return live, [], False
    server = live if live is not None and is_ours else _of_snapshot(facts, layout, recorded)
    loss = _Loss(client, layout, server, facts, known, lost, generation)
    found = loss.live(counts=is_ours)
    if not is_ours and (added := noted(found.rules.retracted)):
        found = _retracting(client, found, added)
    return found, [int(fields["number"]) for fields in lost.values()], loss.is_live


def _retracting(client: redis.Redis, live: LiveRules, added: Sequence[Retraction]) -> LiveRules:
    """Return `live` with the retractions `added` to its rules, as a new change with the next number; write nothing."""
    rules = live.rules
    last, fields = live.changes[-1]
    name = id_text(max((server_time(client), 0), following(parse_id(last))))
    number, published = live.newest + 1, publish(replace(rules, retracted=(*rules.retracted, *added))).decode()
    change = {**fields, "number": str(number), "by": publisher(), "rules": published}
    return replace(
        live,
        number=number,
        newest=number,
        published=published,
        changes=[*live.changes, (name, change)],
        places={partition: {**places, number: moment_of(name)} for partition, places in live.places.items()},
    )


def lacked(
    copies: Mapping[str, Mapping[str, str]], epoch: str, recorded: Mapping[str, int], highest: int
) -> dict[str, dict[str, str]]:
    """Return the changes of the rules in a backup that a server has lost, in the order of their IDs.

    A change is lost if the server has recorded neither its ID nor its number, and if it is later than what the server
    has: its number is above every number of the server, or its ID is after that of the last change which both have.
    So a change whose number the server has given to other rules does not count as lost.

    Args:
        copies: The changes in the backup, by ID; those of another epoch are left out.
        epoch: The epoch of the server.
        recorded: By ID, the number of each change that the server has recorded.
        highest: The highest number of rules on the server.
    """
    numbers, shared = set(recorded.values()), [parse_id(name) for name in copies if name in recorded]

    def is_later(name: str, number: int) -> bool:
        return number > highest or (bool(shared) and parse_id(name) > max(shared))

    return {
        name: dict(fields)
        for name, fields in sorted(copies.items(), key=lambda change: parse_id(change[0]))
        if fields.get("epoch") == epoch and name not in recorded
        if int(fields["number"]) not in numbers and is_later(name, int(fields["number"]))
    }


def merged(base: Rules, lost: Rules, present: Rules) -> Rules | None:
    """Return the rules of the last lost change, with what the server has changed after the loss.

    Return `None` if the two together are not valid rules: then those of the server stay live.

    If both have changed the same metric, ratio, alert or zone, the change after the loss wins: it is the later one.
    Retractions of both are kept, but for those that one of them has undone.

    Args:
        base: The rules to which the loss took the server back.
        lost: The rules of the last lost change.
        present: The rules of the server.
    """
    named = [{each.name: each for each in rules.alert} for rules in (base, lost, present)]
    taken_back = [each for each in base.retracted if each not in lost.retracted or each not in present.retracted]
    added = [each for each in present.retracted if each not in lost.retracted]
    retracted = [each for each in (*lost.retracted, *added) if each not in taken_back]
    try:
        return Rules(
            _either(base.metric, lost.metric, present.metric),
            _either(base.ratio, lost.ratio, present.ratio),
            lost.zone if present.zone == base.zone else present.zone,
            tuple(_either(*named).values()),
            tuple(retracted),
        )
    except ConfigurationError:
        return None


def _either(base: Mapping[str, _Value], lost: Mapping[str, _Value], present: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return by name the value in `present` if it differs from that in `base`, else the value in `lost`.

    A name that is missing in the chosen mapping is left out.
    """
    chosen = {
        name: lost.get(name) if present.get(name) == base.get(name) else present.get(name)
        for name in dict.fromkeys((*lost, *present))
    }
    return {name: value for name, value in chosen.items() if value is not None}


class _Loss:
    """The changes of the rules before a loss, the lost ones, and those after it; `live` merges them.

    Args:
        client: The server.
        layout: The layout of the topic to restore.
        server: The rules of the server.
        facts: The facts of the snapshot.
        known: The changes that the server has, oldest first; the first one was made before the loss.
        lost: The changes that it has lost, oldest first; not empty.
        generation: The number of the generation of the snapshot's counters.
    """

    def __init__(
        self,
        client: redis.Redis,
        layout: Layout,
        server: LiveRules,
        facts: Mapping[str, str],
        known: Changes,
        lost: Changes,
        generation: int,
    ) -> None:
        self._client, self._layout, self._server, self._facts = client, layout, server, facts
        self._known, self._lost, self._of_snapshot = known, lost, generation
        self._first, self._last = min(map(parse_id, lost)), max(map(parse_id, lost))
        self._base = [fields for name, fields in known.items() if parse_id(name) < self._first][-1]
        told = [int(fields["number"]) for fields in (*known.values(), *lost.values())]
        self._newest = max(server.newest, int(facts.get(NUMBERS[1]) or 0), *told)
        self._since = {name: fields for name, fields in known.items() if parse_id(name) > self._first}
        self._renumbered: dict[int, int] = {}
        since = {int(fields["number"]) for fields in self._since.values()}
        # A partition that has a place of such a number has followed a lost change.
        self._lost_numbers = {int(fields["number"]) for fields in lost.values()} - since
        self.is_live = False
        """Whether the rules that `live` has returned have those of the last lost change in them."""

    def live(self, *, counts: bool) -> LiveRules:
        """Return the rules to restore: those of the last lost change, with what the server has changed after the loss.

        If the two together are not valid rules, return those of the server: see `merged`. Set `is_live`.

        Call it once: it numbers changes again, and keeps these numbers in the object. Nothing is written to the server.

        Args:
            counts: Whether the server has rules of the snapshot's data, so that it may have counted by them after the
                loss; false if `server` was made from the snapshot.

        Raises:
            ConfigurationError: this release cannot read the rules of a change that it needs.
            redis.RedisError: the server did not answer, or refused a command.
        """
        server, layout = self._server, self._layout
        is_same = counts and server.topic == layout.topic
        resumed = self._resumed() if is_same else {}
        is_stated = bool(self._since) and next(iter(self._since.values()))["rules"] == self._base["rules"]
        taken_back = self._next(self._base) if resumed and not is_stated else None
        self._renumber(always=taken_back is not None)
        if taken_back is not None:
            self._since = {id_text(following(self._last)): taken_back, **self._since}
        latest = list((self._since or self._lost).values())[-1]
        rules = merged(read_rules(self._base["rules"].encode()), self._last_lost, server.rules)
        self.is_live = rules is not None or not self._since
        if rules is None:
            rules = server.rules
        again: tuple[str, dict[str, str]] | None = None
        if self._since and publish(rules).decode() != latest["rules"]:
            name = id_text(max((server_time(self._client), 0), following(max(map(parse_id, self._all())))))
            latest = self._next({**latest, "rules": publish(rules).decode()})
            again = name, latest
        changes = _ordered(self._all() | dict([again] if again else []))
        return replace(
            server,
            generation=self._generation,
            number=int(latest["number"]),
            newest=self._newest,
            published=latest["rules"],
            spread=sorted({*server.spread, *rules.spread}),
            changes=list(changes.items()),
            places={
                number: self._places(number, keys, resumed.get(number), again, is_same=is_same)
                for number, keys in enumerate(layout.keys)
            },
            unordered={
                partition: [self._renumbered.get(each, each) for each in numbers]
                for partition, numbers in server.unordered.items()
            },
            firsts={partition: self._renumbered.get(each, each) for partition, each in server.firsts.items()},
        )

    @property
    def _last_lost(self) -> Rules:
        return read_rules(list(self._lost.values())[-1]["rules"].encode())

    @property
    def _generation(self) -> int:
        """The number of the generation that was live before the loss.

        It is the higher one of that of the snapshot's counters and that in the last lost change.
        """
        return max(self._of_snapshot, int(list(self._lost.values())[-1]["generation"]))

    def _all(self) -> Changes:
        return {**self._known, **self._lost, **self._since}

    def _next(self, change: Mapping[str, str]) -> dict[str, str]:
        """Return a copy of the fields of a change, with this process as `by` and the next number as `number`.

        The object then has this number as the newest one.
        """
        self._newest += 1
        return {**change, "number": str(self._newest), "by": publisher()}

    def _renumber(self, *, always: bool) -> None:
        """Give the changes after the loss new numbers, but only if `always`, or one is not above all lost ones.

        The new numbers are above every known one.
        """
        numbers = list(dict.fromkeys(int(fields["number"]) for fields in self._since.values()))
        if numbers and (always or min(numbers) <= max(int(fields["number"]) for fields in self._lost.values())):
            self._renumbered = {number: self._newest + place for place, number in enumerate(numbers, 1)}
            self._newest += len(numbers)
            self._since = {
                name: {**fields, "number": str(self._renumbered[int(fields["number"])])}
                for name, fields in self._since.items()
            }

    def _resumed(self) -> dict[int, str]:
        """Return, by partition, the place of its first entry after the loss.

        A place is the ID of the entry, a space, and the stream ID directly below it, which need be of no entry.

        This is the first entry whose millisecond is later than that of the first lost change. A partition is left out
        if it has no such entry, or has a place of a lost change (its node has lost nothing), or has begun with this
        entry or before it to follow a change that was made after the loss.

        Raises:
            redis.RedisError: the server did not answer, or refused a command.
        """
        since, found = {int(fields["number"]) for fields in self._since.values()}, {}
        for partition, keys in enumerate(self._layout.keys):
            if self._lost_numbers & self._server.places.get(partition, {}).keys():
                continue
            entries: Any = self._client.xrange(keys.stream, str(self._first[0] + 1), "+", count=1)
            if not entries:
                continue
            first = parse_id(entries[0][0].decode())
            places = [place for number, place in self._server.places.get(partition, {}).items() if number in since]
            if all(_first(place) > first for place in places):
                found[partition] = f"{id_text(first)} {id_text(before(first))}"
        return found

    def _places(
        self,
        partition: int,
        keys: PartitionKeys,
        resumed: str | None,
        again: tuple[str, dict[str, str]] | None,
        *,
        is_same: bool,
    ) -> dict[int, str]:
        """Return the places of a partition, by number of rules: see `LiveRules.places`.

        The places of lost changes are from the snapshot. If only the archive has a change, its place is the moment of
        the change; it has none if it is of another generation, or the first one of its generation. The other places are
        those on the server. If these are lost, the places of the changes after the loss are the moments of the changes.

        Args:
            partition: The number of the partition.
            keys: The keys of the partition.
            resumed: The place of the first change after the loss: see `_resumed`; `None` to keep the one found.
            again: The ID and the fields of the change that publishes the merged rules; `None` if there is none. Its
                place is the first entry that is not counted.
            is_same: Whether the server has places of this data and topic. If not, all places of the snapshot are used,
                and those of the changes after the loss are the moments of the changes.
        """
        of_snapshot = recorded_places(self._facts).get(partition, {})
        recorded = dict(recorded_changes(self._facts))
        changes = _ordered(self._all())
        begun = next((name for name, each in changes.items() if int(each["generation"]) == self._generation), "")
        found = {} if is_same else dict(of_snapshot)
        for name, fields in self._lost.items():
            number = int(fields["number"])
            if number in of_snapshot:
                found[number] = of_snapshot[number]
            elif name not in recorded and name != begun and int(fields["generation"]) == self._generation:
                found[number] = moment_of(name)
        present = self._followed(partition) if is_same else None
        if present is None:
            found |= {int(fields["number"]): moment_of(name) for name, fields in self._since.items()}
        else:
            found |= {self._renumbered.get(number, number): place for number, place in present.items()}
        if resumed is not None:
            found[int(next(iter(self._since.values()))["number"])] = resumed
        if again is not None:
            place = uncounted(self._client, keys) if is_same else None
            found[int(again[1]["number"])] = place or moment_of(again[0])
        return found

    def _followed(self, partition: int) -> dict[int, str] | None:
        """Return the places of a partition on the server; `None` if they are lost.

        If the partition has followed lost changes, it has not followed the rules before the loss again: if the place of
        these rules is not before that of the last lost change that it has followed, the place is left out.
        """
        places = self._server.places.get(partition)
        if places is None or not (followed := self._lost_numbers & places.keys()):
            return places
        last = max(_first(places[number]) for number in followed)
        before = int(self._base["number"])
        return {number: place for number, place in places.items() if number != before or _first(place) < last}


def _of_snapshot(facts: Mapping[str, str], layout: Layout, recorded: Changes) -> LiveRules:
    """Return the rules of a snapshot and its changes of them, as `LiveRules` of a server that has no places.

    Args:
        facts: The facts of the snapshot.
        layout: The layout of the topic to restore; its topic becomes the live one.
        recorded: The changes of the rules that the snapshot records, oldest first; not empty.
    """
    latest = list(recorded.values())[-1]
    return LiveRules(
        facts["epoch"],
        layout.topic,
        int(latest["generation"]),
        int(facts["revision"]),
        int(facts.get(NUMBERS[1]) or 0),
        facts["rules"],
        facts["spread"].split(),
        list(recorded.items()),
        {},
        {},
        {},
    )


def _ordered(changes: Changes) -> Changes:
    return dict(sorted(changes.items(), key=lambda change: parse_id(change[0])))


def _first(place: str) -> StreamID:
    return parse_id(place.partition(" ")[0])
