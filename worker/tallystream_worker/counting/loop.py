"""The loop: fetch, fold, apply. One loop counts one partition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.client.durability import MEMORY
from tallystream.errors import ConsumerGroupMissing, GenerationSwitched, Unconfirmed
from tallystream_worker.counting.apply import (
    Applied,
    Failed,
    GroupMissing,
    Stale,
    Switched,
    TotalsRejected,
    try_apply,
)
from tallystream_worker.counting.fetch import MIN_READ, next_read_size
from tallystream_worker.counting.outcome import batch_result, log_subscriber_error, publish
from tallystream_worker.counting.quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import redis

    from tallystream.client.durability import DurabilityCheck
    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fetch import Fetch
    from tallystream_worker.counting.fold_result import FoldResult
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.counting.quarantine import FoldEntries


class CountingLoop:
    """Counts the entries of one partition.

    Args:
        client: Runs the script.
        layout: The keys of the generation that is counted.
        partition: The number of the partition.
        fetch: Reads entries.
        fold: Folds entries into one batch; returns the batch, and the entries that are not in it.
        subscribers: Are called with each batch that was applied; they cannot affect the counting.
        durability: What a batch needs, besides the server's reply, before the loop goes on.
        live_only: Count only while the generation is the live one. A rebuild counts one that is not.
        on_refused: Is called with an entry that fails alone and is left pending, and with the error.
        on_subscriber_error: Is called with the error of a subscriber.
    """

    def __init__(
        self,
        client: redis.Redis,
        layout: Layout,
        partition: int,
        fetch: Fetch,
        fold: FoldEntries,
        subscribers: Sequence[BatchSubscriber] = (),
        *,
        durability: DurabilityCheck = MEMORY,
        live_only: bool = True,
        on_refused: Callable[[Entry, Exception], None] = lambda _entry, _error: None,
        on_subscriber_error: Callable[[Exception], None] = log_subscriber_error,
    ) -> None:
        self.keys = layout.keys[partition]
        self.fetch = fetch
        self._client = client
        self._partition = partition
        self._quarantine = Quarantine(fold, on_refused)
        self._subscribers = subscribers
        self._durability = durability
        self._live_only = live_only
        self._on_subscriber_error = on_subscriber_error
        self._read_size = MIN_READ

    def run_once(self, block: float = 0.0) -> int:
        """Fetch entries once and count them; return how many of them this call has settled.

        Args:
            block: Seconds to wait for new entries if there are none.

        Raises:
            Unconfirmed: a batch is counted, and not confirmed in time; the next pass begins with the next batch.
            GenerationSwitched: another generation is live; the entries in hand stay pending in this one.
            ConsumerGroupMissing: the stream or its consumer group is gone; nothing was changed.
            redis.RedisError: it is not known whether the batch in hand was applied; after `fetch.recover()` the next
                pass begins with it.
            Exception: entry after entry failed with it.
        """
        entries = self.fetch(self._read_size, block)
        self._read_size = next_read_size(self._read_size, len(entries))
        return self._count(self._quarantine.batches(entries))

    def _count(self, batches: Iterable[FoldResult]) -> int:
        return sum(self._settle(batch) for batch in batches)

    def _settle(self, batch: FoldResult) -> int:
        """Apply a batch, and as much of it as can be applied; return how many entries were settled."""
        match try_apply(self._client, self.keys, batch, self._durability, live_only=self._live_only):
            case Applied(unconfirmed="", seconds=seconds):
                return self._publish(batch, seconds)
            case Applied(unconfirmed=problem, seconds=seconds):
                self._publish(batch, seconds)
                raise Unconfirmed(f"a batch was counted, and {problem}")
            case Stale(pending):
                # Another worker was first with some entries. What was excluded may have been excluded because of them,
                # so the pending ones are tried as if for the first time.
                entries = [entry for entry in batch.entries if entry.id in pending]
                return self._count(self._quarantine.batches(entries, conflicts=batch.conflicts + 1))
            case TotalsRejected(totals):
                return self._count(self._quarantine.batches(batch.entries, batch.excluding(totals), batch.conflicts))
            case Failed(error):
                return self._count(self._quarantine.bisect(batch.entries, error))
            case GroupMissing(error):
                raise ConsumerGroupMissing(f"{self.keys.stream}: {error}") from error
            case Switched():
                raise GenerationSwitched(f"{self.keys.stream}: generation {self.keys.generation} is not the live one")

    def _publish(self, batch: FoldResult, seconds: float) -> int:
        self._quarantine.clear()
        publish(batch_result(self._partition, batch, seconds), self._subscribers, self._on_subscriber_error)
        return len(batch.entries)
