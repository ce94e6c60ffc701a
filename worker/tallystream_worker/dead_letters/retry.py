"""Retries dead letters: counts their events by the rules of today.

A retry does not append the entry again. It folds the dead letter with the stream ID of the original entry, and so with
that entry's time: events that were late or in the future then still are. A replay of the stream, which folds the
original entry by the same rules, therefore gives the same totals as the retry.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from tallystream.errors import StreamError
from tallystream.storage.deployment_hash import live_mark
from tallystream.storage.scripts import Script
from tallystream.wire.codec import was_decided
from tallystream_worker.counting.apply import dead_entry
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.fold_result import parse_faults

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.fold_result import FoldFault, FoldResult
    from tallystream_worker.dead_letters.store import DeadLetter

_RETRY: Final = Script("tallystream_worker.dead_letters", "retry")


@dataclass(frozen=True)
class Retried:
    """The numbers of the events of a retried dead letter, by outcome.

    Attributes:
        counted: The number of events that are dead no more: counted, rejected by a rule, duplicate, late or retracted.
        dead: The number of events that still cannot be counted and were dead-lettered again.
    """

    counted: int
    dead: int


def retry(client: redis.Redis, layout: Layout, rules: Rules, letter: DeadLetter, revision: int = 0) -> Retried | None:
    """Count the events of a dead letter by the given rules and remove it; add new ones of events that still fail.

    Several processes may retry a dead letter at the same time; it is counted once. The new dead letters have one
    attempt more than the old one.

    Args:
        client: The server.
        layout: The layout of the live topic, with the live generations.
        rules: The rules to count by.
        letter: The dead letter.
        revision: The number of the rules; 0 if they have none. If it is higher than that of the rules that count the
            partition, these rules count the partition from now on, unless the result is `None` or an error is raised.

    Returns:
        The numbers of events by outcome; `None` if the dead letter does not exist any more.

    Raises:
        KeyLost: the partition has lost a key. The counters and the dead letter are unchanged.
        StreamError: the fields do not contain the number of events that the dead letter states, another generation is
            live now, the partition is closed by a repartition or a restore, newer rules count the partition now, the
            state that would decide an event (ids, a limit, a vote) was removed, or a subject of an event with an id or
            a limit was reset since. The counters and the dead letter are unchanged. Some of these are checked before
            the dead letter is looked for, so they are raised even if it does not exist any more.
        CodecError: the `source` of the dead letter is not a stream ID. The counters and the dead letter are unchanged.
        redis.RedisError: the dead letter may or may not have been counted; retrying again is safe.
    """
    letter.ensure_source()
    keys = layout.keys[letter.partition]
    fold = Fold(layout, letter.partition, rules)
    excluded: Mapping[FoldFault, str] = {}
    while True:
        result, _ = fold([Entry(letter.source, letter.fields)], excluded)
        dead = [replace(part, deliveries=letter.attempts + 1) for part in result.dead]
        kept = sum(part.events for part in dead)
        settled = result.settled.total() + result.late.total() + result.retracted.total()
        if was_decided(letter.fields) or settled + kept != letter.events:
            raise StreamError(f"{letter.name}: does not contain the {letter.events} events that it states; drop it")
        batch = result.batch.encode([letter.id], moves(result, letter))
        again = [argument for part in dead for argument in dead_entry(part)]
        answer, *details = _RETRY(
            client,
            [keys.dead, keys.dead, keys.ledger, keys.live, keys.stream],
            [batch, live_mark(keys.generation, revision), letter.source, *again],
        )
        if answer == b"applied":
            return Retried(settled, kept)
        if answer == b"switched":
            raise StreamError(f"{keys.dead}: the counters were rebuilt meanwhile; list the dead letters again")
        if answer == b"outdated":
            raise StreamError(f"{keys.dead}: the rules changed meanwhile; retry again")
        if answer == b"forgotten":
            raise StreamError(
                f"{letter.name}: has an event that is older than the ids, limits or votes that are kept, so it may "
                'be a copy, or over the limit. Drop it, or count everything again: "rebuild"'
            )
        if answer == b"reset":
            raise StreamError(
                f"{letter.name}: has an event with an id or a limit, and its subject was reset since, so it is not "
                'known what the event adds now. Drop it, or count everything again: "rebuild"'
            )
        if answer == b"stale":
            return None
        excluded = result.excluding(parse_faults(details))


def moves(result: FoldResult, letter: DeadLetter) -> dict[str, int]:
    """Return what a retry adds to the ledger, by field, without zeros: it takes the events out of `dead`.

    `result` is the fold of the dead letter. Events that are dead again are added to `dead` again. `appended`, `plain`
    and the numbers of entries do not change, because they contain the original entry already.
    """
    found = Counter(
        {name: by for name, by in result.ledger.items() if not name.startswith(("appended", "plain", "entries:"))}
    )
    found["dead"] -= letter.events
    if letter.metric:
        found[f"dead@{letter.metric}"] -= letter.events
    return {name: by for name, by in found.items() if by}
