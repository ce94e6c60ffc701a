"""The routes of health: whether the process lives, and whether the counters can be read and are kept up to date."""

from http import HTTPStatus
from typing import Any, Final

from litestar import Request, get
from litestar.di import NamedDependency
from redis.exceptions import RedisError, ResponseError

from tallystream.aio import Totals
from tallystream.errors import ConfigurationError
from tallystream.reading.deployment_cache import query_deployment
from tallystream.reading.ledger import query_ledger
from tallystream.reading.query import Query
from tallystream.storage.keys import Layout
from tallystream_worker.service.access import Access
from tallystream_worker.service.problems import problem
from tallystream_worker.service.tokens import Role
from tallystream_worker.settings.settings import RedisSettings

_SHOWN: Final = 10


@get("/healthz", tags=["health"], summary="Whether the process is alive", role=Role.OPEN)
async def healthz() -> dict[str, str]:
    """Respond 200 in any state of Redis, because a restart of this process would not change that."""
    return {"status": "alive"}


@get("/readyz", tags=["health"], summary="Whether counters can be read and are kept up to date", role=Role.OPEN)
async def readyz(
    totals: NamedDependency[Totals],
    store: NamedDependency[RedisSettings],
    access: NamedDependency[Access],
    request: Request[Any, Any, Any],
) -> dict[str, Any]:
    """Respond 200 if Redis replies, its data has the layout of this release, and every consumer group exists.

    Otherwise respond 503. Whether a worker runs is not checked. The service stays ready if there are dead letters, if
    events were trimmed or dropped, or if the ledger does not balance. Then the response has `warnings`, but only to a
    request with a token, if this service needs tokens.
    """
    if reasons := await _reasons_against(totals, store.namespace):
        if not access.knows(request):
            raise problem(HTTPStatus.SERVICE_UNAVAILABLE, "not ready; a request with a token gets the reasons")
        raise problem(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(reasons[:_SHOWN]), reasons=reasons[:_SHOWN])
    warnings = await _warnings(totals) if access.knows(request) else []
    return {"status": "ready"} | ({"warnings": warnings} if warnings else {})


async def _warnings(totals: Totals) -> list[str]:
    try:
        ledger = await totals.run(query_ledger((await totals.deployment()).layout))
    except (RedisError, ConfigurationError):
        return []  # Redis replied a moment ago: the next check reports the error
    found = (
        (ledger.events["trimmed"], "events were trimmed before they were counted"),
        (ledger.events["dropped"], "dead-lettered events were dropped"),
        (ledger.dead, "dead letters: see tallystream dead"),
        (ledger.unaccounted or 0, "events are unaccounted for"),
    )
    return [f"{number:,} {what}" for number, what in found if number]


async def _reasons_against(totals: Totals, namespace: str) -> list[str]:
    try:
        deployment = await totals.run(query_deployment(None, namespace))  # read it, not the cached one
        deployment.ensure_stored()
        return await totals.run(_query_groups(deployment.layout))
    except ConfigurationError as error:
        return [str(error)]
    except RedisError as error:
        return [f"Redis does not reply ({type(error).__name__})"]


def _query_groups(layout: Layout) -> Query[list[str]]:
    """Return a query whose answer is a message for each partition without the consumer group of its live generation.

    A partition without a stream, or for which Redis replies with an error, counts as one without the group.
    """

    def parse(replies: list[Any]) -> list[str]:
        missing = []
        for keys, reply in zip(layout.keys, replies, strict=True):
            if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                raise reply
            if isinstance(reply, ResponseError) or all(group["name"] != keys.group.encode() for group in reply):
                missing.append(f"{keys.stream} has no consumer group {keys.group!r}: nothing is counted there")
        return missing

    return Query([("XINFO GROUPS", keys.stream) for keys in layout.keys], parse)
