"""The world of one scenario: a server, workers and producers as real processes, proxies, and what was done to them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit, urlunsplit

from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream_worker.counting.apply import _APPLY
from tallystream_worker.process import failpoints
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.server.errors import EmbeddedServerError
from tests.faults.checks import rests
from tests.faults.failure import ExpectationFailed
from tests.faults.journal import Account
from tests.faults.processes import RULES
from tests.faults.watch import Watch
from tests.harness import Harness
from tests.local_cluster import KINDS, LocalCluster, local_cluster
from tests.proxy import Proxy
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from tests.faults.fork_server import Child, ForkServer

PATIENCE = 30.0
"""Seconds within which everything that must happen happens, on a machine that is busy with other things."""

SUBJECTS = 24
SPOOLED = 0.15
NODE_TIMEOUT = 1000
"""Milliseconds of silence after which a cluster takes one of its nodes for dead."""
APPLY_SHA = _APPLY.sha.encode()


class World:
    """What a scenario acts on; a context manager that ends whatever was started.

    Args:
        folder: For data, journals and output.
        chance: The scenario's own randomness: whatever is drawn from it comes again with the seed.
        fork_server: Starts the processes.
    """

    def __init__(self, folder: Path, chance: Random, fork_server: ForkServer) -> None:
        self.folder = folder
        self.chance = chance
        self._fork_server = fork_server
        self._open = contextlib.ExitStack()
        self.server: EmbeddedServer
        self.url: str
        """Where everything is counted: the server's URL, or the cluster's."""
        self.harness: Harness
        self.watch: Watch
        self.workers: list[Child] = []
        self.producers: list[Child] = []
        self.others: list[Child] = []
        self.faults: Counter[str] = Counter()
        self.loss = ""
        """Why confirmed events may be missing in the end; empty: they may not."""
        self.besides: set[str] = set()
        """Subjects whose events may be parked."""
        self.replays = True
        """Whether the whole log is still there at the end."""
        self.not_replayed: set[str] = set()
        """Subjects of which today's code does not count again what was counted: the log alone does not say it."""
        self.oracle_knows = frozenset(RULES.metric) - {"flood"}
        """Metrics whose totals are a function of the log that the oracle can compute."""
        self.afterwards: list[Callable[[Account], None]] = []
        """What the row demands at rest, of the journals and whatever else it looks at."""
        self.healed_at: float | None = None

    # -- what there is ----------------------------------------------------------------------------------

    def serve(self, *extra: str, **settings: Any) -> None:
        """Start the server: of either kind, as chance has it, or as `start_server` is told."""
        self.server = self.start_server("server", *extra, **settings)
        self.adopt(self.server.url)

    def serve_cluster(self, *, replicas: int) -> LocalCluster:
        """Start a cluster of either kind instead: three primaries, and so many replicas."""
        kind = self.chance.choice(KINDS if shutil.which("redis-server") else KINDS[:1])
        cluster = self._open.enter_context(
            local_cluster(kind, self.folder, replicas=replicas, node_timeout=NODE_TIMEOUT, fsync="everysec")
        )
        self.adopt(cluster.url)
        return cluster

    def start_server(
        self,
        name: str,
        *extra: str,
        kind: str | None = None,
        binary: Path | None = None,
        tcp: bool = False,
        data: Path | None = None,
    ) -> EmbeddedServer:
        """Start a server; it is stopped at the end."""
        redis = shutil.which("redis-server")
        kind = kind or self.chance.choice(["valkey", "redis"])
        if kind == "redis" and redis is not None:
            binary = binary or Path(redis)
        server = EmbeddedServer(data or self.folder / name, port=0 if tcp else None, extra=extra, binary=binary)
        self._open.callback(_end, server)
        return server.start()

    def adopt(self, url: str) -> None:
        """Set the server or cluster at `url` up, and look at it all the time from now on."""
        self.url = url
        self.harness = self._open.enter_context(Harness(url, rules=RULES))
        self.watch = self._watching()

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Look away while something is done that nobody may look at, and begin anew."""
        self.watch.stop()
        yield
        before, self.watch = self.watch, self._watching()
        self.watch.take_over(before)

    def _watching(self) -> Watch:
        watch = Watch(self.url, self.harness.layout, [f"s{number}" for number in range(SUBJECTS)])
        watch.start()
        self._open.callback(watch.stop)
        return watch

    def move(self, server: EmbeddedServer) -> None:
        """Take another server for the one that counts from now on: after a failover."""
        self.server, self.url = server, server.url
        self.watch.follow(server.url)
        self.harness.client = self.harness.connect(server.url)

    def small_disk(self, size: int) -> Path:
        """Mount a file system of `size` bytes, for as long as the world lasts; needs root."""
        folder = self.folder / "disk"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        self._open.callback(subprocess.run, ["umount", "--lazy", folder], check=True)
        return folder

    def proxy(self, url: str | None = None) -> Proxy:
        """Put a proxy in front of the server."""
        return self._open.enter_context(Proxy(url or self.server.url))

    def worker(
        self, name: str = "w", *, url: str | None = None, failpoint: str | None = None, **settings: Any
    ) -> Child:
        """Start a worker."""
        settings.setdefault("claim_idle", round(self.chance.uniform(0.1, 0.3), 2))
        settings.setdefault("max_keys", self.chance.choice([100, 300, 3000]))
        arguments = {"url": url or self.url, "name": name, **settings}
        child = self._fork("worker", name, arguments, {} if failpoint is None else {failpoints.VARIABLE: failpoint})
        self.workers.append(child)
        return child

    def producer(self, *, url: str | None = None, **habits: Any) -> Child:
        """Start a producer."""
        habits.setdefault("subjects", SUBJECTS)
        journal = self.folder / f"journal-{len(self.producers)}"
        arguments = {
            "url": url or self.url,
            "journal": str(journal),
            "seed": self.chance.getrandbits(32),
            **habits,
        }
        child = self._fork("producer", f"producer-{len(self.producers)}", arguments, {})
        self.producers.append(child)
        return child

    def process(self, function: str, *, failpoint: str | None = None, **arguments: Any) -> Child:
        """Start a process of another kind, by the name of the function that it runs."""
        environment = {} if failpoint is None else {failpoints.VARIABLE: failpoint}
        child = self._fork(function, function, arguments, environment)
        self.others.append(child)
        return child

    def crowd(self, *, url: str | None = None, most: int = 3, **habits: Any) -> list[Child]:
        """Start some producers, in some scenarios with a spool: with it or without, the gate is the same."""
        if self.chance.random() < SPOOLED:
            habits.setdefault("spool", str(self.folder / "spool"))
            self.watch.pairs = False  # what is in the spool is cut into entries by positions, within pairs, too
        return [self.producer(url=url, **habits) for _ in range(self.chance.randint(1, most))]

    # -- what is done to it -----------------------------------------------------------------------------

    def inject(self, fault: str, times: int = 1) -> None:
        """Take note that a fault was injected."""
        self.faults[fault] += times

    def kill(self, child: Child, number: int = signal.SIGKILL) -> None:
        """Kill a process, and wait for its end."""
        child.signal(number)
        self.ends(child)
        self.inject(f"SIGKILL of a {_role(child)}")

    def dies(self, child: Child, what: str) -> None:
        """Wait until a process has died at its failpoint."""
        status = self.ends(child)
        self.expect(status == -signal.SIGKILL, f"{child.name} ended with {status}: {child.said()[-1500:]}")
        self.inject(what)

    def ends(self, child: Child, timeout: float = PATIENCE) -> int:
        """Wait for a process to end; return its status."""
        status = child.wait(timeout)
        if status is None:
            raise ExpectationFailed(f"{child.name} did not end within {timeout} s: {child.said()[-1500:]}")
        return status

    def crash_server(self) -> None:
        """Kill the server as a power cut would; what its clients hear is a broken connection."""
        self.server.kill()
        self.inject("SIGKILL of the server")

    def restart_server(self) -> None:
        """Start it again from its data."""

        def started() -> bool:
            # A program that another scenario starts at this moment holds, until it is one, copies of our locks.
            with contextlib.suppress(EmbeddedServerError):
                self.server.start()
                return True
            return False

        until(started, PATIENCE, what="the restart of the server")

    # -- what is waited for -----------------------------------------------------------------------------

    def flow(self, events: int = 200) -> None:
        """Wait until so many more events are counted: things are under way."""
        start = self.counted()
        until(lambda: self.counted() >= start + events, PATIENCE, what=f"counting of {events} more events")

    def arrive(self, events: int = 200) -> None:
        """Wait until so many more events are appended, whether or not somebody counts them."""
        start = self.appended()
        until(lambda: self.appended() >= start + events, PATIENCE, what=f"arrival of {events} more events")

    def counted(self) -> int:
        """Return how many events are counted."""
        return self.harness.ledger().get("counted", 0)

    def appended(self) -> int:
        """Return how many events are appended."""
        return self.harness.ledger().get("appended", 0)

    def until(self, condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Wait for a condition of the row's own."""
        until(condition, timeout, what=what)

    def pause(self, least: float, most: float) -> None:
        """Let a random time pass: for faults that are a matter of time, such as an outage's length."""
        time.sleep(self.chance.uniform(least, most))

    def expect(self, condition: object, message: str) -> None:
        """Demand something that is the row's own.

        Raises:
            ExpectationFailed: it is not so.
        """
        if not condition:
            raise ExpectationFailed(message)

    # -- how it ends ------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Say that the last fault is over: from here on, it is a matter of time until all is counted."""
        self.healed_at = time.monotonic()

    def settle(self) -> float:
        """Let producers end and everything be counted, without touching the workers; return the seconds it took."""
        if self.healed_at is None:
            self.heal()
        for child in self.producers:
            child.signal(signal.SIGTERM)
        for child in self.producers:
            status = self.ends(child, 2 * PATIENCE)
            self.expect(status in (0, -signal.SIGKILL), f"{child.name} ended with {status}: {child.said()[-1500:]}")
        until(
            lambda: rests(self.harness.client, self.harness.layout), PATIENCE, what="rest: no entry unread or pending"
        )
        with Totals(self.url) as totals, contextlib.suppress(AssertionError):  # the check says what is wrong
            until(lambda: totals.run(query_ledger(totals.deployment.layout)).unaccounted == 0, PATIENCE / 3)
        seconds = time.monotonic() - (self.healed_at or 0.0)
        self.watch.stop()
        return seconds

    def account(self) -> Account:
        """Return what all journals add up to."""
        account = Account()
        for path in self.folder.glob("journal-*"):
            account.read(path)
        return account

    def totals(self) -> Totals:
        """Return a reader."""
        return self._open.enter_context(Totals(self.url))

    def empty(self) -> Harness:
        """Return a place with nothing in it: another database of the server, or a server beside the cluster."""
        url = database(self.server.url, 1) if hasattr(self, "server") else self.start_server("empty").url
        return self._open.enter_context(Harness(url, rules=RULES))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in (*self.workers, *self.producers, *self.others):
            child.signal(signal.SIGKILL)
            child.wait(PATIENCE)
        self._open.close()

    def _fork(self, function: str, name: str, arguments: dict[str, Any], environment: dict[str, str]) -> Child:
        number = len(self.workers) + len(self.producers) + len(self.others)
        output = self.folder / f"{function}-{name}-{number}.log"
        return self._fork_server.fork(function, arguments, output, environment)


def database(url: str, number: int) -> str:
    """Return the URL of another database of a server."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"{url}?db={number}"
    return urlunsplit(parts._replace(path=f"/{number}"))


def patient(url: str, timeout: float) -> str:
    """Return a URL whose clients take a connection for dead after `timeout` seconds without a byte."""
    return f"{url}{'&' if '?' in url else '?'}socket_timeout={timeout}"


def _end(server: EmbeddedServer) -> None:
    with contextlib.suppress(ProcessLookupError, EmbeddedServerError):
        os.kill(server.pid, signal.SIGCONT)
    server.kill()  # its data goes with the world: there is nothing to be saved in order


def _role(child: Child) -> str:
    return child.name.partition("-")[0]
