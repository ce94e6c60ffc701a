"""The command that makes the users of a server and the secrets of everyone who uses it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tallystream.errors import ConfigurationError
from tallystream_worker.cli.options import Where, flag
from tallystream_worker.cli.output import error_console
from tallystream_worker.server.acl import generate, hashed, render

ACL_FILE = "users.acl"
SECRETS_FILE = "tallystream.env"


def acl(
    folder: Annotated[Path, Parameter(help="where the two files go; created when missing")],
    *,
    fsync: Annotated[bool, flag("allow WAITAOF; needs Redis 7.2 or later, or Valkey")] = False,
    where: Where = Where(),
) -> None:
    """Write an ACL file with a user for each part, and a file with their passwords and tokens for HTTP.

    `users.acl` holds hashes and goes to the server (`aclfile`); `tallystream.env` holds the secrets, and only its
    owner can read it. Neither is overwritten.
    """
    namespace = where.settings().redis.namespace
    passwords = generate(fsync=fsync)
    tokens = {role: secrets.token_hex(32) for role in ("read", "write", "admin")}
    secret = [
        f"# Passwords of {ACL_FILE}, and tokens for HTTP: keep this file to yourself.",
        *(f"TALLYSTREAM_{name.upper()}_PASSWORD={password}" for name, password in passwords.items()),
        *(f"TALLYSTREAM_SERVE_{role.upper()}_TOKEN={token}" for role, token in tokens.items()),
    ]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (ACL_FILE, SECRETS_FILE):
            if (folder / name).exists():
                raise ConfigurationError(
                    f"{folder / name} exists, and whoever uses its passwords would be locked out: name another folder"
                )
        _write(folder / SECRETS_FILE, "\n".join(secret) + "\n", 0o600)
        _write(folder / ACL_FILE, render(namespace, hashed(passwords), fsync=fsync), 0o644)
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be written ({error.strerror})") from None
    error_console.print(
        f"{folder / ACL_FILE}: for the server, as `aclfile`\n{folder / SECRETS_FILE}: passwords and tokens, for "
        f"redis://{namespace}-worker:PASSWORD@HOST:6379 and the like"
    )


def _write(path: Path, text: str, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
