"""Fixtures that every suite shares: a clean server of each kind, and private ones that a test may kill."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings

from tallystream_worker.server.embedded import EmbeddedServer
from tests.servers import Server, matrix, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# CI draws the same examples each time, so that a red run can be run again; mutants need no minimal example.
# No deadlines: what a machine does beside us is no failure.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("mutants", derandomize=True, phases=[Phase.generate], max_examples=60)
if "CI" in os.environ:
    settings.load_profile("ci")


# A shell that runs us in the background has us ignore Ctrl-C, and so would every program that a test starts and stops.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say which servers this run is against."""
    return f"servers: {', '.join(matrix())}"


@pytest.fixture(scope="session", params=matrix())
def server_process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One process of each kind of server, for the whole run."""
    with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture
def server(server_process: Server) -> Iterator[Server]:
    """An empty server; change its settings or kill it with `fresh_server` instead."""
    server_process.clear()
    yield server_process
    server_process.close_clients()


@pytest.fixture
def redis_url(server: Server) -> str:
    """The URL of an empty server."""
    return server.url


@pytest.fixture
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EmbeddedServer]]:
    """A factory of started servers of the test's own, for tests that kill, freeze or reconfigure them.

    Takes what `EmbeddedServer` takes; a new data folder where none is given. All are stopped at the end.
    """
    with contextlib.ExitStack() as started:

        def start(**settings: Any) -> EmbeddedServer:
            settings.setdefault("data", tmp_path_factory.mktemp("server"))
            return started.enter_context(EmbeddedServer(**settings))

        yield start


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL, for the whole run; `tests.postgresql.emptied` before use."""
    from tests.postgresql import running_postgresql  # noqa: PLC0415  # started only where it is asked for

    with running_postgresql(tmp_path_factory.mktemp("postgresql")) as url:
        yield url
