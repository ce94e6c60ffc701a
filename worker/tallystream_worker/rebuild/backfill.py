"""Counts entries outside any consumer group: those that are gone from the stream, and those of an audit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import StreamError
from tallystream.storage.scripts import Script
from tallystream_worker.counting.apply import dead_entry_arguments
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fold_result import parse_faults
from tallystream_worker.dead_letters.retry import moves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import redis

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.fold_result import FoldFault, FoldResult
    from tallystream_worker.counting.quarantine import FoldEntries
    from tallystream_worker.dead_letters.store import DeadLetter

_BACKFILL: Final = Script("tallystream_worker.rebuild", "backfill")

_OF_THE_STREAM: Final = ("entries:settled", "entries:plain")
"""Fields of the ledger about entries of a stream; a backfill leaves them out, because its entries are in no stream."""


class Backfill:
    """Counts given entries of one partition, each once, although counting may be interrupted and repeated.

    Read the property `mark`, then call the object with the entries after it. The server stores the mark, which names
    the last counted entry; the script call that counts a batch also moves the mark. Events that the fold or the script
    cannot count become dead letters.

    Args:
        client: Client of the server of the counters.
        keys: The keys of the generation that is counted.
        fold: Folds the entries of this partition.
    """

    def __init__(self, client: redis.Redis, keys: PartitionKeys, fold: FoldEntries) -> None:
        self._client = client
        self._keys = keys
        self._fold = fold

    @property
    def mark(self) -> str:
        """The mark, read from the server: the name of the last counted entry; empty before the first entry."""
        stands: bytes | None = self._client.execute_command("GET", self._keys.backfilled)
        return (stands or b"").decode()

    def __call__(
        self, entries: Sequence[Entry], mark: str, name: Callable[[Entry], str], told: Callable[[FoldResult], None]
    ) -> str:
        """Count entries in batches, and return the new mark; without entries, return `mark`.

        Args:
            entries: The entries after the mark, in order.
            mark: The mark that the server is expected to have.
            name: Returns the mark to store after an entry was counted, such as its ID.
            told: Called with the fold of each batch after the batch was counted.

        Raises:
            KeyLost: the generation has lost a key; the present batch changed nothing, earlier batches are counted.
            StreamError: the server has another mark, because another process counts the same entries; the present batch
                changed nothing, earlier batches are counted.
            redis.RedisError: the present batch may be counted or not; earlier batches are. Read the property `mark`
                and continue after the entry that it names.

        Any error of `fold`, `name` and `told` is raised too.
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
                excluded = folded.excluding(parse_faults(details))
            else:
                raise StreamError(
                    f"{self._keys.backfilled} is {details[0].decode() or 'empty'} instead of {mark or 'empty'}: "
                    "another rebuild of the same generation is running; let it finish"
                )
        return mark

    def _apply(self, folded: FoldResult, mark: str, reached: str) -> Any:
        ledger = {name: events for name, events in folded.ledger.items() if name not in _OF_THE_STREAM}
        batch = folded.batch.encode([], ledger | {"entries:backfilled": len(folded.ids)})
        return self._run(batch, mark, reached, folded)

    def retry(self, letter: DeadLetter, fold: FoldEntries, mark: str) -> FoldResult:
        """Count the events of a dead letter, without moving the mark; return the fold of these events.

        Then remove the dead letter from the dead stream, if it is there. Events that still cannot be counted become new
        dead letters.

        Args:
            letter: The dead letter.
            fold: Folds its events by the rules of the retry.
            mark: The mark that the server is expected to have.

        Raises:
            KeyLost, StreamError: see `__call__`; nothing was counted.
            redis.RedisError: the events may be counted or not, and the dead letter may still be there.

        Any error of `fold` is raised too.
        """
        excluded: Mapping[FoldFault, str] = {}
        while True:
            folded, _ = fold([Entry(letter.source, letter.fields)], excluded)
            batch = folded.batch.encode([], moves(folded, letter))
            answer, *details = self._run(batch, mark, mark, folded)
            if answer == b"applied":
                self._client.execute_command("XDEL", self._keys.dead, letter.id)
                return folded
            if answer != b"rejected":
                raise StreamError(f"{self._keys.backfilled} is not {mark}: another process has changed it")
            excluded = folded.excluding(parse_faults(details))

    def _run(self, batch: bytes, mark: str, reached: str, folded: FoldResult) -> Any:
        keys = [self._keys.backfilled, self._keys.dead, self._keys.ledger]
        return _BACKFILL(self._client, keys, [batch, mark, reached, *dead_entry_arguments(folded)])
