"""Django middleware that counts requests, under WSGI and ASGI.

MIDDLEWARE = ["tallystream.middleware.django.count_requests", ...]  # first, so that it counts every response
TALLYSTREAM_URL = "redis://127.0.0.1:6379"
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils.decorators import sync_and_async_middleware

from tallystream.client.connect import DEFAULT_URL
from tallystream.middleware.requests import RequestCounter

if TYPE_CHECKING:
    from collections.abc import Callable


@sync_and_async_middleware  # type: ignore[untyped-decorator]  # Django has no type hints
def count_requests(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a Django middleware that counts each request when `get_response` has returned its response.

    If `get_response` raises an error instead, the request is not counted. See `RequestCounter` for the metrics. The
    middleware is asynchronous if `get_response` is a coroutine function.

    Each call creates a new producer, without waiting for the server. The Django setting `TALLYSTREAM_URL` is the URL of
    Redis or Valkey; the default is `redis://127.0.0.1:6379`.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    count = RequestCounter.connect(getattr(settings, "TALLYSTREAM_URL", DEFAULT_URL))

    def note(request: Any, response: Any) -> Any:
        match = request.resolver_match
        count(request.method, None if match is None else "/" + match.route, response.status_code)
        return response

    if iscoroutinefunction(get_response):

        async def awaited(request: Any) -> Any:
            return note(request, await get_response(request))

        return awaited

    def called(request: Any) -> Any:
        return note(request, get_response(request))

    return called
