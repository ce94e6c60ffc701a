"""The counting loop: fetches, folds and applies the entries of one partition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.client.durability import MEMORY
from tallystream.errors import ConsumerGroupMissing, GenerationSwitched, StreamError, Unconfirmed
from tallystream_worker.counting.apply import (
    Applied,
    Early,
    Failed,
    GroupMissing,
    Outdated,
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

_MOST_EARLY: Final = 10
"""How often in a row a batch may wait for earlier entries. Each time, these are claimed and counted."""


class CountingLoop:
    """Counts the entries of one partition.

    Args:
        client: Runs the script.
        layout: The keys of the generation that is counted.
        partition: The number of the partition.
        fetch: Reads entries.
        fold: Folds entries into one batch; returns the batch, and the entries that are not in it.
        subscribers: Each is called with the `BatchResult` of each applied batch; an error of one does not affect the
            counting.
        durability: What must confirm each applied batch. The loop waits at most 1 second for it before the next batch.
            If it does not confirm the batch in time, `run_once` raises `Unconfirmed`; a later call applies the next
            batch all the same.
        follow: Called with the number of newer rules that count the partition; makes `fold` use them, and returns
            whether it does.
        live_only: Count only while the generation is the live one. A rebuild counts a generation that is not.
        restoring: The value that `PartitionKeys.live` has during the restore that counts the partition: count only
            while it has this value. Empty for no restore; ignored with `live_only`.
        on_refused: Called with an entry that fails alone and is left pending, and with the error.
        on_subscriber_error: Called with the error of a subscriber.

    Attributes:
        keys: The keys of the partition.
        fetch: Reads entries.
    """

    def __init__(  # noqa: PLR0913  # every part is handed in, and named
        self,
        client: redis.Redis,
        layout: Layout,
        partition: int,
        fetch: Fetch,
        fold: FoldEntries,
        subscribers: Sequence[BatchSubscriber] = (),
        *,
        durability: DurabilityCheck = MEMORY,
        follow: Callable[[int], bool] = lambda _revision: False,
        live_only: bool = True,
        restoring: str = "",
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
        self._follow = follow
        self._live_only = live_only
        self._restoring = restoring
        self._on_subscriber_error = on_subscriber_error
        self._read_size = MIN_READ
        self._early = 0

    def run_once(self, block: float = 0.0) -> int:
        """Fetch entries once and count them; return the number of entries in the batches that were applied.

        Entries that became dead letters are included. Trimmed entries, which the fetch acknowledges, are not. If it
        raises, the batches before the error are counted, and the other fetched entries stay pending. Call
        `fetch.recover()` after an error, so that the next call begins with them. An entry that fails alone stays
        pending without an error, until it is delivered again. Entries that must be counted before others, see `Early`,
        are claimed, counted and included in the result.

        Args:
            block: Seconds to wait for new entries if there are none, at least 0.001; 0 does not wait.

        Raises:
            Unconfirmed: a batch was counted, but its durability was not confirmed in time; do not count it again.
            GenerationSwitched: another generation is live, the partition is closed, a restore has not finished, or the
                partition is counted by newer rules that cannot be read.
            ConsumerGroupMissing: the stream or its consumer group was removed after the fetch.
            KeyLost: the partition has lost a key; the last batch was not counted.
            StreamError: entries that must be counted before others were claimed ten times, with no batch counted since,
                and are still not counted; or the script returned an unknown reply.
            redis.RedisError: fetching failed (`NOGROUP` if the stream or the group is gone), or the last batch may or
                may not have been applied.
            Exception: the error of an entry, when the 8th entry fails with no batch counted since the first.

        Any error of `follow` is raised too, and a `RedisError` or `StreamError` of `fold`.
        """
        entries = self.fetch(self._read_size, block)
        self._read_size = next_read_size(self._read_size, len(entries))
        return self._count(self._quarantine.batches(entries))

    def _count(self, batches: Iterable[FoldResult]) -> int:
        return sum(self._settle(batch) for batch in batches)

    def _settle(self, batch: FoldResult) -> int:
        """Apply a batch, or smaller or changed batches of its entries; return how many entries were acknowledged.

        If the batch was not applied, its entries are folded again, and the new batches are applied in the same way. If
        other entries must be counted first, they are counted, and then the batch. If it is stale, only the entries that
        are still pending are folded; if newer rules count the partition, all entries, by these rules; if totals were
        rejected, all entries, with the events of these totals as dead letters; after an error that an entry may have
        caused, each half of the entries.

        Raises:
            Unconfirmed: a batch was counted, but its durability was not confirmed in time.
            GenerationSwitched, ConsumerGroupMissing, KeyLost: the last batch was not counted; those applied before it
                were.
            StreamError: see `_count_first`.
            Exception: any other error, under the conditions of `Quarantine.bisect`. If it is an error of the connection
                to Redis, the last batch may or may not have been applied.

        Any error of `follow` is raised too.
        """
        match try_apply(
            self._client,
            self.keys,
            batch,
            self._durability,
            live_only=self._live_only,
            restoring=self._restoring,
        ):
            case Applied(unconfirmed="", seconds=seconds):
                return self._publish(batch, seconds)
            case Applied(unconfirmed=problem, seconds=seconds):
                self._publish(batch, seconds)
                raise Unconfirmed(f"a batch was counted, and {problem}")
            case Stale(pending):
                # Another worker has applied some of the entries. The exclusions may be due to these, so fold the
                # entries that are still pending without exclusions.
                entries = [entry for entry in batch.entries if entry.id in pending]
                return self._count(self._quarantine.batches(entries, conflicts=batch.conflicts + 1))
            case Outdated(revision):
                if not self._follow(revision):
                    raise GenerationSwitched(f"{self.keys.stream}: rules with the number {revision} count it now")
                return self._count(self._quarantine.batches(batch.entries, conflicts=batch.conflicts))
            case Early(earlier):
                return self._count_first(earlier) + self._count([batch])
            case TotalsRejected(totals):
                return self._count(self._quarantine.batches(batch.entries, batch.excluding(totals), batch.conflicts))
            case Failed(error):
                return self._count(self._quarantine.bisect(batch.entries, error))
            case GroupMissing(error):
                raise ConsumerGroupMissing(self.keys.stream, self.keys.group) from error
            case Switched():
                raise GenerationSwitched(f"{self.keys.stream}: generation {self.keys.generation} is not the live one")

    def _count_first(self, earlier: Sequence[str]) -> int:
        """Claim and count the pending entries that must be counted before a batch, whichever consumer has them.

        Return how many were acknowledged.

        Raises:
            StreamError: this is the 11th call with no batch counted since the first; nothing was claimed.

        Any error of `Fetch.claim` and `_settle` is raised too.
        """
        self._early += 1
        if self._early > _MOST_EARLY:
            self._early = 0
            raise StreamError(
                f"{self.keys.stream}: entry {earlier[0]} cannot be counted, so the entries around the next reset "
                "cannot be counted either. Look in the log for why this entry fails"
            )
        return self._count(self._quarantine.batches(self.fetch.claim(earlier)))

    def _publish(self, batch: FoldResult, seconds: float) -> int:
        self._quarantine.clear()
        self._early = 0
        publish(batch_result(self._partition, batch, seconds), self._subscribers, self._on_subscriber_error)
        return len(batch.entries)
