"""A TCP proxy that injects network faults: it loses requests and replies, and cuts, delays, freezes or splits streams.

It uses only threads and sockets. It listens on loopback and connects to a server's port or unix socket. A fault applies
from the next byte.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 65536


class Proxy:
    """A proxy between clients and the server at `url`; clients connect to `proxy.url`.

    Attributes:
        delay: Seconds by which each chunk of a reply is delayed.
        piece: The most bytes in one send, in both directions; 0 sends each chunk whole.
        lost: Set when a fault has taken effect: a request or reply was dropped, or cut off.
    """

    def __init__(self, url: str) -> None:
        self._upstream = url
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._trigger: tuple[bytes, int, bool] | None = None
        self._unsent: bytes | None = None
        self._bytes_left: int | None = None
        self._request_bytes_left: int | None = None
        self._flowing = threading.Event()
        self._flowing.set()
        self.delay = 0.0
        self.piece = 0
        self.lost = threading.Event()

    @property
    def url(self) -> str:
        """The URL that clients connect to."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def lose_reply_to(self, trigger: bytes, *, nth: int = 1, cut: bool = True) -> None:
        """Drop the reply to the n-th request that contains `trigger`, once.

        With `cut`, also cut the connection; without it, drop every later reply on the connection.
        """
        self.lost.clear()
        with self._lock:
            self._trigger = (trigger, nth, cut)

    def lose_request(self, trigger: bytes) -> None:
        """Cut the connection instead of passing on the next request that contains `trigger`, once."""
        with self._lock:
            self._unsent = trigger

    def cut_after(self, reply_bytes: int) -> None:
        """Pass on this many bytes of replies over all connections, then cut the connection in use, once."""
        self.lost.clear()
        with self._lock:
            self._bytes_left = reply_bytes

    def cut_request_after(self, request_bytes: int) -> None:
        """Pass on this many bytes of requests over all connections, then cut the connection in use, once.

        The server gets the first commands of a pipeline, and an incomplete command at the cut.
        """
        self.lost.clear()
        with self._lock:
            self._request_bytes_left = request_bytes

    def cut(self) -> None:
        """Cut every connection now; new connections work."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.cut()

    def freeze(self) -> None:
        """Stop passing bytes on, while connections stay open and new ones are accepted: half-open connections."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass bytes on again, the delayed ones first."""
        self._flowing.set()

    def retarget(self, url: str) -> None:
        """Connect new connections to another server, and cut the old ones, as in a failover."""
        self._upstream = url
        self.cut()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown wakes accept(); close alone would leave it waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = _dial(self._upstream)
            except OSError:
                client.close()  # the server is down, so the proxy refuses connections too
                continue
            pair = _Pair(client, server, self._saw_request, self._saw_reply, lambda: self.piece)
            with self._lock:
                pair.start()
                self._pairs.append(pair)

    def _hold(self, pair: _Pair) -> None:
        while not self._flowing.wait(0.02) and not pair.is_cut:
            pass

    def _saw_request(self, pair: _Pair, data: bytes) -> bool:
        """Apply the faults of requests to a chunk; return whether the whole chunk goes to the server."""
        self._hold(pair)
        with self._lock:
            if self._unsent is not None and self._unsent in data:
                self._unsent = None
                self.lost.set()
                return False
            if self._request_bytes_left is not None:
                self._request_bytes_left -= len(data)
                if self._request_bytes_left <= 0:
                    pair.stump = data[: len(data) + self._request_bytes_left]
                    self._request_bytes_left = None
                    self.lost.set()
                    return False
            if self._trigger is None:
                return True
            trigger, left, cut = self._trigger
            # A pipeline is several requests in one chunk: all their replies count as the reply.
            if trigger in data:
                self._trigger = (trigger, left - 1, cut) if left > 1 else None
                if left == 1:
                    pair.swallow, pair.cut_then = True, cut
            return True

    def _saw_reply(self, pair: _Pair, data: bytes) -> bytes | None:
        """Apply the faults of replies to a chunk; return the bytes for the client, or `None` to cut the connection."""
        self._hold(pair)
        if self.delay:
            time.sleep(self.delay)
        if pair.swallow:
            self.lost.set()
            return None if pair.cut_then else b""
        with self._lock:
            if self._bytes_left is not None:
                self._bytes_left -= len(data)
                if self._bytes_left <= 0:
                    pair.last = data[: len(data) + self._bytes_left]
                    self._bytes_left = None
                    self.lost.set()
                    return None
        return data


class _Pair:
    """A client's connection to the proxy and the proxy's connection to the server, with a thread per direction."""

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        on_request: Callable[[_Pair, bytes], bool],
        on_reply: Callable[[_Pair, bytes], bytes | None],
        piece: Callable[[], int],
    ) -> None:
        self._client, self._server = client, server
        for end in (client, server):
            if end.family != socket.AF_UNIX:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # send each piece as its own packet
        self._on_request, self._on_reply = on_request, on_reply
        self._threads = [
            threading.Thread(target=self._pump_requests, daemon=True),
            threading.Thread(target=self._pump_replies, daemon=True),
        ]
        self.is_cut = False
        self.swallow = False
        self.cut_then = True
        self.last = b""
        self.stump = b""
        self._piece = piece

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def cut(self) -> None:
        self.is_cut = True
        self._shut()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._client.close()
        self._server.close()

    def _shut(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pump_requests(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(CHUNK):
                if not self._on_request(self, data):
                    self._server.sendall(self.stump)
                    break
                self._send(self._server, data)
        self._shut()

    def _pump_replies(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._server.recv(CHUNK):
                passed = self._on_reply(self, data)
                if passed is None:
                    self._client.sendall(self.last)
                    break
                self._send(self._client, passed)
        self._shut()

    def _send(self, end: socket.socket, data: bytes) -> None:
        step = self._piece() or len(data)
        for first in range(0, len(data), step or 1):
            end.sendall(data[first : first + step])


def _dial(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return socket.create_connection((parts.hostname, parts.port))
    upstream = socket.socket(socket.AF_UNIX)
    try:
        upstream.connect(unquote(parts.path))
    except OSError:
        upstream.close()
        raise
    return upstream
