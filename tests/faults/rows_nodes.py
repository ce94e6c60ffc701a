"""The row of the fault table in which nodes of a cluster change while a command of an operator runs."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream import Producer, Totals
from tallystream.client.cluster.slots import slot_of
from tallystream.deployment import Deployment
from tallystream.errors import TallyError
from tallystream_worker.archive.archiver import ARCHIVE_GROUP
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.faults.proof import prove, rest
from tests.faults.rows_cluster import Move
from tests.faults.rows_operator import SEATS as DECIDED
from tests.faults.rows_operator import decider, decisions_count, ends
from tests.faults.table import row
from tests.faults.watch import PAIR
from tests.local_cluster import PRIMARIES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.fork_server import Child
    from tests.faults.world import World
    from tests.local_cluster import LocalCluster, LocalNode

SEATS: Final = [f"t{number}" for number in range(12)]
ATTEMPTS: Final = 10
"""The most times that a command is run until it succeeds."""
PATIENCE: Final = 120.0
"""Seconds in which a command must end."""
QUIET: Final = frozenset({"verify", "snapshot", "reset"})
"""The commands after which the keys of the watched counters are the same."""


@row(42, "nodes of a cluster change while a command runs", "B P D R")
def nodes_change(world: World) -> None:
    """After a command whose nodes change, each event counts once; what a lost node had is named and can be restored."""
    event = world.chance.choice(["move", "move", "atomic", "gone", "gone", "empty", "empty"])
    cluster = world.serve_cluster(replicas=PRIMARIES if event == "gone" else 0)
    if event == "atomic" and not cluster.nodes[0].moves_at_once:
        event = "move"
    loses = event in ("gone", "empty")
    scene = _Scene(world, cluster)
    scene.begin()
    name = world.chance.choice(["rebuild", "repartition", "retract", "reset", "restore", "snapshot", "verify"])
    world.inject(name)
    if loses or name not in QUIET:
        world.watch.stop()
    if loses:
        scene.lower_bounds()
    child = scene.start(name)
    world.pause(0, world.chance.choice([0.2, 1.0, 2.0]))
    if child.wait(0) is None:
        world.inject("the command runs")
    match event:
        case "move":
            _move(world, cluster)
        case "atomic":
            _move_at_once(world, cluster)
        case "gone":
            _gone(world, cluster)
        case _:
            _comes_back_empty(world, cluster)
    status = scene.ends(child)
    if loses:
        scene.repair(name, status)
        status = None
    scene.complete(name, status, child)
    world.until(scene.follows, "the description of the deployment")
    world.heal()
    world.flow(50)
    scene.end()


class _Scene:
    """The processes of the row, and what they must find at the end."""

    def __init__(self, world: World, cluster: LocalCluster) -> None:
        self._world, self._cluster = world, cluster
        self._archive = str(world.folder / "archive")
        self._snapshot = str(world.folder / "snapshot.sqlite")
        self._config = world.folder / "operator.toml"
        self._seats: dict[str, int] = dict.fromkeys(SEATS, 2)
        self._least: dict[tuple[str, str], int] = {}
        self._loses = False
        self._lossy: set[str] = set()
        self._reader: _Reader
        self._deciding: Child
        self._book: Path

    def begin(self) -> None:
        """Start all processes, and wait until events are counted, archived and in a snapshot."""
        world = self._world
        self._config.write_text(f'[archive]\nurl = "{self._archive}"\n[snapshot]\nurl = "{self._snapshot}"\n')
        world.crowd(most=2, pause=0.05)
        world.worker("a", archive={"url": self._archive, "every": 0.3})
        world.worker("b", snapshot={"url": self._snapshot, "every": 0.3})
        with contextlib.closing(Producer(world.url)) as producer:
            for seat in SEATS:
                producer.emit("seat", seat, actor="man")
                producer.emit("seat", seat, actor="bot")
            producer.flush(30, wait="counted")
        self._deciding, self._book = decider(world)
        world.flow(50)
        with contextlib.closing(Database(self._snapshot)) as database:
            world.until(database.facts, "a complete snapshot")
        self._reader = _Reader(world.url)
        self._reader.start()
        world.on_exit(self._reader.stop)

    def lower_bounds(self) -> None:
        """Remember what is counted now, and wait until all of it is archived: it may not be lost."""
        self._loses = True
        self._world.loss = "a node lost its data"
        self._world.replays = False  # the streams may lack the entries before the restored snapshot
        self._least = self._world.harness.totals()
        layout, client = self._world.harness.layout, self._world.harness.client
        lasts = [client.xinfo_stream(keys.stream)["last-generated-id"] for keys in layout.keys]

        def is_archived() -> bool:
            return all(
                any(
                    group["name"] == ARCHIVE_GROUP.encode() and _place(group["last-delivered-id"]) >= _place(last)
                    for group in client.xinfo_groups(keys.stream)
                )
                for keys, last in zip(layout.keys, lasts, strict=True)
            )

        self._world.until(is_archived, "the archive of all entries")

    def start(self, name: str, **options: Any) -> Child:
        """Start a command, without the events that only the counters have if it must (see `_hears`)."""
        if name in self._lossy:
            options["accept_loss"] = True
        return self._world.process(
            "steer", url=self._world.url, command=name, config=str(self._config), options=options
        )

    def ends(self, child: Child) -> int:
        """Wait for the end of a command, check that it fails only with a message, and return its exit status."""
        status = self._world.ends(child, PATIENCE)
        said = child.said()
        self._world.expect(status in (0, 1, 2) and "Traceback" not in said, f"{status}: {said[-3000:]}")
        return status

    def run(self, name: str, **options: Any) -> Child:
        """Run a command until it succeeds."""
        for _ in range(ATTEMPTS):
            child = self.start(name, **options)
            if (status := self.ends(child)) == 0:
                return child
            self._hears(name, child)
        self._world.expect(status == 0, f"{name} still fails: {child.said()[-3000:]}")
        return child

    def _hears(self, name: str, child: Child) -> None:
        """Let a command leave out the events that a restored snapshot has and the archive has not, if it asks for it.

        docs/guarantees/not-guaranteed.md states this loss; without a loss of data, no command may ask for it.
        """
        if "neither in the streams nor in the archive" in child.said():
            self._world.expect(self._loses, child.said()[-3000:])
            self._world.inject("events that only the counters had")
            self._lossy.add(name)

    def repair(self, name: str, status: int) -> None:
        """Restore the partitions that a node has lost, as the messages say."""
        if name == "restore" and status == 0 and not self._is_wrong():
            self._world.inject("the command repaired the loss")
            return
        self._world.expect(self._is_wrong(), "verify does not name the loss")
        options: dict[str, Any] = {"force": True}
        for _ in range(ATTEMPTS):
            child = self.start("restore", **options)
            status = self.ends(child)
            said = child.said()
            if status and "--accept-loss" in said:
                self._world.inject("restore without the events of another topic")
                options["accept_loss"] = True
            elif status == 0 or "restored in" in said:
                break
        else:
            self._world.expect(status == 0, f"restore still fails: {said[-3000:]}")
        self._world.inject("restore of a lost node")
        if status:
            self._world.expect("tallystream rebuild" in said, said[-3000:])
            self.run("rebuild")

    def _is_wrong(self) -> bool:
        """Return whether `verify` has a finding, and check that it names it."""
        for _ in range(ATTEMPTS):
            child = self.start("verify")
            status = self.ends(child)
            if status == 1:
                self._world.expect("WRONG: " in child.said(), child.said()[-3000:])
                return True
            if status == 0:
                return False
        self._world.expect(status != 2, f"verify cannot verify: {child.said()[-3000:]}")
        return False

    def complete(self, name: str, status: int | None, child: Child) -> None:
        """Repeat a command until it succeeds, and drop what is not live."""
        for _ in range(ATTEMPTS):
            if status == 0 or (name == "repartition" and self._is_repartitioned()):
                break
            if status is not None:
                self._world.inject("command failed and repeated")
            if "--drop" in child.said():  # as the error states
                self.run("drop")
            self._hears(name, child)
            child = self.start(name)
            status = self.ends(child)
        else:
            self._world.expect(status == 0, f"{name} still fails: {child.said()[-3000:]}")
        if name == "retract":
            self._seats = dict.fromkeys(SEATS, 1)
        elif name == "reset":
            self._seats["t0"] = 0
        self.run("drop")

    def _is_repartitioned(self) -> bool:
        self._world.until(self.follows, "the description of the deployment")
        return self._world.harness.layout.partitions == 6  # as `steer` states

    def follows(self) -> bool:
        """Let the harness use the live counters; return `False` if a node does not answer."""
        with contextlib.suppress(RedisError):  # the first command after the loss of a node
            self._world.harness.layout = Deployment.load(self._world.harness.client).layout
            return all(self._world.harness.client.exists(keys.stream) for keys in self._world.harness.layout.keys)
        return False

    def end(self) -> None:
        """End what the row has started, and let the run check its figures at the end."""
        world = self._world
        ends(world, self._deciding)
        self._reader.stop()
        world.expect(not self._reader.wrong, f"a reader got {self._reader.wrong}")
        if not self._loses:
            world.afterwards.append(lambda _: decisions_count(world, self._book))
        world.afterwards.append(lambda _: self._check())

    def _check(self) -> None:
        world = self._world
        rest(world)
        totals = world.harness.totals()
        found = {seat: totals.get(("seat", seat), 0) for seat in SEATS}
        world.expect(found == self._seats, f"seats are {found}, must be {self._seats}")
        self._check_bounds(totals)
        deployment = Deployment.create_or_load(world.harness.client)
        store = Store(self._archive, "tally", deployment.layout.topic)
        Archive(world.harness.client, store, deployment).run_once(settled=0)
        with contextlib.closing(Database(self._snapshot)) as database:
            Snapshotter(world.harness.client, database, deployment).run_once()
        prove(world, archive=store, snapshot=self._snapshot)

    def _check_bounds(self, totals: dict[tuple[str, str], int]) -> None:
        """Check that nothing archived is lost, and that no decided event counts twice."""
        outcomes = Counter(self._book.read_text(encoding="utf-8").split("\n"))
        decided = [("seat", f"s{number}") for number in range(DECIDED)]
        for counter, least in self._least.items():
            if counter[0] in PAIR or counter in decided:
                found = totals.get(counter, 0)
                self._world.expect(found >= least, f"{counter}: {found}, but {least} were archived")
        for counter in decided:
            most = outcomes[f"accepted {counter[1]}"] + outcomes[f"unknown {counter[1]}"]
            self._world.expect(totals.get(counter, 0) <= most, f"{counter}: {totals.get(counter, 0)} of {most} decided")


class _Reader(threading.Thread):
    """A thread that reads the totals of the row's own subjects all the time, and keeps those that were never right."""

    def __init__(self, url: str) -> None:
        super().__init__(name="reader", daemon=True)
        self._url = url
        self._ended = threading.Event()
        self.wrong: set[tuple[str, int]] = set()
        self.reads = 0

    def run(self) -> None:
        """Read until stopped."""
        while not self._ended.is_set():
            with contextlib.suppress(RedisError, TallyError), Totals(self._url) as totals:
                while not self._ended.is_set():
                    for seat in SEATS:
                        with contextlib.suppress(RedisError, TallyError):
                            self._judge(seat, totals.get(seat, "seat").value)
                        self._ended.wait(0.005)
            self._ended.wait(0.05)

    def _judge(self, seat: str, value: int) -> None:
        self.reads += 1
        if value not in (1, 2) and not (value == 0 and seat == "t0"):
            self.wrong.add((seat, value))

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._ended.set()
        self.join()


