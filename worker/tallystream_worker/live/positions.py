"""Reads the counted positions of all partitions; one whose node does not answer keeps the position of before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tallystream.reading.query import Query
from tallystream.wire.position import CountingPosition, parse_position, position_commands

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tallystream.reading.ledger import Ledger
    from tallystream.reading.reach import UnreachablePartition
    from tallystream.storage.keys import Layout


@dataclass(frozen=True)
class Positions:
    """The counted positions of the partitions that were read.

    Attributes:
        by_stream: The positions, by name of the stream.
        unreachable: The partitions that were not read, because their nodes of the cluster do not answer.
    """

    by_stream: Mapping[str, CountingPosition]
    unreachable: Sequence[UnreachablePartition] = ()

    @classmethod
    def of(cls, ledger: Ledger) -> Positions:
        """Return the positions that were read with a ledger, and the partitions that it lacks."""
        return cls({each.stream: each.position for each in ledger.partitions}, ledger.unreachable)

    def lacking(self, unreachable: list[UnreachablePartition]) -> Positions:
        """Return a copy with the given partitions as `unreachable`, in place of those that it has."""
        return replace(self, unreachable=unreachable)

    def in_order(self, layout: Layout, before: Sequence[CountingPosition]) -> list[CountingPosition]:
        """Return the position of each partition, by number.

        Args:
            layout: The partitions.
            before: The positions of the same partitions that were read before; empty if there are none. A partition
                that was not read has its position of `before`, or `0-0` without one, and an unknown lag.
        """
        known = before if len(before) == layout.partitions else [_NOWHERE] * layout.partitions
        return [
            self.by_stream.get(keys.stream) or CountingPosition(old.as_of, 0, None, old.delivered)
            for keys, old in zip(layout.keys, known, strict=True)
        ]


_NOWHERE = CountingPosition("0-0", 0, None)


def query_positions(layout: Layout) -> Query[Positions]:
    """Return a query for the counted positions of the reachable partitions of a layout."""
    commands = [command for keys in layout.reached for command in position_commands(keys)]

    def parse(replies: list[Any]) -> Positions:
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return Positions(
            {
                keys.stream: parse_position(list(pair), keys.group)
                for keys, pair in zip(layout.reached, pairs, strict=True)
            }
        )

    return Query(commands, parse)
