"""Measure the cost of an event in one partition and in many: `python -m benchmarks.partitions [PARTITIONS ...]`.

The same events, in equally full entries, are drained from one server and from a cluster of three primaries. One process
drains them, with a thread for each partition. The cost is the processor time for each event, of all servers together
and of this process: the least of several rounds that alternate, because other load on the machine can only increase it.
If subjects repeat, a partition has fewer of them the more partitions there are, so a batch covers more events. If they
do not repeat, the cost of a thread, a connection and a script call for each partition is fully visible.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import redis
import structlog
from rich.console import Console
from rich.table import Table

from tallystream.client.connect import connect
from tallystream.errors import ConfigurationError
from tallystream.producing.producer import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.runtime.app import counting
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.local_cluster import local_cluster  # no other module starts a cluster of local processes

from .load import METRIC, uniform, zipf
from .measure import server_cpu_seconds
from .server import until

_LOADS = {"zipf": zipf(2_000_000), "uniform": uniform(800_000)}
_ROUNDS = 3
_RULES = Rules({METRIC: Metric(windows=("hour",))})


@dataclass(frozen=True)
class Place:
    """A server or cluster that counts: its name and URL, and a client of each of its servers."""

    name: str
    url: str
    servers: list[redis.Redis]

    def spent(self) -> float:
        """Return the processor seconds that all its servers have used."""
        return sum(server_cpu_seconds(each) for each in self.servers)

    def clear(self) -> None:
        """Remove every key of all its servers."""
        for each in self.servers:
            each.flushall()


@contextmanager
def places() -> Iterator[list[Place]]:
    """Run a server and a cluster of three primaries until the block ends, and yield both."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(EmbeddedServer(folder / "server"))
        client = connect(server.url)
        stack.callback(client.close)
        cluster = stack.enter_context(
            local_cluster("cluster-valkey", folder / "cluster", replicas=0, node_timeout=15_000, fsync="everysec")
        )
        found = [
            Place("one server", server.url, [client]),
            Place("three primaries", cluster.url, [node.client for node in cluster.nodes]),
        ]
        for place in found:
            for each in place.servers:
                each.config_set("auto-aof-rewrite-percentage", 0)
        yield found


def measure(place: Place, partitions: int, subjects: list[str]) -> tuple[float, float]:
    """Append and count the events; return the microseconds of servers and worker for each, without those of a start."""
    place.clear()
    settings = Settings(redis=RedisSettings(url=place.url, partitions=partitions), rules=_RULES)
    _spent(place, settings, 0)  # the first start also creates the groups
    start = _spent(place, settings, 0)
    with Producer(place.url, partitions=partitions, linger=5.0, buffer_bytes=2**30) as producer:
        for subject in subjects:
            producer.emit(METRIC, subject)
        producer.flush(300)
    whole = _spent(place, settings, len(subjects))
    return (whole[0] - start[0]) / len(subjects) * 1e6, (whole[1] - start[1]) / len(subjects) * 1e6


def _spent(place: Place, settings: Settings, events: int) -> tuple[float, float]:
    """Run a worker until `events` events are counted; return the processor seconds of the servers and the worker."""
    server, worker = place.spent(), time.process_time()
    with counting(settings, structlog.wrap_logger(None, processors=[_silent])) as pool, Totals(place.url) as totals:
        until(lambda: all(each.problem is None for each in pool.health), "every partition to be served", interval=0.05)
        until(lambda: _counted(totals) >= events, "everything to be counted", interval=0.05)
        return place.spent() - server, time.process_time() - worker


def _counted(totals: Totals) -> int:
    return totals.run(query_ledger(totals.deployment.layout)).counted


def _silent(*_: object) -> str:
    raise structlog.DropEvent


def run(numbers: list[int], tell: Callable[[str], None]) -> dict[tuple[str, int], tuple[float, float]]:
    """Return what an event costs, by load and place, and number of partitions."""
    found: dict[tuple[str, int], tuple[float, float]] = {}
    with places() as all_places:
        for _, place, load, partitions in product(range(_ROUNDS), all_places, _LOADS, numbers):
            case = f"{load}, {place.name}", partitions
            server, worker = measure(place, partitions, _LOADS[load])
            tell(f"{case[0]}, {partitions}: server {server:.3f} us, worker {worker:.3f} us")
            least = found.get(case, (server, worker))
            found[case] = min(server, least[0]), min(worker, least[1])
    return dict(sorted(found.items()))


def main() -> int:
    """Measure, and print each figure with its ratio to that of the first number of partitions; return the status."""
    console = Console()
    table = Table("", "partitions", "server, us an event", "worker, us an event", "server, worker; both, of the first")
    try:
        numbers = [int(text) for text in sys.argv[1:]] or [1, 64]
        found = run(numbers, console.print)
    except (ValueError, ConfigurationError) as error:
        print(error, file=sys.stderr)
        return 2
    for (name, partitions), (server, worker) in found.items():
        first = found[name, numbers[0]]
        ratios = f"{server / first[0]:.2f}, {worker / first[1]:.2f}; {(server + worker) / sum(first):.2f}"
        table.add_row(name, str(partitions), f"{server:.3f}", f"{worker:.3f}", ratios)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
