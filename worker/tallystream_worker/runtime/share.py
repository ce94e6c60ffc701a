"""Which partitions a process serves if it cannot serve all of them: those that the fewest other workers serve."""

from __future__ import annotations

import random
import re
import zlib
from typing import TYPE_CHECKING, Any, Final

from tallystream.reading.query import Query

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tallystream.storage.keys import Layout

_SILENT_MS: Final = 15_000
"""Milliseconds without a read after which a worker no longer serves a partition; an idle one reads every second."""

_NUMBERED: Final = re.compile(r"-(\d{1,4})$")


def query_others(layout: Layout, consumer: str) -> Query[list[int]]:
    """Return a query for how many consumers except `consumer` have read each partition in the last 15 seconds.

    Its result is a list by partition: 0 for one without a consumer group, and for one that cannot be read.
    """

    def parse(replies: list[Any]) -> list[int]:
        return [
            0
            if isinstance(reply, Exception)
            else sum(int(each["idle"]) < _SILENT_MS and each["name"] != consumer.encode() for each in reply)
            for reply in replies
        ]

    return Query([("XINFO CONSUMERS", keys.stream, keys.group) for keys in layout.keys], parse)


def chosen(others: Sequence[int], most: int, consumer: str) -> set[int]:
    """Return the numbers of at most `most` partitions to serve: those that the fewest other workers serve.

    Of partitions that equally many other workers serve, processes with different names usually choose different ones.
    If a name ends with a number, as `worker-2`, its choice begins with the partition `2 * most`, modulo the number of
    partitions.

    Args:
        others: By number of the partition, how many other workers serve it.
        most: The most partitions that this process can serve.
        consumer: The name of this process in the consumer groups.
    """
    count = len(others)
    number = _NUMBERED.search(consumer)
    first = int(number[1]) * most if number else zlib.crc32(consumer.encode())
    in_turn = [(first + n) % count for n in range(count)]
    return set(sorted(in_turn, key=lambda partition: others[partition])[:most])


def exchanged(served: Collection[int], others: Sequence[int], beyond: int) -> Mapping[int, int]:
    """Return, by partition that this process should begin to serve, the partition to give up for it; -1 for none.

    It should begin with partitions that no worker serves, in random order. It gives up only partitions that another
    worker also serves, those that most others serve first. If none can be given up for a partition, it is left out.

    Args:
        served: The partitions that this process serves.
        others: By number of the partition, how many other workers serve it.
        beyond: How many partitions this process can serve without giving one up.
    """
    unserved = [number for number, count in enumerate(others) if not count and number not in served]
    shared = [number for number in served if others[number]]
    for numbers in (unserved, shared):
        random.shuffle(numbers)  # so that two processes seldom exchange the same partitions at the same time
    shared.sort(key=lambda number: -others[number])
    return dict(zip(unserved, [*(-1 for _ in range(beyond)), *shared], strict=False))
