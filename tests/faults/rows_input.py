"""Rows of the fault table in which the events are the fault: unreadable, of a later version, too many or too large."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from tallystream import Producer
from tallystream.wire.codec import Group, Payload, encode
from tallystream.wire.event import MAX_AMOUNT
from tests.faults.processes import RULES
from tests.faults.table import row

if TYPE_CHECKING:
    from random import Random

    from tests.faults.journal import Account
    from tests.faults.world import World

FUTURE = "99"
"""A wire version that no release can read yet."""


@row(27, "poison entry", "B P D M R")
def poison(world: World) -> None:
    """Each unreadable entry becomes one dead letter with a reason, and all other entries are counted."""
    world.serve()
    world.crowd()
    world.worker("a")
    if world.chance.random() < 0.3:
        world.worker("b")
    sent = world.chance.randint(5, 40)
    for _ in range(sent):
        keys = world.chance.choice(world.harness.layout.keys)
        world.harness.client.xadd(keys.stream, _poison(world.chance))
        world.inject("poison entry")
        if world.chance.random() < 0.3:
            world.arrive(2)
    world.heal()
    world.until(lambda: len(world.harness.dead()) >= sent, "the dead letters of all poison entries")
    dead = world.harness.dead()
    world.expect(len(dead) == sent, f"{sent} poison entries, {len(dead)} dead-lettered")
    crashed = [entry[b"reason"] for entry in dead if b"without success" in entry[b"reason"]]
    world.expect(not crashed, f"reading some of them raised an unexpected error: {crashed[:2]}")


@row(28, "entry from a future version", "B P D M R")
def from_the_future(world: World) -> None:
    """An entry of a later version stays an unchanged dead letter until a release that reads it retries it."""
    world.serve()
    world.crowd()
    world.worker("a")
    minute = int(time.time()) // 60
    payload = encode(Payload([Group("view", minute, ["s1"], {}, {}), Group("like", minute, ["s1"], {}, {})], []))
    keys = world.harness.layout.keys_of("s1")
    entry = {b"v": FUTURE.encode(), b"n": b"2", b"b": payload}
    sent = world.chance.randint(1, 5)
    for _ in range(sent):
        world.harness.client.xadd(keys.stream, entry)
        world.inject(f"entry of version {FUTURE}")
    world.until(lambda: len(world.harness.dead()) >= sent, "the dead letters of all of them")
    tries = world.chance.randint(0, 2)
    for _ in range(tries):
        world.ends(world.process("retry", url=world.url))
        world.inject("retry by a release that cannot read it")
    for letter in world.harness.dead():
        kept = {name[2:]: value for name, value in letter.items() if name.startswith(b"e.")}
        world.expect(kept == entry, f"dead-lettered as {kept}, which differs from the entry")
        world.expect(int(letter[b"attempts"]) > tries, f"{letter[b'attempts']} attempts after {tries} retries")
    together = [world.process("retry", url=world.url, version=FUTURE) for _ in range(world.chance.randint(1, 3))]
    statuses = [world.ends(child) for child in together]
    world.inject("retry by a release that reads it", len(together))
    world.expect(0 in statuses, f"no retry succeeded: {[child.said()[-500:] for child in together]}")
    world.expect(not world.harness.dead(), f"still dead-lettered: {world.harness.dead()[:1]}")
    world.exempt = world.not_replayed = {"s1"}
    world.afterwards.append(lambda account: _counted_once(world, account, sent))
    world.heal()


def _counted_once(world: World, account: Account, sent: int) -> None:
    least = account.confirmed["s1"] + sent
    for metric in ("view", "like"):
        total = world.harness.totals()[metric, "s1"]
        world.expect(least <= total <= least + account.unknown["s1"], f"{total} {metric}s of s1, must be {least}")


@row(29, "overflow", "B P D M R")
def overflow(world: World) -> None:
    """An event that would overflow a counter becomes a dead letter, and every other event of its entry is counted."""
    world.serve()
    world.watch.sums = False
    near = MAX_AMOUNT - world.chance.randint(0, 6)
    world.exempt = world.not_replayed = {"big"}
    big = world.harness.layout.keys_of("big")
    world.harness.client.xadd(big.stream, {"metric": "view", "subject": "big", "amount": near})
    world.crowd()
    world.worker("a")
    world.until(lambda: world.harness.client.get(big.total("view", "big")), "the large amount")
    neighbours = [s for s in (f"s{n}" for n in range(24)) if world.harness.layout.keys_of(s) == big][:3]
    with Producer(world.server.url, linger=3600) as producer:
        producer.emit("view", neighbours[0], 0)
        producer.flush(20)
        for subject in neighbours:  # in one entry with the event that must be dead-lettered
            producer.emit("view", subject, 2)
            producer.emit("like", subject, 2)
        producer.emit("view", "big", 7)
    world.inject("overflow")
    world.until(world.harness.dead, "the dead letter of the event")
    world.expect(world.harness.ledger()["dead"] == 1, f"more was dead-lettered: {world.harness.dead()}")
    world.exempt = {"big", *neighbours}
    world.expect(int(world.harness.client.get(big.total("view", "big"))) == near, "the counter moved")
    world.heal()
    world.flow(50)


@row(30, "hot subject", "B P D M R")
def hot(world: World) -> None:
    """A subject with nine of ten events costs one write in a batch, not one for each event."""
    world.serve()
    world.crowd(hot=0.9, pairs=60)
    world.arrive(world.chance.randint(1000, 4000))
    world.worker("a", max_keys=3000)
    world.inject("hot subject")
    world.until(lambda: world.counted() > 1000, "the first thousand")
    stats = world.harness.client.info("commandstats")
    batches, writes = stats["cmdstat_xack"]["calls"], stats["cmdstat_mset"]["calls"]
    counted = world.counted()
    # A batch writes the totals of view, like, score and vote, each metric in one call.
    world.expect(writes <= 6 * batches + 6, f"{writes} writes in {batches} batches")
    world.expect(batches < counted / 10, f"{batches} batches for {counted} events")
    world.heal()


@row(31, "cardinality bomb", "B P D M R")
def bomb(world: World) -> None:
    """Invented subjects beyond `max_subjects` are counted in a sketch of fixed size, and memory stays bounded."""
    world.serve()
    world.crowd()
    world.worker("a")
    world.flow(50)
    flood = world.chance.randint(3_000, 12_000)
    quota = (RULES.metric["flood"].max_subjects or 0) * world.harness.layout.partitions
    before = world.harness.client.info("memory")["used_memory"]
    bomber = threading.Thread(target=_flood, args=(world.server.url, flood, world.chance.getrandbits(32)))
    bomber.start()
    bomber.join()
    world.inject("invented subjects", flood)
    world.until(lambda: world.harness.ledger().get("counted@flood", 0) == flood, "the end of the flood")
    ledger = world.harness.ledger()
    exact = [subject for metric, subject in world.harness.totals() if metric == "flood"]
    world.expect(len(exact) <= quota, f"{len(exact)} exact counters, the quota is {quota}")
    told = (ledger.get("sketched@flood", 0), len(exact))
    world.expect(sum(told) == flood, f"sketched and exact: {told}, must add up to {flood}")
    grown = world.harness.client.info("memory")["used_memory"] - before
    world.expect(grown < 40 * 2**20, f"the server grew by {grown:,} bytes")
    world.heal()


def _flood(url: str, events: int, seed: int) -> None:
    with Producer(url) as producer:
        for number in range(events):
            producer.emit("flood", f"bot-{seed}-{number}")


def _poison(chance: Random) -> dict[bytes, bytes]:
    """Return the fields of a random unreadable entry, from random bytes to a packed entry with one wrong field."""
    good = encode(Payload([Group("score", 29_000_000, ["fuzz", "fuss"], {}, {})], []))
    kind = chance.randrange(7)
    if kind == 0:
        return {chance.randbytes(chance.randint(1, 20)): chance.randbytes(chance.randint(0, 200))}
    if kind == 1:
        return {b"v": b"1", b"n": b"1", b"b": chance.randbytes(chance.randint(1, 300)) + b"\xc1"}
    if kind == 2:
        return {b"v": b"1", b"n": b"1", b"b": b"\x91" * chance.choice([10, 3000, 100_000])}
    if kind == 3:  # an array header of 2**32 - 1 elements
        return {b"v": b"1", b"n": b"1", b"b": b"\xdd\xff\xff\xff\xff" + chance.randbytes(10)}
    if kind == 4:
        return {b"v": b"1", b"n": chance.choice([b"3", b"0", b"-1", b"9" * 400, b"\xff"]), b"b": good}
    if kind == 5:  # a field with a name that packed entries use
        return {chance.choice([b"d", b"p", b"q", b"n", b"b", b"v"]): chance.choice([b"1", chance.randbytes(3)])}
    return {b"metric": chance.choice([b"view", b"\xff\xfe"]), b"subject": b"s1\x1b[2J", b"amount": b"1"}
