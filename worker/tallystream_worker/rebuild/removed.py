"""Finds out which counters are of periods that a generation has removed: they cannot be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.wire.window import WINDOWS
from tallystream_worker.snapshot.names import bucket_of, parse, period_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.rules.metrics import Rules


class RemovedPeriods:
    """Stores, by kind and metric, a time: periods that begin before it may lack events, so they cannot be compared.

    Call `learn` for each generation that is compared, then `can_compare`; before `learn`, every key can be compared.
    `is_declared` depends on the rules only. A kind is the first part of a key's name, such as `hour`.

    Args:
        rules: The declared metrics.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._ends: dict[str, int] = {}  # by kind and metric, the millisecond at which the last such period ends

    def learn(self, forgotten: Mapping[bytes, bytes]) -> None:
        """Add what a generation has recorded in its hash `forgotten`; the later of two times stays.

        A field `<kind>:<metric>` has the millisecond (since 1970) at which the last period ends that was removed or
        lacks events, or since when a changed rule counts. Fields that begin with `!` are ignored.
        """
        for kind, end in forgotten.items():
            if not kind.startswith(b"!"):
                name = kind.decode()
                self._ends[name] = max(int(end), self._ends.get(name, 0))

    def can_compare(self, name: str) -> bool:
        """Return `False` if a key, without the prefix, may be of a period that was removed or lacks events.

        These are all keys whose period begins before the recorded time of its kind and metric. A key can be compared if
        it has no period, as a total, or if the declared rules do not state its period.
        """
        name = name.removeprefix("top:")
        end = self._ends.get(":".join(name.split(":", 2)[:2]))
        found = parse(name, self._rules) if end is not None else None
        kept = None if found is None else period_of(bucket_of(found[0]) or name, self._rules)
        return end is None or kept is None or kept[0].start * 1000 >= end

    def is_declared(self, name: str) -> bool:
        """Return whether the rule of a key has the window, the uniques or the ids that the key is of.

        A bucket's leaderboard also needs `top` above 0. If the rule lacks them, it was changed: the key is left over
        from the rule before. Return `True` for a key of another kind, or of a metric that is not declared.
        """
        of_board, name = name.startswith("top:"), name.removeprefix("top:")
        kind, metric, *_ = [*name.split(":", 2), ""]
        rule = self._rules.metric.get(metric)
        if rule is None or kind not in (*WINDOWS, "unique", "seen"):
            return True
        if kind in WINDOWS:
            return kind in rule.windows and (not of_board or rule.top > 0)
        found = parse(name, self._rules)
        return found is not None and period_of(bucket_of(found[0]) or name, self._rules) is not None
