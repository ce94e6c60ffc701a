"""The row of the fault table in which a primary fails over while a command of an operator runs."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tallystream import Producer
from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream_worker.snapshot.database import Database
from tests.faults.proof import prove, rest
from tests.faults.rows_operator import decider, decisions_count, ends
from tests.faults.table import row
from tests.local_cluster import PRIMARIES

if TYPE_CHECKING:
    from tests.faults.fork_server import Child
    from tests.faults.world import World
    from tests.local_cluster import LocalCluster
    from tests.local_node import ServerNode
    from tests.local_sentinels import LocalSentinels

    Servers = LocalCluster | LocalSentinels

SEATS: Final = [f"t{number}" for number in range(12)]
PARTITIONS: Final = 6
"""The number of partitions that the repartition makes."""
ATTEMPTS: Final = 10
"""The most times that a command is run until it succeeds."""
PATIENCE: Final = 120.0
"""Seconds in which a command must end."""


class Command:
    """A command that changes nothing that counts, and that is repeated until it succeeds.

    Args:
        world: The world.
    """

    name: ClassVar[str]
    again: ClassVar[bool] = True
    """Whether a scenario may run the command a second time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.seats: dict[str, int] = dict.fromkeys(SEATS, 2)
        """The right totals of `seat` of the subjects that only the row counts."""

    def prepare(self) -> None:
        """Make what the command needs; the row injects no fault meanwhile."""

    def start(self) -> Child:
        """Start the command."""
        return self._operate()

    def has_worked(self, child: Child) -> bool:
        """Wait until a run of the command has ended; return whether it was successful."""
        return self.world.ends(child, PATIENCE) == 0

    def drop(self) -> None:
        """Remove what is not live."""
        self._until_done("drop")

    def check(self) -> None:
        """Check at the end what the command has changed; all processes are stopped."""
        totals = self.world.harness.totals()
        found = {seat: totals.get(("seat", seat), 0) for seat in self.seats}
        self.world.expect(found == self.seats, f"seats are {found}, must be {self.seats}")
        prove(self.world)

    def _operate(self, **arguments: Any) -> Child:
        return self.world.process("operate", url=self.world.url, command=self.name, **arguments)

    def _until_done(self, command: str) -> None:
        """Run a command until it succeeds."""
        for _ in range(ATTEMPTS):
            child = self.world.process("operate", url=self.world.url, command=command)
            if (status := self.world.ends(child, PATIENCE)) == 0:
                break
        self.world.expect(status == 0, f"{command} still fails: {child.said()[-1500:]}")

    def _stop(self, child: Child) -> None:
        child.signal(signal.SIGTERM)
        self.world.ends(child)

    def _restart_workers(self, changes: dict[str, dict[str, Any]]) -> None:
        for child in self.world.workers:
            self._stop(child)
        self.world.workers.clear()
        for name in "ab":
            self.world.worker(name, durability="replica", changes=changes)


class Rebuild(Command):
    """`rebuild`."""

    name = "rebuild"


class Repartition(Command):
    """`rebuild --partitions 6`."""

    name = "repartition"
    again = False

    def has_worked(self, child: Child) -> bool:
        """See `Command`; after a successful run, the new partitions are live."""
        has_worked = super().has_worked(child)
        if has_worked:
            found = Deployment.load(self.world.harness.client).layout.partitions
            self.world.expect(found == PARTITIONS, f"{found} partitions are live, must be {PARTITIONS}")
        return has_worked


class Retract(Command):
    """`retract` of one of the two actors."""

    name = "retract"

    def has_worked(self, child: Child) -> bool:
        """See `Command`."""
        self.seats = dict.fromkeys(SEATS, 1)
        return super().has_worked(child)


class Reset(Command):
    """`reset` of one subject."""

    name = "reset"

    def has_worked(self, child: Child) -> bool:
        """See `Command`."""
        self.seats["t0"] = 0
        return super().has_worked(child)


class Undo(Command):
    """`rebuild --undo`, after a rebuild."""

    name = "undo"

    def prepare(self) -> None:
        """Remember the live generation, and rebuild."""
        self._wanted = self._live()
        self._until_done("rebuild")

    def has_worked(self, child: Child) -> bool:
        """Return whether the generation is live that was live before the rebuild, and the command can prove it."""
        status = self.world.ends(child, PATIENCE)
        if status and self._live() == self._wanted:  # a second run would go back to the other one
            self.world.inject("undo failed after the switch")
            return True
        self.world.expect(status or self._live() == self._wanted, f"generation {self._live()}, not {self._wanted}")
        return status == 0

    def _live(self) -> int:
        found = Deployment.load(self.world.harness.client)
        return 0 if found.is_half_switched else found.generation


