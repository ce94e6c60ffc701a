"""Builds the read service: its routes, errors, limits and security headers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes

from litestar import Litestar
from litestar.datastructures import MutableScopeHeaders, State
from litestar.di import Provide
from litestar.enums import ScopeType
from litestar.openapi import OpenAPIConfig
from litestar.response.base import ASGIResponse
from litestar.types import HTTPScope, LifeSpanReceive, LifeSpanScope, LifeSpanSend, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry

from tallystream.aio import Totals
from tallystream_worker.live.broadcaster import Broadcaster
from tallystream_worker.service import problems
from tallystream_worker.service.access import Access
from tallystream_worker.service.backup_lookup import BackupLookup
from tallystream_worker.service.compression import delivered
from tallystream_worker.service.early_response import watched
from tallystream_worker.service.examples import illustrate
from tallystream_worker.service.fast_path import one_counter, send_json
from tallystream_worker.service.host_check import HostAndOriginCheck
from tallystream_worker.service.problems import refusal
from tallystream_worker.service.routes.alerts import alerts
from tallystream_worker.service.routes.counters import Counters
from tallystream_worker.service.routes.dashboard import page, part
from tallystream_worker.service.routes.events import Events
from tallystream_worker.service.routes.health import healthz, readyz
from tallystream_worker.service.routes.live import live, live_socket
from tallystream_worker.service.routes.metrics import ExtraMetrics, metrics
from tallystream_worker.service.routes.overview import Summary
from tallystream_worker.service.routes.rules import RuleReads
from tallystream_worker.service.routes.session import Sessions
from tallystream_worker.service.schema import SchemaPage
from tallystream_worker.service.tokens import tokens_of
from tallystream_worker.service.writer import Writer
from tallystream_worker.settings.settings import Settings

MAX_PATH: Final = 4096
"""Longest path in bytes: enough for the longest subject with every byte percent-encoded, and a metric."""

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


_RAW_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


class ReadService(Litestar):
    """The ASGI application of the read service; it routes by the raw path.

    In the decoded path of ASGI, `%2F` is the same as `/`, so the end of a subject and the start of its metric would be
    unknown.

    Args:
        gate: Checks host and origin of each request.
        access: Checks the role of the requests for one total that the fast path answers, and of no others: the caller
            must also give `access.guard` in `guards`, or every route is open.
        settings: The arguments of `Litestar`, without `before_send`. One of `lifespan` must set `state.totals`, which
            every HTTP request needs.
    """

    def __init__(self, gate: HostAndOriginCheck, access: Access, **settings: Any) -> None:
        self._gate = gate
        self._access = access
        super().__init__(**settings, before_send=[self._protect])

    async def __call__(
        self, scope: Scope | LifeSpanScope, receive: Receive | LifeSpanReceive, send: Send | LifeSpanSend
    ) -> None:
        """Handle one request, WebSocket or lifespan of ASGI.

        Check host, origin and URL, then try the fast path, then the router. A WebSocket that fails the check is refused
        before it is accepted; a request gets an error response. A CORS preflight request from an origin of
        `[serve] origins` gets 204 before the router.
        """
        if scope["type"] != "lifespan":
            http = cast("HTTPScope", scope)
            http["path"] = http["raw_path"].decode("latin-1")
            if scope["type"] == ScopeType.HTTP:
                receive, send = watched(http, cast("Receive", receive), cast("Send", send))
                send = delivered(http, send)
            headers = dict(http["headers"])
            answer = self._gate.refuses(http["type"], http.get("method", "GET"), headers) or _refusal(
                http["raw_path"], http["query_string"]
            )
            if answer is not None:
                if scope["type"] == ScopeType.WEBSOCKET:
                    await cast("Send", send)({"type": "websocket.close", "code": 1008, "reason": "refused"})
                    return
                await answer(http, cast("Receive", receive), self._wrap_send(cast("Send", send), http))
                return
            if scope["type"] == ScopeType.HTTP:
                body = await one_counter(http, headers, self.state.totals, self._access)
                if body is not None:
                    await send_json(cast("Send", send), body, _RAW_HEADERS, self._gate.headers_for(""))
                    return
        await super().__call__(scope, receive, send)

    async def _protect(self, message: Message, scope: Scope) -> None:
        """Set the security and CORS headers in the ASGI message that starts a response; ignore other messages.

        Error responses get them, too. The response of the fast path does not pass here: `send_json` gets its headers
        from the caller. Security headers that the response already has stay unchanged.
        """
        if message["type"] == "http.response.start":
            origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
            headers = MutableScopeHeaders.from_message(message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            for name, value in self._gate.headers_for(origin).items():
                headers.extend_header_value(name, value)


def create_app(
    settings: Settings, extra: CollectorRegistry | None = None, backup: Callable[[], str] = lambda: ""
) -> Litestar:
    """Return the application of the read service; it connects to the server of the counters when a request needs it.

    Args:
        settings: The configuration.
        extra: More Prometheus metrics for `/metrics`: those of workers in the same process.
        backup: Called in another thread if the server has no rules of this data; returns a text on the backup that has
            the data, or `""`. It is never called twice at a time, and its text is kept for ten seconds.

    Raises:
        ConfigurationError: a file of tokens cannot be read or is empty, or a token is not 16 to 512 printable ASCII
            characters.
    """
    store = settings.redis
    access = Access(tokens_of(settings.serve))
    lookup = BackupLookup(backup)

    @asynccontextmanager
    async def reading(app: Litestar) -> AsyncIterator[None]:
        writer = Writer(store, settings.worker.durability)
        durability = settings.worker.read_durability
        async with Totals(store.url, namespace=store.namespace, durability=durability) as totals:
            broadcaster = Broadcaster(store, totals)
            app.state.totals = totals
            app.state.writer = writer
            app.state.broadcaster = broadcaster
            try:
                yield
            finally:
                await broadcaster.close()
                await writer.close()

    def totals_of(state: State) -> Totals:
        totals: Totals = state.totals
        return totals

    def writer_of(state: State) -> Writer:
        writer: Writer = state.writer
        return writer

    def broadcaster_of(state: State) -> Broadcaster:
        broadcaster: Broadcaster = state.broadcaster
        return broadcaster

    app = ReadService(
        HostAndOriginCheck(settings.serve, guarded=bool(access.tokens)),
        access,
        route_handlers=[
            *(page, part, Counters, RuleReads, Summary, Events, alerts, Sessions, live, live_socket),
            *(healthz, readyz, metrics),
        ],
        guards=[access.guard],
        lifespan=[reading],
        dependencies={
            "totals": Provide(totals_of, sync_to_thread=False),
            "writer": Provide(writer_of, sync_to_thread=False),
            "broadcaster": Provide(broadcaster_of, sync_to_thread=False),
            "store": Provide(lambda: store, sync_to_thread=False),
            "limits": Provide(lambda: settings.serve, sync_to_thread=False),
            "access": Provide(lambda: access, sync_to_thread=False),
            "backup": Provide(lambda: lookup, sync_to_thread=False),
            "extra": Provide(lambda: ExtraMetrics(extra), sync_to_thread=False),
        },
        plugins=[problems.plugin()],
        # JSON only: the HTML pages for people would load scripts from other sites.
        openapi_config=OpenAPIConfig(
            title="tallystream",
            version="1",
            path="/schema",
            description="Exact event counters. Every figure comes with its position, lag and error.",
            render_plugins=[SchemaPage()],
            use_handler_docstrings=True,
        ),
        logging_config=None,
        debug=False,
    )
    illustrate(app.openapi_schema)
    return app


def _refusal(path: bytes, query: bytes) -> ASGIResponse | None:
    """Return the error response to a URL that must not reach the router; `None` for any other URL.

    Refused are a path that is too long (414; the router would cache it), a path other than `/` with empty segments or a
    slash at its end (404; the router would drop them), and a query string that is not UTF-8 (400; the router would
    replace bytes, so that one subject would become another). Whether the path is UTF-8 is not checked here.

    Args:
        path: The raw path, percent-encoded.
        query: The raw query string, percent-encoded.
    """
    if len(path) > MAX_PATH:
        return refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "path", f"at most {MAX_PATH:,} bytes")
    if b"//" in path or (path.endswith(b"/") and path != b"/"):
        return refusal(
            HTTPStatus.NOT_FOUND,
            "path",
            "must have no empty segments: write a slash in a subject as %2F, or use /v1/counters?subject=",
        )
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return refusal(HTTPStatus.BAD_REQUEST, "query", "must be UTF-8, percent-encoded")
    return None
