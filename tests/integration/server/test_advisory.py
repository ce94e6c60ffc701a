"""Tests of the warnings about servers with known vulnerabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import capture_logs

from tallystream_worker.server.advisory import lua_advice, warn_of_vulnerabilities

if TYPE_CHECKING:
    from tests.servers import Server


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"redis_version": "8.2.1"}, "8.2.2"),
        ({"redis_version": "8.2.2"}, None),
        ({"redis_version": "8.4.0"}, None),
        ({"redis_version": "7.4.5"}, "7.4.6"),
        ({"redis_version": "7.4.6"}, None),
        ({"redis_version": "7.2.10"}, "7.2.11"),
        ({"redis_version": "7.0.15"}, "distributions"),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"}, None),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.3"}, "8.1.4"),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.4"}, None),
        ({"redis_version": "unknown"}, None),
        ({}, None),
    ],
)
def test_advice(info: dict[str, str], said: str | None) -> None:
    """A version without the fix gets the fixed version as advice, or to check or upgrade; a fixed one gets none."""
    advice = lua_advice(info)
    assert advice is None if said is None else said in (advice or "")


def test_a_server_is_asked(server: Server) -> None:
    """The worker warns of its server if its user may read the version; otherwise it logs nothing."""
    with capture_logs() as said:
        warn_of_vulnerabilities(server.url, structlog.get_logger())
        warn_of_vulnerabilities("redis://127.0.0.1:1", structlog.get_logger())
    info = server.client().info("server")
    expected = lua_advice(info)
    assert [line["problem"] for line in said] == ([] if expected is None else [expected])
