"""Checks that the server has every change of the rules that its copies have: the snapshot and the archive."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import FIRST_TOPIC
from tallystream_worker.snapshot.lost_changes import lacked
from tallystream_worker.snapshot.rule_records import NUMBERS, recorded_changes, recorded_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tallystream_worker.verify.scene import Scene

_SNAPSHOT: Final = "the snapshot"


def check(scene: Scene) -> None:
    """Report the snapshot and the archive, each if it has a later change of the rules than the server.

    Such a change is lost on the server; one whose number the server has given to other rules is not reported. A
    snapshot also has the highest number that its changes had; if it is above every number of the server, a change is
    lost too. If the snapshot has a lost change, `Verification.has_lost_rules` is set. Changes of another epoch are left
    out, and so is a snapshot of another topic. Without a snapshot and an archive, nothing is checked. If the SQLite
    file of the snapshot does not exist, the check of the snapshot reports it.

    Raises:
        SnapshotError, ArchiveError: the snapshot or the archive cannot be read.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    copies = list(_copies(scene))  # before the server, which may change its rules meanwhile
    deployment = scene.deployment
    recorded, highest = recorded_numbers(scene.client, deployment)
    for place, changes, number in copies:
        lost = [int(fields["number"]) for fields in lacked(changes, deployment.epoch, recorded, highest).values()]
        if number > highest or lost:
            scene.report.has_lost_rules |= place == _SNAPSHOT
            named = number if number > highest else lost[-1]
            scene.report.find(
                "rules.missing",
                f"{deployment.layout.meta}: {place} has the change {named} of the rules, which the server has lost; "
                f"the last one of the server is {highest}",
            )


def _changes(facts: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
    """Return by ID the changes of the rules in the facts of a snapshot; none if they are missing or damaged.

    Another check reports this.
    """
    try:
        return dict(recorded_changes(facts))
    except (KeyError, msgspec.MsgspecError):
        return {}


def _copies(scene: Scene) -> Iterator[tuple[str, Mapping[str, Mapping[str, str]], int]]:
    """Yield `the snapshot` and `the archive`, each with its changes of the rules by ID, and a highest number.

    One that is not configured is left out, and so is a snapshot of another deployment or topic. The number is that
    which the snapshot states, and 0 for the archive. The errors are those of `check`.
    """
    deployment, sources = scene.deployment, scene.sources
    if sources.snapshot is not None:
        facts: Mapping[str, str] = {}
        with suppress(ConfigurationError):  # its SQLite file does not exist
            facts = sources.snapshot.facts()
        of = (facts.get("epoch"), facts.get("namespace"), facts.get("log", str(FIRST_TOPIC)))
        if of == (deployment.epoch, deployment.layout.namespace, str(deployment.layout.topic)):
            yield _SNAPSHOT, _changes(facts), int(facts.get(NUMBERS[1], 0))
    if sources.archive is not None:
        yield "the archive", sources.archive.rules(), 0
