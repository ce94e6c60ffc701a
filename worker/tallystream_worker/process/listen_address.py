"""Warns when a service without authentication listens on an address that is not loopback."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from tallystream_worker.settings.settings import ServeSettings

LOOPBACK: Final = "127.0.0.1"
"""The default address to listen on: only this machine can reach it."""


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a text is; `None` for any other text, such as a host name. No name is looked up."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether a host name or IP address is `localhost` or a loopback address: only this machine can reach it.

    Any other name is not, because no name is looked up.
    """
    address = address_of(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def warn_if_exposed(serve: ServeSettings) -> None:
    """Log a warning if the read service has no token of any role, and its host is not loopback; see `is_loopback`."""
    if not is_loopback(serve.host) and not (serve.read_token or serve.write_token or serve.admin_token):
        structlog.get_logger().warning(
            "service.exposed",
            host=serve.host,
            problem="WITHOUT A TOKEN, everyone who reaches this address can read and write every counter",
            action="set TALLYSTREAM_SERVE_READ_TOKEN, _WRITE_TOKEN and _ADMIN_TOKEN, or listen on 127.0.0.1",
        )


def warn_if_metrics_are_exposed(host: str, port: int) -> None:
    """Log a warning if the address that serves Prometheus metrics is not loopback, because no token protects these."""
    if not is_loopback(host):
        structlog.get_logger().warning(
            "metrics.exposed",
            host=host,
            port=port,
            problem="without a token, everyone who reaches this address can read how many events are counted",
            action="let only Prometheus reach it, or leave out --metrics-host",
        )
