"""The row of the fault table in which a primary of a cluster fails over while a command of an operator runs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from tallystream import Producer
from tallystream.deployment import Deployment
from tests.faults.rows_operator import decider, decisions_count, ends
from tests.faults.table import row
from tests.local_cluster import PRIMARIES

if TYPE_CHECKING:
    from tests.faults.fork_server import Child
    from tests.faults.world import World
    from tests.local_cluster import LocalCluster, LocalNode

SEATS: Final = [f"t{number}" for number in range(12)]
ATTEMPTS: Final = 10
"""The most times that a command is run until it succeeds."""


@row(41, "failover while a command runs", "B P D R")
def command_fails_over(world: World) -> None:
    """A command with the durability `replica` can be repeated after a failover; then nothing confirmed is missing."""
    cluster = world.serve_cluster(replicas=PRIMARIES)
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
    command = world.chance.choice(["rebuild", "repartition", "retract", "reset"])
    world.watch.stop()  # the keys of the counters change
    for _ in range(1 if command == "repartition" else world.chance.randint(1, 2)):
        _run(world, cluster, command)
    world.harness.layout = Deployment.load(world.harness.client).layout
    world.heal()
    world.flow(50)
    ends(world, deciding)
    world.afterwards.append(lambda _: decisions_count(world, book))
    expected = dict.fromkeys(SEATS, 1 if command == "retract" else 2) | ({"t0": 0} if command == "reset" else {})
    world.afterwards.append(lambda _: _seats_are(world, expected))


def _run(world: World, cluster: LocalCluster, command: str) -> None:
    """Run a command while a primary fails over; then repeat it until it succeeds, and drop what is not live."""
    child = _fail_over(world, cluster, command)
    status, said = world.ends(child, 120), child.said()
    for _ in range(ATTEMPTS):
        if status == 0:
            break
        world.inject(f"{command} failed and repeated")
        if "--drop" in said:  # as the error states
            world.ends(world.process("operate", url=world.url, command="drop"), 120)
        child = world.process("operate", url=world.url, command=command)
        status, said = world.ends(child, 120), child.said()
    world.expect(status == 0, f"{command} still fails: {said[-1500:]}")
    for _ in range(ATTEMPTS):
        child = world.process("operate", url=world.url, command="drop")
        if (status := world.ends(child, 120)) == 0:
            break
    world.expect(status == 0, f"drop still fails: {child.said()[-1500:]}")


def _fail_over(world: World, cluster: LocalCluster, command: str) -> Child:
    """Start a command, and let a replica take over from a primary that is killed or frozen; before, it may lag.

    A replica that lags from the start makes the command wait in its first step until the failover.
    """
    primary = world.chance.choice([node for node in cluster.nodes if node.is_primary()])
    heir = cluster.replica_of(primary)
    lags = world.chance.choice(["not", "at the start", "later"])
    if lags == "at the start":
        _lag(world, primary, heir)
    child = world.process("operate", url=world.url, command=command)
    world.pause(0, 1.0)
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
    else:
        primary.server.start()
    cluster.wait_until_whole()
    return child


def _lag(world: World, primary: LocalNode, heir: LocalNode) -> None:
    """Let a replica get nothing more."""
    heir.freeze()
    primary.ask("CLIENT", "KILL", "TYPE", "replica")
    world.inject("replica lags")


def _stop(node: LocalNode, *, is_frozen: bool) -> None:
    if is_frozen:
        node.freeze()
    else:
        node.server.kill()


def _seats_are(world: World, expected: dict[str, int]) -> None:
    totals = world.harness.totals()
    found = {seat: totals.get(("seat", seat), 0) for seat in expected}
    world.expect(found == expected, f"seats are {found}, must be {expected}")
