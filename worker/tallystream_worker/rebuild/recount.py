"""Decides which command mends wrong counters of a deployment: the one whose source has every entry.

A rebuild counts the entries in the streams and in the archive, and is refused if neither has all of them. A restore
takes the counters of the snapshot, and counts the entries after it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.replies import BROKEN
from tallystream.errors import COUNT_AGAIN, TallyError
from tallystream_worker.rebuild.baseline import choose
from tallystream_worker.rebuild.scope import Span

if TYPE_CHECKING:
    import redis

    from tallystream.deployment import Deployment
    from tallystream_worker.rebuild.baseline import Sources

_RESTORE: Final = (
    "tallystream restore --force (a rebuild is refused, because entries are gone from the streams). First copy the "
    "snapshot, or stop the workers that take snapshots: a snapshot, also an automatic one, replaces the right value of "
    "a counter if the counter has had an event since, and tallystream snapshot --whole replaces all"
)
_NOTHING: Final = (
    "find the archive that has the entries which are gone from the streams, then: tallystream rebuild --archive URL. "
    "Neither the streams nor the snapshot that was named can give the right values; without an archive, a rebuild is "
    "refused"
)


def recount_command(client: redis.Redis, deployment: Deployment, sources: Sources) -> str:
    """Return the command that mends wrong counters, or what to do; a general text if this cannot be found out.

    The snapshot is considered only if entries are gone from the streams that the archive does not have, even if an
    audit began with it.

    Raises:
        redis.ConnectionError, redis.TimeoutError: the server does not reply.
    """
    sources = replace(sources, prefers_snapshot=False)
    try:
        bases = [
            choose(client, deployment, number, sources, Span())
            for number, keys in enumerate(deployment.layout.keys)
            if client.exists(keys.stream)
        ]
    except BROKEN:
        raise
    except (TallyError, RedisError, OSError, ValueError):
        return COUNT_AGAIN
    if any(base.gone is not None for base in bases):
        return _NOTHING
    if any(base.is_snapshot for base in bases):
        return _RESTORE
    if sources.archive is not None and any(base.is_archived for base in bases):
        return f"tallystream rebuild --archive {sources.archive.place}"
    return "tallystream rebuild"
