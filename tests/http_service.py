"""A read service for tests: it listens on a real socket and reads from one server."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import httpx

from tallystream_worker.service.server import serving
from tallystream_worker.settings.settings import RedisSettings, ServeSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry


def settings_for(url: str, **serve: Any) -> Settings:
    """Return settings of a read service with any free port and a read timeout of 0.3 s."""
    return Settings(redis=RedisSettings(url=url), serve=ServeSettings(**{"port": 0, "read_timeout": 0.3} | serve))


@contextlib.contextmanager
def http_service(url: str, extra: CollectorRegistry | None = None, **serve: Any) -> Iterator[httpx.Client]:
    """Run a read service that reads from `url`, and provide an HTTP client of it."""
    with serving(settings_for(url, **serve), extra) as address, httpx.Client(base_url=address) as client:
        yield client
