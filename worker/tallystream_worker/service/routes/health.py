"""Whether the service lives, and whether its answers are worth having."""

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


@get("/healthz", tags=["health"], summary="The process lives", role=Role.OPEN)
async def healthz() -> dict[str, str]:
    """Answer: whatever the state of Redis, a restart of this process would not help."""
    return {"status": "alive"}


@get("/readyz", tags=["health"], summary="The counters can be read and are kept up to date", role=Role.OPEN)
async def readyz(
    totals: NamedDependency[Totals],
    store: NamedDependency[RedisSettings],
    access: NamedDependency[Access],
    request: Request[Any, Any, Any],
) -> dict[str, Any]:
    """Answer 200 where Redis answers, holds our layout, and every partition has its consumer group; else 503.

    What is wrong with the ledger takes no traffic away, and is among the `warnings` of a 200.
    """
    if reasons := await _reasons_against(totals, store.namespace):
        if not access.knows(request):
            raise problem(HTTPStatus.SERVICE_UNAVAILABLE, "not ready; who asks with a token is told why")
        raise problem(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(reasons[:_SHOWN]), reasons=reasons[:_SHOWN])
    warnings = await _warnings(totals) if access.knows(request) else []
    return {"status": "ready"} | ({"warnings": warnings} if warnings else {})


async def _warnings(totals: Totals) -> list[str]:
    try:
        ledger = await totals.run(query_ledger((await totals.deployment()).layout))
    except (RedisError, ConfigurationError):
        return []  # it answered a moment ago: the next look will say
    found = (
        (ledger.events["trimmed"], "events were trimmed away before they were counted"),
        (ledger.events["dropped"], "parked events were dropped"),
        (ledger.parked, "entries are parked: see tallystream dead"),
        (ledger.unaccounted or 0, "events are unaccounted for"),
    )
    return [f"{number:,} {what}" for number, what in found if number]


async def _reasons_against(totals: Totals, namespace: str) -> list[str]:
    try:
        deployment = await totals.run(query_deployment(None, namespace))  # not a remembered one
        deployment.ensure_stored()
        return await totals.run(_query_groups(deployment.layout))
    except ConfigurationError as error:
        return [str(error)]
    except RedisError as error:
        return [f"Redis does not answer ({type(error).__name__})"]


def _query_groups(layout: Layout) -> Query[list[str]]:
    """Ask for the consumer groups; the answer says of each partition without ours what is missing."""

    def parse(replies: list[Any]) -> list[str]:
        missing = []
        for keys, reply in zip(layout.keys, replies, strict=True):
            if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                raise reply
            if isinstance(reply, ResponseError) or all(group["name"] != keys.group.encode() for group in reply):
                missing.append(f"{keys.stream} has no consumer group {keys.group!r}: nothing is counted there")
        return missing

    return Query([("XINFO GROUPS", keys.stream) for keys in layout.keys], parse)
