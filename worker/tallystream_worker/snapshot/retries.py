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
    """The dead letters of a partition that were retried since a moment.

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
    """Return the dead letters of a partition that were retried, and the metrics for which the result is not known.

    Dead letters that were given up (delivered too often) are left out. If dead letters were dropped without a record,
    these may be among those that are returned. If a change of the rules is recorded after the last retry, subjects were
    reset, or dead letters were dropped without a record, the result of the retries is not known: `doubtful` has all
    metrics of the returned dead letters.

    Args:
        before: The dead letters that there would be if none had been retried or dropped: those of a copy of the
            partition in which the events were counted again.
        present: The dead letters of the partition.
        records: Its records of dropped dead letters: the values of `records_of_dropped`.
        ledger: Its ledger, the numbers by field.
        followed: The rules of the server; `None` if none are published.
        has_resets: Whether subjects of the partition were reset.

    Raises:
        CodecError: a record, or the `source` of a dead letter, is damaged.
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
