"""Counts dead letters after all.

A retry folds a dead letter with the ID of the entry that it came from, and so with that entry's time: its events are
late, or in the future, if they were then. It is not appended again. So a replay of the stream, which folds the original
entry by today's rules, gives the same totals as the retry.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tallystream.errors import StreamError
from tallystream.storage.scripts import Script
from tallystream.wire.codec import was_decided
from tallystream_worker.counting.apply import dead_entry
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fold import Fold

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.fold_result import FoldFault
    from tallystream_worker.dead_letters.store import DeadLetter

_RETRY: Final = Script("tallystream_worker.dead_letters", "retry")


@dataclass(frozen=True)
class Retried:
    """How many events of a dead letter a retry has settled.

    Attributes:
        counted: Events that were counted, rejected by a rule, or late.
        dead: Events that still cannot be counted, and are a dead letter again.
    """

    counted: int
    dead: int


def retry(client: redis.Redis, layout: Layout, rules: Rules, letter: DeadLetter) -> Retried | None:
    """Count a dead letter by today's rules, once, however many processes retry it at the same time.

    Events that still cannot be counted become a dead letter again, with one attempt more. Return `None` if the dead
    letter does not exist any more.

    Raises:
        StreamError: its fields hold another number of events than it states; or another generation is live now.
        redis.RedisError: it is not known whether it was counted; retrying again is safe.
    """
    keys = layout.keys[letter.partition]
    fold = Fold(layout, letter.partition, rules)
    excluded: Mapping[FoldFault, str] = {}
    while True:
        result, _ = fold([Entry(letter.source, letter.fields)], excluded)
        dead = [replace(part, deliveries=letter.attempts + 1) for part in result.dead]
        kept = sum(part.events for part in dead)
        settled = result.settled.total() + result.late.total()
        if was_decided(letter.fields) or settled + kept != letter.events:
            raise StreamError(f"{letter.name}: does not hold the {letter.events} events that it states; drop it")
        moves = Counter(
            {name: by for name, by in result.ledger.items() if not name.startswith(("appended", "entries:"))}
        )
        moves["dead"] -= letter.events
        if letter.metric:
            moves[f"dead@{letter.metric}"] -= letter.events
        batch = result.batch.encode([letter.id], {name: by for name, by in moves.items() if by})
        again = [argument for part in dead for argument in dead_entry(part)]
        answer, *details = _RETRY(
            client, [keys.dead, keys.dead, keys.ledger, keys.live], [batch, keys.generation, *again]
        )
        if answer == b"applied":
            return Retried(settled, kept)
        if answer == b"switched":
            raise StreamError(f"{keys.dead}: the counters were rebuilt meanwhile; list the parked entries again")
        if answer == b"stale":
            return None
        names = [detail.decode() for detail in details]
        excluded = result.excluding(zip(names[::2], names[1::2], strict=True))
