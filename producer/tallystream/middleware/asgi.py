"""Counts requests in ASGI applications.

from tallystream.middleware.asgi import CountRequests

app.add_middleware(CountRequests, url="redis://127.0.0.1:6379")  # FastAPI, Starlette
app = Litestar(..., middleware=[DefineMiddleware(CountRequests, url="redis://127.0.0.1:6379")])
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tallystream.client.connect import DEFAULT_URL
from tallystream.middleware.requests import RequestCounter

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class CountRequests:
    """ASGI middleware: counts a request when its answer is complete; see `RequestCounter`.

    Args:
        app: The application.
        url: Where Redis or Valkey is, for a producer of its own.
        counter: Used in place of one made from `url`.
    """

    def __init__(self, app: Application, url: str = DEFAULT_URL, counter: RequestCounter | None = None) -> None:
        self._app = app
        self._count = counter or RequestCounter.connect(url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does, then count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # what the server will make of it where the application raises

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        mounted_at = scope.get("root_path", "")
        try:
            await self._app(scope, receive, noting)
        finally:
            self._count(scope["method"], _route(scope, mounted_at), status)


def _route(scope: Scope, mounted_at: str) -> str | None:
    """Return the pattern of the route, which the router has left in the scope."""
    if template := scope.get("path_template"):  # Litestar
        return str(template)
    path = getattr(scope.get("route"), "path", None)  # Starlette, FastAPI
    if path is None:
        return None
    return str(scope.get("root_path", "").removeprefix(mounted_at) + path)
