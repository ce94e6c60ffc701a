"""Measure the bytes that each rule stores for a subject, on an embedded server: `python -m benchmarks.memory`.

Each case counts one event for each of 20,000 subjects of 13 bytes, deletes the stream so that only counters are left,
and divides the growth of the server's memory by the number of subjects.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.server.embedded import EmbeddedServer

SUBJECTS = 20_000
CASES = {
    "total": (Metric(), {}),
    "total, hour": (Metric(windows=("hour",)), {}),
    "total, hour, day": (Metric(windows=("hour", "day")), {}),
    "total, limit per hour": (Metric(limit=10, per="hour"), {}),
    "total, vote of 1 actor": (Metric(once="forever"), {"actor": "user:123456"}),
    "total, votes of 11 actors": (Metric(once="forever"), {"actors": 11}),
    "total, 1 unique actor a day": (Metric(unique="day"), {"actor": "user:123456"}),
    "total, 1 id": (Metric(), {"id": "0123456789abcdef"}),
    "top 100 (the list in all)": (Metric(top=100), {}),
    "sketch (in all)": (Metric(exact=False), {}),
}


def measure(metric: Metric, extra: dict[str, Any]) -> float:
    """Count one event for each subject under a metric; return the growth of the server's memory in bytes per subject.

    `extra` has further fields of each event; with `actors`, each subject gets one event of each of so many actors.
    """
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(server.url)
        deployment = Deployment.create_or_load(client, 1)
        rules = Rules({"view": metric})
        client.hset(deployment.layout.meta, "rules", publish(rules))
        keys = deployment.layout.keys[0]
        fetch = Fetch(client, keys, "memory")
        fetch.ensure_group()
        consumer = CountingLoop(client, deployment.layout, 0, fetch, Fold(deployment.layout, 0, rules))
        before = held(client)
        with Producer(server.url) as producer:
            for actor in range(100_000, 100_000 + extra.get("actors", 0)) or [None]:
                for number in range(SUBJECTS):
                    one = {"actor": f"user:{actor}"} if actor else extra
                    producer.emit("view", f"article:{number:05}", **one)
            producer.flush(60)
        while consumer.run_once():
            pass
        client.delete(keys.stream)
        after = held(client)
        client.close()
    return (after - before) / SUBJECTS


def held(client: redis.Redis) -> int:
    """Return the bytes of the server's data, without the buffers of the append-only file and of clients."""
    info = client.info("memory")
    return int(info["used_memory"]) - int(info["mem_aof_buffer"]) - int(info["mem_clients_normal"])


def main() -> None:
    """Measure all cases, and print them as a table, or with `--json` as JSON."""
    figures = {name: measure(*case) for name, case in CASES.items()}
    if "--json" in sys.argv:
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    table = Table("stored", "bytes a subject", "more than the total alone")
    for name, figure in figures.items():
        table.add_row(name, f"{figure:,.0f}", f"{figure - figures['total']:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
