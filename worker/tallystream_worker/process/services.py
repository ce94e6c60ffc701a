"""Starts services in order, and stops them in reverse order within one deadline."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tallystream_worker.process.periodic import ServiceHealth


class Service(Protocol):
    """A service that works in the background between `start` and `stop`."""

    def start(self) -> None:
        """Start the service in the background, and return."""

    def quiet(self) -> None:
        """Begin no new work, and return at once; work that has begun continues."""

    def stop(self, deadline: float) -> bool:
        """Begin no new work, and wait until the monotonic second `deadline`; return whether all work has ended."""

    @property
    def health(self) -> ServiceHealth:
        """The state of the service."""


def start_all(services: Sequence[Service]) -> None:
    """Start services in order. If one raises, the services before it stay started and the later ones are not."""
    for service in services:
        service.start()


def quiet_all(services: Sequence[Service]) -> None:
    """Tell services to begin no new work, the last service first."""
    for service in reversed(services):
        service.quiet()


def stop_all(services: Sequence[Service], deadline: float) -> bool:
    """Stop services, the last one first; return whether all have ended by the monotonic second `deadline`.

    All services get `quiet` before the first `stop`, so that each has the whole time to end.
    """
    quiet_all(services)
    ended = True
    for service in reversed(services):
        ended = service.stop(deadline) and ended
    return ended


@contextmanager
def running(service: Service, timeout: float) -> Iterator[None]:
    """Run a service within the context; when the context ends, wait up to `timeout` seconds for the service to stop.

    If it takes longer, it is left running, without an error.
    """
    service.start()
    try:
        yield
    finally:
        service.stop(time.monotonic() + timeout)
