"""Maps keys and fields of Redis to rows of the snapshot's tables, and back.

A *group* is the name of a table and all parts but the last of the primary key of its rows, without the partition; the
*item* is the last part. Of the table `ids`, the item is the last two parts, joined by `SEPARATOR`. In Redis, the items
of a group are fields of one hash, or the ends of keys with one prefix.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from tallystream.rules.batch import id_period_kept, period_kept
from tallystream.rules.parts import BLOOM
from tallystream.rules.windows import LABEL_LENGTHS, labelled, labelled_id_period
from tallystream.wire.window import WINDOWS
from tallystream_worker.snapshot.changed_keys import SEPARATOR, Group

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.rules.metrics import Rules
    from tallystream.rules.windows import Bucket

HASHES: Final = frozenset({"windows", "limits", "votes", "ids"})
"""The names of the tables whose items are fields of hashes; in all other tables, an item is the end of a key."""

_LEFTOVER: Final = 400 * 86_400
"""Seconds for which a bucket that no rule has any more is kept after its end."""

_LENGTH: Final = re.compile(r"([1-9][0-9]*[smhd])-[0-9]+")
_WINDOWS: Final = {length: window for window, length in LABEL_LENGTHS.items()}

_LABEL: Final = re.compile(r"forever|[1-9][0-9]*[smhd]-[0-9]+|[0-9]{4}-[0-9]{2}(?:-[0-9]{2})?(?:T[0-9]{2})?")


def key_of(group: Group) -> str:
    """Return the key of a group's hash, or the prefix of its items' keys, without the generation's prefix.

    It is empty for the group `("structures",)`, whose items are whole keys.
    """
    table, *parts = group
    match table:
        case "totals":
            return f"total:{parts[0]}:"
        case "upvotes":
            return f"up:{parts[0]}:"
        case "windows":
            return ":".join(parts)
        case "limits":
            return f"limit:{parts[0]}:{parts[1]}"
        case "votes":
            return f"once:{parts[0]}:{parts[1]}:{parts[2]}"
        case "ids":
            return f"seen:{parts[0]}:{parts[1]}"
        case "uniques":
            return f"unique:{parts[0]}:{parts[1]}:"
        case _:
            return ""


def bucket_of(group: Group) -> str | None:
    """Return the name (`buckets.name`) of the bucket with which a group is removed; `None` if it is in no bucket.

    Also `None` for `("structures",)`: a Bloom filter, an item of it, is a bucket with the name of its key.
    """
    match group[0]:
        case "windows" | "limits" | "ids":
            return key_of(group)
        case "votes" | "uniques":
            return f"{'once' if group[0] == 'votes' else 'unique'}:{group[1]}:{group[2]}"
        case _:
            return None


def period_of(name: str, rules: Rules, zone: str | None = None) -> tuple[Bucket, int] | None:
    """Return the period of a bucket, and the millisecond since 1970 until which its keys are kept (0: forever).

    The times in the period itself are seconds.

    Args:
        name: The name of the bucket, as `bucket_of` returns it.
        rules: The declared metrics.
        zone: The time zone in which days and months begin; `None` for that of `rules`.

    Returns:
        `None` if the metric is not declared, the label is invalid, or the period never ends. Also `None` for a bucket
        of ids, of a limit, of votes or of unique actors, if the rule has no such setting. A window such as `hour` need
        not be in the rule.

    Raises:
        ConfigurationError: the period is a day or a month, and there is no time zone `zone`.
    """
    kind, metric, label = name.split(":", 2)
    rule = rules.metric.get(metric)
    if rule is None:
        return None
    if kind == "seen":
        period = labelled_id_period(rule.ids, label.removesuffix(BLOOM)) if rule.ids is not None else None
        return None if period is None else (period, id_period_kept(rule, period))
    length = {"limit": rule.per, "once": rule.once, "unique": rule.unique}.get(kind, kind)
    if length is None or length in ("total", "forever"):
        return None
    period = labelled(length, label, zone or rules.zone)
    if period is None:
        return None
    if kind in ("limit", "once"):
        return period, period_kept(rule, period)
    return period, (rule.closes(length, period.end) or 0) * 1000


def removal_of(name: str, rules: Rules, zone: str | None = None) -> tuple[int, int] | None:
    """Return the end of a bucket and the time until which its keys are kept, both in milliseconds since 1970.

    Return `None` instead of this pair if the keys are kept forever, or if the label names no period. A bucket for which
    `period_of` returns `None`, because a metric was renamed or a rule was changed, is kept for 400 days after its end.

    Args:
        name: The name of the bucket, as `bucket_of` returns it.
        rules: The declared metrics.
        zone: The time zone in which days and months begin; `None` for that of `rules`.

    Raises:
        ConfigurationError: the period is a day or a month, and there is no time zone `zone`.
    """
    if (found := period_of(name, rules, zone)) is not None:
        return (found[0].end * 1000, found[1]) if found[1] else None
    kind, _, label = name.split(":", 2)
    label = label.removesuffix(BLOOM) if kind == "seen" else label
    # A label such as `31d-661` names its length, and may be as long as the label of a month.
    window = length[1] if (length := _LENGTH.fullmatch(label)) else _WINDOWS.get(len(label))
    period = labelled(window, label, zone or rules.zone) if window else None
    return None if period is None else (period.end * 1000, (period.end + _LEFTOVER) * 1000)


def was_removed(name: str, rules: Rules, ends: Mapping[str, str]) -> bool:
    """Return whether a bucket counts as removed: its period ends at or before the recorded end in `ends`.

    Some of its keys may still exist, because a change of the rules sets such an end too; but no read uses them. The
    result is `False` if the keys of the bucket are kept forever, or if its label names no period.

    Args:
        name: The name of the bucket, as `bucket_of` returns it.
        rules: The declared metrics.
        ends: The fields of `PartitionKeys.forgotten`: by `<kind>:<metric>`, the millisecond since 1970 up to which
            periods count as removed.
    """
    found = removal_of(name, rules)
    kind, metric, _ = name.split(":", 2)
    return found is not None and found[0] <= int(ends.get(f"{kind}:{metric}", 0))


def parse(name: str, rules: Rules) -> tuple[Group, str | None] | None:
    """Return the group of a key, and its item; `None` for leaderboards, sketches and keys that are no counters.

    The item is `None` if the key is a hash, whose fields are the items. A Bloom filter is an item of the group
    `("structures",)`. Leaderboards and sketches are items of that group too, but are not found here.

    Args:
        name: The key, without the generation's prefix.
        rules: The declared metrics.
    """
    kind, _, rest = name.partition(":")
    metric, _, tail = rest.partition(":")
    match kind:
        case "total" | "up":
            return (("totals" if kind == "total" else "upvotes", metric), tail)
        case "limit":
            return ("limits", metric, tail), None
        case "seen":
            if name.endswith(BLOOM):
                return ("structures",), name
            return ("ids", metric, tail), None
        case "once" | "unique":
            rule = rules.metric.get(metric)
            length = LABEL_LENGTHS.get(rule.unique or "") if rule is not None and kind == "unique" else None
            if length is None:
                found = _LABEL.match(tail)
                length = found.end() if found else 0
            label, subject = tail[:length], tail[length + 1 :]
            return (
                (("votes", metric, label, subject), None) if kind == "once" else (("uniques", metric, label), subject)
            )
        case _ if kind in WINDOWS:
            return ("windows", kind, metric, tail), None
        case _:
            return None  # sketches and leaderboards are copied, other keys are the topic's


def row_of(group: Group, item: str) -> tuple[str, ...]:
    """Return the primary key of the row of an item, without the partition; an id's item becomes subject and id."""
    return (*group[1:], *(item.split(SEPARATOR, 1) if group[0] == "ids" else (item,)))


def item_of(table: str, row: tuple[str, ...]) -> tuple[Group, str]:
    """Return the group and the item of a row, given its table and its primary key without the partition; see `row_of`.

    The group is the table with all parts of the key but the last, which is the item. For `ids`, the item is the last
    two parts, joined.
    """
    if table == "ids":
        return (table, *row[:-2]), f"{row[-2]}{SEPARATOR}{row[-1]}"
    return (table, *row[:-1]), row[-1]
