"""Runs the HTTP server in a thread of this process; the caller stops it, not a signal."""

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
    from collections.abc import Callable, Iterator

    from litestar import Litestar
    from prometheus_client import CollectorRegistry

    from tallystream_worker.settings.settings import ServeSettings, Settings

START_TIMEOUT: Final = 10.0
"""Seconds within which the server must accept connections."""

STOP_TIMEOUT: Final = 15.0
"""Seconds that running requests have to end at a stop, in addition to `read_timeout`.

This is longer than a client may take to send a body."""

_CONNECTIONS: Final = 1024
"""Connections at one time; more wait until one is closed. Idle connections would soon use up granian's default, 128."""

_IDLE_MS: Final = 5_000
"""Milliseconds after which a connection that sends no request, or not all of its head, is closed."""

_LOOK: Final = 0.005
_LEAVE_TIMEOUT: Final = 1.0
_LEAVE_BLINDLY: Final = 0.05
"""Seconds to wait for granian's threads on a system that does not list them; they need microseconds."""


@contextmanager
def serving(
    settings: Settings,
    extra: CollectorRegistry | None = None,
    *,
    any_port: bool = False,
    backup: Callable[[], str] = lambda: "",
) -> Iterator[str]:
    """Run the read service in a thread within the context, and yield its URL when it accepts connections.

    At the end of the context, live streams are ended, and running requests have `read_timeout` and 15 seconds more to
    end; no error is raised if one takes longer. Logs a warning if the service has no token and its address is not
    loopback.

    Args:
        settings: The configuration; port 0 takes a free port.
        extra: More Prometheus metrics for `/metrics`.
        any_port: Take a free port if the configured one is in use.
        backup: See `create_app`.

    Raises:
        ConfigurationError: the service cannot listen on the address, or a token is not valid or cannot be read.
        TallyError: the server did not start within 10 seconds, or ended at its start.
    """
    serve = settings.serve
    claim = _claim(serve, any_port=any_port)
    warn_if_exposed(serve)
    with claim:
        host, port = claim.getsockname()[:2]
        thread = _Thread(create_app(settings, extra, backup), host, port)
        if sys.platform != "linux":
            claim.close()  # on other systems only one socket can have the port
        thread.start()
        try:
            thread.wait_until_up()
            yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        finally:
            thread.stop(serve.read_timeout + STOP_TIMEOUT)


def _claim(serve: ServeSettings, *, any_port: bool) -> socket.socket:
    """Return a socket that is bound to the address and does not listen.

    Granian listens with SO_REUSEPORT, so a second service on the same port would silently get half of the requests.
    This socket is bound without SO_REUSEPORT, which fails if the port is in use. Then the option is set, so that
    granian can bind the same port. If the port is in use, and `any_port` is true, a free port is bound instead.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0]
        claim = socket.socket(family, kind)
        try:
            claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections may still be closing
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
        except BaseException as error:  # noqa: BLE001  # wait_until_up reports it
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
        """End the live streams, and wait at most `timeout` seconds for the running requests and the end of the server.

        Then wait at most one more second for granian's threads. A request that takes longer is cut off when the process
        ends.
        """
        if self._loop is not None and self._server is not None and self.is_alive():
            asyncio.run_coroutine_threadsafe(self._leave(self._server), self._loop)
        self.join(timeout)
        self._let_granian_leave()

    async def _leave(self, server: Server) -> None:
        # End the live streams first: they never end by themselves, and granian waits for every running request.
        await self._app.state.broadcaster.drain(_LEAVE_TIMEOUT)
        asyncio.get_running_loop().call_soon(server.stop)

    def _let_granian_leave(self) -> None:
        """Wait at most a second for the end of the threads that began since this object was made, but not of Python's.

        They are those of granian. If the system does not list threads, wait 0.05 seconds. If the interpreter ended
        before the last of them, the process would die with SIGABRT (granian issue 693).
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
    """Return the ids of all threads of this process, not only Python's; empty if the system does not list them."""
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
"""Sends granian's log to standard error; its default is standard output, which is for data."""
