"""States what the servers do that limits a proof: eviction, persistence, and steps of their clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import NoPermissionError, ResponseError

from tallystream.reading.clocks import parse_step
from tallystream.storage.deployment_hash import CLOCK_STEP
from tallystream.storage.scripts import Script
from tallystream_worker.verify.scene import utc

if TYPE_CHECKING:
    from tallystream_worker.verify.scene import Scene

_FACTS: Final = Script("tallystream_worker.verify", "server")


def check(scene: Scene) -> None:
    """Add to the report's limits what the servers do that limits a proof.

    These are servers that may evict keys, or have evicted some since they started; servers without an append-only file,
    with the time of their last save; and the last step of a clock. If a server refuses to state this, that is a limit
    as well.
    """
    report, said = scene.report, set[str]()
    for keys in scene.deployment.layout.keys:
        try:
            _, policy, limit, evicted, aof, saves, run = _FACTS(scene.client, [keys.stream], [])
        except (NoPermissionError, ResponseError) as error:
            said.add(f"eviction and persistence of the server, because they cannot be read ({error})")
            continue
        of = f"server {run.decode()[:8]}"
        if policy not in (b"", b"noeviction") and int(limit) > 0:
            said.add(f"{of}: counters that it evicts (maxmemory-policy {policy.decode()})")
        if int(evicted) > 0:
            said.add(f"{of}: {int(evicted):,} keys that it has evicted since it started")
        if aof != b"1":
            said.add(f"{of}: events after its last save ({utc(int(saves) * 1000)}), because appendonly is off")
    for text in sorted(said):
        report.limit("server", text)
    step = parse_step(scene.client.hget(scene.deployment.layout.meta, CLOCK_STEP))
    if step is not None:
        report.limit(
            "server", f"which events were late around {utc(step.at * 1000)}: a clock stepped by {step.seconds:+.1f} s"
        )
