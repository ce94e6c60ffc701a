"""The row of the table in which a cluster moves the slots that are counted in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.client.cluster.slots import slot_of
from tests.faults.table import row
from tests.local_cluster import PRIMARIES

if TYPE_CHECKING:
    from tests.faults.world import World
    from tests.local_cluster import LocalCluster, LocalNode


@row(32, "slots move; MOVED, ASK, TRYAGAIN", "B P D M R")
def slots_move(world: World) -> None:
    """Whoever is told that it is elsewhere goes there; what lies on two nodes waits, and is counted once."""
    replicas = int(world.chance.random() < 0.25)
    cluster = world.serve_cluster(replicas=replicas)
    world.crowd()
    worker = world.worker("a")
    if world.chance.random() < 0.4:
        world.worker("b")
    if world.chance.random() < 0.5:
        _with_every_key(world)
    world.flow(50)
    for _ in range(world.chance.randint(2, 4)):
        match world.chance.choice(["move", "move", "open", "back", "freeze", "kill", *["failover"] * (2 * replicas)]):
            case "freeze":
                _freeze(world, cluster)
            case "failover":
                _fail_over(world, cluster)
            case "kill":
                move = _Move(world, cluster)
                move.some()
                world.kill(worker)
                worker = world.worker("a")
                move.finish()
            case "open":
                move = _Move(world, cluster)
                move.some()
                world.pause(0.2, 3.0)  # for longer than clients wait, too
                move.finish()
            case "back":
                move = _Move(world, cluster)
                move.some()
                move.finish()
                move.back()
                move.finish()
            case _:
                _Move(world, cluster).finish()
        world.flow(20)
    world.heal()
    world.flow(50)


def _with_every_key(world: World) -> None:
    """Let all that scripts declare be there: then no key that is always missing keeps a node from running them."""
    for keys in world.harness.layout.keys:
        world.harness.client.xadd(keys.stream, {"no": "event"})
        world.harness.client.set(keys.live, keys.generation)
    world.inject("poison entry", len(world.harness.layout.keys))
    world.until(lambda: len(world.harness.dead()) == len(world.harness.layout.keys), "the parking of all poison")


class _Move:
    """A move of the slot of a partition, from the node that serves it to another."""

    def __init__(self, world: World, cluster: LocalCluster) -> None:
        keys = world.chance.choice(world.harness.layout.keys)
        self._world, self._cluster = world, cluster
        self._slot, self._source = slot_of(keys.stream), cluster.owner(keys.stream)
        others = [node for node in cluster.nodes if node.is_primary() and node is not self._source]
        self._target = world.chance.choice(others)
        if world.chance.random() < 0.5:
            self._target.ask("SCRIPT", "FLUSH")
            world.inject("scripts missing on the target")
        cluster.open_move(self._slot, self._source, self._target)

    def some(self) -> None:
        """Move some of the keys: from now on they lie on two nodes."""
        self._cluster.move_keys(self._slot, self._source, self._target, self._world.chance.randint(1, 30))
        self._world.inject("slot on two nodes")

    def finish(self) -> None:
        """Move the rest, in steps, however often keys come to be meanwhile."""
        while self._cluster.move_keys(self._slot, self._source, self._target, self._world.chance.randint(5, 50)):
            self._world.pause(0, 0.02)
        self._cluster.close_move(self._slot, self._source, self._target)
        self._world.inject("slot moved")

    def back(self) -> None:
        """Begin the move in the other direction; one that is open can only be finished."""
        self._source, self._target = self._target, self._source
        self._cluster.open_move(self._slot, self._source, self._target)


def _freeze(world: World, cluster: LocalCluster) -> None:
    """Stop a node for less or more than the others' patience: without one of them, none of them serves anything."""
    # Not one with a replica: that would lead, without what it had not got yet, and that is rows 9 to 11.
    node = world.chance.choice([node for node in cluster.nodes[:PRIMARIES] if not _has_replica(node)])
    node.freeze()
    world.inject("SIGSTOP of a node")
    world.pause(0.1, 2.5)
    node.thaw()
    cluster.wait_until_whole()


def _fail_over(world: World, cluster: LocalCluster) -> None:
    """Have a replica take over in order, with everything that its primary has."""
    replica = next(node for node in cluster.nodes if not node.is_primary())
    replica.ask("CLUSTER", "FAILOVER")
    world.until(replica.is_primary, "the promotion")
    world.inject("CLUSTER FAILOVER")
    cluster.wait_until_whole()


def _has_replica(node: LocalNode) -> bool:
    return bool(node.client.info("replication").get("connected_slaves"))
