"""Checks the `Host` and the `Origin` of each request before the router.

A page of another site may run in the browser of a user who can reach this service. The page must not write here. It
must not open a WebSocket, which browsers allow and mark only with the origin. And it must not read through its own host
name that resolves to the address of this service (DNS rebinding).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tallystream_worker.process.listen_address import address_of, is_loopback
from tallystream_worker.service.problems import refusal

if TYPE_CHECKING:
    from litestar.response.base import ASGIResponse

    from tallystream_worker.settings.settings import ServeSettings

ANY: Final = "*"
"""The setting of `origins` that admits every origin."""

_CHANGES_NOTHING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CORS: Final = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "authorization, content-type, last-event-id",
    "Access-Control-Max-Age": "600",
}
_SHOWN_TO_PAGES: Final = "ETag, Retry-After"


class HostAndOriginCheck:
    """Decides which requests to reject: those to a foreign `Host`, and writes and WebSockets from a foreign `Origin`.

    `refuses` returns the response to a rejected request or to an admitted preflight request, else `None`; `headers_for`
    returns the CORS headers of a response.

    The host is checked if `hosts` is set, or if the service listens on a loopback address without tokens. `localhost`,
    the address to listen on, the names of `hosts`, and every IP address are then accepted.

    The origin is checked in each request that has one; it is foreign if it is not in `origins` (which may have `*`) and
    does not name the host and port of the request. A read from a page of a foreign origin is answered, but without the
    CORS headers that let the browser show the response to the page; its preflight requests are rejected. A write with
    any cookie and without an `Authorization` header must have an origin.

    Args:
        serve: The settings with `host`, `hosts` and `origins`.
        guarded: Whether the service requires tokens. If it does, the host is checked only if `hosts` is set: a page
            that uses its own host name for this service (DNS rebinding) has no token.
    """

    def __init__(self, serve: ServeSettings, *, guarded: bool) -> None:
        self._origins = frozenset(serve.origins)
        self._hosts: frozenset[str] | None = None
        if serve.hosts or (is_loopback(serve.host) and not guarded):
            self._hosts = frozenset({"localhost", serve.host.lower(), *map(str.lower, serve.hosts)})

    def refuses(self, kind: str, method: str, headers: dict[bytes, bytes]) -> ASGIResponse | None:
        """Return the response to a rejected request or to an admitted preflight request; `None` for any other request.

        If hosts are checked, a foreign host gets 421. A write, a WebSocket or a preflight request from a foreign origin
        gets 403, and so does a write that must have an origin and has none. A preflight request from an origin of
        `[serve] origins` gets 204.

        Args:
            kind: `http` or `websocket`.
            method: The HTTP method.
            headers: The headers by lowercase name.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and not self._is_ours(_name(host)):
            limit = "is not a name of this service; if it should be, add it to [serve] hosts"
            return refusal(HTTPStatus.MISDIRECTED_REQUEST, "host", limit)
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin:
            if method not in _CHANGES_NOTHING and b"cookie" in headers and b"authorization" not in headers:
                return refusal(
                    HTTPStatus.FORBIDDEN, "origin", "is required for a write with a session cookie; browsers send it"
                )
            return None
        if self.admits(origin) or urlsplit(origin).netloc.lower() == host:
            if method == "OPTIONS" and b"access-control-request-method" in headers and self.admits(origin):
                return refusal(HTTPStatus.NO_CONTENT, headers=_CORS)
            return None
        if kind == "websocket" or method not in _CHANGES_NOTHING or b"access-control-request-method" in headers:
            limit = "may not do this; if it should, add it to [serve] origins"
            return refusal(HTTPStatus.FORBIDDEN, "origin", limit)
        return None

    def admits(self, origin: str) -> bool:
        """Return whether `[serve] origins` has `origin`, such as `https://example.com`, or `*`, which admits any."""
        return origin in self._origins or ANY in self._origins

    def headers_for(self, origin: str) -> dict[str, str]:
        """Return the CORS headers of a response to a page of an origin; they never allow cookies.

        There are none if `[serve] origins` is empty, and only `Vary` without an origin or for one that is not admitted.

        Args:
            origin: The value of the header `Origin`; empty if the request has none.
        """
        if not self._origins:
            return {}
        headers = {"Vary": "Origin"}
        if origin and self.admits(origin):
            headers["Access-Control-Allow-Origin"] = ANY if ANY in self._origins else origin
            headers["Access-Control-Expose-Headers"] = _SHOWN_TO_PAGES
        return headers

    def _is_ours(self, name: str) -> bool:
        assert self._hosts is not None  # noqa: S101  # called only if hosts are checked
        return name in self._hosts or address_of(name) is not None


def _name(host: str) -> str:
    """Return the name or address in a `Host` header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
