"""Turns errors into problem details (RFC 9457) with the problem, the field and its limit, and never a traceback."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import structlog
from litestar.exceptions import HTTPException, NotFoundException
from litestar.plugins.problem_details import ProblemDetailsConfig, ProblemDetailsException, ProblemDetailsPlugin
from litestar.response.base import ASGIResponse
from litestar.serialization import encode_json
from redis.exceptions import RedisError

from tallystream.client.error_text import named_text, text_of
from tallystream.errors import (
    ConfigurationError,
    DeploymentChanged,
    EventError,
    FlushTimeout,
    GenerationSwitched,
    KeyLost,
    NodeUnreachable,
    StreamError,
    StreamFull,
    Unconfirmed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MEDIA_TYPE: Final = "application/problem+json"
"""Media type of an error response."""

_RETRY: Final = {"Retry-After": "1"}


def problem(
    status: HTTPStatus, detail: str, *, headers: dict[str, str] | None = None, **members: Any
) -> ProblemDetailsException:
    """Return an exception that becomes a problem response with this status.

    Args:
        status: The HTTP status; its phrase becomes the title.
        detail: One or two sentences for a person.
        headers: Headers of the response.
        members: More members of the problem, for programs: `field`, `limit`, `reasons`.
    """
    return ProblemDetailsException(
        status_code=status, title=status.phrase, detail=detail, headers=headers, extra=members or None
    )


def bad_request(field: str, limit: str) -> ProblemDetailsException:
    """Return the exception for the response 400: a field of the request breaks a limit."""
    return problem(HTTPStatus.BAD_REQUEST, f"{field}: {limit}", field=field, limit=limit)


def refusal(
    status: HTTPStatus, field: str = "", limit: str = "", headers: dict[str, str] | None = None
) -> ASGIResponse:
    """Return the response to a request that is answered before the router: a problem, or an empty response.

    Args:
        status: The HTTP status.
        field: The rejected field; empty for a response without a body.
        limit: The requirement for the field.
        headers: Headers of the response.
    """
    if not field:
        return ASGIResponse(status_code=status, headers=headers)
    members = {
        "status": status.value, "title": status.phrase, "detail": f"{field}: {limit}", "field": field, "limit": limit,
    }  # fmt: skip
    return ASGIResponse(body=encode_json(members), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def plugin() -> ProblemDetailsPlugin:
    """Return the Litestar plugin that turns every exception of a route into a problem response.

    A `RedisError` becomes 503, and its text is only logged. An exception of a type for which no status is set here
    becomes 500, and is logged with its traceback.
    """
    conversions: dict[type[Exception], Callable[[Any], ProblemDetailsException]] = {
        EventError: lambda error: bad_request(error.field, error.problem),
        FlushTimeout: _not_counted_yet,
        StreamFull: _backlogged,
        GenerationSwitched: _moving,
        DeploymentChanged: _moving,
        KeyLost: _moving,
        Unconfirmed: _unconfirmed,
        ConfigurationError: _not_set_up,
        NodeUnreachable: _not_in_reach,
        RedisError: _unreachable,
        HTTPException: _refused,
        Exception: _unexpected,
    }
    return ProblemDetailsPlugin(ProblemDetailsConfig(exception_to_problem_detail_map=conversions))


def _not_counted_yet(error: FlushTimeout) -> ProblemDetailsException:
    detail = f"{error}: send the request again, or without after= to read the present totals"
    return problem(HTTPStatus.GATEWAY_TIMEOUT, detail, headers=_RETRY, field="after")


def _backlogged(error: StreamFull) -> ProblemDetailsException:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, f"nothing was counted: {error}", headers=_RETRY)


def _moving(error: StreamError) -> ProblemDetailsException:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers=_RETRY)


def _unconfirmed(error: Unconfirmed) -> ProblemDetailsException:
    return problem(HTTPStatus.GATEWAY_TIMEOUT, str(error))


def _not_set_up(error: ConfigurationError) -> ProblemDetailsException:
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers=_RETRY)


def _not_in_reach(error: NodeUnreachable) -> ProblemDetailsException:
    structlog.get_logger().warning("service.read_failed", problem=text_of(error))
    detail = "the nodes of the cluster that have these counters do not answer"
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=_RETRY, unreachable=error.keys)


def _unreachable(error: RedisError) -> ProblemDetailsException:
    # Log the reason and do not send it: it may have the names of hosts and users.
    structlog.get_logger().warning("service.read_failed", problem=text_of(error))
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the server with the counters cannot be read", headers=_RETRY)


def _refused(error: HTTPException) -> ProblemDetailsException:
    members = {}
    detail = error.detail
    if isinstance(error.extra, list) and error.extra:
        first = error.extra[0]  # litestar's list of invalid parameters
        members = {"field": str(first.get("key", "")), "limit": str(first.get("message", ""))}
        detail = f"{members['field']}: {members['limit']}"
    elif isinstance(error, NotFoundException):
        detail = "no such path: /schema/openapi.json has the paths; write a slash in a subject as %2F"
    return problem(HTTPStatus(error.status_code), detail, headers=error.headers, **members)


def _unexpected(error: Exception) -> ProblemDetailsException:
    structlog.get_logger().error("service.request_failed", problem=named_text(error), exc_info=error)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error of the service; its log has the details")
