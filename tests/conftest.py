"""Fixtures that every suite shares: an empty server of each kind, and private servers that a test may kill."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings

from tallystream_worker.server.embedded import EmbeddedServer
from tests.clock import KINDS, ClockedServer
from tests.kinds_of_today import leave_out
from tests.servers import Server, matrix, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# CI draws the same examples each time, so that a failed run can be repeated; mutants need no minimal example.
# Examples have no deadline, because other load on the machine must not fail a test.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("mutants", derandomize=True, phases=[Phase.generate], max_examples=60)
if "CI" in os.environ:
    settings.load_profile("ci")


# A shell that runs pytest in the background makes it ignore SIGINT. Restore the default: programs that a test starts
# inherit the setting, and the test stops them with SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that are due on another day."""
    leave_out(config, items)


def pytest_report_header() -> str:
    """Return the header line of the pytest report that lists the kinds of server in this run."""
    return f"servers: {', '.join(matrix())}"


@pytest.fixture(scope="session", params=matrix())
def server_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Provide one server process of each kind for the whole run."""
    with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def server(server_process: Server) -> Iterator[Server]:
    """Provide an empty server. A test that changes settings or kills the server uses `fresh_server` instead."""
    server_process.clear()
    yield server_process
    server_process.close_clients()


@pytest.fixture
def redis_url(server: Server) -> str:
    """Provide the URL of an empty server."""
    return server.url


@pytest.fixture(scope="session", params=KINDS)
def clocked_process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClockedServer]:
    """Provide one server of each kind, with a clock that tests set, for the whole run."""
    with ClockedServer(request.param, tmp_path_factory.mktemp(f"clocked-{request.param}")) as server:
        yield server


@pytest.fixture
def clocked(clocked_process: ClockedServer) -> ClockedServer:
    """Provide an empty server with a clock that the test sets; it begins as the clock of the machine."""
    clocked_process.clear()
    return clocked_process


@pytest.fixture
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EmbeddedServer]]:
    """Provide a function that starts private servers, for tests that kill, freeze or reconfigure them.

    The function takes the arguments of `EmbeddedServer`, and makes a new data folder if `data` is missing. All servers
    are stopped when the test ends.
    """
    with contextlib.ExitStack() as started:

        def start(**settings: Any) -> EmbeddedServer:
            settings.setdefault("data", tmp_path_factory.mktemp("server"))
            return started.enter_context(EmbeddedServer(**settings))

        yield start


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Provide the URL of a PostgreSQL server for the whole run; empty it with `tests.postgresql.emptied` before use."""
    from tests.postgresql import running_postgresql  # noqa: PLC0415  # imported only by tests that use PostgreSQL

    with running_postgresql() as url:
        yield url
