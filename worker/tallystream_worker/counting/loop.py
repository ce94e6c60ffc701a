"""The loop: fetch, fold, apply. One consumer works on one partition.

Where a batch fails of what is in it, its halves are tried, and their halves: so all of it is counted but the
entry at fault, which stays pending and is parked once it has been delivered too often.
"""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.durability import DurabilityCheck
from tallystream.client.replies import is_about_server
from tallystream.errors import GenerationSwitched, StreamError, Unconfirmed
from tallystream_worker.counting.apply import Applied, Stale, Switched, TotalsRejected, apply
from tallystream_worker.counting.fold import OVERFLOW, Fold, FoldFault
from tallystream_worker.counting.outcome import BatchResult
from tallystream_worker.process import failpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fetch import Fetch
    from tallystream_worker.counting.fold_result import FoldResult
    from tallystream_worker.counting.outcome import BatchSubscriber

_MIN_READ: Final = 8
MAX_READ: Final = 256

_MOST_REFUSED: Final = 8
"""Entries that may fail, with none counted between them, before the fault is looked for elsewhere."""


def is_entry_error(error: Exception) -> bool:
    """Tell whether an error may be about what is in a batch, rather than about the server or the way to it."""
    if isinstance(error, RedisError):
        return not is_about_server(error)
    return not isinstance(error, (StreamError, Unconfirmed))


class CountingLoop:
    """Counts the entries of one partition.

    Args:
        client: For the apply calls.
        layout: How many partitions there are.
        partition: The one to count.
        rules: The declared metrics.
        fetch: Where entries come from.
        subscribers: Who is told of each applied batch.
        max_keys: The most counters that one script call should touch.
        durability: What a batch needs beside the server's answer before the next one begins.
        max_deliveries: An entry handed out more often than this, without success, is parked unread.
        on_refused: Who is told of an entry that cannot be counted and is left pending for now, with the error.
        begun: The last stream ID before the generation that is counted began.
        latest: Returns the rules that hold by now: asked where something seems to be in the wrong partition, because
            another worker may have published meanwhile that its metric is spread.
        beside: Count whether or not that generation is the live one.
    """

    def __init__(  # noqa: PLR0913  # every part is handed in, and named
        self,
        client: redis.Redis,
        layout: Layout,
        partition: int,
        rules: Rules,
        fetch: Fetch,
        subscribers: Sequence[BatchSubscriber] = (),
        *,
        max_keys: int = 3000,
        max_deliveries: int = 10,
        durability: DurabilityCheck | None = None,
        on_refused: Callable[[Entry, Exception], None] = lambda _entry, _error: None,
        begun: str = "0-0",
        latest: Callable[[], Rules | None] = lambda: None,
        beside: bool = False,
    ) -> None:
        self.partition = partition
        self.fetch = fetch
        self._client = client
        self.keys = layout.keys[partition]
        self._rules = rules
        self._latest = latest
        self._folding = partial(
            Fold,
            layout,
            partition,
            max_keys=max_keys,
            max_deliveries=max_deliveries,
            begun=begun,
            watching=not beside,
        )
        self._fold = self._folding(rules)
        self._durability = durability or DurabilityCheck()
        self._beside = beside
        self._subscribers = subscribers
        self._read_count = _MIN_READ
        self._on_refused = on_refused
        self._refused: set[str] = set()  # since something was counted last

    def run_once(self, block: float = 0.0) -> int:
        """Fetch once, and count everything that came; return how many entries were settled here.

        Args:
            block: Seconds to wait for new entries where there are none.

        Raises:
            Unconfirmed: a batch is counted, and not confirmed; the next pass begins with the next one.
            GenerationSwitched: a rebuild has switched to another generation; what is in hand stays pending in this one.
            redis.RedisError: it is not known what became of the batch in hand; after `fetch.recover()` the next pass
                begins with it.
            Exception: entry after entry failed with it.
        """
        entries: Sequence[Entry] = self.fetch(self._read_count, block)
        if entries:
            failpoints.reach("after-fetch")
        # A full read means backlog, and larger reads mean fewer round trips; a thin one means low latency.
        full = len(entries) >= self._read_count
        self._read_count = min(MAX_READ, self._read_count * 2) if full else max(_MIN_READ, len(entries))
        return self._settle_all(entries)

    def _settle_all(self, entries: Sequence[Entry]) -> int:
        settled = 0
        while entries:
            try:
                count, entries = self._settle(entries)
            except Exception as error:
                if not is_entry_error(error):
                    raise
                if len(entries) == 1:
                    self._refuse(entries[0], error)
                    return settled
                middle = len(entries) // 2
                return settled + self._settle_all(entries[:middle]) + self._settle_all(entries[middle:])
            settled += count
        return settled

    def _refuse(self, entry: Entry, error: Exception) -> None:
        """Leave an entry pending that fails by itself; where many do, it is not the entries."""
        self._refused.add(entry.id)
        if len(self._refused) >= _MOST_REFUSED:
            raise error
        self._on_refused(entry, error)

    def _settle(self, entries: Sequence[Entry]) -> tuple[int, Sequence[Entry]]:
        """Fold and apply as many entries as fit one batch; return how many that were, and the rest."""
        excluded: dict[FoldFault, str] = {}
        stale = 0
        while True:
            folded, rest = self._fold(entries, excluded)
            if self._fold.has_misrouted and (rules := self._latest()) is not None and rules != self._rules:
                self._rules = rules
                self._fold = self._folding(rules)
                continue
            failpoints.reach("before-parking" if folded.parked else "before-apply")
            began = time.perf_counter()
            verdict = apply(self._client, self.keys, folded, self._durability, beside=self._beside)
            failpoints.reach("after-parking" if folded.parked else "after-apply")
            match verdict:
                case Applied(is_confirmed):
                    self._refused.clear()
                    self._tell(folded, time.perf_counter() - began, stale)
                    if not is_confirmed:
                        raise Unconfirmed("a batch was counted, and no replica or disk has confirmed it in time")
                    return len(folded.ids), rest
                case Stale(pending):
                    # Somebody else has counted some of them. What is still pending is still ours to try.
                    stale += 1
                    gone = set(folded.ids) - pending
                    entries = [entry for entry in entries if entry.id not in gone]
                    if not pending:
                        return 0, rest
                case Switched():
                    raise GenerationSwitched(
                        f"{self.keys.stream}: generation {self.keys.generation} is not the live one"
                    )
                case TotalsRejected(totals):
                    excluded |= dict.fromkeys(totals, OVERFLOW)

    def _tell(self, folded: FoldResult, seconds: float, stale: int) -> None:
        parked: Counter[str] = Counter()
        for part in folded.parked:
            parked[part.reason] += part.events
        counters = folded.batch.counters
        outcome = BatchResult(
            self.partition, len(folded.ids), dict(folded.settled), parked, counters, seconds, stale, folded.sample
        )
        for subscriber in self._subscribers:
            subscriber(outcome)
