"""Serves in a thread of this process, beside whatever else runs in it: stopped by its caller, never by a signal."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from tallystream.errors import ConfigurationError, TallyError
from tallystream_worker.process.listen_address import warn_if_exposed
from tallystream_worker.service.app import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from litestar import Litestar
    from prometheus_client import CollectorRegistry

    from tallystream_worker.settings.settings import ServeSettings, Settings

START_TIMEOUT: Final = 10.0
STOP_TIMEOUT: Final = 15.0
"""Seconds that requests in hand have to end, besides the time that they may wait: more than a client may take to
send one and Redis may take to be given up. Without a request in hand a stop takes milliseconds."""

_CONNECTIONS: Final = 1024
"""Connections at once; more wait until one is closed. Granian's own 128 is soon taken up by idle ones."""

_IDLE_MS: Final = 5_000
"""Milliseconds after which a connection that sends no request, or not all of its head, is closed."""

_LOOK: Final = 0.005
_LEAVE_TIMEOUT: Final = 1.0
_LEAVE_BLINDLY: Final = 0.05
"""Seconds that granian's threads get where they cannot be seen; they need microseconds."""


@contextmanager
def serving(settings: Settings, extra: CollectorRegistry | None = None, *, any_port: bool = False) -> Iterator[str]:
    """Serve for as long as the context lasts, and yield the URL once requests are answered; then end those in hand.

    Args:
        settings: Where to listen; port 0 takes a free one.
        extra: Metrics that `/metrics` shows besides.
        any_port: Take a free port where the configured one is in use.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    serve = settings.serve
    claim = _claim(serve, any_port=any_port)
    warn_if_exposed(serve)
    with claim:
        host, port = claim.getsockname()[:2]
        thread = _Thread(create_app(settings, extra), host, port)
        if sys.platform != "linux":
            claim.close()  # elsewhere the port can be held by one socket only
        thread.start()
        try:
            thread.wait_until_up()
            yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        finally:
            thread.stop(serve.read_timeout + STOP_TIMEOUT)


def _claim(serve: ServeSettings, *, any_port: bool) -> socket.socket:
    """Return a socket that holds the address without listening on it.

    Granian listens with SO_REUSEPORT, so a second service on the same port would get half of the first one's
    requests without a word. This socket is bound without it, which fails where the port is in use, and allows it
    only then, so that granian comes in beside it.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0]
        claim = socket.socket(family, kind)
        try:
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port whose old connections still close
            try:
                claim.bind(address)
            except OSError as error:
                if not any_port or error.errno != errno.EADDRINUSE:
                    raise
                claim.bind((address[0], 0, *address[2:]))
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except BaseException:
            claim.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"serve: cannot listen on {serve.host} port {serve.port} ({error.strerror}); "
            "choose another with --port, 0 for any free one"
        ) from None
    return claim


class _Thread(threading.Thread):
    def __init__(self, app: Litestar, host: str, port: int) -> None:
        super().__init__(name="tallystream-http", daemon=True)
        self._app = app
        self._address = (host, port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._failure: BaseException | None = None
        self._threads_before = _native_threads()

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # it is raised where somebody waits for us
            self._failure = error

    async def _serve(self) -> None:
        host, port = self._address
        self._loop = asyncio.get_running_loop()
        self._server = Server(
            self._app,
            address=host,
            port=port,
            interface=Interfaces.ASGI,
            backlog=_CONNECTIONS,
            backpressure=_CONNECTIONS,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=_IDLE_MS),
            websockets=True,
            log_dictconfig=_LOGGING,
            log_level=LogLevels.error,
        )
        await self._server.serve()

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(self._address, timeout=1).close()
            except OSError as error:
                if not self.is_alive() or time.monotonic() > deadline:
                    raise TallyError(f"the read service did not start: {self._failure or error}") from None
                time.sleep(_LOOK)
            else:
                return

    def stop(self, timeout: float) -> None:
        """End the requests in hand and stop; a request that takes longer than `timeout` seconds is cut off."""
        if self._loop is not None and self._server is not None and self.is_alive():
            asyncio.run_coroutine_threadsafe(self._leave(self._server), self._loop)
        self.join(timeout)
        self._let_granian_leave()

    async def _leave(self, server: Server) -> None:
        # Streams first: they have no end of their own, and granian waits for every request in hand.
        await self._app.state.broadcaster.drain(_LEAVE_TIMEOUT)
        asyncio.get_running_loop().call_soon(server.stop)

    def _let_granian_leave(self) -> None:
        """Wait until granian's threads are gone.

        The last one tells Python that it is done, and needs the interpreter once more to end; an interpreter that
        ends first takes the whole process down with SIGABRT (granian issue 693).
        """
        if not self._threads_before:
            time.sleep(_LEAVE_BLINDLY)
        deadline = time.monotonic() + _LEAVE_TIMEOUT
        while time.monotonic() < deadline:
            known = {thread.native_id for thread in threading.enumerate()}
            if not _native_threads() - self._threads_before - known:
                return
            time.sleep(_LOOK)


def _native_threads() -> set[int | None]:
    """Return the ids of this process's threads, Python's and others; empty where the system does not tell."""
    try:
        return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}
    except OSError:
        return set()


_LOGGING: Final[dict[str, Any]] = {
    "handlers": {
        "console": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"},
        "access": {"class": "logging.NullHandler"},
    },
}
"""Granian's own log goes to standard output, which is for data."""
