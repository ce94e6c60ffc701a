"""Receives the body of a request, checks its media type and size, and decompresses it."""

import asyncio
import zlib
from http import HTTPStatus
from typing import Any, Final

from litestar import Request
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from tallystream_worker.service.problems import problem

JSON: Final = "application/json"
"""Media type of one event, or a list of events, in JSON."""

PLAIN: Final = "text/plain"
"""Media type of `navigator.sendBeacon`; read as JSON."""

NDJSON: Final = "application/x-ndjson"
"""Media type of one event in JSON on each line."""

CLOUD_EVENT: Final = "application/cloudevents+json"
"""Media type of one CloudEvent."""

CLOUD_EVENTS: Final = "application/cloudevents-batch+json"
"""Media type of a list of CloudEvents."""

KINDS: Final = (JSON, NDJSON, CLOUD_EVENT, CLOUD_EVENTS, PLAIN)
"""The media types of bodies with events."""

_RECEIVE_TIMEOUT: Final = 10.0
"""Seconds that a client may take to send a body, so that an endless body does not keep its connection forever."""

_GZIP: Final = 16 + zlib.MAX_WBITS


async def receive(request: Request[Any, Any, Any], most: int, kinds: tuple[str, ...] = (JSON,)) -> tuple[str, bytes]:
    """Wait for the body of a request; return its media type (lowercase, without parameters) and its decompressed bytes.

    Args:
        request: The request.
        most: Bytes that a gzip body may have after decompression. The route's `request_max_body_size` must be the same:
            it bounds each body as it is sent.
        kinds: The allowed media types.

    Raises:
        ProblemDetailsException: 415 for another media type or encoding, 413 for a too large body, 408 for a body that
            takes longer than 10 seconds, 400 if a gzip body is not exactly one gzip stream.
        InternalServerException: the client disconnects before the end of the body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        limit = f"must be {' or '.join(kinds)}"
        raise problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-type: {limit}", field="content-type", limit=limit)
    packing = request.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", "gzip"):
        limit = "must be gzip, or absent"
        raise problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-encoding: {limit}",
            headers={"Accept-Encoding": "gzip"}, field="content-encoding", limit=limit,
        )  # fmt: skip
    try:
        async with asyncio.timeout(_RECEIVE_TIMEOUT):
            body = await request.body()
    except RequestEntityTooLarge:
        raise _too_large(most) from None
    except TimeoutError:
        limit = f"must be sent within {_RECEIVE_TIMEOUT:g} seconds"
        raise problem(HTTPStatus.REQUEST_TIMEOUT, f"body: {limit}", field="body", limit=limit) from None
    return kind, unpack(body, most) if packing == "gzip" else body


def unpack(packed: bytes, most: int) -> bytes:
    """Return the decompressed bytes of a gzip body; decompress at most `most` + 1 bytes.

    Raises:
        ProblemDetailsException: 413 for more than `most` bytes, 400 if the body is not exactly one gzip stream.
    """
    unpacker = zlib.decompressobj(wbits=_GZIP)
    try:
        body = unpacker.decompress(packed, most + 1)
    except zlib.error:
        body, unpacker = b"", zlib.decompressobj(wbits=_GZIP)
    if len(body) > most:
        raise _too_large(most)
    if not unpacker.eof or unpacker.unused_data:
        limit = "must be exactly one gzip stream, because content-encoding is gzip"
        raise problem(HTTPStatus.BAD_REQUEST, f"body: {limit}", field="body", limit=limit)
    return body


def _too_large(most: int) -> Exception:
    limit = f"at most {most:,} bytes"
    return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: {limit}", field="body", limit=limit)
