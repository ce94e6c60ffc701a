"""Read the progress of the workers from the ledgers, and check the totals that they counted."""

import time
from collections import Counter
from collections.abc import Sequence

import redis
from redis.exceptions import ResponseError

from tallystream.reading.totals import Totals
from tallystream.storage.keys import GROUP, Layout

from .load import METRIC
from .processes import Running
from .server import Arena, until

_TOTALS_AT_ONCE = 10_000


def counted(client: redis.Redis) -> int:
    """Return the number of counted events in the ledgers of all partitions."""
    pipeline = client.pipeline(transaction=False)
    for keys in Layout().keys:
        pipeline.hget(keys.ledger, "counted")
    return sum(int(value or 0) for value in pipeline.execute())


def stream_bytes(client: redis.Redis) -> int:
    """Return the memory of the streams of all partitions, in bytes."""
    return sum(int(client.memory_usage(keys.stream, samples=0) or 0) for keys in Layout().keys)


def wait_for_first_read(arena: Arena, worker: Running) -> float:
    """Wait until the worker has read an entry; return the monotonic time of the last check before that.

    A drain is measured from this time: it leaves out the start of the interpreter, but no work on events.
    """
    before = time.monotonic()
    while not _any_read(arena.client):
        before = time.monotonic()
        worker.check()
        time.sleep(0.001)
    return before


def wait_until_counted(arena: Arena, n: int, worker: Running) -> float:
    """Wait until `n` events are counted, and return the monotonic time in seconds."""

    def done() -> bool:
        worker.check()
        return counted(arena.client) >= n

    return until(done, f"{n:,} events to be counted", interval=0.002)


def check_exact(arena: Arena, subjects: Sequence[str]) -> None:
    """Compare every total with an independent count of `subjects`, because the figure of a wrong count is worthless.

    Raises:
        RuntimeError: a total differs.
    """
    expected = Counter(subjects)
    names = list(expected)
    found: dict[tuple[str, str], int] = {}
    with Totals(arena.url) as totals:
        for first in range(0, len(names), _TOTALS_AT_ONCE):
            found |= totals.get_many((name, METRIC) for name in names[first : first + _TOTALS_AT_ONCE]).values
    wrong = [name for name in names if found[name, METRIC] != expected[name]]
    if wrong:
        raise RuntimeError(f"{len(wrong):,} of {len(names):,} counters are wrong, the first: {wrong[0]}")


def _any_read(client: redis.Redis) -> bool:
    for keys in Layout().keys:
        try:
            groups = client.xinfo_groups(keys.stream)
        except ResponseError:  # the stream does not exist yet
            continue
        if any(group["name"] == GROUP.encode() and group["last-delivered-id"] != b"0-0" for group in groups):
            return True
    return False
