"""Compresses responses, and replaces a response that the client already has by 304."""

from __future__ import annotations

import zlib
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from litestar.types import HTTPResponseStartEvent, HTTPScope, Message, Send

WORTH_PACKING: Final = 1024
"""Size in bytes from which a response is compressed; a smaller response fits into one packet anyway."""

_LEVEL: Final = 5
_KINDS: Final = (b"text/", b"application/json", b"application/problem+json", b"application/vnd.oai")
_GZIP: Final = 16 + zlib.MAX_WBITS
_OK: Final = 200
_NOT_MODIFIED: Final = 304

Headers = list[tuple[bytes, bytes]]
"""Names and values of HTTP headers, as ASGI has them."""


def delivered(scope: HTTPScope, send: Send) -> Send:
    """Return a `send` that compresses the response and adds an `ETag`, if the request allows it; else `send` itself.

    If `Accept-Encoding` of the request has `gzip`, a text or JSON response of 1,024 bytes or more is sent as gzip,
    unless it has a `Content-Encoding` already. A response 200 to GET under `/v1/` gets an `ETag` and `Cache-Control:
    private, no-cache`, and becomes 304 without a body if the request has the same `ETag` in `If-None-Match`. A streamed
    response is sent unchanged.
    """
    packs = known = b""
    for name, value in scope["headers"]:
        if name == b"accept-encoding":
            packs = value.replace(b" ", b"")
        elif name == b"if-none-match":
            known = value
    packing = b"gzip" in packs and b"gzip;q=0," not in packs + b","
    tagging = scope["method"] == "GET" and scope["path"].startswith("/v1/")
    return _Delivery(send, known, packing=packing, tagging=tagging) if packing or tagging else send


class _Delivery:
    """A `send` that delays the start of a response until its first body message; streamed responses stay unchanged."""

    def __init__(self, send: Send, known: bytes, *, packing: bool, tagging: bool) -> None:
        self._send = send
        self._known = known
        self._packing = packing
        self._tagging = tagging
        self._start: HTTPResponseStartEvent | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        start, self._start = self._start, None
        if start is not None:
            if message["type"] == "http.response.body" and not message["more_body"]:
                message = {**message, "body": self._finish(start, message["body"])}
            await self._send(start)
        await self._send(message)

    def _finish(self, start: HTTPResponseStartEvent, body: bytes) -> bytes:
        headers: Headers = [(name.lower(), value) for name, value in start["headers"]]
        if self._tagging and start["status"] == _OK:
            tag = b'W/"' + blake2b(body, digest_size=12).hexdigest().encode() + b'"'
            # The client may cache the response, but must ask each time whether it is still valid.
            headers = [*_without(headers, b"cache-control"), (b"etag", tag), (b"cache-control", b"private, no-cache")]
            if tag in self._known:
                start["status"] = _NOT_MODIFIED
                headers = _without(headers, b"content-length", b"content-type")
                body = b""
        if self._packing and len(body) >= WORTH_PACKING and _may_be_packed(headers):
            packer = zlib.compressobj(_LEVEL, wbits=_GZIP)
            body = packer.compress(body) + packer.flush()
            headers = [*_without(headers, b"content-length"), (b"content-length", b"%d" % len(body))]
            headers += [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
        start["headers"] = headers
        return body


def _without(headers: Headers, *names: bytes) -> Headers:
    return [header for header in headers if header[0] not in names]


def _may_be_packed(headers: Headers) -> bool:
    found = dict(headers)
    return b"content-encoding" not in found and found.get(b"content-type", b"").startswith(_KINDS)
