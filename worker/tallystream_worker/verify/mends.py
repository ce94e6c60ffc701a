"""Decides which command mends wrong counters of this deployment: the one whose source has every entry.

A rebuild counts the entries in the streams and in the archive, and is refused if neither has all of them. A restore
takes the counters of the snapshot, and counts the entries after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.replies import BROKEN
from tallystream.errors import TallyError
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
    """Note in the report which command mends counters; if this cannot be found out, its general text stays.

    Raises:
        redis.ConnectionError, redis.TimeoutError: the server does not reply.
    """
    try:
        bases = [choose(scene.client, scene.deployment, number, scene.sources, Span()) for number, _ in scene.streams()]
    except BROKEN:
        raise
    except (TallyError, RedisError):
        return  # a check has reported it
    if any(base.gone is not None for base in bases):
        scene.report.recount = _NOTHING
    elif any(base.is_snapshot for base in bases):
        scene.report.recount = _RESTORE
    elif scene.sources.archive is not None and any(base.is_archived for base in bases):
        scene.report.recount = f"tallystream rebuild --archive {scene.sources.archive.url}"
    else:
        scene.report.recount = "tallystream rebuild"
