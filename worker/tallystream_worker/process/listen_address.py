"""Who reaches an address that something listens on, and a loud word where that is more than this machine."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from tallystream_worker.settings.settings import ServeSettings

LOOPBACK: Final = "127.0.0.1"


def address_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is; `None` where it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    address = address_of(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def warn_if_exposed(serve: ServeSettings) -> None:
    """Say loudly that anybody who reaches the address may read and write all counters."""
    if not is_loopback(serve.host) and not (serve.read_token or serve.write_token or serve.admin_token):
        structlog.get_logger().warning(
            "service.exposed",
            host=serve.host,
            problem="WITHOUT A TOKEN, everyone who reaches this address can read and write every counter",
            action="set TALLYSTREAM_SERVE_READ_TOKEN, _WRITE_TOKEN and _ADMIN_TOKEN, or listen on 127.0.0.1",
        )


def warn_if_metrics_are_exposed(host: str, port: int) -> None:
    """Say that metrics, which ask for no token, are read by whoever reaches the address."""
    if not is_loopback(host):
        structlog.get_logger().warning(
            "metrics.exposed",
            host=host,
            port=port,
            problem="without a token, everyone who reaches this address can read how much each metric counts",
            action="let only Prometheus reach it, or leave out --metrics-host",
        )
