"""Replay: the log as events, for other tools; what is ingested from it counts to the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tallystream.errors import CodecError, EventError
from tallystream.wire.codec import decode
from tallystream_worker.rebuild.source import entries

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tallystream.storage.keys import Layout
    from tallystream_worker.counting.entry import Entry


@dataclass(frozen=True)
class ReplaySelection:
    """Which events: seconds since 1970 from which and before which they happened, their metrics and subjects."""

    begin: float = 0.0
    end: float = float("inf")
    metrics: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()

    def takes(self, metric: str, subject: str, at: float) -> bool:
        """Tell whether an event is one of them."""
        return (
            self.begin <= at < self.end
            and (not self.metrics or metric in self.metrics)
            and (not self.subjects or subject in self.subjects)
        )


@dataclass
class Left:
    """Events that no line can say: of entries that cannot be read, and corrections, which no event is."""

    unreadable: int = 0
    corrections: int = 0


def replay(
    client: redis.Redis, layout: Layout, wanted: ReplaySelection, left: Left, archive: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield events as `ingest` reads them: metric, subject, amount, at and, where it has them, actor and id.

    Plain events of one minute were packed as a sum, and come back so: equal ones one after the other, at the
    beginning of their minute; those of other amounts as one that has their sum.
    """
    for partition, keys in enumerate(layout.keys):
        for entry in entries(client, keys, archive, partition):
            yield from _events(entry, wanted, left)


def _events(entry: Entry, wanted: ReplaySelection, left: Left) -> Iterator[dict[str, Any]]:
    try:
        payload = decode(entry.fields, entry.received)
    except (CodecError, EventError):
        left.unreadable += 1
        return
    for group in payload.groups:
        at = group.minute * 60
        if not wanted.begin <= at < wanted.end or (wanted.metrics and group.metric not in wanted.metrics):
            continue
        units = ((subject, 1, n) for subject, n in (*((s, 1) for s in group.ones), *group.counts.items()))
        # An event of amount 0 changes nothing but the number of events, which then is what it was.
        sums = ((subject, amount, 1) for subject, (amount, _) in group.sums.items())
        zeros = ((subject, 0, n - 1) for subject, (_, n) in group.sums.items())
        for subject, amount, n in (*units, *sums, *zeros):
            if wanted.takes(group.metric, subject, at):
                event = {"metric": group.metric, "subject": subject, "amount": amount, "at": at}
                for _ in range(n):
                    yield event
    for single in payload.singles:
        at_ = single.at / 1000
        if wanted.takes(single.metric, single.subject, at_):
            event = {"metric": single.metric, "subject": single.subject, "amount": single.amount, "at": at_}
            yield event | {
                name: value for name, value in (("actor", single.actor), ("id", single.id)) if value is not None
            }
    left.corrections += sum(wanted.takes(each.metric, each.subject, each.at / 1000) for each in payload.corrections)
