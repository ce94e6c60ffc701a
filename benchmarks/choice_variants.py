"""The variants of the read service that `choices` compares.

    python -m benchmarks.choice_variants VARIANT URL PORT

It serves until SIGTERM. `as_is` is the product without changes; every other variant changes one thing.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import redis.asyncio
from litestar import Litestar, asgi, get
from litestar.config.compression import CompressionConfig
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Response
from litestar.types import Receive, Scope, Send

from tallystream import aio
from tallystream.reading.query import Answer, Query
from tallystream_worker.process import logs
from tallystream_worker.service import app, compression, fast_path, server
from tallystream_worker.settings.settings import RedisSettings, ServeSettings, Settings

_encode = msgspec.json.Encoder().encode
_CONNECTIONS = 32


# -- the fast path --------------------------------------------------------------------------------------


async def _never(*_: object) -> None:
    """Return `None` in place of the fast path, so that every request goes to the router."""


async def _one(totals: aio.Totals, subject: str, metric: str) -> bytes:
    deployment = await totals.deployment()
    if deployment.declared is None or metric not in deployment.rules.metric:
        raise ValueError(metric)
    return _encode(await totals.get(subject, metric))


@get("/litestar_route/{subject:str}/{metric:str}")
async def _route(totals: NamedDependency[aio.Totals], subject: FromPath[str], metric: FromPath[str]) -> Response[bytes]:
    """Answer with a minimal Litestar route: it has only path parameters, and returns encoded bytes."""
    return Response(await _one(totals, subject, metric), media_type="application/json")


@asgi("/asgi_mount", is_mount=True, copy_scope=False)
async def _mount(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001  # ASGI's
    """Answer with a mounted ASGI application, which has Litestar's routing and exception handling, but no parsing."""
    subject, metric = scope["raw_path"].decode().rsplit("/", 2)[1:]
    body = await _one(Litestar.from_scope(scope).state.totals, subject, metric)
    await fast_path.send_json(send, body, [], {})


def _add(handler: Any) -> None:
    made = app.ReadService.__init__

    def with_handler(self: Any, gate: Any, access: Any, *, route_handlers: list[Any], **settings: Any) -> None:
        made(self, gate, access, route_handlers=[*route_handlers, handler], **settings)

    app.ReadService.__init__ = with_handler  # type: ignore[method-assign]


# -- compression ----------------------------------------------------------------------------------------


def _litestar_gzip() -> None:
    """Let Litestar compress the answers, from the same size and at the same level; our code still adds the ETags."""

    def tagged_only(scope: Any, send: Send) -> Send:
        known = dict(scope["headers"]).get(b"if-none-match", b"")
        return compression._Delivery(send, known, packing=False, tagging=scope["path"].startswith("/v1/"))  # noqa: SLF001

    app.delivered = tagged_only
    made = app.ReadService.__init__

    def with_compression(self: Any, gate: Any, access: Any, **settings: Any) -> None:
        config = CompressionConfig("gzip", minimum_size=compression.WORTH_PACKING, gzip_compress_level=5)
        made(self, gate, access, compression_config=config, **settings)

    app.ReadService.__init__ = with_compression  # type: ignore[method-assign]


# -- the client -----------------------------------------------------------------------------------------


class _AsyncioTotals(aio.Totals):
    """A `Totals` for asyncio that sends its commands with redis-py's asyncio client."""

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._asyncio = redis.asyncio.Redis.from_url(url, protocol=3, legacy_responses=False)
        self._at_once = asyncio.Semaphore(_CONNECTIONS)

    async def run(self, query: Query[Answer]) -> Answer:
        while True:
            async with self._at_once, self._asyncio.pipeline(transaction=query.atomic) as pipeline:
                for command in query.commands:
                    pipeline.execute_command(*command)
                replies = await pipeline.execute(raise_on_error=False)
            answer = query.parse(replies)
            if not isinstance(answer, type(query)):
                return answer  # type: ignore[return-value]
            query = answer


# -- the server -----------------------------------------------------------------------------------------


@contextmanager
def _uvicorn(settings: Settings, loop: str) -> Iterator[None]:
    import uvicorn  # noqa: PLC0415  # only this variant needs it

    config = uvicorn.Config(
        app.create_app(settings), port=settings.serve.port, loop=loop, http="httptools", log_level="error",
        access_log=False, server_header=False, date_header=True, backlog=1024,
    )  # fmt: skip
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield
    finally:
        running.should_exit = True
        thread.join()


def _settings() -> Settings:
    return Settings(redis=RedisSettings(url=sys.argv[2]), serve=ServeSettings(port=int(sys.argv[3])))


def application() -> Litestar:
    """Return the application; granian calls this in the process that it starts."""
    return app.create_app(_settings())


def _granian_process(settings: Settings) -> None:
    """Serve with granian's public class, which starts another process with the application."""
    from granian import Granian  # noqa: PLC0415  # only this variant needs it
    from granian.constants import HTTPModes, Interfaces  # noqa: PLC0415

    Granian(
        "benchmarks.choice_variants:application", port=settings.serve.port, interface=Interfaces.ASGI, factory=True,
        http=HTTPModes.http1, backlog=1024, backpressure=1024, log_enabled=False,
    ).serve()  # fmt: skip


def main(name: str) -> None:
    """Serve the variant `name` until SIGTERM."""
    settings = _settings()
    logs.configure()
    if name == "granian_process":
        _granian_process(settings)
        return
    serving: Any = server.serving(settings)
    if name == "router":
        app.one_counter = _never  # type: ignore[assignment]
    elif name in ("litestar_route", "asgi_mount"):
        _add(_route if name == "litestar_route" else _mount)
    elif name == "litestar_gzip":
        _litestar_gzip()
    elif name == "asyncio_client":
        app.Totals = _AsyncioTotals  # type: ignore[misc]
    elif name in ("uvicorn", "uvicorn_uvloop"):
        serving = _uvicorn(settings, "uvloop" if name.endswith("uvloop") else "asyncio")
    elif name != "as_is":
        raise SystemExit(f"no such variant: {name}")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with serving:
        stop.wait()


if __name__ == "__main__":
    main(sys.argv[1])
