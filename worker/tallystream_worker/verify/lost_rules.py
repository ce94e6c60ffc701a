"""Checks that the server has every change of the rules that its copies have: the snapshot and the archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.storage.keys import FIRST_TOPIC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.verify.scene import Scene


def check(scene: Scene) -> None:
    """Report the snapshot and the archive if they have a later change of the rules than the server.

    A change is known by its number. Those of another epoch or topic are left out. Without a snapshot and an archive,
    nothing is checked.

    Raises:
        SnapshotError, ArchiveError: the snapshot or the archive cannot be read.
        ConfigurationError: the SQLite file of the snapshot does not exist.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    deployment, layout = scene.deployment, scene.deployment.layout
    highest = max(
        [int(scene.client.hget(layout.meta, "newest-revision") or 0), deployment.revision]
        + [int(fields[b"number"]) for _, fields in scene.client.xrange(layout.rule_changes)]
    )
    for place, number in _copies(scene):
        if number > highest:
            scene.report.find(
                "rules.missing",
                f"{layout.meta}: {place} has the change {number} of the rules; the last one of the server is {highest}",
            )


def _copies(scene: Scene) -> Iterator[tuple[str, int]]:
    """Yield `the snapshot` and `the archive`, each with the highest number of rules that it has for this deployment.

    One that is not configured is left out, and so is a snapshot of another deployment or topic. The number is 0 if it
    has no rules. The errors are those of `check`.
    """
    deployment, sources = scene.deployment, scene.sources
    if sources.snapshot is not None:
        facts = sources.snapshot.facts()
        of = (facts.get("epoch"), facts.get("namespace"), facts.get("log", str(FIRST_TOPIC)))
        if of == (deployment.epoch, deployment.layout.namespace, str(deployment.layout.topic)):
            yield "the snapshot", int(facts.get("newest-revision", 0))
    if sources.archive is not None:
        changes = sources.archive.rules().values()
        numbers = [int(each["number"]) for each in changes if each.get("epoch") == deployment.epoch]
        yield "the archive", max(numbers, default=0)
