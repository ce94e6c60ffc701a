"""Warns of servers with known holes in their Lua engine (CVE-2025-49844 and its like).

Whoever may run scripts can break out of them there, so it matters where producers are not trusted as the server is.
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
"""The patch release of each release line that has the fix, by the projects' own announcements of October 2025."""


def warn_of_holes(url: str, log: FilteringBoundLogger) -> None:
    """Log a warning where the server is known to have such a hole; a server that does not say is not judged."""
    with closing(connect(url)) as client, suppress(RedisError):
        advice = lua_advice(client.info("server"))
        if advice is not None:
            log.warning("server.upgrade_advised", problem=advice)


def lua_advice(info: Mapping[str, Any]) -> str | None:
    """Return what to tell the operator of a server; `None` where it is not known to have the hole.

    Args:
        info: What `INFO server` says.
    """
    # Valkey says 7.2.4 where Redis has its version: for clients that know nothing else.
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
            f"{name} {version} is of a release line that got no fix for CVE-2025-49844 (a hole in Lua scripts) from "
            "its authors; some distributions have put it into theirs under the same version: ask yours, or upgrade"
        )
    if patch < fixed:
        return (
            f"{name} {version} has a hole in Lua scripts (CVE-2025-49844): upgrade to {major}.{minor}.{fixed} or later"
        )
    return None
