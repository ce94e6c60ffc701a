"""The examples in the OpenAPI description: request bodies, responses and errors of the routes.

A test compares the examples with the responses.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, RequestBody, Schema

from tallystream_worker.service.bodies.body import CLOUD_EVENT, CLOUD_EVENTS, JSON, NDJSON, PLAIN
from tallystream_worker.service.problems import MEDIA_TYPE

if TYPE_CHECKING:
    from litestar.openapi.spec import OpenAPI, Operation

_GOOD: Final = {"as_of": "1763900000000-0", "lag": 0, "error": 0, "unreachable": []}
_BOUNDS: Final = {"start": 1763856000, "end": 1763942400, "complete": True, "missing": []}
_EVENT: Final = {"metric": "view", "subject": "article:1", "amount": 1, "actor": "user:7", "id": "4f6c"}
_CLOUD: Final = {
    "specversion": "1.0", "id": "4f6c", "source": "/shop", "type": "view", "subject": "article:1",
    "time": "2025-11-23T12:13:20Z", "data": {"amount": 1, "actor": "user:7"},
}  # fmt: skip

ANSWERS: Final[dict[tuple[str, str], Any]] = {
    ("/v1/counters", "get"): {
        "counters": [{"subject": "article:1", "metric": "view", "value": 42}],
        "positions": {"tally:{p1.1840}:stream": "1763900000000-0"},
        "missing": [],
        **_GOOD,
    },
    ("/v1/counters/{subject}", "get"): {
        "subject": "article:1",
        "counters": {"like": 3, "share": 1, "view": 42},
        "ratios": {"engagement_rate": 0.0952},
        "missing": [],
        **_GOOD,
    },
    ("/v1/counters/{subject}/{metric}", "get"): {"subject": "article:1", "metric": "view", "value": 42, **_GOOD},
    ("/v1/limits/{metric}/{subject}", "get"): {
        "metric": "api-call", "subject": "key:1", "limit": 1000, "used": 12, "remaining": 988,
        "reset_at": 1763902800.0, **_GOOD,
    },
    ("/v1/top/{metric}", "get"): {
        "metric": "view", "window": "day", "top": [{"subject": "article:1", "value": 42}], "next": None,
        **_BOUNDS, **_GOOD,
    },
    ("/v1/overview", "get"): {
        "overview": {
            "metrics": [{"metric": "view", "total": 42, "counted": 40, "rate": 1.5}], "rate": 1.5,
            "events": {
                "appended": 41, "counted": 40, "rejected": 0, "duplicate": 1, "late": 0, "dead": 0, "trimmed": 0,
            },
            "lag": 0, "pending": 0, "oldest_pending_seconds": None, "dead": 0, "unaccounted": 0, "workers": 2,
            "snapshot_age_seconds": 12.5, "snapshot_every_seconds": 60.0,
            "as_of": "1763900000000-0", "at": 1763900000.25, "unreachable": [],
        },
        "declared": [
            {
                "metric": "view", "description": "a page was looked at", "windows": ["hour", "day"], "top": 100,
                "unique": "day", "votes": False, "limit": None, "per": None, "exact": True,
            }
        ],
        "ratios": {"engagement_rate": {"of": ["like", "share"], "by": ["view"]}},
        "zone": "UTC",
    },
    ("/v1/subjects", "get"): {
        "prefix": "art",
        "subjects": [{"subject": "article:1", "metric": "view", "value": 42}],
        "searched": ["like", "share", "view"],
        "unreachable": [],
    },
    ("/v1/uniques/{metric}/{subject}", "get"): {
        "metric": "view", "subject": "article:1", "over": "day", "value": 37, **_BOUNDS, **_GOOD, "error": 0.0081,
    },
    ("/v1/votes/{metric}/{subject}", "get"): {
        "metric": "vote", "subject": "post:1", "score": 5, "up": 6, "down": 1, **_GOOD,
    },
    ("/v1/events", "post"): {"appended": 1},
    ("/v1/decide", "post"): {
        "accepted": True, "total": 43, "remaining": 987, "reset_at": 1763902800.0, "reason": None,
        "id": "1763900000001-0",
    },
    ("/v1/alerts", "get"): {
        "alerts": [
            {"alert": "viral", "metric": "view", "subject": "article:*", "value": "hour", "above": 10000.0,
             "below": None, "clear": 8000.0, "firing": 1, "complete": True}
        ],
        "firing": [
            {"alert": "viral", "metric": "view", "subject": "article:1", "value": 10001.0, "since": 1763900000.0,
             "id": "p1.1840-1763900000000-0"}
        ],
        "more": False,
        "undelivered": 0,
        "unreachable": [],
    },
    ("/healthz", "get"): {"status": "alive"},
    ("/readyz", "get"): {"status": "ready"},
}  # fmt: skip
"""An example response of the routes that return JSON (except those of sessions), by path and method."""

BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/events": {
        JSON: [_EVENT],
        NDJSON: "\n".join(json.dumps(_EVENT) for _ in range(2)),
        CLOUD_EVENT: _CLOUD,
        CLOUD_EVENTS: [_CLOUD],
        PLAIN: json.dumps(_EVENT),
    },
    "/v1/decide": {JSON: {"metric": "api-call", "subject": "key:1"}},
}
"""By path of each route that takes a body, an example body of each media type."""

PROBLEM: Final = {
    "status": 400, "title": "Bad Request", "detail": "n: must be 1 to 100, the length of view's leaderboard, not 101",
    "field": "n", "limit": "must be 1 to 100, the length of view's leaderboard, not 101",
}  # fmt: skip
"""An example of an error response."""

_REFUSALS: Final = {
    "/v1/decide": {
        HTTPStatus.CONFLICT: "The event does not count once more: `reason` is `once` (a vote) or `duplicate` (an id).",
        HTTPStatus.TOO_MANY_REQUESTS: "The limit is reached. Retry-After has the seconds until the next period.",
    },
    "/v1/events": {
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than 1 MiB, before or after decompression.",
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The media type or the encoding of the body is not supported.",
        HTTPStatus.SERVICE_UNAVAILABLE: "No event was accepted, for lack of room. Send them again after Retry-After.",
        HTTPStatus.GATEWAY_TIMEOUT: "The events are still being appended. Send them again only if they have ids.",
    },
}


def illustrate(schema: OpenAPI) -> None:
    """Add example bodies, example responses and error responses to an OpenAPI description, in place."""
    for path, item in (schema.paths or {}).items():
        for method in ("get", "post"):
            operation: Operation | None = getattr(item, method)
            if operation is None:
                continue
            if method == "post" and path in BODIES:
                operation.request_body = _body(BODIES[path])
            if (path, method) in ANSWERS:
                _answer(operation, ANSWERS[path, method])
            for status, about in _REFUSALS.get(path, {}).items():
                _refuse(operation, status, about)


def _body(kinds: dict[str, Any]) -> RequestBody:
    return RequestBody({kind: OpenAPIMediaType(schema=Schema(), example=example) for kind, example in kinds.items()})


def _answer(operation: Operation, example: Any) -> None:
    responses = operation.responses or {}
    success = next(response for status, response in responses.items() if status.startswith("2"))
    assert isinstance(success, OpenAPIResponse)  # noqa: S101  # litestar puts no references there
    for media in (success.content or {}).values():
        media.example = example
    if isinstance(bad := responses.get("400"), OpenAPIResponse):
        bad.content = {MEDIA_TYPE: OpenAPIMediaType(schema=Schema(), example=PROBLEM)}


def _refuse(operation: Operation, status: HTTPStatus, about: str) -> None:
    assert operation.responses is not None  # noqa: S101  # every route has a response
    operation.responses[str(status.value)] = OpenAPIResponse(description=about)
