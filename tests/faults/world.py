"""The world of one scenario: a server, workers, producers and proxies as real processes, and the faults injected."""

from __future__ import annotations

import contextlib
import itertools
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
from tests.clock import steady
from tests.faults.checks import rests
from tests.faults.failure import ExpectationFailed
from tests.faults.journal import Account
from tests.faults.processes import RULES
from tests.faults.watch import Watch
from tests.harness import Harness
from tests.local_cluster import KINDS, LocalCluster, local_cluster
from tests.local_sentinels import LocalSentinels, local_sentinels
from tests.proxy import Proxy
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from tests.faults.fork_server import Child, ForkServer

PATIENCE = 30.0
"""Seconds after which a condition that must become true counts as failed, also on a busy machine."""

SUBJECTS = 24
"""The number of subjects that producers emit pairs for."""
SPOOLED = 0.15
"""The share of scenarios whose producers use a spool."""
NODE_TIMEOUT = 1000
"""Milliseconds without contact after which a cluster or a Sentinel considers a node failed."""
APPLY_SHA = _APPLY.sha.encode()


class World:
    """The processes and servers that a scenario uses; a context manager that stops everything that was started.

    Args:
        folder: The folder for data, journals and output.
        chance: The random generator of the scenario; the same seed draws the same values again.
        fork_server: The fork server that starts the processes.
    """

    def __init__(self, folder: Path, chance: Random, fork_server: ForkServer) -> None:
        self.folder = folder
        self.chance = chance
        self._fork_server = fork_server
        self._open = contextlib.ExitStack()
        self._numbers = itertools.count()
        self.server: EmbeddedServer
        self.url: str
        """The URL of the server or cluster that counts."""
        self.harness: Harness
        self.watch: Watch
        self.workers: list[Child] = []
        self.producers: list[Child] = []
        self.others: list[Child] = []
        self.faults: Counter[str] = Counter()
        self.loss = ""
        """The reason that confirmed events may be missing at the end; empty if they may not."""
        self.exempt: set[str] = set()
        """Subjects that the balance and pair checks skip, because their events may be dead-lettered."""
        self.replays = True
        """Whether the topic is still complete at the end, so that a replay must give the same totals."""
        self.not_replayed: set[str] = set()
        """Subjects that the replay check skips, because their totals do not follow from the topic alone."""
        self.oracle_knows = frozenset(RULES.metric) - {"flood"}
        """Metrics whose totals follow from the topic alone, so that the oracle can compute them."""
        self.afterwards: list[Callable[[Account], None]] = []
        """Checks of the row itself; each is called at the end with the account of all journals."""
        self.healed_at: float | None = None
        """The monotonic time in seconds at which the last fault ended; `None` before `heal`."""

    # -- start servers and processes --------------------------------------------------------------------

    def serve(self, *extra: str, **settings: Any) -> None:
        """Start the server that counts, with the arguments of `start_server`, and adopt it."""
        self.server = self.start_server("server", *extra, **settings)
        self.adopt(self.server.url)

    def serve_cluster(self, *, replicas: int) -> LocalCluster:
        """Start a cluster with three primaries and `replicas` replicas, of a randomly chosen kind, and adopt it."""
        kind = self.chance.choice(KINDS if shutil.which("redis-server") else KINDS[:1])
        cluster = self._open.enter_context(
            local_cluster(kind, self.folder, replicas=replicas, node_timeout=NODE_TIMEOUT, fsync="everysec")
        )
        self.adopt(cluster.url)
        return cluster

    def serve_sentinels(self) -> LocalSentinels:
        """Start a primary and a replica, of a randomly chosen kind, and three Sentinels, and adopt them."""
        kind = self.chance.choice(["valkey", "redis"] if shutil.which("redis-server") else ["valkey"])
        servers = self._open.enter_context(local_sentinels(kind, self.folder, patience=NODE_TIMEOUT / 1000))
        self.adopt(servers.url)
        return servers

    def start_server(
        self,
        name: str,
        *extra: str,
        kind: str | None = None,
        binary: Path | None = None,
        tcp: bool = False,
        data: Path | None = None,
    ) -> EmbeddedServer:
        """Start a server of a kind (by default a randomly chosen one) and return it; it is killed at the end.

        It listens on a unix socket; with `tcp`, on a TCP port.
        """
        redis = shutil.which("redis-server")
        kind = kind or self.chance.choice(["valkey", "redis"])
        if kind == "redis" and redis is not None:
            binary = binary or Path(redis)
        server = EmbeddedServer(data or self.folder / name, port=0 if tcp else None, extra=extra, binary=binary)
        self._open.callback(_end, server)
        return server.start()

    def adopt(self, url: str) -> None:
        """Write the deployment and rules to the server or cluster at `url`, and start to watch its counters."""
        self.url = url
        self.harness = self._open.enter_context(Harness(url, rules=RULES))
        for keys in self.harness.layout.keys:
            steady(self.harness.client, keys.sequences)  # in the first hour of a deployment, nothing is trimmed by age
        self.watch = self._watching()

    @contextlib.contextmanager
    def unwatched(self) -> Iterator[None]:
        """Stop the watch until the block ends, then start a new one that takes over its settings and findings."""
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
        """Make another server the one that counts, after a failover."""
        self.server, self.url = server, server.url
        self.watch.follow(server.url)
        self.harness.client = self.harness.connect(server.url)

    def small_disk(self, size: int) -> Path:
        """Mount a file system of `size` bytes until the world ends, and return its folder; needs root."""
        folder = self.folder / "disk"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
        self._open.callback(subprocess.run, ["umount", "--lazy", folder], check=True)
        return folder

    def proxy(self, url: str | None = None) -> Proxy:
        """Start a proxy in front of the server, or of the server at `url`."""
        return self._open.enter_context(Proxy(url or self.server.url))

    def worker(
        self, name: str = "w", *, url: str | None = None, failpoint: str | None = None, **settings: Any
    ) -> Child:
        """Start a worker process; with `failpoint`, it kills itself at that place in the code."""
        settings.setdefault("claim_idle", round(self.chance.uniform(0.1, 0.3), 2))
        settings.setdefault("max_keys", self.chance.choice([100, 300, 3000]))
        arguments = {"url": url or self.url, "name": name, **settings}
        child = self._fork("worker", name, arguments, {} if failpoint is None else {failpoints.VARIABLE: failpoint})
        self.workers.append(child)
        return child

    def producer(self, *, url: str | None = None, **habits: Any) -> Child:
        """Start a producer process that emits pairs and keeps a journal; `habits` are those of `processes.producer`."""
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
        """Start a process that runs a function of `tests.faults.processes` or `steady`, given by its name."""
        environment = {} if failpoint is None else {failpoints.VARIABLE: failpoint}
        child = self._fork(function, function, arguments, environment)
        self.others.append(child)
        return child

    def crowd(self, *, url: str | None = None, most: int = 3, **habits: Any) -> list[Child]:
        """Start one to `most` producers; in 15 % of the scenarios, they use a spool."""
        if self.chance.random() < SPOOLED:
            habits.setdefault("spool", str(self.folder / "spool"))
            self.watch.pairs = False  # the spool is cut into entries by position, which may split a pair
        return [self.producer(url=url, **habits) for _ in range(self.chance.randint(1, most))]

    # -- inject faults ----------------------------------------------------------------------------------

    def inject(self, fault: str, times: int = 1) -> None:
        """Record that a fault was injected, for the report; this changes nothing else."""
        self.faults[fault] += times

    def kill(self, child: Child, number: int = signal.SIGKILL) -> None:
        """Send a signal (SIGKILL by default) to a process, wait for its end, and record the fault."""
        child.signal(number)
        self.ends(child)
        self.inject(f"SIGKILL of a {_role(child)}")

    def dies(self, child: Child, what: str) -> None:
        """Wait until a process has killed itself at its failpoint, and record the fault `what`."""
        status = self.ends(child)
        self.expect(status == -signal.SIGKILL, f"{child.name} ended with {status}: {child.said()[-1500:]}")
        self.inject(what)

    def ends(self, child: Child, timeout: float = PATIENCE) -> int:
        """Wait for a process to end and return its exit status.

        Raises:
            ExpectationFailed: it did not end within `timeout` seconds.
        """
        status = child.wait(timeout)
        if status is None:
            raise ExpectationFailed(f"{child.name} did not end within {timeout} s: {child.said()[-1500:]}")
        return status

    def crash_server(self) -> None:
        """Kill the server with SIGKILL; its clients get a broken connection."""
        self.server.kill()
        self.inject("SIGKILL of the server")

    def restart_server(self) -> None:
        """Start the server again from its data."""

        def started() -> bool:
            # A process that another scenario forks at this moment has copies of our lock files until it calls exec.
            with contextlib.suppress(EmbeddedServerError):
                self.server.start()
                return True
            return False

        until(started, PATIENCE, what="the restart of the server")

    # -- wait -------------------------------------------------------------------------------------------

    def flow(self, events: int = 200) -> None:
        """Wait until `events` more events are counted."""
        start = self.counted()
        until(lambda: self.counted() >= start + events, PATIENCE, what=f"counting of {events} more events")

    def arrive(self, events: int = 200) -> None:
        """Wait until the ledger has `events` more appended events."""
        start = self.appended()
        until(lambda: self.appended() >= start + events, PATIENCE, what=f"arrival of {events} more events")

    def counted(self) -> int:
        """Return the number of counted events in the ledger."""
        return self.harness.ledger().get("counted", 0)

    def appended(self) -> int:
        """Return the number of appended events in the ledger."""
        return self.harness.ledger().get("appended", 0)

    def until(self, condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Wait until a condition of the row is true; `what` names it in the error."""
        until(condition, timeout, what=what)

    def pause(self, least: float, most: float) -> None:
        """Sleep for a random time between two bounds in seconds, for faults that have a length, such as an outage."""
        time.sleep(self.chance.uniform(least, most))

    def expect(self, condition: object, message: str) -> None:
        """Check a condition that only this row demands.

        Raises:
            ExpectationFailed: the condition is false.
        """
        if not condition:
            raise ExpectationFailed(message)

    # -- end the scenario -------------------------------------------------------------------------------

    def heal(self) -> None:
        """Record that the last fault is over; the drain time is measured from here."""
        self.healed_at = time.monotonic()

    def settle(self) -> float:
        """Stop the producers, wait until the running workers have counted everything, and stop the watch.

        Return the seconds since the last fault was over.
        """
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
        with Totals(self.url) as totals, contextlib.suppress(AssertionError):  # `checks.books` reports it
            until(lambda: totals.run(query_ledger(totals.deployment.layout)).unaccounted == 0, PATIENCE / 3)
        seconds = time.monotonic() - (self.healed_at or 0.0)
        self.watch.stop()
        return seconds

    def account(self) -> Account:
        """Return the account that adds up the journals of all producers."""
        account = Account()
        for path in self.folder.glob("journal-*"):
            account.read(path)
        return account

    def totals(self) -> Totals:
        """Return a `Totals` that reads from the server or cluster that counts."""
        return self._open.enter_context(Totals(self.url))

    def empty(self) -> Harness:
        """Return a harness of an empty place: another database of the server, or for a cluster a separate server."""
        url = database(self.server.url, 1) if hasattr(self, "server") else self.start_server("empty").url
        partitions = self.harness.layout.partitions
        return self._open.enter_context(Harness(url, rules=RULES, partitions=partitions))

    def on_exit(self, end: Callable[[], None]) -> None:
        """Call `end` when the world ends, before its servers do."""
        self._open.callback(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in (*self.workers, *self.producers, *self.others):
            child.signal(signal.SIGKILL)
            child.wait(PATIENCE)
        self._open.close()

    def _fork(self, function: str, name: str, arguments: dict[str, Any], environment: dict[str, str]) -> Child:
        output = self.folder / f"{function}-{name}-{next(self._numbers)}.log"
        return self._fork_server.fork(function, arguments, output, environment)


def database(url: str, number: int) -> str:
    """Return the URL of the database with this number on a server."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"{url}?db={number}"
    return urlunsplit(parts._replace(path=f"/{number}"))


def patient(url: str, timeout: float) -> str:
    """Return a URL whose clients give up a connection after `timeout` seconds without a byte."""
    return f"{url}{'&' if '?' in url else '?'}socket_timeout={timeout}"


def _end(server: EmbeddedServer) -> None:
    with contextlib.suppress(ProcessLookupError, EmbeddedServerError):
        os.kill(server.pid, signal.SIGCONT)
    server.kill()  # its data is deleted with the world, so it need not be saved


def _role(child: Child) -> str:
    return child.name.partition("-")[0]