def _names(world: World) -> list[str]:
    """Return a key of each partition, and the root, of which a node has a slot."""
    layout = world.harness.layout
    with contextlib.suppress(RedisError, TallyError):
        layout = Deployment.load(world.harness.client).layout
    return [layout.root, *(keys.stream for keys in (*layout.keys, *world.harness.layout.keys))]


def _move(world: World, cluster: LocalCluster) -> None:
    """Move some slots, key by key."""
    for _ in range(world.chance.randint(1, 3)):
        move = Move(world, cluster, world.chance.choice(_names(world)))
        if world.chance.random() < 0.5:
            move.some()
            world.pause(0, world.chance.choice([0.1, 1.0, 3.0]))  # may be longer than clients wait
        move.finish()
        if world.chance.random() < 0.3:
            move.back()
            move.finish()


def _move_at_once(world: World, cluster: LocalCluster) -> None:
    """Move some slots, each with all its keys at once."""
    for _ in range(world.chance.randint(1, 4)):
        name = world.chance.choice(_names(world))
        source = cluster.owner(name)
        target = world.chance.choice([node for node in cluster.nodes if node is not source])
        cluster.move_at_once(slot_of(name), source, target)
        world.inject("slot moved at once")
        if world.chance.random() < 0.3:
            cluster.move_at_once(slot_of(name), target, source)
            world.inject("slot moved at once")


def _gone(world: World, cluster: LocalCluster) -> None:
    """Lose a primary and its replica for good, and give their slots to another primary."""
    primary = world.chance.choice(cluster.nodes[:PRIMARIES])
    replica = cluster.replica_of(primary)
    for node in (primary, replica):
        node.server.kill()
    world.inject("loss of a primary and its replica")
    world.pause(0, 3.0)
    heir = world.chance.choice([node for node in cluster.nodes[:PRIMARIES] if node is not primary])
    cluster.replace_lost([primary, replica], heir)


def _comes_back_empty(world: World, cluster: LocalCluster) -> None:
    """Kill a primary without a replica, and start it again without its data."""
    node: LocalNode = world.chance.choice(cluster.nodes)
    node.server.kill()
    world.pause(0, world.chance.choice([0, 3.0]))  # the other nodes may notice it
    node.lose_data()
    node.server.start()
    world.inject("a primary comes back empty")
    cluster.wait_until_whole()


def _place(id_: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in id_.split(b"-"))