class Ingest(Command):
    """`ingest` of a file that grows before each run."""

    name = "ingest"

    def prepare(self) -> None:
        """Add rows to the file."""
        self._path = self.world.folder / "rows.ndjson"
        with self._path.open("a") as file:
            for seat in SEATS:
                file.write(json.dumps({"metric": "seat", "subject": seat}) + "\n")
                self.seats[seat] += 1

    def start(self) -> Child:
        """See `Command`."""
        return self._operate(path=str(self._path))


class Restore(Command):
    """`restore --force` of an older snapshot; the entries after it are still in the streams."""

    name = "restore"

    def prepare(self) -> None:
        """Take a snapshot, unless there is one, and let more events be counted."""
        self._place = str(self.world.folder / "snapshot.sqlite")
        taker = self.world.process("snapshots", url=self.world.url, place=self._place, every=0.1)
        with contextlib.closing(Database(self._place)) as database:
            self.world.until(database.facts, "a complete snapshot")
        self._stop(taker)
        self.world.flow(20)

    def start(self) -> Child:
        """See `Command`."""
        return self._operate(path=self._place)


class Retry(Command):
    """`dead retry --all` of events whose metric is declared after they were dead-lettered."""

    name = "retry"
    again = False

    def prepare(self) -> None:
        """Append events of a metric that is not declared, and declare it when they are dead letters."""
        self._sent = self.world.chance.randint(1, 20)
        client, layout = self.world.harness.client, self.world.harness.layout
        for number in range(self._sent):
            seat = SEATS[number % len(SEATS)]
            client.xadd(layout.keys_of(seat).stream, {"metric": "new", "subject": seat})
        self.world.until(lambda: len(self.world.harness.dead()) == self._sent, "the dead letters")
        self._restart_workers({"new": {}})
        self.world.until(lambda: "new" in Deployment.load(client).rules.metric, "the declaration of the new metric")
        check = DurabilityCheck("replica")
        self.world.until(lambda: not check.confirm(client, layout.confirmed), "the confirmation of all this")

    def has_worked(self, child: Child) -> bool:
        """Return whether there are no more dead letters; a run that finds none fails."""
        status = self.world.ends(child, PATIENCE)
        return status == 0 or "entries 0, events counted 0, dead lettered again 0" in child.said()

    def check(self) -> None:
        """See `Command`."""
        super().check()
        found = sum(total for (metric, _), total in self.world.harness.totals().items() if metric == "new")
        self.world.expect(found == self._sent, f"{found} events of dead letters, must be {self._sent}")


class Rules(Command):
    """A worker that starts with changed rules."""

    name = "rules"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._changes: dict[str, dict[str, Any]] = {}

    def prepare(self) -> None:
        """Change a rule of both metrics of a pair."""
        field, values = self.world.chance.choice(
            [("windows", [["hour", "day"], ["minute", "hour"]]), ("top", [0, 3, 20])]
        )
        before = self._changes.get("view", {}).get(field)
        value = self.world.chance.choice([each for each in values if each != before])
        for metric in ("view", "like"):
            self._changes.setdefault(metric, {})[field] = value

    def start(self) -> Child:
        """Stop a worker, and start it with the changed rules."""
        old = next(child for child in self.world.workers if child.name.startswith("worker-a"))
        self.world.workers.remove(old)
        self._stop(old)
        return self.world.worker("a", durability="replica", changes=self._changes)

    def has_worked(self, child: Child) -> bool:
        """Return whether the worker has published the rules, and logged no warning that they may be lost."""
        self.world.until(lambda: child.wait(0) is not None or "worker.started" in child.said(), "a worker", PATIENCE)
        return child.wait(0) is None and "rules.unconfirmed" not in child.said()

    def check(self) -> None:
        """Check that the rules are still the changed ones, and that a rebuild counts by them."""
        live = Deployment.load(self.world.harness.client).rules
        for metric, fields in self._changes.items():
            for name, value in fields.items():
                found = getattr(live.metric[metric], name)
                found = list(found) if isinstance(found, tuple) else found
                self.world.expect(found == value, f"{name} of {metric} is {found}, must be {value}")
        self._until_done("rebuild")
        self._until_done("drop")
        self.world.harness.layout = Deployment.load(self.world.harness.client).layout
        super().check()


