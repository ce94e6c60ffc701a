"""ASGI middleware that counts requests.

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
    """ASGI middleware that counts each HTTP request by method and route when the application is done with it.

    The object is itself an ASGI application, which calls `app`. See `RequestCounter` for the metrics. The constructor
    does not wait for the server.

    Args:
        app: The ASGI application.
        url: URL of Redis or Valkey, for a new producer; not used with `counter`.
        counter: `RequestCounter` to use instead of a new one for `url`.

    Raises:
        ConfigurationError: the URL is invalid.
    """

    def __init__(self, app: Application, url: str = DEFAULT_URL, counter: RequestCounter | None = None) -> None:
        self._app = app
        self._count = counter or RequestCounter.connect(url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, then count the request, also if the application raises an error; then raise it again.

        Only HTTP requests are counted: for another type of scope, such as a WebSocket, only run the application. The
        status is that of the start of the response, also if the application raises an error after it. If no response
        was started, the status counts as 500, also if the request was cancelled.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # the status that the server sends if the application raises before its response starts

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
    """Return the path pattern of the route that the router stored in the scope; `None` if no route matched.

    The pattern of a route in a mounted application begins with the path of the mount. A mounted application without
    routes is itself a route: its pattern is the path of the mount. If a mount with routes matched, but no route in it,
    the router stored the mount in the scope: then return `None`.

    Args:
        scope: The scope, after the application has run.
        mounted_at: The root path of the scope before the application ran; the pattern does not include it.
    """
    if template := scope.get("path_template"):  # Litestar
        return str(template)
    route, endpoint = scope.get("route"), scope.get("endpoint")  # Starlette, FastAPI
    mount = str(scope.get("root_path", "").removeprefix(mounted_at))
    path = getattr(route, "path", None)
    if path is not None and not hasattr(route, "routes"):
        return f"{mount}{path}"
    has_routes = getattr(route if hasattr(route, "routes") else endpoint, "routes", ())
    return None if endpoint is None or has_routes else mount
