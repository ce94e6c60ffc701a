"""Rows of the fault table with a failover. Clients connect to a proxy, which always leads to the current primary."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tallystream.deployment import Deployment
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tests.faults.failure import ExpectationFailed
from tests.faults.table import row

if TYPE_CHECKING:
    from tallystream_worker.server.embedded import EmbeddedServer
    from tests.faults.world import World
    from tests.proxy import Proxy


@row(9, "failover without WAIT", "P D R")
def failover(world: World) -> None:
    """A failover loses at most the writes that the replica lacked; producers notice the gap, and counting continues."""
    primary, replica, link = _replicated(world)
    address = world.proxy()
    world.crowd(url=address.url)
    world.worker("a", url=address.url)
    world.flow(100)
    link.freeze()  # the replica gets no more writes
    world.arrive(world.chance.randint(20, 200))
    _fail_over(world, primary, replica, address, link)
    world.loss = "the replica lacked it"
    world.heal()
    world.flow(50)
    _rewinds_were_noticed(world)


@row(10, "failover with WAIT 1", "B P D R")
def failover_confirmed(world: World) -> None:
    """Events that were confirmed by a replica survive the loss of the primary."""
    primary, replica, link = _replicated(world)
    address = world.proxy()
    world.crowd(url=address.url, durability="replica")
    world.worker("a", url=address.url, durability=world.chance.choice(["memory", "replica"]))
    world.flow(100)
    link.freeze()  # nothing more is confirmed, although the primary accepts writes
    world.pause(0, 0.3)
    _fail_over(world, primary, replica, address, link)
    # The new primary has no replica: it confirms nothing until it has one again.
    os.kill(primary.pid, signal.SIGCONT)
    world.harness.connect(primary.url).replicaof("127.0.0.1", int(replica.url.rpartition(":")[2]))
    world.heal()
    world.flow(50)


@row(11, "old primary comes back", "P D M R")
def old_primary_returns(world: World) -> None:
    """An old primary that rejoins discards its own writes, and nothing is counted twice, even if it leads again."""
    primary, replica, link = _replicated(world)
    address = world.proxy()
    world.crowd(url=address.url)
    world.worker("a", url=address.url)
    world.flow(100)
    if world.chance.random() < 0.5:
        link.freeze()
        world.arrive(world.chance.randint(20, 200))
    _fail_over(world, primary, replica, address, link)
    world.loss = "the replica lacked it"
    world.flow(50)
    os.kill(primary.pid, signal.SIGCONT)  # it answers the commands that were in its sockets
    returned = world.harness.connect(primary.url)
    world.pause(0, 0.1)
    returned.replicaof("127.0.0.1", int(replica.url.rpartition(":")[2]))
    world.inject("old primary came back")
    world.until(lambda: returned.info("replication")["master_link_status"] == "up", "the resynchronisation")
    if world.chance.random() < 0.5:
        world.flow(50)
        _fail_over(world, replica, primary, address, None)
        os.kill(replica.pid, signal.SIGCONT)
    world.heal()
    world.flow(50)


@row(36, "failover with an archive", "P D R")
def failover_archived(world: World) -> None:
    """After a failover to a replica that lacked archived entries, the archive has each entry of the stream once."""
    primary, replica, link = _replicated(world)
    address = world.proxy()
    world.crowd(url=address.url)
    world.worker("a", url=address.url)
    store = Store(str(world.folder / "archive"))
    world.flow(100)
    _archive(world, store, primary)
    link.freeze()  # the replica gets no more writes
    world.arrive(world.chance.randint(20, 200))
    if _archive(world, store, primary) == 0:
        raise ExpectationFailed("no entry was archived that the replica lacks")
    _fail_over(world, primary, replica, address, link)
    world.loss = "the replica lacked it"
    if world.chance.random() < 0.5:
        world.arrive(world.chance.randint(20, 200))
        _archive(world, store, replica)
    world.heal()
    world.flow(50)
    _rewinds_were_noticed(world)
    world.afterwards.append(lambda _: _is_archived(world, store, replica))


def _archive(world: World, store: Store, server: EmbeddedServer) -> int:
    """Archive all entries of a server, also those that it may still lose; return the number of events."""
    client = world.harness.connect(server.url)
    return Archive(client, store, Deployment.create_or_load(client)).run_once(settled=0)


def _is_archived(world: World, store: Store, server: EmbeddedServer) -> None:
    _archive(world, store, server)
    client = world.harness.connect(server.url)
    for number, keys in enumerate(world.harness.layout.keys):
        archived = [entry.id for entry in entries(store, number)]
        expected = [id_.decode() for id_, _ in client.xrange(keys.stream)]
        world.expect(archived == expected, f"{keys.stream}: {len(archived)} archived entries, {len(expected)} expected")


def _replicated(world: World) -> tuple[EmbeddedServer, EmbeddedServer, Proxy]:
    """Start a primary and its replica; return both, and the proxy that connects the replica to the primary."""
    kind = world.chance.choice(["valkey", "redis"])
    primary = world.start_server("primary", "--repl-diskless-sync-delay", "0", kind=kind, tcp=True)
    world.server = primary
    link = world.proxy(primary.url)
    replica = world.start_server("replica", "--repl-diskless-sync-delay", "0", kind=kind, tcp=True)
    world.adopt(primary.url)
    client = world.harness.connect(replica.url)
    client.replicaof("127.0.0.1", int(link.url.rpartition(":")[2]))
    world.until(lambda: client.info("replication")["master_link_status"] == "up", "the first synchronisation")
    return primary, replica, link


def _fail_over(
    world: World, primary: EmbeddedServer, replica: EmbeddedServer, address: Proxy, link: Proxy | None
) -> None:
    os.kill(primary.pid, signal.SIGSTOP)
    world.inject("SIGSTOP of the primary")
    world.pause(0, 0.2)
    if link is not None:
        link.cut()
        link.thaw()
    world.watch.allow_rewind()
    world.harness.connect(replica.url).replicaof("NO", "ONE")
    world.move(replica)
    address.retarget(replica.url)
    world.inject("promotion of the replica")


def _rewinds_were_noticed(world: World) -> None:
    def demand(account) -> None:
        missing = sum(account.confirmed.values()) - sum(
            total for (metric, _), total in world.harness.totals().items() if metric == "view"
        )
        if missing > 0:
            noticed = sum(statistics["rewound_streams"] for statistics in account.statistics)
            world.expect(noticed, f"{missing} views are lost and no producer noticed")

    world.afterwards.append(demand)
