"""Completes `/schema/openapi.json` with what the signatures of the routes do not contain: bodies, problems, tokens."""

from typing import Any, Final

from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from tallystream.wire.event import MAX_ACTOR_BYTES, MAX_AMOUNT, MAX_AT, MAX_ID_BYTES, MAX_SUBJECT_BYTES, METRIC
from tallystream_worker.service.bodies.body import CLOUD_EVENT, CLOUD_EVENTS, JSON, NDJSON, PLAIN
from tallystream_worker.service.bodies.events import MAX_EVENTS
from tallystream_worker.service.problems import MEDIA_TYPE

_OPEN: Final = ("/healthz", "/readyz", "/v1/session")


def _text(most: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": most}


_EVENT: Final = {
    "type": "object",
    "description": "One thing that happened. Lengths are bytes of UTF-8; control characters are rejected.",
    "additionalProperties": False,
    "required": ["metric", "subject"],
    "properties": {
        "metric": {"type": "string", "pattern": f"^{METRIC.pattern}$", "description": "a declared metric"},
        "subject": _text(MAX_SUBJECT_BYTES),
        "amount": {"type": "integer", "minimum": -MAX_AMOUNT, "maximum": MAX_AMOUNT, "default": 1},
        "actor": {"oneOf": [_text(MAX_ACTOR_BYTES), {"type": "null"}]},
        "at": {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": MAX_AT, "description": "seconds, UTC"},
        "id": {"oneOf": [_text(MAX_ID_BYTES), {"type": "null"}]},
    },
    "examples": [{"metric": "view", "subject": "article:1"}],
}
_PROBLEM: Final = {
    "type": "object",
    "description": "The problem, the field, and the limit that it breaks (RFC 9457).",
    "required": ["status", "title", "detail"],
    "properties": {
        "status": {"type": "integer"},
        "title": {"type": "string"},
        "detail": {"type": "string"},
        "field": {"type": "string"},
        "limit": {"type": "string"},
    },
}
_A_PROBLEM: Final = {
    "description": "A problem",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_EVENT_REF: Final = {"$ref": "#/components/schemas/Event"}
_EVENTS: Final = {"type": "array", "items": _EVENT_REF, "minItems": 1, "maxItems": MAX_EVENTS}
_BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/events": {
        JSON: {"schema": {"anyOf": [_EVENT_REF, _EVENTS]}},
        NDJSON: {"schema": {"type": "string", "description": "one event in JSON on each line"}},
        PLAIN: {"schema": {"type": "string", "description": "the same as JSON, as navigator.sendBeacon sends it"}},
        CLOUD_EVENT: {"schema": {"type": "object", "description": "a CloudEvent 1.0, structured"}},
        CLOUD_EVENTS: {"schema": {"type": "array", "items": {"type": "object"}, "description": "several CloudEvents"}},
    },
    "/v1/decide": {JSON: {"schema": _EVENT_REF}},
}


class SchemaPage(JsonRenderPlugin):
    """Serves the completed OpenAPI description as JSON."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return an OpenAPI description as JSON, after `completed` has added to it."""
        return super().render(request, completed(openapi_schema))


def completed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an OpenAPI description with more in it: bodies, errors, and tokens.

    `/v1/events` and `/v1/decide` get a request body. In each operation, the responses with a status of 400 or more are
    replaced by one `default` with the schema of errors; it is added if there are none. `/v1/decide` also gets 409 and
    429, which are equal to its 200. Each operation but those that are open to everyone gets an optional bearer token.
    A response 204 has no content. `schema` is not changed.
    """
    components = schema.get("components", {})
    paths = {
        path: {
            method: _operation(path, operation) if isinstance(operation, dict) else operation
            for method, operation in item.items()
        }
        for path, item in schema["paths"].items()
    }
    return schema | {
        "paths": paths,
        "components": components
        | {
            "schemas": components.get("schemas", {}) | {"Event": _EVENT, "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, operation: dict[str, Any]) -> dict[str, Any]:
    answers = {status: answer for status, answer in operation["responses"].items() if int(status) < 400}  # noqa: PLR2004
    if "204" in answers:
        answers["204"] = {"description": answers["204"]["description"]}  # without content, so without a media type
    if path == "/v1/decide":
        answers |= dict.fromkeys(("409", "429"), answers["200"])
    more = {"requestBody": {"required": True, "content": _BODIES[path]}} if path in _BODIES else {}
    security: list[dict[str, list[str]]] = [{}] if path in _OPEN else [{}, {"token": []}]
    return operation | more | {"responses": answers | {"default": _A_PROBLEM}, "security": security}
