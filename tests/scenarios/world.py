"""The world of one scenario: a server, its clock, the hosts, the configuration file, and the model."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
from redis import Redis

from tallystream_worker.server.binary import find_binary
from tallystream_worker.server.embedded import EmbeddedServer
from tests.local_cluster import free_port
from tests.oracle import home
from tests.scenarios.clocks import Clock
from tests.scenarios.hosts import NAMES, Host
from tests.scenarios.model import Model
from tests.scenarios.questions import Present
from tests.waiting import until

if TYPE_CHECKING:
    from tallystream.rules.metrics import Rules
    from tests.scenarios.script import Occurrence, Script

ZONES: Final = {"app": "Europe/Vienna", "worker": "Asia/Tokyo", "reader": "America/New_York"}
"""The zone that each host calls `localtime`."""

LATEST_SECOND: Final = 40
"""Second of a minute after which the clocks go on to the next minute, so that no minute ends within a step."""


class Mismatch(AssertionError):
    """An answer of the system that differs from the model's."""


class Hosts:
    """The hosts of one lane, which plays one scenario after another; a context manager that ends them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tally-hosts-"))
        self.by_name = {name: Host(name, self.folder, Path("/usr/share/zoneinfo") / ZONES[name]) for name in NAMES}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.by_name.values():
            host.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class World:
    """Everything that a scenario plays in; a context manager that ends the server and empties the hosts.

    Args:
        script: The scenario.
        hosts: The hosts of the lane.
    """

    def __init__(self, script: Script, hosts: Hosts) -> None:
        self.script = script
        self.rules: Rules = script.rules
        self.start = script.began
        self.model = Model(script.rules)
        self.hosts = hosts.by_name
        self.folder = Path(tempfile.mkdtemp(prefix="tally-scenario-"))
        self.partitions = script.partitions
        self.checks = 0
        """The number of answers that were compared with the model's."""
        self._clock = Clock(self.folder / "server.clock")
        self._true = 0.0
        self._skews: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        self._restarted = False
        self._set_time(self.start)
        self._open = contextlib.ExitStack()
        self.server = EmbeddedServer(self.folder / "data", binary=self._program())

    def __enter__(self) -> Self:
        try:
            self._open.enter_context(self.server)
            for host in self.hosts.values():
                host.ask("forget")
            self.configure()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            with contextlib.suppress(AssertionError):
                host.ask("forget")
        self._open.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self.server.url

    @property
    def config(self) -> str:
        """The path of the configuration file."""
        return str(self.folder / "tallystream.toml")

    @property
    def sources(self) -> list[str]:
        """The options that name the archive, if there is one, for commands that read the history."""
        archive = self.folder / "archive"
        return ["--archive", str(archive)] if archive.exists() else []

    def archive(self) -> None:
        """Archive what was appended since, if there is an archive; the archiver of a deployment never stops."""
        if self.sources:
            self.command("archive", str(self.folder / "archive"), "--once", "--json")

    # Time

    def now(self, of: str = "server") -> float:
        """Return the second since 1970 on the clock of the server or of a host."""
        return (self._clock if of == "server" else self.hosts[of].clock).now()

    def present(self) -> Present:
        """Return the time of questions that are asked now; no minute ends before they are answered."""
        return Present(self.now(), self.now())

    def advance(self, seconds: float) -> None:
        """Let time pass everywhere; a clock that is slow or fast goes wrong by whole minutes."""
        self._true += seconds
        for of, rate in self._rates.items():
            self._skews[of] = self._skews.get(of, 0.0) + round((rate - 1) * seconds / 60) * 60
        self._set_clocks()

    def lead(self, seconds: float) -> None:
        """Let time pass on the server's clock alone; `follow` with the same number lets the others follow."""
        self._skews["server"] = self.skew_of("server") + seconds
        self._set_clocks()

    def follow(self, seconds: float) -> None:
        """Let time pass on all clocks but the server's."""
        self._skews["server"] = self.skew_of("server") - seconds
        self._true += seconds
        self._set_clocks()

    def skew(self, of: str, seconds: float) -> None:
        """Make the clock of the server or of a host wrong by some seconds, ahead if positive."""
        self._skews[of] = seconds
        self._set_clocks()

    def set_rate(self, of: str, rate: float) -> None:
        """Let the clock of the server or of a host be slow or fast from now on: `rate` seconds pass in each second."""
        self._rates[of] = rate

    def skew_of(self, of: str) -> float:
        """Return how far a clock is ahead of the true time, in seconds."""
        return self._skews.get(of, 0.0)

    def steady(self) -> None:
        """Go on to the next minute if this one ends soon, so that all answers of a step belong to one minute."""
        second = (time.time() + self._true) % 60
        if second > LATEST_SECOND:
            self.advance(70 - second)

    def _set_time(self, second: float) -> None:
        self._true = second - time.time()
        self._set_clocks()

    def _set_clocks(self) -> None:
        if self._clock.offset:
            self.model.latest = max(self.model.latest, self.now())
        self._clock.set(self._true + self._skews.get("server", 0.0))
        self.model.latest = max(self.model.latest, self.now())
        for name, host in self.hosts.items():
            host.clock.set(self._true + self._skews.get(name, 0.0))

    # The system

    def ask(self, host: str, command: str, **arguments: Any) -> Any:
        """Run a command in a host; see `host_process`."""
        return self.hosts[host].ask(command, **arguments)

    def configure(self) -> None:
        """Write the configuration file, and publish the rules as a worker does at its start."""
        self.write_configuration()
        self.ask("worker", "configure", config=self.config)

    def write_configuration(self) -> None:
        """Write the configuration file, without a start of a worker."""
        Path(self.config).write_text(toml(self.rules, self.url, self.partitions, self.script.age))

    def emit(self, events: list[Occurrence], producer: str = "p1", **settings: Any) -> None:
        """Emit events with the producer of a name, and tell the model of those that were accepted."""
        events = [event for event in events if event.metric in self.rules.metric]
        events, tops = self.placed(events)
        fields = [event.fields(self.start) for event in events]
        began = self.now("app")
        if producer == "asyncio":
            refusals = self.ask("app", "emit_asyncio", url=self.url, events=fields)
        else:
            settings = {"url": self.url} | settings
            refusals = self.ask("app", "emit", producer=producer, events=fields, **settings)
        for event, given, refusal in zip(events, fields, refusals, strict=True):
            at = given.get("at", began)
            if (refusal is not None) != (at > began + 3600):
                raise Mismatch(f"emit of {event} at {began:.3f} on host app: refused with {refusal!r}")
            if refusal is None:
                self.record(event, at, tops, packed=True)

    def placed(self, events: list[Occurrence]) -> tuple[list[Occurrence], list[float]]:
        """Return the events of which it is certain which time the IDs of their entries have, and the last IDs' times.

        If the server's clock was set back, an ID is later than the clock, by a different time in each partition. So
        events that a producer may append to any partition are left out then.
        """
        if self.model.latest < self.now() + 1:
            return events, []
        rules = self.rules.metric
        certain = [event for event in events if not rules[event.metric].spread or event.id is not None]
        return certain, self.ask("app", "last_times", url=self.url)

    def record(self, event: Occurrence, at: float, tops: list[float], *, packed: bool) -> None:
        """Tell the model of an event that was appended just now, after entries with the times `tops` of `placed`."""
        now = self.now()
        last = tops[home(event.subject, len(tops))] if tops else now
        self.model.append(event, at, now, packed=packed, id_time=max(now, last))

    def acceptable(self, events: list[Occurrence], now: float) -> list[Occurrence]:
        """Return the events that a producer accepts whose clock shows second `now`."""
        declared = [event for event in events if event.metric in self.rules.metric]
        return [event for event in declared if self.start + (event.at or 0) <= now + 3500]

    def count(self, shuffle: int | None = None, *, consumer: str = "w1") -> None:
        """Count everything that waits."""
        self.ask("worker", "count", url=self.url, consumer=consumer, shuffle=shuffle)
        self.model.settle()
        if self._restarted:
            self._settle()

    def try_count(self, url: str | None = None) -> str | None:
        """Let a worker try to count everything; return the name of the exception, `None` if it counted everything."""
        error: str | None = self.ask("worker", "try_count", url=url or self.url, consumer="w1")
        if error is None:
            self.model.settle()
        return error

    def restart(self) -> None:
        """Kill the server and start it again, after its data was written to the append-only file.

        While a slow disk flushes, the server may reply up to two seconds before it writes.
        """
        with Redis.from_url(self.url, protocol=3) as client:
            until(lambda: client.info("persistence")["aof_buffer_length"] == 0, what="the append-only file")
        self.server.kill()
        self.server.start()
        self.lag_is_unknown()

    def fail_over(self) -> None:
        """Kill the server, and start it again with the data of a replica that had every write."""
        port = free_port()
        options = ["--replicaof", f"127.0.0.1 {port}"]
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(Redis.from_url(self.url, protocol=3))
            client.config_set("port", port)
            client.config_set("repl-diskless-sync-delay", 0)
            server = EmbeddedServer(self.folder / "replica", binary=self._program(), extra=options)
            replica = stack.enter_context(Redis.from_url(stack.enter_context(server).url, protocol=3))
            until(lambda: replica.info("replication")["master_link_status"] == "up", what="the replica's link")
            # A server does not stop while it writes its first append-only file after a full synchronization.
            until(lambda: not replica.info("persistence")["aof_rewrite_in_progress"], what="the replica's file")
            client.execute_command("WAIT", 1, 10_000)
            self.server.kill()
            replica.execute_command("REPLICAOF", "NO", "ONE")
        shutil.rmtree(self.folder / "data")
        (self.folder / "replica").rename(self.folder / "data")
        self.server.start()
        self.lag_is_unknown()

    def keep(self) -> Path:
        """Copy the data of the server to a file, as a backup of the server does, and return the file."""
        self.execute("SAVE")
        return Path(shutil.copy(self.folder / "data" / "dump.rdb", self.folder / "kept.rdb"))

    def put_back(self, kept: Path) -> None:
        """Kill the server, and start it with the data that `keep` has copied."""
        self.server.kill()
        shutil.rmtree(self.folder / "data" / "appendonlydir")
        shutil.copy(kept, self.folder / "data" / "dump.rdb")
        extra, self.server._extra = self.server._extra, ("--appendonly", "no")
        self.server.start()
        self.server._extra = extra
        with Redis.from_url(self.url, protocol=3) as client:
            client.config_set("appendonly", "yes")

            def is_written() -> bool:
                about = client.info("persistence")
                return not about["aof_rewrite_in_progress"] and not about["aof_rewrite_scheduled"]

            until(is_written, what="the append-only file")

    def lag_is_unknown(self) -> None:
        """Note that the server does not know the lag of its groups; a pass of a worker sets it right."""
        self._restarted = True
        if not self.model.waiting:
            self._settle()

    def streams(self) -> list[str]:
        """Return the keys of the streams that exist."""
        found: list[str] = self.ask("reader", "streams", url=self.url)
        return found

    def _settle(self) -> None:
        """Run the pass of a worker that sets the lag right: Redis does not store it in its append-only file."""
        self.ask("worker", "settle", config=self.config)
        self._restarted = False

    def declare(self, rules: Rules) -> None:
        """Change the rules: restart the worker with another configuration, and the producers, so that they read it."""
        self.rules = rules
        self.configure()
        for host in ("app", "reader"):
            self.ask(host, "forget")
        self.model.declare(rules)

    def command(self, *arguments: str, status: int | None = 0, host: str = "reader") -> Any:
        """Run a command of the command line on a host, and return its JSON, or its text if it printed none.

        Raises:
            Mismatch: its exit status is not `status`; `None` accepts any.
        """
        result = self.ask(host, "command", config=self.config, arguments=list(arguments))
        if status is not None and result["status"] != status:
            raise Mismatch(
                f"tallystream {' '.join(arguments)}: exit status {result['status']}, not {status}: "
                f"{(result['err'] or result['out'])[-1500:]}"
            )
        try:
            return json.loads(result["out"])
        except ValueError:
            return result["out"] or result["err"]

    def drop_old(self) -> None:
        """Remove the generations and topics that are not live, so that another can be built."""
        self.command("rebuild", "--drop", "--json")

    def emit_through(self, proxy_url: str, events: list[Occurrence]) -> None:
        """Emit events with a producer that connects to a proxy."""
        self.emit(events, "proxied", url=proxy_url)

    def execute(self, *command: str | bytes) -> Any:
        """Run a command on the server, and return its reply."""
        with Redis.from_url(self.url, protocol=3) as client:
            return client.execute_command(*command)

    def _program(self) -> Path:
        """Return the path of a server program with the server's clock."""
        binary = find_binary() if self.script.server == "valkey" else shutil.which("redis-server")
        assert binary is not None, "no redis-server on PATH"
        variables = " ".join(f"{name}='{value}'" for name, value in self._clock.environment.items())
        program = self.folder / "server"
        program.write_text(f'#!/bin/sh\n{variables} exec {binary} "$@"\n')
        program.chmod(0o700)
        return program


def toml(rules: Rules, url: str, partitions: int, age: str) -> str:
    """Return a configuration file with these rules."""
    lines = [f'zone = "{rules.zone}"', "[redis]", f'url = "{url}"', f"partitions = {partitions}"]
    lines += ["[worker]", 'name = "w1"', "[retention]", f'age = "{age}"', "[serve]", "port = 0"]
    for name, metric in rules.metric.items():
        lines.append(f"[metric.{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in msgspec.to_builtins(metric).items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + "}"
    return "[]" if value == [] else json.dumps(value)
