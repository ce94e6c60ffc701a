"""Loads the Lua scripts of a package (folder `lua`), and runs them with the one retry that is safe."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    import redis
    from redis.client import Pipeline

_LOADS: Final = 5
"""Times that a script is loaded for one call, at the most."""

_INCLUDE: Final = re.compile(r"^--@include ([\w.]+) ([\w/]+)$", re.MULTILINE)


class Script:
    """A Lua script, addressed by its hash.

    Args:
        package: The package whose folder `lua` holds the file.
        name: The file's path in that folder, without `.lua`.
    """

    def __init__(self, package: str, name: str) -> None:
        self.text = _assemble(package, name).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: list[str], args: list[Any]) -> Any:
        """Run the script and return its reply.

        A server that has lost it (restart, failover, SCRIPT FLUSH) gets it again, and the call is repeated:
        NOSCRIPT is the one error after which nothing can have happened.
        """
        for _ in range(_LOADS):
            try:
                return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
            except NoScriptError:
                self.load(client)  # somebody may flush it again before we call it
        return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)

    def queue(self, pipeline: Pipeline, keys: list[str], args: list[Any]) -> None:
        """Put the call on a pipeline; a reply of NOSCRIPT is the caller's to answer with `load`."""
        pipeline.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)

    def load(self, client: redis.Redis) -> None:
        """Give the server the script."""
        client.script_load(self.text)


def _assemble(package: str, name: str) -> str:
    """Return a script's text with the files that it includes (`--@include PACKAGE NAME`) in their places."""
    text = resources.files(package).joinpath(f"lua/{name}.lua").read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: _assemble(found[1], found[2]), text)
