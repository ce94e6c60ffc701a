"""The row of the fault table in which a cluster moves the slots of partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from tallystream.client.cluster.slots import slot_of
from tests.faults.table import row
from tests.local_cluster import PRIMARIES

if TYPE_CHECKING:
    from tests.faults.world import World
    from tests.local_cluster import LocalCluster, LocalNode


@row(32, "slots move; MOVED, ASK, TRYAGAIN", "B P D M R")
def slots_move(world: World) -> None:
    """Clients follow a moved slot; entries of a slot that is on two nodes wait, and are counted once."""
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
                move = Move(world, cluster)
                move.some()
                world.kill(worker)
                worker = world.worker("a")
                move.finish()
            case "open":
                move = Move(world, cluster)
                move.some()
                world.pause(0.2, 3.0)  # may be longer than clients wait
                move.finish()
            case "back":
                move = Move(world, cluster)
                move.some()
                move.finish()
                move.back()
                move.finish()
            case _:
                Move(world, cluster).finish()
        world.flow(20)
    world.heal()
    world.flow(50)


def _with_every_key(world: World) -> None:
    """Create every key that scripts declare: a missing one would make both nodes refuse a script during a move."""
    for keys in world.harness.layout.keys:
        world.harness.client.xadd(keys.stream, {"no": "event"})
    world.inject("poison entry", len(world.harness.layout.keys))
    world.until(lambda: len(world.harness.dead()) == len(world.harness.layout.keys), "all poison in dead letters")


class Move:
    """A move of the slot of a key, or of a random partition, from its node to another primary.

    The constructor begins it.
    """

    def __init__(self, world: World, cluster: LocalCluster, key: str = "") -> None:
        key = key or world.chance.choice(world.harness.layout.keys).stream
        self._world, self._cluster = world, cluster
        self._slot, self._source = slot_of(key), cluster.owner(key)
        others = [node for node in cluster.nodes if node.is_primary() and node is not self._source]
        self._target = world.chance.choice(others)
        if world.chance.random() < 0.5:
            self._target.ask("SCRIPT", "FLUSH")
            world.inject("scripts missing on the target")
        cluster.open_move(self._slot, self._source, self._target)

    def some(self) -> None:
        """Move some keys of the slot, so that its keys are on two nodes."""
        self._move_keys(1, 30)
        self._world.inject("slot on two nodes")

    def finish(self) -> None:
        """Move the other keys in steps, also those created meanwhile, and end the move."""
        while self._move_keys(5, 50):
            self._world.pause(0, 0.02)
        self._cluster.close_move(self._slot, self._source, self._target)
        self._world.inject("slot moved")

    def _move_keys(self, least: int, most: int) -> int:
        """Move some keys, and return their number; no script may have created one of them on the target."""
        number = self._world.chance.randint(least, most)
        try:
            return self._cluster.move_keys(self._slot, self._source, self._target, number)
        except ResponseError as error:
            self._world.expect("BUSYKEY" not in str(error), f"a script wrote a key of the slot on both nodes: {error}")
            raise

    def back(self) -> None:
        """Begin a move in the opposite direction; the previous move must be finished."""
        self._source, self._target = self._target, self._source
        self._cluster.open_move(self._slot, self._source, self._target)


def _freeze(world: World, cluster: LocalCluster) -> None:
    """Suspend a primary for less or more than the node timeout; while it counts as failed, no node serves anything."""
    # Not a primary with a replica: its failover could lose writes, which is tested in rows 9 to 11.
    node = world.chance.choice([node for node in cluster.nodes[:PRIMARIES] if not _has_replica(node)])
    node.freeze()
    world.inject("SIGSTOP of a node")
    world.pause(0.1, 2.5)
    node.thaw()
    cluster.wait_until_whole()


def _fail_over(world: World, cluster: LocalCluster) -> None:
    """Make a replica take over by CLUSTER FAILOVER, after it has received everything from its primary."""
    replica = next(node for node in cluster.nodes if not node.is_primary())
    replica.ask("CLUSTER", "FAILOVER")
    world.until(replica.is_primary, "the promotion")
    world.inject("CLUSTER FAILOVER")
    cluster.wait_until_whole()


def _has_replica(node: LocalNode) -> bool:
    return bool(node.client.info("replication").get("connected_slaves"))
