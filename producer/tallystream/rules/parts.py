"""The parts of a metric's rule that decide which counters its events change. Each part counts from a place in the log.

A generation stores, in each partition, the parts by which a metric was counted last (`storage/lua/rules/parts.lua`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.rules.windows import id_window
from tallystream.wire.window import WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream.rules.metrics import Metric

PARTS: Final = "!rules:"
"""Prefix of the fields of `PartitionKeys.forgotten` with the parts by which a metric was counted last."""

BOARDS: Final = "boards"
"""Kind of a mark: the leaderboards of buckets that begin before it lack subjects."""

ALL_TIME: Final = "all"
"""Kind of a mark: the leaderboard of all time lacks subjects. No partition stores it: see `lacking`."""

LIMITS: Final = "limits"
"""Kind of a mark: the number of events in the periods of a limit that begin before it is too small."""

VOTES: Final = "votes"
"""Kind of a mark: totals have events that were not votes."""

SKETCHES: Final = "sketches"
"""Kind of a mark: a total is the sum of its key and of its estimate in the sketch."""

_SPLIT: Final = (SKETCHES, ALL_TIME)
_MARKS: Final = {"limit": (LIMITS,), "top": (BOARDS, ALL_TIME), "sketch": _SPLIT, "quota": _SPLIT}


def parts(rule: Metric, zone: str) -> str:
    """Return the parts of a rule as a text: `<part>=<value>`, separated by spaces; `""` if it has none.

    A part is a setting that decides which counters an event changes, and how: windows, `unique`, `top`, `ids`, `once`,
    the period of a limit, `exact = false` and `max_subjects`. Other settings, such as `retention`, `floor`,
    `accept_late` and the number `limit`, are not in it.
    """
    found: dict[str, object] = {window: _zoned(window, zone) for window in WINDOWS if window in rule.windows}
    if rule.unique is not None:
        found["unique"] = f"{rule.unique}/{_zoned(rule.unique, zone)}"
    if rule.top:
        found["top"] = board_length(rule.top)
    if rule.keeps_ids and rule.ids is not None:
        found["ids"] = f"{id_window(rule.ids)}/{rule.seen}"
    if rule.once is not None:
        found["once"] = rule.once
    if rule.per is not None:
        found["limit"] = f"{rule.per}/{_zoned(rule.per, zone)}"
    if not rule.exact:
        found["sketch"] = 1
    if rule.max_subjects is not None:
        found["quota"] = rule.max_subjects
    return " ".join(f"{part}={value}" for part, value in found.items())


def _zoned(window: str, zone: str) -> str:
    return zone if window in ("day", "month") else "UTC"


BLOOM: Final = "b"
"""The end of the label of a period of ids that are stored in a Bloom filter."""


def id_label(rule: Metric, label: str) -> str:
    """Return the last part of the key of a period of ids; `""` if the label is empty.

    It is the label of the period, with `BLOOM` (`b`) at its end if the rule has `seen = "bloom"`.
    """
    return f"{label}{BLOOM}" if label and rule.seen == "bloom" else label


def lacking(stored: str, rule: Metric, zone: str) -> Iterator[str]:
    """Yield the kinds of marks that a partition may get when it counts by a rule for the first time.

    A mark states since when the partition counts a part of the rule. Its kind is the name of a window, `unique`, or a
    constant of this module, such as `BOARDS`. The partition may get fewer: `ALL_TIME` may be yielded, although no
    partition stores it. The mark `copies` (of a change of `ids`) is not yielded, because no read depends on it. Equal
    parts yield nothing; a kind may come twice.

    Args:
        stored: The parts by which the metric was counted last in the partition; `""` if that rule had none. A metric
            that was never counted there gets no marks: do not call this for it.
        rule: The declared rule.
        zone: The time zone in which days and months begin.
    """
    declared = parts(rule, zone)
    if declared == stored:
        return
    before, now = (dict(part.split("=", 1) for part in text.split()) for text in (stored, declared))
    for part in before.keys() | now.keys():
        if before.get(part) == now.get(part):
            continue
        if part == "top":
            if int(now.get(part, 0)) > int(before.get(part, 0)):
                yield from _MARKS[part]
        elif part in ("sketch", "quota") or (part in _MARKS and part in now):
            yield from _MARKS[part]
        elif part == "once" and part not in before:
            yield VOTES
        elif part in now and part in (*WINDOWS, "unique"):
            yield part


def counts_in_sketch(stored: str) -> bool:
    """Return whether the rule with the parts `stored` has `exact = false` or `max_subjects`."""
    return not {"sketch", "quota"}.isdisjoint(part.partition("=")[0] for part in stored.split())


def counted_board_length(stored: str) -> int:
    """Return `board_length` of the rule with the parts `stored`; 0 if it has no leaderboard."""
    return int(dict(part.split("=", 1) for part in stored.split()).get("top", 0))


def board_length(top: int) -> int:
    """Return how many subjects a leaderboard stores to show `top`; 0 if `top` is 0.

    It stores half as many again, and at least 20 more, because some may sink.
    """
    return top and top + max(20, top // 2)
