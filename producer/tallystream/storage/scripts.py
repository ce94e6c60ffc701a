"""Assembles the Lua scripts of a package (folder `lua`), and runs them with the one retry that is safe.

Files. Each file is valid Lua 5.1 by itself. A *script* begins with `#!lua`; its header states KEYS, ARGV, what it
returns and the invariant that it keeps. A *module* holds functions and ends with `return NAME`; it reads no KEYS or
ARGV unless its header says so. A file names each module that it needs in a line of its own at the top,
`local numbers = require('tallystream.storage.lua.lib.numbers')`: the folders and the file, from the package on.
Redis has no `require`, so a script is assembled here: each module comes once, before the file that needs it.

Replies. Each script returns an array. Its first element is the status: one lower-case word, `_` between its parts. The
fields of that status follow. A status is an answer that the caller handles, so it also says when nothing was done. A
script raises an error only for what must never be taken for done: `NOGROUP`, a stored value of a wrong type or form.
The reply's shape is a matter between a process and the script that it has loaded by its hash, so it may change from one
release to the next; keys and stored values may not.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis
    from redis.client import Pipeline

_LOADS: Final = 5
"""Times that a script is loaded for one call, at the most."""

_REQUIRE: Final = re.compile(r"require\('([\w.]+)'\)")
_REQUIRE_AT_THE_TOP: Final = re.compile(r"^local \w+ = require\('([\w.]+)'\)$", re.MULTILINE)
_RETURN: Final = re.compile(r"^return (?=[^\n]+\n\Z|\{\n(  [^\n]*\n)+\}\n\Z)", re.MULTILINE)

_LOADER: Final = """\
do
local function load_module(name)
%s\
end
end
local loaded = {}
function require(name)
  local module = loaded[name]
  if not module then
    module = load_module(name)
    loaded[name] = module
  end
  return module
end
end
"""
"""Defines `require` for the modules that are required within a function."""


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
    """Return a script's text after the modules that it needs.

    A module that is required at the top of a file becomes a block, which sets a local variable. One that is required
    within a function is made when the function first asks for it. Each call of a script makes its functions again, so
    both save time: a block needs no call, and most batches do not need most rules.
    """
    shebang, script = _read(f"{package}.lua.{name}").split("\n", 1)
    blocks: dict[str, str] = {}
    _add_blocks(script, blocks)
    later: dict[str, str] = {}
    for text in (*blocks.values(), script):
        _add_later(text, blocks, later)
    parts = [shebang, *(["local require"] if later else [])]
    for module, text in blocks.items():
        parts.append(f"local {_variable(module)} do\n{_RETURN.sub(f'{_variable(module)} = ', text)}end")
    if later:
        parts.append(_LOADER % "else".join(f"if name == '{module}' then\n{text}" for module, text in later.items()))
    text = "\n".join([*parts, script])
    return _REQUIRE.sub(lambda found: _variable(found[1]) if found[1] in blocks else found[0], text)


def _add_blocks(text: str, blocks: dict[str, str]) -> None:
    """Add the modules that a text requires at its top, each after those that it requires itself."""
    for module in _REQUIRE_AT_THE_TOP.findall(text):
        if module not in blocks:
            required = _read(module)
            _add_blocks(required, blocks)
            blocks[module] = required


def _add_later(text: str, blocks: Mapping[str, str], later: dict[str, str]) -> None:
    """Add the modules that a text and its modules require and that are no blocks."""
    for module in _REQUIRE.findall(text):
        if module not in blocks and module not in later:
            later[module] = _read(module)
            _add_later(later[module], blocks, later)


def _variable(module: str) -> str:
    return module.replace(".", "_")


def _read(module: str) -> str:
    package, *path = module.split(".")
    return resources.files(package).joinpath(f"{'/'.join(path)}.lua").read_text(encoding="utf-8")
