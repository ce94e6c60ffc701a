"""The loop: fetch, fold, apply. One consumer works on one partition."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from tallystream_worker import failpoint
from tallystream_worker.apply import Applied, Refused, Stale, apply
from tallystream_worker.fold import OVERFLOW, Entry, Fault, Fold, Folded
from tallystream_worker.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tallystream.keys import Layout
    from tallystream.rules import Rules
    from tallystream_worker.fetch import Fetch
    from tallystream_worker.outcome import Subscriber

_MIN_READ: Final = 8
_MAX_READ: Final = 256


class Consumer:
    """Counts the entries of one partition.

    Args:
        client: For the apply calls.
        layout: How many partitions there are.
        partition: The one to count.
        rules: The declared metrics.
        fetch: Where entries come from.
        subscribers: Who is told of each applied batch.
        max_keys: The most counters that one script call should touch.
        max_deliveries: An entry handed out more often than this, without success, is parked unread.
    """

    def __init__(
        self,
        client: redis.Redis,
        layout: Layout,
        partition: int,
        rules: Rules,
        fetch: Fetch,
        subscribers: Sequence[Subscriber] = (),
        *,
        max_keys: int = 3000,
        max_deliveries: int = 10,
    ) -> None:
        self.partition = partition
        self.fetch = fetch
        self._client = client
        self._keys = layout.keys[partition]
        self._fold = Fold(layout, partition, rules, max_keys=max_keys, max_deliveries=max_deliveries)
        self._subscribers = subscribers
        self._read_count = _MIN_READ

    def run_once(self, block: float = 0.0) -> int:
        """Fetch once, and count everything that came; return how many entries were settled here.

        Args:
            block: Seconds to wait for new entries where there are none.

        Raises:
            redis.RedisError: it is not known what became of the batch in hand; after `fetch.recover()` the next pass
                begins with it.
        """
        entries: Sequence[Entry] = self.fetch(self._read_count, block)
        if entries:
            failpoint.reach("after-fetch")
        # A full read means backlog, and larger reads mean fewer round trips; a thin one means low latency.
        full = len(entries) >= self._read_count
        self._read_count = min(_MAX_READ, self._read_count * 2) if full else max(_MIN_READ, len(entries))
        settled = 0
        while entries:
            count, entries = self._settle(entries)
            settled += count
        return settled

    def _settle(self, entries: Sequence[Entry]) -> tuple[int, Sequence[Entry]]:
        """Fold and apply as many entries as fit one batch; return how many that were, and the rest."""
        excluded: dict[Fault, str] = {}
        stale = 0
        while True:
            folded, rest = self._fold(entries, excluded)
            failpoint.reach("before-apply")
            began = time.perf_counter()
            verdict = apply(self._client, self._keys, folded)
            failpoint.reach("after-apply")
            match verdict:
                case Applied():
                    self._tell(folded, time.perf_counter() - began, stale)
                    return len(folded.ids), rest
                case Stale(pending):
                    # Somebody else has counted some of them. What is still pending is still ours to try.
                    stale += 1
                    gone = set(folded.ids) - pending
                    entries = [entry for entry in entries if entry.id not in gone]
                    if not pending:
                        return 0, rest
                case Refused(totals):
                    excluded |= dict.fromkeys(totals, OVERFLOW)

    def _tell(self, folded: Folded, seconds: float, stale: int) -> None:
        parked: Counter[str] = Counter()
        for part in folded.parked:
            parked[part.reason] += part.events
        counters = folded.batch.counters
        outcome = Outcome(self.partition, len(folded.ids), dict(folded.settled), parked, counters, seconds, stale)
        for subscriber in self._subscribers:
            subscriber(outcome)