COMMANDS: Final = (Rebuild, Repartition, Retract, Reset, Undo, Ingest, Restore, Retry, Rules)


@row(41, "failover while a command runs", "B P D R")
def command_fails_over(world: World) -> None:
    """A command with the durability `replica` can be repeated after a failover; then nothing confirmed is missing."""
    servers = _servers(world)
    command = world.chance.choice(COMMANDS)(world)
    world.oracle_knows -= {"seat"}  # the row itself knows the right totals
    world.crowd(most=2, pause=0.05, durability="replica")
    for name in "ab":
        world.worker(name, durability="replica")
    with contextlib.closing(Producer(world.url, durability="replica")) as producer:
        for seat in SEATS:
            producer.emit("seat", seat, actor="man")
            producer.emit("seat", seat, actor="bot")
        producer.flush(30, wait="counted")
    deciding, book = decider(world, "replica")
    world.flow(50)
    world.watch.stop()  # the keys of the counters change
    world.inject(command.name)
    for _ in range(world.chance.randint(1, 2) if command.again else 1):
        command.prepare()
        _run(world, servers, command)
        world.harness.layout = Deployment.load(world.harness.client).layout
        world.flow(20)
    world.heal()
    world.flow(50)
    ends(world, deciding)
    world.afterwards.append(lambda _: decisions_count(world, book))
    world.afterwards.append(lambda _: rest(world))
    world.afterwards.append(lambda _: command.check())


def _servers(world: World) -> Servers:
    """Start a cluster, or a primary with a replica and Sentinels."""
    if shutil.which("redis-sentinel") and world.chance.random() < 0.5:
        world.inject("Sentinel")
        return world.serve_sentinels()
    return world.serve_cluster(replicas=PRIMARIES)


def _run(world: World, servers: Servers, command: Command) -> None:
    """Run a command while a primary fails over; then repeat it until it succeeds, and drop what is not live."""
    child = _fail_over(world, servers, command)
    for _ in range(ATTEMPTS):
        if command.has_worked(child):
            break
        world.inject("command failed and repeated")
        if "--drop" in child.said():  # as the error states
            command.drop()
        child = command.start()
    else:
        world.expect(command.has_worked(child), f"{command.name} still fails: {child.said()[-1500:]}")
    command.drop()


def _fail_over(world: World, servers: Servers, command: Command) -> Child:
    """Start a command, and let a replica take over from a primary that is killed or frozen; before, it may lag.

    A replica that lags from the start makes the command wait in its first step until the failover.
    """
    primary: ServerNode = world.chance.choice([node for node in servers.nodes if node.is_primary()])
    heir = servers.replica_of(primary)  # type: ignore[arg-type]
    lags = world.chance.choice(["not", "at the start", "later"])
    if lags == "at the start":
        _lag(world, primary, heir)
    child = command.start()
    world.pause(0, world.chance.choice([0.2, 1.0, 2.0]))
    if lags == "later":
        _lag(world, primary, heir)
    if lags != "not":
        world.pause(0, 1.0)
    if child.wait(0) is None:
        world.inject("the command runs")
    is_frozen = world.chance.random() < 0.5
    _stop(primary, is_frozen=is_frozen)
    heir.thaw()
    world.until(heir.is_primary, "the promotion")
    world.inject("failover of a primary that is " + ("frozen" if is_frozen else "killed"))
    if is_frozen:
        primary.thaw()
        world.pause(0, 0.5)  # until it learns its new role, a primary of Sentinels accepts writes of old connections
    else:
        primary.server.start()
    servers.rejoin(primary)  # type: ignore[arg-type]
    return child


def _lag(world: World, primary: ServerNode, heir: ServerNode) -> None:
    """Let a replica get nothing more."""
    heir.freeze()
    primary.ask("CLIENT", "KILL", "TYPE", "replica")
    world.inject("replica lags")


def _stop(node: ServerNode, *, is_frozen: bool) -> None:
    if is_frozen:
        node.freeze()
    else:
        node.server.kill()
