"""On one day, runs each test of some folders and files on one kind of server; on the next day, on the other kind.

`TALLYSTREAM_ALL=1` runs each on both, as every night.
"""

from __future__ import annotations

import datetime as dt
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

FOLDERS: Final = tuple(
    Path(__file__).parent / name
    for name in (
        "cluster",
        "integration",
    )
)
"""The folders and files whose tests take long."""

RARE: Final = tuple(
    Path(__file__).parent / "integration" / name
    for name in (
        "snapshot/test_restored_places.py",
        "storage/test_every_field.py",
        "test_repair.py",
        "verify/test_restored_beside_archive.py",
    )
)
"""The files whose tests take longest: each test is due on one of four days."""

FIXTURES: Final = ("server_process", "secured")
"""The fixtures whose parameter is a kind of server."""

KINDS: Final = ("valkey", "redis", "cluster-valkey", "cluster-redis")


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of these folders whose other kind of server is due today.

    If an argument of pytest contains `::`, or if `TALLYSTREAM_ALL` is set, nothing is deselected.
    """
    if "TALLYSTREAM_ALL" in os.environ or any("::" in name for name in config.args):
        return
    today = dt.datetime.now(dt.UTC).date().toordinal()
    slow = (item for item in items if any(item.path.is_relative_to(folder) for folder in FOLDERS))
    left_out = {item for item in slow if not is_due(item, today)}
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=sorted(left_out, key=lambda item: item.nodeid))


def is_due(item: pytest.Item, day: int) -> bool:
    """Return whether a test is due on a day: true on one of two days, and for its two kinds on different days.

    A test of `RARE` is due on one of four days.
    """
    params = item.callspec.params if hasattr(item, "callspec") else {}
    kind = next((params[name] for name in FIXTURES if params.get(name) in KINDS), None)
    if kind is None:
        return True
    alone = item.nodeid.replace(f"[{kind}", "[").replace(f"-{kind}", "-")
    drawn = zlib.crc32(alone.encode())
    if item.path in RARE and (drawn // 2 + day // 2) % 2:
        return False
    return (drawn + KINDS.index(kind) + day) % 2 == 0
