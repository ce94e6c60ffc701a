"""The real servers that the tests run against.

valkey      from the wheel; always
redis       `redis-server` on PATH; if it is missing, its tests are skipped, or fail if CI is set
url         the server at TALLYSTREAM_REDIS_URL, if set; it must be empty, because the tests flush it
container   redis:8 by testcontainers, if TALLYSTREAM_CONTAINERS=1 is set; without a container engine, its tests are
            skipped, or fail if TALLYSTREAM_REQUIRE_CONTAINERS is set
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tallystream_worker.server.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "redis:8"


class Server:
    """A running server: its kind, its URL, and the clients of the current test."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self._clients: list[Redis] = []

    def client(self, **settings: object) -> Redis:
        """Return a new client that never retries; it is closed when the test ends."""
        defaults = {
            "protocol": 3,
            "legacy_responses": False,
            "decode_responses": False,
            "retry": Retry(NoBackoff(), 0),
        }
        client = Redis.from_url(self.url, **(defaults | settings))
        self._clients.append(client)
        return client

    def clear(self) -> None:
        """Remove every key; a test that runs many examples calls it between them."""
        with Redis.from_url(self.url, protocol=3, legacy_responses=False) as client:
            client.flushall()

    def close_clients(self) -> None:
        """Close every client that `client` returned."""
        while self._clients:
            self._clients.pop().close()


def matrix() -> list[str]:
    """Return the kinds of server that the environment asks for, whether or not they can be started."""
    kinds = ["valkey", "redis"]
    if os.environ.get("TALLYSTREAM_REDIS_URL"):
        kinds.append("url")
    if os.environ.get("TALLYSTREAM_CONTAINERS") or os.environ.get("TALLYSTREAM_REQUIRE_CONTAINERS"):
        kinds.append("container")
    return kinds


@contextlib.contextmanager
def running(kind: str, data: Path) -> Iterator[Server]:
    """Run the server of a kind until the block ends; skip or fail the test if the server is missing."""
    with contextlib.ExitStack() as stack:
        if kind == "valkey":
            url = stack.enter_context(EmbeddedServer(data)).url
        elif kind == "redis":
            binary = shutil.which("redis-server") or missing("no redis-server on PATH", unless="CI")
            url = stack.enter_context(EmbeddedServer(data, binary=Path(binary))).url
        elif kind == "url":
            url = stack.enter_context(_borrowed(os.environ["TALLYSTREAM_REDIS_URL"]))
        else:
            url = stack.enter_context(_container())
        server = Server(kind, url)
        stack.callback(server.close_clients)
        yield server


def missing(reason: str, *, unless: str) -> str:
    """Skip the test with the reason, or fail it with the reason if the environment variable `unless` is set."""
    if os.environ.get(unless):
        pytest.fail(f"{reason}, and {unless} is set")
    pytest.skip(reason)


@contextlib.contextmanager
def _borrowed(url: str) -> Iterator[str]:
    # The same variable can point the command line at a production server: refuse to flush a server with keys.
    with Redis.from_url(url, protocol=3, legacy_responses=False) as client:
        if used := client.info("keyspace"):
            pytest.fail(f"the server at TALLYSTREAM_REDIS_URL is not empty ({used}); the tests would flush it")
        yield url
        client.flushall()


@contextlib.contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.redis import RedisContainer  # noqa: PLC0415  # most runs use no container

    if problem := _engine_problem():
        missing(f"no container engine answers ({problem})", unless="TALLYSTREAM_REQUIRE_CONTAINERS")
    with RedisContainer(IMAGE) as container:
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}"


def _engine_problem() -> str | None:
    """Return the reason that no container engine can be used, or `None` if one answers."""
    import docker  # noqa: PLC0415

    with warnings.catch_warnings():
        # The docker client does not close the socket of a failed connection; the garbage collector does.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            with contextlib.closing(docker.from_env()) as engine:
                engine.ping()
        except docker.errors.DockerException as error:
            problem = str(error)
        else:
            problem = None
        gc.collect()
    return problem
