"""Warns of servers with known vulnerabilities in the Lua engine, such as CVE-2025-49844.

On such a server, a client that may run scripts can run code in the server process. So it matters if producers are
trusted less than the server.
"""

from __future__ import annotations

import re
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.client.connect import connect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

FIXED: Final = {
    "redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
    "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
"""The first patch release with the fix, by server and release line, as the projects announced it in October 2025."""


def warn_of_vulnerabilities(url: str, log: FilteringBoundLogger) -> None:
    """Connect to the server at `url`, and log a warning if `lua_advice` has advice about it.

    In a cluster, one primary is asked. Do nothing if the server does not reply, or refuses `INFO`.

    Raises:
        ConfigurationError: the URL is not valid, or it names a single server and the server is a node of a cluster, or
            the reverse.
    """
    with closing(connect(url)) as client, suppress(RedisError):
        advice = lua_advice(client.info("server"))
        if advice is not None:
            log.warning("server.upgrade_advised", problem=advice)


def lua_advice(info: Mapping[str, Any]) -> str | None:
    """Return a sentence of advice if a server has, or may have, CVE-2025-49844 by its version; otherwise `None`.

    A release line that is not in `FIXED` may have the vulnerability, unless it is later than all of these. If the
    version is unknown, return `None`.

    Args:
        info: The fields of `INFO server`.
    """
    # Valkey reports redis_version 7.2.4 for compatibility: its own version is in valkey_version.
    kind = "valkey" if info.get("server_name") == "valkey" else "redis"
    version = str(info.get(f"{kind}_version", ""))
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return None
    major, minor, patch = map(int, found.groups())
    lines = FIXED[kind]
    if (major, minor) > max(lines):
        return None
    name = kind.capitalize()
    fixed = lines.get((major, minor))
    if fixed is None:
        return (
            f"{name} {version} is in a release line without a fix for CVE-2025-49844 (a vulnerability in Lua scripts) "
            "from its authors; some distributions add the fix under the same version: check yours, or upgrade"
        )
    if patch < fixed:
        return (
            f"{name} {version} has a vulnerability in Lua scripts (CVE-2025-49844): "
            f"upgrade to {major}.{minor}.{fixed} or later"
        )
    return None
