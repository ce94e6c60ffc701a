"""Several services as one: started in order, stopped backwards, within one deadline."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tallystream_worker.process.periodic import ServiceHealth


class Service(Protocol):
    """Something that works in the background between `start` and `stop`."""

    def start(self) -> None:
        """Begin to work."""

    def quiet(self) -> None:
        """Begin nothing new; what is in hand goes on."""

    def stop(self, deadline: float) -> bool:
        """Wait until what is in hand is done, until the monotonic second `deadline`; return whether it is."""

    @property
    def health(self) -> ServiceHealth:
        """The state of the service."""


def start_all(services: Sequence[Service]) -> None:
    """Start services in order."""
    for service in services:
        service.start()


def quiet_all(services: Sequence[Service]) -> None:
    """Have services begin nothing new, the last one first."""
    for service in reversed(services):
        service.quiet()


def stop_all(services: Sequence[Service], deadline: float) -> bool:
    """Stop services, the last one first; return whether all have ended by the monotonic second `deadline`.

    All are told before any is waited for, so that each has the whole time.
    """
    quiet_all(services)
    ended = True
    for service in reversed(services):
        ended = service.stop(deadline) and ended
    return ended


@contextmanager
def running(service: Service, timeout: float) -> Iterator[None]:
    """Run a service for as long as the context lasts, and give it `timeout` seconds to end."""
    service.start()
    try:
        yield
    finally:
        service.stop(time.monotonic() + timeout)
