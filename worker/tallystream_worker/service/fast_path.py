"""Fast path for `GET /v1/counters/{subject}/{metric}` without parameters: the response is made before the router.

Everything else, errors and requests with an `Origin` included, goes to the router. The response is the same as that of
the router.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

import msgspec
from litestar.connection import ASGIConnection
from litestar.plugins.problem_details import ProblemDetailsException
from redis.exceptions import RedisError

from tallystream.errors import TallyError
from tallystream_worker.service.tokens import Role

if TYPE_CHECKING:
    from litestar.types import HTTPResponseStartEvent, HTTPScope, Send

    from tallystream.aio import Totals
    from tallystream_worker.service.access import Access
    from tallystream_worker.service.compression import Headers

_PREFIX: Final = "/v1/counters/"
_encode: Final = msgspec.json.Encoder().encode


async def one_counter(scope: HTTPScope, headers: dict[bytes, bytes], totals: Totals, access: Access) -> bytes | None:
    """Return the response body, JSON, to a request for one total; `None` if the router must handle the request.

    It is made only for GET of `/v1/counters/{subject}/{metric}` without parameters and without `Origin`. Checks the
    role of the request and reads the total. If the role is not sufficient, the metric is not declared, the
    subject is not valid or the total cannot be read, the result is `None`: the router must then report the problem.
    Host, origin and URL are not checked here: the caller must have checked them.

    Args:
        scope: The request, whose `path` is the raw path.
        headers: The headers by lowercase name.
        totals: Reads the total.
        access: Checks the role.
    """
    path = scope["path"]
    if scope["method"] != "GET" or scope["query_string"] or not path.startswith(_PREFIX) or b"origin" in headers:
        return None
    subject, separator, metric = path[len(_PREFIX) :].partition("/")
    if not separator or "/" in metric or "%" in metric:
        return None
    try:
        if access.tokens and access.role_of(ASGIConnection(scope)) < Role.READ:
            return None
        name = unquote_to_bytes(subject).decode() if "%" in subject else subject
        deployment = await totals.deployment()
        if deployment.declared is None or metric not in deployment.declared.metric:
            return None
        total = await totals.get(name, metric)
    except (TallyError, RedisError, ValueError, ProblemDetailsException):
        return None
    return _encode(total)


async def send_json(send: Send, body: bytes, headers: Headers, more: dict[str, str]) -> None:
    """Send a JSON body as response 200, with `headers` and `more` as headers in addition to its type and length.

    The response does not pass the router, which would add the security and CORS headers: the caller must give them.
    """
    start: HTTPResponseStartEvent = {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
            *((name.lower().encode(), value.encode()) for name, value in more.items()),
        ],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})
