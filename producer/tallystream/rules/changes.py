"""The recorded changes of the rules of a deployment, and the difference of two rules in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tallystream.rules.metrics import Metric, Rules, read
from tallystream.wire.stream_id import parse_id

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence


class RuleChange(msgspec.Struct, frozen=True):
    """One change of the rules that a deployment counts by.

    Attributes:
        number: The number of the new rules. An older number returns if `rebuild --undo` makes older rules live again.
        at: The time of the change, in milliseconds since 1970: that of its stream ID.
        by: The host, the process and the release that published the rules.
        generation: The generation of counters that follows them. It may be one of an earlier topic: a repartition
            copies the changes of the topic before.
        rules: The new rules.
        differences: The differences from the rules before, in words. Empty for rules that were stored again, and for
            the first change that is kept.
    """

    number: int
    at: int
    by: str
    generation: int
    rules: Rules
    differences: list[str]


def changes_of(entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[RuleChange]:
    """Return the changes in the stream `Layout.rule_changes`, oldest first.

    Args:
        entries: The entries of the stream, oldest first, each with its ID and its fields.

    Raises:
        ConfigurationError: this release cannot read the rules of a change.
    """
    found: list[RuleChange] = []
    for name, fields in entries:
        rules, (at, _) = read(fields[b"rules"]), parse_id(name.decode())
        words = differences(found[-1].rules, rules) if found else []
        number, generation = int(fields[b"number"]), int(fields[b"generation"])
        found.append(RuleChange(number, at, fields[b"by"].decode(), generation, rules, words))
    return found


def changes_within(
    changes: Sequence[RuleChange], counted: Collection[int], first: int | None = None
) -> list[RuleChange]:
    """Return the recorded changes within a generation: events before them were counted by other rules.

    The `differences` of each are those from the rules that were followed before it, without those of descriptions,
    floors, ratios and alerts. Left out are: changes without any other difference, changes whose number is not in
    `counted`, and a change before which none is recorded. Of the first change, it may not be known which rules were
    followed before it; then it is left out if it may have no difference.

    Args:
        changes: The result of `changes_of`.
        counted: The numbers of the rules that a generation has changed to, or will change to with the next event: see
            `counted_numbers`. The number of its first rules is not one of them.
        first: The number of its first rules, if this is known.
    """
    found: list[RuleChange] = []
    before: RuleChange | None = None
    for place, change in enumerate(changes):
        if change.number not in counted:
            continue
        stated = [each for each in changes if each.number == first]
        earlier = [before] if before is not None else stated[-1:] or _unused(changes, place, counted)
        words = [list(filter(_is_counted, differences(each.rules, change.rules))) for each in earlier]
        if words and all(words):
            found.append(replace(change, differences=words[0]))
        before = change
    return found


def _unused(changes: Sequence[RuleChange], place: int, counted: Collection[int]) -> list[RuleChange]:
    """Return the changes before `changes[place]` that may have published the first rules of its generation.

    The latest is first. These are the changes of this generation just before it; or, if the change just before is of
    another generation, that one alone. The search ends at a change whose number is in `counted`: it cannot have
    published the first rules.
    """
    found: list[RuleChange] = []
    for each in reversed(changes[:place]):
        if each.number in counted or (found and each.generation != changes[place].generation):
            break
        found.append(each)
        if each.generation != changes[place].generation:
            break
    return found


def _is_counted(difference: str) -> bool:
    is_shown = ": floor " in difference or difference.endswith(": description changed")
    return not is_shown and not difference.startswith(("ratio ", "alert "))


def differences(before: Rules, after: Rules) -> list[str]:
    """Return the differences of two rules in words, such as `vote: limit 5 -> 100`; empty if they are equal.

    Another order of metrics, ratios, alerts or retractions is not a difference; another order of windows is. A
    retraction with another `until`, as after a repartition, is both added and removed.
    """
    return [
        *(f"{name}: metric removed" for name in before.metric if name not in after.metric),
        *(f"{name}: metric added" for name in after.metric if name not in before.metric),
        *(
            f"{name}: {word}"
            for name, metric in after.metric.items()
            if name in before.metric
            for word in _of_metric(before.metric[name], metric)
        ),
        *([f"zone {before.zone} -> {after.zone}"] if before.zone != after.zone else []),
        *_of_named("ratio", before.ratio, after.ratio),
        *_of_named("alert", {each.name: each for each in before.alert}, {each.name: each for each in after.alert}),
        *(f"retraction added: {_described(each)}" for each in after.retracted if each not in before.retracted),
        *(f"retraction removed: {_described(each)}" for each in before.retracted if each not in after.retracted),
    ]


def _of_metric(before: Metric, after: Metric) -> Iterator[str]:
    yield from (f"window {window} removed" for window in before.windows if window not in after.windows)
    yield from (f"window {window} added" for window in after.windows if window not in before.windows)
    for window in dict.fromkeys([*before.retention, *after.retention]):
        old, new = before.retention.get(window), after.retention.get(window)
        if old != new:
            yield f"retention.{window} {old or 'default'} -> {new or 'default'}"
    for field in Metric.__struct_fields__:
        old, new = getattr(before, field), getattr(after, field)
        if field not in ("windows", "retention") and old != new:
            yield "description changed" if field == "description" else f"{field} {_value(old)} -> {_value(new)}"
    if set(before.windows) == set(after.windows) and before.windows != after.windows:
        yield "order of windows changed"


def _of_named(kind: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{kind} {name} removed" for name in before if name not in after)
    yield from (f"{kind} {name} added" for name in after if name not in before)
    yield from (f"{kind} {name} changed" for name in after if name in before and before[name] != after[name])


def _value(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _described(retraction: msgspec.Struct) -> str:
    stated: Sequence[str] = [
        f"{name} {value}"
        for name, value in msgspec.structs.asdict(retraction).items()
        if name != "until" and value is not None
    ]
    return ", ".join(stated)
