"""Rows of the fault table in which a worker is killed or paused, shares its name with another, or its metrics fail."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.faults.table import row
from tests.faults.world import APPLY_SHA

if TYPE_CHECKING:
    from tests.faults.world import World

MOST_FLOWS = 20
"""At most how many times row 34 waits for 200 more counted events, until a metric raises."""


@row(1, "worker killed after the read", "B P D M R")
def killed_after_the_read(world: World) -> None:
    """The pending entries of a killed worker are taken over by the next worker of any name, and counted once."""
    world.serve()
    world.crowd()
    for _ in range(world.chance.randint(1, 3)):
        place = world.chance.choice(["after-fetch", "before-apply", "after-apply"])
        world.dies(world.worker("a", failpoint=f"{place}:{world.chance.randint(1, 15)}"), f"killed {place}")
    world.worker(world.chance.choice(["a", "b"]))
    world.flow()


@row(2, "worker killed after sending apply, before the reply", "B P D M R")
def killed_before_the_reply(world: World) -> None:
    """A batch is counted once if its worker is killed without a reply, whether or not the server applied it."""
    world.serve()
    world.crowd()
    for _ in range(world.chance.randint(1, 2)):
        proxy = world.proxy()
        victim = world.worker("a", url=proxy.url)
        world.flow(50)
        lost = world.chance.choice(["reply", "request"])
        if lost == "reply":
            proxy.lose_reply_to(APPLY_SHA, nth=world.chance.randint(1, 5), cut=False)
        else:
            proxy.lose_request(APPLY_SHA)
        world.until(proxy.lost.is_set, f"the loss of a {lost}")
        world.inject(f"lost {lost} to apply")
        world.kill(victim)
    world.worker(world.chance.choice(["a", "b"]))
    world.flow()


@row(3, "killed while claiming or dead-lettering", "B P D M R")
def killed_in_a_claim(world: World) -> None:
    """After a kill during a claim, the entry is claimed again; a kill during dead-lettering makes no second letter."""
    world.serve()
    world.crowd()
    poisoned = 0
    for _ in range(world.chance.randint(1, 3)):
        if world.chance.random() < 0.5:
            world.dies(world.worker("gone", failpoint="after-fetch:1"), "killed after-fetch")
            claimer = world.worker("claimer", failpoint="mid-claim:1", claim_idle=0.1)
            world.dies(claimer, "killed mid-claim")
        else:
            place = world.chance.choice(["before-dead-letter", "after-dead-letter"])
            victim = world.worker("a", failpoint=f"{place}:1")
            keys = world.chance.choice(world.harness.layout.keys)
            world.harness.client.xadd(keys.stream, {"no": "event"})
            poisoned += 1
            world.dies(victim, f"killed {place}")
    world.worker("b", claim_idle=0.1)
    world.flow()
    world.until(lambda: len(world.harness.dead()) >= poisoned, "the dead letters of all poison entries")
    world.afterwards.append(
        lambda _: world.expect(
            len(world.harness.dead()) == poisoned, f"{len(world.harness.dead())} of {poisoned} dead-lettered"
        )
    )


@row(4, "SIGTERM in mid-batch", "B P D M R")
def terminated(world: World) -> None:
    """A worker that gets SIGTERM applies its batch or leaves it pending, and exits within `stop_timeout`."""
    world.serve()
    world.crowd()
    proxy = world.proxy()
    for _ in range(world.chance.randint(1, 2)):
        proxy.delay = world.chance.choice([0.0, 0.01, 0.05])
        victim = world.worker("a", url=proxy.url, stop_timeout=5.0)
        world.flow(50)
        world.pause(0, 0.05)
        began = time.monotonic()
        victim.signal(signal.SIGTERM)
        status = world.ends(victim)
        world.inject("SIGTERM of a worker")
        world.expect(status == 0, f"the worker ended with {status}: {victim.said()[-1500:]}")
        world.expect(time.monotonic() - began < 10, "the worker took longer to exit than stop_timeout allows")
    world.worker(world.chance.choice(["a", "b"]))
    world.flow()


@row(25, "two workers with one name", "B P D M R")
def twins(world: World) -> None:
    """Workers with the same name read each other's pending entries, and count each entry once."""
    world.serve()
    world.crowd()
    world.arrive(world.chance.randint(0, 800))
    proxy = world.proxy()
    proxy.delay = world.chance.choice([0.0, 0.005, 0.02])
    for number in range(world.chance.randint(2, 3)):
        world.worker("twin", url=world.chance.choice([world.server.url, proxy.url]) if number else proxy.url)
        world.inject("worker with a name that is taken")
    for _ in range(world.chance.randint(1, 4)):
        world.flow(100)
        proxy.cut()  # after a reconnect, a worker reads all pending entries of its name, also the other's
        world.inject("cut connection")
    proxy.delay = 0.0


@row(26, "worker paused beyond the claim idle", "B P D M R")
def paused(world: World) -> None:
    """Another worker claims the entries of a paused worker, whose batch is stale when it continues: counted once."""
    world.serve()
    world.crowd(pause=0.002)
    proxy = world.proxy()
    proxy.delay = world.chance.choice([0.01, 0.03])
    victim = world.worker("paused", url=proxy.url)
    world.worker("other", claim_idle=0.1, max_keys=100)
    for _ in range(world.chance.randint(1, 4)):
        world.flow(100)
        victim.signal(signal.SIGSTOP)
        world.inject("SIGSTOP of a worker")
        world.pause(0.1, 0.35)
        victim.signal(signal.SIGCONT)
    proxy.delay = 0.0


@row(34, "a worker's metrics raise after the apply", "B P D M R")
def broken_metrics(world: World) -> None:
    """When a worker's metrics raise after the apply, no entry is counted again, left pending or dead-lettered."""
    world.serve()
    world.crowd()
    share = world.chance.choice([0.3, 1.0])
    worker = world.worker("a", failing_metrics=share, max_deliveries=3, max_keys=100)
    world.inject("metrics that raise")
    flows, least = 0, world.chance.randint(1, 4)
    # Under load, a worker counts all in few batches, and may raise in none of them.
    while flows < least or (flows < MOST_FLOWS and "subscriber.failed" not in worker.said()):
        world.flow(200)
        flows += 1
    world.heal()
    said = worker.said()
    world.expect("entry.left_pending" not in said, f"an entry was blamed: {said[-1500:]}")
    world.expect("partition.paused" not in said, f"the worker paused: {said[-1500:]}")
    world.expect(not world.harness.dead(), f"{len(world.harness.dead())} entries are dead")
    world.expect("subscriber.failed" in said, "no line about metrics that raise")
