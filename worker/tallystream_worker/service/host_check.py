"""Before any route: by which name the service is asked, and from which page.

A page of some other site runs in the browser of somebody who can reach this service. It must not write here, nor open
a WebSocket (browsers let it, and only say whose page it is), nor read through a name of its own that it points at this
address (DNS rebinding).
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

_CHANGES_NOTHING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CORS: Final = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "authorization, content-type, last-event-id",
    "Access-Control-Max-Age": "600",
}
_SHOWN_TO_PAGES: Final = "ETag, Retry-After"


class HostAndOriginCheck:
    """Refuses requests by their `Host` and `Origin`.

    Args:
        serve: `host`, `hosts` and `origins` are looked at.
        guarded: Whether a token is needed; then a name that is not ours is no danger.
    """

    def __init__(self, serve: ServeSettings, *, guarded: bool) -> None:
        self._origins = frozenset(serve.origins)
        self._hosts: frozenset[str] | None = None
        if serve.hosts or (is_loopback(serve.host) and not guarded):
            self._hosts = frozenset({"localhost", serve.host.lower(), *map(str.lower, serve.hosts)})

    def refuses(self, kind: str, method: str, headers: dict[bytes, bytes]) -> ASGIResponse | None:
        """Return the answer to a request that goes no further, preflights among them; `None` lets it pass.

        Args:
            kind: `http` or `websocket`.
            method: The HTTP method.
            headers: By name in small letters.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and not self._is_ours(_name(host)):
            limit = "is not a name of this service; add it to [serve] hosts where it should be"
            return refusal(HTTPStatus.MISDIRECTED_REQUEST, "host", limit)
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not origin:
            if method not in _CHANGES_NOTHING and b"cookie" in headers and b"authorization" not in headers:
                return refusal(HTTPStatus.FORBIDDEN, "origin", "is needed where a session writes: browsers send it")
            return None
        if self.admits(origin) or urlsplit(origin).netloc.lower() == host:
            if method == "OPTIONS" and b"access-control-request-method" in headers and self.admits(origin):
                return refusal(HTTPStatus.NO_CONTENT, headers=_CORS)
            return None
        if kind == "websocket" or method not in _CHANGES_NOTHING or b"access-control-request-method" in headers:
            limit = "this page may not do that; add its origin to [serve] origins where it should"
            return refusal(HTTPStatus.FORBIDDEN, "origin", limit)
        return None

    def admits(self, origin: str) -> bool:
        """Tell whether pages of an origin may read and write here."""
        return origin in self._origins or ANY in self._origins

    def headers_for(self, origin: str) -> dict[str, str]:
        """Return the headers by which a browser lets a page read the answer; never with its cookies."""
        if not self._origins:
            return {}
        headers = {"Vary": "Origin"}
        if origin and self.admits(origin):
            headers["Access-Control-Allow-Origin"] = ANY if ANY in self._origins else origin
            headers["Access-Control-Expose-Headers"] = _SHOWN_TO_PAGES
        return headers

    def _is_ours(self, name: str) -> bool:
        assert self._hosts is not None  # noqa: S101  # asked only where there are
        return name in self._hosts or address_of(name) is not None


def _name(host: str) -> str:
    """Return the name or address in a `Host` header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
