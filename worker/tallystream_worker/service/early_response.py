"""Adds `Connection: close` to a response that is sent before the request body was read.

The server closes such a connection, because the rest of the body would precede the next request. Without the header,
a client would send its next request over the closed connection and get no response.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from litestar.types import HTTPReceiveMessage, HTTPScope, Message, Receive, Send


def watched(scope: HTTPScope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return a `receive` and a `send` that add `Connection: close` if a response begins before the body was read.

    For requests without a body, and those of HTTP/2, the same `receive` and `send` are returned.
    """
    headers = dict(scope["headers"])
    has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
    if not has_body or not scope["http_version"].startswith("1"):
        return receive, send
    is_read = False

    async def receive_noting() -> HTTPReceiveMessage:
        nonlocal is_read
        message = cast("HTTPReceiveMessage", await receive())
        is_read = is_read or not (message["type"] == "http.request" and message["more_body"])
        return message

    async def send_telling(message: Message) -> None:
        if message["type"] == "http.response.start" and not is_read:
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return cast("Receive", receive_noting), send_telling
