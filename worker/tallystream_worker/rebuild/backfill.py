"""Counts entries past any consumer group: those that the stream no longer holds, and those of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import StreamError
from tallystream.storage.scripts import Script
from tallystream_worker.counting.apply import dead_entry_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.fold import Fold
    from tallystream_worker.counting.fold_result import FoldFault, FoldResult

_BACKFILL: Final = Script("tallystream_worker.rebuild", "backfill")

_OF_THE_STREAM: Final = ("entries:settled", "entries:plain")
"""Moves of the ledger that say what became of a stream's entries: there is none to say it of."""


class Backfill:
    """Counts entries of one partition, each once, up to a mark that moves with them.

    Args:
        client: Where the counters are.
        keys: Those of the generation that is counted.
        fold: Folds this partition's entries.
    """

    def __init__(self, client: redis.Redis, keys: PartitionKeys, fold: Fold) -> None:
        self._client = client
        self._keys = keys
        self._fold = fold

    @property
    def mark(self) -> str:
        """Where the counting has come to; empty before the first entry."""
        stands: bytes | None = self._client.execute_command("GET", self._keys.backfilled)
        return (stands or b"").decode()

    def __call__(
        self, entries: Sequence[Entry], mark: str, name: Callable[[Entry], str], told: Callable[[FoldResult], None]
    ) -> str:
        """Count entries, from where the mark stands; return where it stands then.

        Args:
            entries: What comes next.
            mark: Where it stands.
            name: Where it stands once an entry is counted.
            told: Is told of each batch that was counted.

        Raises:
            StreamError: it stands elsewhere: somebody else counts the same.
            redis.RedisError: nothing is known of the batch; look at `mark` and go on from there.
        """
        excluded: Mapping[FoldFault, str] = {}
        while entries:
            folded, rest = self._fold(entries, excluded)
            reached = name(entries[len(entries) - len(rest) - 1])
            answer, *details = self._apply(folded, mark, reached)
            if answer == b"applied":
                told(folded)
                entries, mark = rest, reached
                excluded = {}
            elif answer == b"rejected":
                texts = [detail.decode() for detail in details]
                excluded = folded.excluding(zip(texts[::2], texts[1::2], strict=True))
            else:
                raise StreamError(
                    f"{self._keys.backfilled} stands at {details[0].decode() or 'nothing'}, not at "
                    f"{mark or 'nothing'}: another rebuild of the same generation is running"
                )
        return mark

    def _apply(self, folded: FoldResult, mark: str, reached: str) -> Any:
        keys = [self._keys.backfilled, self._keys.dead, self._keys.ledger]
        ledger = {name: events for name, events in folded.ledger.items() if name not in _OF_THE_STREAM}
        batch = folded.batch.encode([], ledger | {"entries:backfilled": len(folded.ids)})
        return _BACKFILL(self._client, keys, [batch, mark, reached, *dead_entry_arguments(folded)])
