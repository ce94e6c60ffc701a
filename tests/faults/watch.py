"""A thread that reads the counters all the time while faults are injected, and checks what must always be true."""

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
    from collections.abc import Iterator, Sequence

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
"""Read the ledger and totals of a partition at one moment.

A script without writes also runs when the server's memory is full, and MULTI is refused.
"""

_EVERY: Final = 0.005
_MOST: Final = 5


class Watch(threading.Thread):
    """A thread that reads each partition atomically, again and again, and keeps the first five failed checks.

    Args:
        url: The URL of the server, on a path without injected faults.
        layout: The keys of all partitions.
        subjects: The subjects whose pairs are watched.

    Attributes:
        sums: Whether to compare the sum of the totals with the ledger; only possible if `subjects` are all subjects.
        pairs: Whether to compare the two metrics of a pair; only possible if its events always share an entry.
        failures: The failed checks.
        looks: The number of readings of a partition.
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
        self._is_rewinding = False
        self.failures: list[Failure] = []
        self.looks = 0

    def follow(self, url: str) -> None:
        """Read from another server after a failover; counters may fall once."""
        self.allow_rewind()
        self._url = url

    def allow_rewind(self) -> None:
        """Forget the highest reading of each counter, because the data was rewound or replaced."""
        with self._lock:
            self._rewinds += 1
            self._highest.clear()

    @contextlib.contextmanager
    def rewinding(self) -> Iterator[None]:
        """Let counters fall in a `with` block, because the data is rewound or replaced in it."""
        with self._lock:
            self._is_rewinding = True
        yield
        self.allow_rewind()
        with self._lock:
            self._is_rewinding = False

    def take_over(self, before: Watch) -> None:
        """Copy the settings, failures and number of readings of an earlier watch."""
        self.sums, self.pairs = before.sums, before.pairs
        self.failures += before.failures
        self.looks += before.looks

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Read and check the partitions until stopped; reconnect after an error."""
        while not self._ended.is_set():
            url = self._url
            client = connect(url, timeout=1.0)
            try:
                with contextlib.suppress(RedisError):  # the server is down: try again
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
                return  # a reading of the old server would be out of date
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
            self._report("L", f"{keys.prefix}: {settled} events have an outcome, {books.get('appended', 0)} appended")
        for metric in PAIR if self.sums else ():
            added = sum(value for (name, _), value in totals.items() if name == metric)
            if added != books.get(f"total@{metric}", 0):
                self._report("L", f"{keys.prefix}: {metric} adds up to {added}, the ledger is {books}")
        with self._lock:
            if self._is_rewinding or rewinds != self._rewinds:
                return  # the reading may be from before the rewind
            for counter, value in totals.items():
                if value < self._highest[counter]:
                    self._report("M", f"{keys.prefix}: {counter} fell from {self._highest[counter]} to {value}")
                self._highest[counter] = value

    def _report(self, check: str, message: str) -> None:
        if len(self.failures) < _MOST:
            self.failures.append(Failure(check, message))
