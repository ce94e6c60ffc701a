"""The read service over a real socket, in front of one server."""

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
    """Return settings with a free port and little patience."""
    return Settings(redis=RedisSettings(url=url), serve=ServeSettings(**{"port": 0, "read_timeout": 0.3} | serve))


@contextlib.contextmanager
def http_service(url: str, extra: CollectorRegistry | None = None, **serve: Any) -> Iterator[httpx.Client]:
    """Provide a client of a service that reads from `url`."""
    with serving(settings_for(url, **serve), extra) as address, httpx.Client(base_url=address) as client:
        yield client
