"""Decides which command mends wrong counters of this deployment: the one whose source has every entry.

A rebuild counts the entries in the streams and in the archive, and is refused if neither has all of them. A restore
takes the counters of the snapshot, and counts the entries after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.replies import BROKEN
from tallystream.errors import TallyError
from tallystream.storage.keys import FIRST_TOPIC
from tallystream.wire.stream_id import parse_id
from tallystream_worker.rebuild.baseline import choose
from tallystream_worker.rebuild.scope import Span

if TYPE_CHECKING:
    from tallystream_worker.verify.scene import Scene

_RESTORE: Final = (
    "tallystream restore --force (a rebuild is refused, because entries are gone from the streams). Until then, do not "
    "run tallystream snapshot --whole: it would replace the right values in the snapshot"
)
_NOTHING: Final = (
    "find the archive that has the entries which are gone from the streams, then: tallystream rebuild --archive URL. "
    "Neither the streams nor the snapshot that was named can give the right values; without an archive, a rebuild is "
    "refused"
)


def note(scene: Scene) -> None:
    """Note in the report which command mends counters, and whether a snapshot can be restored.

    If it cannot be found out which command mends counters, its general text stays.

    Raises:
        redis.ConnectionError, redis.TimeoutError: the server does not reply.
    """
    _note_snapshot(scene)
    try:
        bases = [choose(scene.client, scene.deployment, number, scene.sources, Span()) for number, _ in scene.streams()]
    except BROKEN:
        raise
    except (TallyError, RedisError, OSError, ValueError):
        return  # a check has reported it
    if any(base.gone is not None for base in bases):
        scene.report.recount = _NOTHING
    elif any(base.is_snapshot for base in bases):
        scene.report.recount = _RESTORE
    elif scene.sources.archive is not None and any(base.is_archived for base in bases):
        scene.report.recount = f"tallystream rebuild --archive {scene.sources.archive.url}"
    else:
        scene.report.recount = "tallystream rebuild"


def _note_snapshot(scene: Scene) -> None:
    """Note in the report whether there is an undamaged snapshot of every partition of the live generation.

    Also note whether it is of before the loss of all entries in `Verification.ahead`, so that a restore counts these.
    """
    database, deployment, report = scene.sources.snapshot, scene.deployment, scene.report
    report.has_snapshot = False
    if database is None or "snapshot.damaged" in report.findings:
        return
    layout = deployment.layout
    expected = {"epoch": deployment.epoch, "namespace": layout.namespace, "log": str(layout.topic)}
    try:
        facts = {"log": str(FIRST_TOPIC)} | database.facts()
        found = [database.position(number) for number in range(layout.partitions)]
    except (TallyError, ValueError):
        return  # a check has reported it
    positions = [each[0] for each in found if each is not None and each[1] == deployment.generation]
    if len(positions) == len(found) and expected.items() <= facts.items():
        report.has_snapshot = True
        report.is_ahead_of_snapshot = all(
            parse_id(positions[number].generated) <= parse_id(lost.after) for number, lost in report.ahead.items()
        )
