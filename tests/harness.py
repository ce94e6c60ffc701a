"""A harness that wires the parts of the system to one server, as the worker does, for tests that run them in steps."""

from __future__ import annotations

import contextlib
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.counting.refreshing_fold import RefreshingFold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from tallystream_worker.counting.entry import Entry

METRICS = ("view", "like", "vote")


class Harness:
    """The clients, counting loops and readings of one server.

    It is a context manager that closes every client when it exits. Creating it writes the deployment, the rules and the
    consumer group of each partition.
    """

    def __init__(
        self, url: str, *, metrics: Sequence[str] = METRICS, partitions: int = 4, rules: Rules | None = None
    ) -> None:
        self.url = url
        self._open = contextlib.ExitStack()
        self.client = self.connect()
        self.rules = rules or Rules({name: Metric(ids=None) for name in metrics})
        self.deployment = Deployment.create_or_load(self.client, partitions)
        self.layout = self.deployment.layout
        self.client.hset(self.layout.meta, "rules", publish(self.rules))
        for partition in range(partitions):
            self.fetch(partition, "harness").ensure_group()

    def connect(self, url: str | None = None, **settings: Any) -> redis.Redis:
        """Return a client made by the library's `connect`; the harness closes it."""
        client = connect(url or self.url, **settings)
        self._open.callback(client.close)
        return client

    def fetch(self, partition: int, name: str = "w", **settings: Any) -> Fetch:
        """Return the `Fetch` of one consumer of a partition, on a new client."""
        return Fetch(self.connect(), self.layout.keys[partition], name, **settings)

    def consumer(
        self,
        partition: int = 0,
        name: str = "w",
        *,
        fetch: Callable[[int, float], list[Entry]] | None = None,
        claim_idle: float = 30.0,
        client: redis.Redis | None = None,
        latest: Callable[[int], tuple[Rules, int] | None] | None = None,
        **settings: Any,
    ) -> CountingLoop:
        """Return a counting loop for a partition; with `fetch`, the loop gets its entries from that function."""
        fetch = fetch or self.fetch(partition, name, claim_idle=claim_idle)
        of_the_fold = {name: settings.pop(name) for name in ("max_keys", "max_deliveries") if name in settings}
        watching = settings.get("live_only", True)
        make = partial(Fold, self.layout, partition, watching=watching, **of_the_fold)
        generation = self.layout.keys[partition].generation
        revision = Deployment.find(self.client).revision_of(generation)
        fold = RefreshingFold(self.rules, make, latest or (lambda _: None), revision)
        settings = {"follow": fold.follow} | settings
        return CountingLoop(client or self.connect(), self.layout, partition, fetch, fold, **settings)

    def drain(self, name: str = "w", **settings: Any) -> None:
        """Count the entries of all partitions, until a pass of each finds nothing more to count."""
        for partition in range(self.layout.partitions):
            consumer = self.consumer(partition, name, **settings)
            while consumer.run_once():
                pass

    def finish(self) -> None:
        """Count every entry, also those pending for other consumers, as a worker does after another has crashed."""
        self.drain("closer", claim_idle=0, max_deliveries=1_000_000)
        assert self.waiting() == 0

    def finish_beside(self) -> None:
        """Count every entry in the generation of this harness, even if that generation is not live."""
        self.drain("closer", claim_idle=0, max_deliveries=1_000_000, live_only=False)

    def waiting(self) -> int:
        """Return the number of entries, over all partitions, that are undelivered or pending."""
        waiting = 0
        for keys in self.layout.keys:
            (group,) = self.client.xinfo_groups(keys.stream)
            waiting += int(group["pending"]) + int(group["lag"])
        return waiting

    def totals(self) -> dict[tuple[str, str], int]:
        """Return every stored total by (metric, subject)."""
        found = {}
        for keys in self.layout.keys:
            for key in self.client.scan_iter(match=f"{keys.counters}total:*", count=1000):
                metric, _, subject = key.decode().removeprefix(f"{keys.counters}total:").partition(":")
                found[metric, subject] = int(self.client.get(key))
        return found

    def ledger(self) -> dict[str, int]:
        """Return the events of each ledger field, summed over the partitions; fields that are 0 are left out.

        `plain` is left out, because it is a part of `appended` that only later generations use. The fields
        `entries:...` are left out too.
        """
        sums: Counter[str] = Counter()
        for keys in self.layout.keys:
            for name, events in self.client.hgetall(keys.ledger).items():
                sums[name.decode()] += int(events)
        return {
            name: events
            for name, events in sums.items()
            if events and name != "plain" and not name.startswith("entries:")
        }

    def dead(self, partition: int | None = None) -> list[dict[bytes, bytes]]:
        """Return the fields of each dead letter, of one partition or of all."""
        chosen = self.layout.keys if partition is None else [self.layout.keys[partition]]
        return [fields for keys in chosen for _, fields in self.client.xrange(keys.dead)]

    def pending(self, partition: int = 0) -> list[str]:
        """Return the IDs of the pending entries of a partition."""
        rows = self.client.xpending_range(
            self.layout.keys[partition].stream, self.layout.keys[partition].group, "-", "+", 100_000
        )
        return [row["message_id"].decode() for row in rows]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
