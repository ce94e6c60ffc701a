"""The check that a row makes itself: `tallystream verify` finds nothing in the end."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.snapshot.database import Database
from tallystream_worker.verify.verify import verify

if TYPE_CHECKING:
    from collections.abc import Collection

    from tallystream_worker.archive.store import Store
    from tests.faults.world import World


def rest(world: World) -> None:
    """Stop the workers and all other processes, so that only the caller archives and takes snapshots."""
    for child in (*world.workers, *world.others):
        child.signal(signal.SIGTERM)
    for child in (*world.workers, *world.others):
        world.ends(child)


def prove(
    world: World, *, archive: Store | None = None, snapshot: str | None = None, allowed: Collection[str] = ()
) -> None:
    """Check that `verify` can make every check, and has no finding but those whose names are allowed.

    The counters are compared with the entries, not with the snapshot, which is restored on trial.
    """
    with contextlib.ExitStack() as stack:
        database = None
        if snapshot is not None:
            database = stack.enter_context(contextlib.closing(Database(snapshot, is_there=True)))
        report = verify(world.harness.client, "tally", Sources(archive, database))
    wrong = {name: each.details for name, each in report.findings.items() if name not in allowed}
    world.expect(not wrong, f"verify: {wrong}")
    world.expect(not report.failed, f"verify could not check: {report.failed}")
    proved = {each.check for each in report.proofs}
    expected = {"log", "accounts", "counters"} | ({"snapshot"} if snapshot is not None else set())
    world.expect(expected <= proved, f"verify proved only {sorted(proved)}: {report.limits}")
