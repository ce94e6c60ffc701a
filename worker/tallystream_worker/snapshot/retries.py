"""Finds the dead letters that were retried since a moment, and whether the result of the retries is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.dropped import dropped_letters
from tallystream_worker.dead_letters.store import RETRIED, DeadLetter, taken_from

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tallystream_worker.snapshot.live_rules import LiveRules


class Retries(NamedTuple):
    """The retries since a moment.

    Attributes:
        letters: The dead letters that were retried.
        doubtful: The metrics of their events if the result of the retries is not known, else empty.
    """

    letters: list[DeadLetter]
    doubtful: frozenset[str]


def find_retries(
    before: Iterable[DeadLetter],
    present: Iterable[DeadLetter],
    records: Collection[str],
    ledger: Mapping[str, int],
    followed: LiveRules | None,
    *,
    has_resets: bool,
) -> Retries:
    """Return the dead letters that were retried.

    The result of a retry is not known if the rules changed after the last retry, or if subjects were reset. If dead
    letters were dropped without a record, these may be among those that are returned.

    Args:
        before: The dead letters without the retries.
        present: The dead letters of the partition.
        records: Its records of dropped dead letters.
        ledger: Its ledger.
        followed: The rules of the server; `None` if none are published.
        has_resets: Whether subjects of the partition were reset.

    Raises:
        ValueError: a record, or the `source` of a dead letter, is damaged.
    """
    found = [letter for letter in taken_from(before, present, records) if not letter.was_given_up]
    recorded = sum(each.events for letters in dropped_letters(records).values() for each in letters)
    changes = () if followed is None else followed.changes
    is_certain = (
        not has_resets
        and ledger.get("dropped", 0) <= recorded
        and not any(parse_id(name)[0] * 1000 > ledger.get(RETRIED, 0) for name, _ in changes)
    )
    return Retries(found, frozenset() if is_certain else frozenset().union(*(each.metrics for each in found)))
