"""The changes of the rules that may explain the differences of an audit are those by which events were counted."""

from __future__ import annotations

import pytest

from tallystream.rules.changes import RuleChange, changes_within
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.rule_changes import changes_of_topic

TWO = Rules({"view": Metric(limit=2, per="day")})
FOUR = Rules({"view": Metric(limit=4, per="day")})
SHOWN = Rules({"view": Metric(limit=2, per="day", floor=9)})
BOTH = Rules({"view": Metric(limit=4, per="day", floor=9)})


def within(changes: list[tuple[int, int, Rules]], counted: set[int]) -> list[tuple[int, list[str]]]:
    """Return the numbers and the differences of the changes within a generation.

    Each of `changes` has a number, a generation and the rules.
    """
    listed = [
        RuleChange(number, at, "", generation, rules, []) for at, (number, generation, rules) in enumerate(changes)
    ]
    return [(each.number, each.differences) for each in changes_within(listed, counted)]


RAISED = "view: limit 2 -> 4"
CASES = {
    "no change": ([(1, 1, TWO)], set(), []),
    "a change": ([(1, 1, TWO), (2, 1, FOUR)], {2}, [(2, [RAISED])]),
    "a change that nothing was counted by": ([(1, 1, TWO), (2, 1, FOUR)], set(), []),
    "a change that was undone at once": ([(1, 1, TWO), (2, 1, FOUR), (3, 1, TWO)], {3}, []),
    "a change that was undone later": (
        [(1, 1, TWO), (2, 1, FOUR), (3, 1, TWO)], {2, 3}, [(2, [RAISED]), (3, ["view: limit 4 -> 2"])],
    ),
    "a change of the floor alone": ([(1, 1, TWO), (2, 1, SHOWN)], {2}, []),
    "a change of the floor and the limit": ([(1, 1, TWO), (2, 1, BOTH)], {2}, [(2, [RAISED])]),
    "a rebuild by other rules": ([(1, 1, TWO), (2, 2, FOUR)], set(), []),
    "an undone rebuild": ([(1, 1, TWO), (2, 2, FOUR), (1, 1, TWO)], set(), []),
    "an undone rebuild and a change": (
        [(1, 1, TWO), (2, 2, FOUR), (1, 1, TWO), (3, 1, FOUR)], {3}, [(3, [RAISED])],
    ),
    "the first change after a rebuild by the same rules": ([(1, 1, TWO), (2, 2, FOUR)], {2}, [(2, [RAISED])]),
    "a change that the record has lost": ([(3, 1, FOUR)], {2, 3}, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_changes_within_a_generation(case):
    """Only changes by which events were counted are listed, with the differences from the rules before."""
    changes, counted, expected = CASES[case]
    assert within(changes, counted) == expected


def test_the_first_rules_of_a_generation_may_be_known():
    """If the first rules are known, the first change is compared with them, and not with those before the change."""
    rules = [(1, 1, TWO), (2, 1, FOUR), (3, 2, TWO)]
    changes = [RuleChange(number, number, "", generation, each, []) for number, generation, each in rules]
    assert changes_within(changes, {3}, 1) == []
    assert [each.differences for each in changes_within(changes, {3}, 2)] == [["view: limit 4 -> 2"]]


def test_changes_of_an_earlier_topic_are_not_those_of_a_topic():
    """Of the changes that a repartition has copied, none but the rules with which the topic began is left."""
    copied, own = [(b"1-0", {}), (b"2-0", {})], [(b"3-0", {b"partitions": b"8"}), (b"4-0", {b"partitions": b"8"})]
    assert changes_of_topic([*copied, *own]) == own
    assert changes_of_topic(own) == own
    assert changes_of_topic(copied) == []
