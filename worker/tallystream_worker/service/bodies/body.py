"""The body of a request: of a kind that we read, unpacked, and never larger than it may be."""

import asyncio
import zlib
from http import HTTPStatus
from typing import Any, Final

from litestar import Request
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from tallystream_worker.service.problems import problem

JSON: Final = "application/json"
PLAIN: Final = "text/plain"
NDJSON: Final = "application/x-ndjson"
CLOUD_EVENT: Final = "application/cloudevents+json"
CLOUD_EVENTS: Final = "application/cloudevents-batch+json"
KINDS: Final = (JSON, NDJSON, CLOUD_EVENT, CLOUD_EVENTS, PLAIN)
"""The media types in which events come."""

_RECEIVE_TIMEOUT: Final = 10.0
"""Seconds that a client may take to send a body: one that never ends would hold its connection for ever."""

_GZIP: Final = 16 + zlib.MAX_WBITS


async def receive(request: Request[Any, Any, Any], most: int, kinds: tuple[str, ...] = (JSON,)) -> tuple[str, bytes]:
    """Return the kind of the body and its bytes, unpacked; else the answer is 415, 413, 408 or 400.

    Plain text is what `navigator.sendBeacon` sends. A page of some other site can send that too, without asking first:
    the gate has refused it by its `Origin`.

    Args:
        request: The request.
        most: Bytes that the body may have, packed and unpacked.
        kinds: The media types that it may be of.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        limit = f"must be {' or '.join(kinds)}"
        raise problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-type: {limit}", field="content-type", limit=limit)
    packing = request.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", "gzip"):
        limit = "must be gzip, or left out"
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
    """Return what was packed with gzip; no more than `most` bytes and one are unpacked before it is refused."""
    unpacker = zlib.decompressobj(wbits=_GZIP)
    try:
        body = unpacker.decompress(packed, most + 1)
    except zlib.error:
        body, unpacker = b"", zlib.decompressobj(wbits=_GZIP)
    if len(body) > most:
        raise _too_large(most)
    if not unpacker.eof or unpacker.unused_data:
        limit = "is not one whole gzip stream, as content-encoding says"
        raise problem(HTTPStatus.BAD_REQUEST, f"body: {limit}", field="body", limit=limit)
    return body


def _too_large(most: int) -> Exception:
    limit = f"at most {most:,} bytes"
    return problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: {limit}", field="body", limit=limit)
