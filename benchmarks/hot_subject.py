"""Measure the cost of an event when one subject gets 90 % of the events, with and without `spread`.

Run: `python -m benchmarks.hot_subject`.

The cost is the processor time of the server's main thread and of the worker's loop for each event that is drained from
4 partitions: the least of several rounds that alternate between the loads, and its ratio to the Zipf load. The share is
that of the largest stream in the bytes of all streams, i.e. the load of the busiest of 4 servers.
"""

import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.deployment_hash import spread_fields
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.server.embedded import EmbeddedServer

from .load import METRIC, zipf
from .measure import server_cpu_seconds

_EVENTS = 300_000
_ROUNDS = 3
_PARTITIONS = 4
_HOT = "article:hot"


def _loads() -> dict[str, tuple[list[str], bool]]:
    usual = zipf(_EVENTS)
    hot = [subject if n % 10 == 0 else _HOT for n, subject in enumerate(usual)]
    return {"zipf": (usual, False), "90 % on one": (hot, False), "90 % on one, spread": (hot, True)}


def measure(subjects: list[str], *, spread: bool) -> tuple[float, float, float]:
    """Drain a load; return the microseconds of server and worker for each event, and the largest stream's share."""
    rules = Rules({METRIC: Metric(windows=("hour",), spread=spread)})
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(server.url)
        deployment = Deployment.create_or_load(client, _PARTITIONS)
        client.hset(deployment.layout.meta, mapping={"rules": publish(rules), **spread_fields(rules.spread)})
        consumers = []
        for partition, keys in enumerate(deployment.layout.keys):
            fetch = Fetch(client, keys, "hot")
            fetch.ensure_group()
            fold = Fold(deployment.layout, partition, rules)
            consumers.append(CountingLoop(client, deployment.layout, partition, fetch, fold))
        with Producer(server.url, buffer_bytes=2**30) as producer:
            producer.emit(METRIC, _HOT)
            producer.flush(60)  # the producer has read the rules now
            for subject in subjects:
                producer.emit(METRIC, subject)
            producer.flush(60)
        sizes = [int(client.memory_usage(keys.stream, samples=0) or 0) for keys in deployment.layout.keys]
        server_began, began = server_cpu_seconds(client), time.process_time()
        for consumer in consumers:
            while consumer.run_once():
                pass
        spent = server_cpu_seconds(client) - server_began, time.process_time() - began
        with Totals(server.url) as totals:
            assert totals.get(_HOT, METRIC).value == subjects.count(_HOT) + 1  # noqa: S101  # the figure of a wrong count is worthless
        client.close()
    return spent[0] / len(subjects) * 1e6, spent[1] / len(subjects) * 1e6, max(sizes) / sum(sizes)


def main() -> None:
    """Measure each load in rounds, and print a table."""
    loads = _loads()
    least = dict.fromkeys(loads, (float("inf"), float("inf"), 0.0))
    for _ in range(_ROUNDS):
        for name, (subjects, spread) in loads.items():
            server, worker, share = measure(subjects, spread=spread)
            least[name] = min(server, least[name][0]), min(worker, least[name][1]), share
    table = Table("load", "server, us an event", "worker, us an event", "of zipf", "share of the largest stream")
    zipf_cost = sum(least["zipf"][:2])
    for name, (server, worker, share) in least.items():
        table.add_row(name, f"{server:.3f}", f"{worker:.3f}", f"{(server + worker) / zipf_cost:.2f}", f"{share:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
