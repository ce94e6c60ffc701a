"""Looks at the counters all the time, while faults are injected: for what must hold whenever anyone looks."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.reading.ledger import OUTCOMES
from tallystream.storage.keys import partition_of
from tests.faults.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis

    from tallystream.storage.keys import Layout, PartitionKeys

PAIR: Final = ("view", "like")
_LOOK: Final = """#!lua flags=no-writes
local totals = {}
for i = 2, #KEYS do
  totals[i - 1] = redis.call('GET', KEYS[i])
end
return { redis.call('HGETALL', KEYS[1]), totals }
"""
"""One moment of a partition. A script that writes nothing runs where MULTI is refused: when the memory is full."""

_EVERY: Final = 0.005
_MOST: Final = 5


class Watch(threading.Thread):
    """Reads each partition in one transaction, again and again, and keeps what was wrong.

    Args:
        url: The server, by a way that no fault is injected into.
        layout: How many partitions there are.
        subjects: The subjects whose pairs are watched.

    Attributes:
        sums: Whether these are all subjects, so that the ledger's sum can be compared with theirs.
        pairs: Whether the events of a pair always share an entry.
    """

    def __init__(self, url: str, layout: Layout, subjects: Sequence[str]) -> None:
        super().__init__(name="watch", daemon=True)
        self._layout = layout
        self.sums = self.pairs = True
        self._homes: list[list[str]] = [[] for _ in layout.keys]
        for subject in subjects:
            self._homes[partition_of(subject, layout.partitions)].append(subject)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._url = url
        self._highest: Counter[tuple[str, str]] = Counter()
        self._rewinds = 0
        self._rewind_is_allowed = False
        self.failures: list[Failure] = []
        self.looks = 0

    def follow(self, url: str) -> None:
        """Look at another server from now on: a failover, across which readings may fall."""
        self.allow_rewind()
        self._url = url

    def allow_rewind(self) -> None:
        """Let readings fall from now on: the data was rewound, or is another."""
        with self._lock:
            self._rewinds += 1
            self._highest.clear()

    def take_over(self, before: Watch) -> None:
        """Go on with what another has seen and was told."""
        self.sums, self.pairs = before.sums, before.pairs
        self.failures += before.failures
        self.looks += before.looks

    def stop(self) -> None:
        """End the watch."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Look until stopped."""
        while not self._ended.is_set():
            url = self._url
            client = connect(url, timeout=1.0)
            try:
                with contextlib.suppress(RedisError):  # no server, no reading: the next look may find one
                    while not self._ended.is_set() and url == self._url:
                        self._look(client, url)
                        self._ended.wait(_EVERY)
            finally:
                client.close()
            self._ended.wait(_EVERY)

    def _look(self, client: redis.Redis, url: str) -> None:
        for keys, subjects in zip(self._layout.keys, self._homes, strict=True):
            with self._lock:
                rewinds = self._rewinds
            if url != self._url:
                return  # it may answer late, and of a time before
            names = [keys.total(metric, subject) for metric in PAIR for subject in subjects]
            flat, totals = client.execute_command("EVAL", _LOOK, 1 + len(names), keys.ledger, *names)
            self.looks += 1
            half = len(subjects)
            ledger = dict(zip(flat[::2], flat[1::2], strict=True))
            self._judge(keys, subjects, totals[:half], totals[half:], ledger, rewinds)

    def _judge(
        self,
        keys: PartitionKeys,
        subjects: list[str],
        views: list[bytes | None],
        likes: list[bytes | None],
        ledger: dict[bytes, bytes],
        rewinds: int,
    ) -> None:
        books = {name.decode(): int(events) for name, events in ledger.items()}
        totals = {
            (metric, subject): int(value or 0)
            for metric, values in zip(PAIR, (views, likes), strict=True)
            for subject, value in zip(subjects, values, strict=True)
        }
        for subject in subjects:
            view, like = totals["view", subject], totals["like", subject]
            if self.pairs and view != like:
                self._report("P", f"{keys.prefix}: {subject} has {view} views and {like} likes")
        settled = sum(
            events for name, events in books.items() if "@" not in name and name.partition(":")[0] in OUTCOMES
        )
        if settled > books.get("appended", 0):
            self._report("L", f"{keys.prefix}: {settled} events settled, {books.get('appended', 0)} appended")
        for metric in PAIR if self.sums else ():
            added = sum(value for (name, _), value in totals.items() if name == metric)
            if added != books.get(f"total@{metric}", 0):
                self._report("L", f"{keys.prefix}: {metric} adds up to {added}, the ledger says {books}")
        with self._lock:
            if rewinds != self._rewinds:
                return  # this reading may be of before
            for counter, value in totals.items():
                if value < self._highest[counter]:
                    self._report("M", f"{keys.prefix}: {counter} fell from {self._highest[counter]} to {value}")
                self._highest[counter] = value

    def _report(self, check: str, message: str) -> None:
        if len(self.failures) < _MOST:
            self.failures.append(Failure(check, message))
