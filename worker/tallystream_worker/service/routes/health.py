"""The routes of health: whether the process lives, and whether the counters can be read and are kept up to date."""

from http import HTTPStatus
from itertools import islice
from typing import Any, Final

from litestar import Request, get
from litestar.di import NamedDependency
from redis.exceptions import RedisError, ResponseError

from tallystream.aio import Totals
from tallystream.errors import (
    ConfigurationError,
    ConsumerGroupMissing,
    DeploymentDeleted,
    KeyLost,
    NodeUnreachable,
    StreamError,
)
from tallystream.reading.ledger import query_ledger
from tallystream.reading.query import Query, raise_on_error
from tallystream.storage.deployment_hash import ARCHIVE_LOST
from tallystream.storage.keys import Layout
from tallystream.storage.lost_keys import lost_commands, parse_lost
from tallystream_worker.service.access import Access
from tallystream_worker.service.backup_lookup import BackupLookup
from tallystream_worker.service.problems import problem
from tallystream_worker.service.tokens import Role

_SHOWN: Final = 10


@get("/healthz", tags=["health"], summary="Whether the process is alive", role=Role.OPEN)
async def healthz() -> dict[str, str]:
    """Respond 200 in any state of Redis, because a restart of this process would not change that."""
    return {"status": "alive"}


@get("/readyz", tags=["health"], summary="Whether counters can be read and are kept up to date", role=Role.OPEN)
async def readyz(
    totals: NamedDependency[Totals],
    access: NamedDependency[Access],
    backup: NamedDependency[BackupLookup],
    request: Request[Any, Any, Any],
) -> dict[str, Any]:
    """Respond 200 if Redis replies, it has rules in the layout of this release, and all partitions can be counted.

    A partition can be counted if its stream has the consumer group of the workers, and the partition has not lost a key
    that workers need. Lost ids and limits of periods are not found here, and whether a worker runs is not checked.
    Otherwise respond 503, also while a restore has not finished. If the server was emptied, and a backup has the data,
    the only reason names the backup, and the command that restores it. The backups are looked at for at most one
    second, and at most every ten seconds; without a result, the reason does not name the backup.

    The service stays ready if there are dead letters, if dead letters were dropped, if another program removed entries
    before they were counted, if the server has lost archived entries, or if the ledger does not balance. In a cluster,
    it also stays ready if nodes do not answer, as long as one partition can be read, and the service has read the
    description of the data once: the service then answers in part. In these cases, the response has `warnings`, as far
    as the figures can be read, but only to a request with a token or a session, if this service needs tokens.
    """
    is_told = access.knows(request)
    if reasons := await _reasons_against(totals, backup if is_told else None):
        if not is_told:
            raise problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "not ready; a request with a token or a session gets the reasons"
            )
        raise problem(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(reasons[:_SHOWN]), reasons=reasons[:_SHOWN])
    warnings = await _warnings(totals) if is_told else []
    return {"status": "ready"} | ({"warnings": warnings} if warnings else {})


async def _warnings(totals: Totals) -> list[str]:
    try:
        ledger = await totals.ask(lambda deployment: query_ledger(deployment.layout))
    except (RedisError, ConfigurationError, StreamError):
        return []  # Redis replied a moment ago: the next check reports the error
    try:
        lost = await totals.ask(lambda deployment: _query_lost_archived(deployment.layout))
    except (RedisError, ConfigurationError, StreamError):
        lost = 0  # in a cluster, the node of this hash may be one that does not answer
    found = (
        (ledger.events["trimmed"], "events were trimmed before they were counted"),
        (ledger.events["dropped"], "dead-lettered events were dropped"),
        (ledger.dead, "dead letters: see tallystream dead"),
        (ledger.unaccounted or 0, "events are unaccounted for"),
        (lost, "archived entries are lost on the server, and were not sent again: docs/archive.md, Count lost entries"),
    )
    away = [f"{each.stream} cannot be read: its node {each.node} does not answer" for each in ledger.unreachable]
    return [*away[:_SHOWN], *(f"{number:,} {what}" for number, what in found if number)]


async def _reasons_against(totals: Totals, backup: BackupLookup | None) -> list[str]:
    """Return why the service is not ready; empty if it is. Without `backup`, no reason names the backup."""
    try:
        deployment = await totals.reload()  # not the cached one
        if deployment.declared is None and backup is not None and (found := await backup.text()):
            return [found]
        deployment.ensure_stored()
        deployment.ensure_declared()  # also if a producer has begun to use an emptied server
        layout = deployment.in_reach.layout
        lost = await totals.run(_query_lost(layout))
        missing = await totals.run(_query_groups(layout))
        if not layout.reached:
            return ["no node of the cluster that has a partition answers"]
        return [reason for pair in zip(lost, missing, strict=True) if (reason := pair[0] or pair[1])]
    except NodeUnreachable as error:
        return [str(error)]
    except DeploymentDeleted as error:
        found = "" if backup is None else await backup.text()
        return [f"{error}. {found}" if found else str(error)]
    except (ConfigurationError, StreamError) as error:  # also of a restore that has not finished
        return [str(error)]
    except RedisError as error:
        return [f"Redis does not reply ({type(error).__name__})"]


def _query_lost_archived(layout: Layout) -> Query[int]:
    """Return a query for the number of archived entries that the server has lost and producers did not send again.

    An archiver stores it; without one it is 0. The query raises the `RedisError` if it cannot be read.
    """
    return Query([("HGET", layout.meta, ARCHIVE_LOST)], lambda replies: int(raise_on_error(replies[0]) or 0))


def _query_lost(layout: Layout) -> Query[list[str | None]]:
    """Return a query whose answer has, for each partition in reach, a message about a lost key; `None` for no lost key.

    The query raises the `RedisError` if one of these partitions cannot be read.
    """
    commands = [lost_commands(keys) for keys in layout.reached]

    def parse(replies: list[Any]) -> list[str | None]:
        rest = iter(map(raise_on_error, replies))
        lost = [
            parse_lost(keys, list(islice(rest, len(own)))) for keys, own in zip(layout.reached, commands, strict=True)
        ]
        return [None if key is None else str(KeyLost(key)) for key in lost]

    return Query([command for own in commands for command in own], parse, atomic=True)


def _query_groups(layout: Layout) -> Query[list[str | None]]:
    """Return a query whose answer has, for each partition in reach, a message if its group is missing; else `None`.

    The group is that of its live generation. If there is no stream, or Redis replies with an error, it counts as
    missing. If Redis does not reply, the query raises the `RedisError`.
    """

    def parse(replies: list[Any]) -> list[str | None]:
        missing: list[str | None] = []
        for keys, reply in zip(layout.reached, replies, strict=True):
            if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                raise reply
            is_missing = isinstance(reply, ResponseError) or all(g["name"] != keys.group.encode() for g in reply)
            missing.append(str(ConsumerGroupMissing(keys.stream, keys.group)) if is_missing else None)
        return missing

    return Query([("XINFO GROUPS", keys.stream) for keys in layout.reached], parse)
