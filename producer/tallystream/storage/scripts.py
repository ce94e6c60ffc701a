"""Assembles the Lua scripts of a package (folder `lua`), and runs them; repeats a call only if it cannot have run.

Files. Each file is valid Lua 5.1 by itself. A *script* begins with `#!lua`; its header states KEYS, ARGV, the replies
and the invariant that it keeps. A *module* has functions and ends with `return NAME`; it reads no KEYS or ARGV unless
its header states them. A file requires each module that it needs in a separate line at the top,
`local numbers = require('tallystream.storage.lua.lib.numbers')`: the folders and the file, from the package on.
Redis has no `require`, so a script is assembled here: each module comes once, before the file that needs it.

Replies. Each script returns an array. Its first element is the status: one lower-case word, `_` between its parts. The
fields of that status follow. The caller handles every status; some of them mean that nothing was done. A script raises
an error only if the caller must never take the call for done: `NOGROUP`, or a stored value of a wrong type or form.
The shape of a reply may change from one release to the next, because each process loads its own script and calls it by
its hash. Keys and stored values may not change.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError

from tallystream.errors import KeyLost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import redis
    from redis.client import Pipeline

_LOADS: Final = 5
"""The most times that a script is loaded for one call."""

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
"""Lua code that defines `require` for the modules that are required inside a function."""


class Script:
    """A Lua script that is called by its hash (EVALSHA): call the object, or `queue` the call in a pipeline.

    Args:
        package: The package whose folder `lua` has the file.
        name: The file's path in that folder, without `.lua`.

    Attributes:
        text: The assembled script, with every module that it requires, in UTF-8.
        sha: The SHA-1 of `text`, in hexadecimal.
    """

    def __init__(self, package: str, name: str) -> None:
        self.text = _assemble(package, name).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def __call__(self, client: redis.Redis, keys: Sequence[str | bytes], args: list[Any]) -> Any:
        """Run the script on the server, and return its reply; raise `KeyLost` if its status is `damaged`.

        If the server no longer has the script (restart, failover, SCRIPT FLUSH), load it and repeat the call, at most 5
        times. NOSCRIPT is the only error that is retried: after it, the call cannot have changed anything.

        Raises:
            KeyLost: the partition has lost the key that the reply names, or the key has another type; the script has
                appended and counted nothing.
            redis.RedisError: any other error of the call or of loading, or the sixth NOSCRIPT.
        """
        for _ in range(_LOADS):
            try:
                return self.checked(client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args))
            except NoScriptError:
                self.load(client)  # another client may flush it again before the call
        return self.checked(client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args))

    @staticmethod
    def checked(reply: Any) -> Any:
        """Return the reply of a script; raise `KeyLost` if its status is `damaged`. The reply must not be an error.

        Raises:
            KeyLost: the partition has lost the key that the reply names, or the key has another type; the script has
                appended and counted nothing.
        """
        if reply[0] == b"damaged":
            raise KeyLost(*(field.decode() for field in reply[1:]))
        return reply

    def queue(self, pipeline: Pipeline, keys: list[str], args: list[Any]) -> None:
        """Add the call to a pipeline; the caller runs the pipeline, and checks the reply of the call with `checked`.

        If the reply is NOSCRIPT, nothing was done: the caller must call `load` and queue the call once more.
        """
        pipeline.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)

    def load(self, client: redis.Redis) -> None:
        """Load the script into the server's script cache (SCRIPT LOAD); in a cluster, of every primary that answers.

        Raises:
            redis.RedisError: no server answers, or one refuses the command.
        """
        client.script_load(self.text)


def _assemble(package: str, name: str) -> str:
    """Return the text of a script with the modules that it needs before it.

    A module that the script or another block requires at its top becomes a block that sets a local variable. Every
    other module is made when it is first required.

    Args:
        package: The name of a Python package whose folder `lua` has the script, such as `tallystream.storage`.
        name: The name of the script's file in that folder, without `.lua`.

    Raises:
        OSError: the script, or a module that is required, does not exist.
        ImportError: the top-level package of the script or of a module does not exist.
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
    """Add to `blocks` the modules that a text requires at its top, each after the modules that it requires itself."""
    for module in _REQUIRE_AT_THE_TOP.findall(text):
        if module not in blocks:
            required = _read(module)
            _add_blocks(required, blocks)
            blocks[module] = required


def _add_later(text: str, blocks: Mapping[str, str], later: dict[str, str]) -> None:
    """Add to `later`, by name, the source of each module that a text requires and that is not in `blocks`.

    The modules that an added module requires are added, too. `text` and the values of `blocks` are Lua sources.
    """
    for module in _REQUIRE.findall(text):
        if module not in blocks and module not in later:
            later[module] = _read(module)
            _add_later(later[module], blocks, later)


def _variable(module: str) -> str:
    return module.replace(".", "_")


def _read(module: str) -> str:
    package, *path = module.split(".")
    return resources.files(package).joinpath(f"{'/'.join(path)}.lua").read_text(encoding="utf-8")
