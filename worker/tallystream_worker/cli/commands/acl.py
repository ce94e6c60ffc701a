"""The command `acl`: writes an ACL file for the server, and a file with the passwords and HTTP tokens."""

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
"""Name of the file with the users and their password hashes."""

SECRETS_FILE = "tallystream.env"
"""Name of the file with the passwords and the HTTP tokens."""


def acl(
    folder: Annotated[Path, Parameter(help="folder to write the two files to; created if missing")],
    *,
    fsync: Annotated[bool, flag("allow WAITAOF; needs Redis 7.2 or later, or Valkey")] = False,
    where: Where = Where(),
) -> None:
    """Write an ACL file with one user for each role, and a file with their passwords and the tokens for HTTP.

    `users.acl` contains password hashes: give it to the server (`aclfile`). `tallystream.env` contains the secrets,
    and only its owner can read it. If either file exists, the command fails and writes neither.
    """
    namespace = where.settings().redis.namespace
    passwords = generate(fsync=fsync)
    tokens = {role: secrets.token_hex(32) for role in ("read", "write", "admin")}
    secret = [
        f"# Passwords of {ACL_FILE}, and tokens for HTTP: keep this file secret.",
        *(f"TALLYSTREAM_{name.upper()}_PASSWORD={password}" for name, password in passwords.items()),
        *(f"TALLYSTREAM_SERVE_{role.upper()}_TOKEN={token}" for role, token in tokens.items()),
    ]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (ACL_FILE, SECRETS_FILE):
            if (folder / name).exists():
                raise ConfigurationError(
                    f"{folder / name} exists, and replacing it would lock out the users of its passwords: "
                    "name another folder"
                )
        _write(folder / SECRETS_FILE, "\n".join(secret) + "\n", 0o600)
        _write(folder / ACL_FILE, render(namespace, hashed(passwords), fsync=fsync), 0o644)
    except OSError as error:
        raise ConfigurationError(f"{folder}: cannot be written ({error.strerror})") from None
    error_console.print(
        f"{folder / ACL_FILE}: give it to the server as `aclfile`\n{folder / SECRETS_FILE}: passwords and tokens, for "
        f"URLs such as redis://{namespace}-worker:PASSWORD@HOST:6379"
    )


def _write(path: Path, text: str, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
