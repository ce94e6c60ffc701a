"""A minimal WebSocket client (RFC 6455) that reads text frames and the closing frame, and sends no frames."""

from __future__ import annotations

import base64
import os
import socket
from typing import Self
from urllib.parse import urlsplit

TEXT, CLOSE = 1, 8


class WebSocket:
    """A WebSocket connection, opened by the constructor.

    Raises:
        ConnectionError: the server did not switch protocols; the message is its status line.
    """

    def __init__(self, url: str, path: str, *, origin: str | None = None) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port), timeout=20)
        self._file = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        head += f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        self._socket.sendall((head + (f"Origin: {origin}\r\n" if origin else "") + "\r\n").encode())
        status = self._file.readline()
        if b" 101 " not in status:
            self.close()
            raise ConnectionError(status.decode())
        while self._file.readline() != b"\r\n":
            pass

    def receive(self) -> str:
        """Return the text of the next frame; it must be a text frame."""
        kind, body = self._frame()
        assert kind == TEXT, (kind, body)
        return body.decode()

    def closing(self) -> tuple[int, str]:
        """Return the code and the reason of the closing frame; skip the frames before it."""
        while True:
            kind, body = self._frame()
            if kind == CLOSE:
                return int.from_bytes(body[:2], "big"), body[2:].decode()

    def close(self) -> None:
        """Close the socket without a closing frame."""
        self._file.close()
        self._socket.close()

    def _frame(self) -> tuple[int, bytes]:
        first, length = self._file.read(2)
        if length in (126, 127):
            length = int.from_bytes(self._file.read(2 if length == 126 else 8), "big")
        return first & 15, self._file.read(length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
