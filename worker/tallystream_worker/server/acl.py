"""The ACL users of a server with counters: one user for each role, with the commands and keys that it needs.

A script runs with the rights of the user that calls it, so a user needs every command that the scripts call, on every
key that they touch. Only commands of Redis 7.0 are named, because a server rejects a file with an unknown command.

    reader      the read service, `get`, `top`, `status`, Prometheus: reads only
    producer    applications, `emit`, `ingest`, a read service that takes events by POST: reads and appends
    worker      workers: count, dead-letter and trim
    copier      workers and commands that also archive, take snapshots or audit
    admin       operators: the command line, all keys of the namespace
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONNECT: Final = "auth hello ping client|setname reset cluster|slots asking"
_READ: Final = (
    "get mget strlen exists hget hmget hgetall hkeys hvals hexists hlen hscan zscan sismember zrange zrevrange zscore "
    "zcard pfcount bitfield_ro xlen xrange xrevrange xread xpending xinfo|groups xinfo|consumers xinfo|stream "
    "memory|usage info time multi exec discard command|info"
)
_APPEND: Final = (
    "wait evalsha script|load xadd hset hincrby mset set bitfield pexpireat pfadd zadd zremrangebyrank hdel scard sadd "
    "pttl pexpire rpush llen copy "  # while a snapshot is read: see copy_on_write.lua
    "type"
)
_COUNT: Final = (  # for del, see losses.lua; it gives no power to a user that may write the counters
    "xreadgroup xautoclaim xclaim xack xdel xtrim xgroup|create xgroup|createconsumer xgroup|delconsumer "
    "xgroup|setid smembers srem del unlink zrem"
)
_COPY: Final = "scan hsetnx lpop lrange pexpiretime"
"""Commands of the copier beyond those of the worker. SCAN shows the keys of every namespace on the server, so the
worker, which does not need it, does not get it."""

_OPERATE: Final = "+@read +@write -@dangerous -function +xgroup +xinfo +info +scan"


@dataclass(frozen=True)
class User:
    """An ACL user.

    Attributes:
        name: Name of the role, without the namespace.
        commands: The command rules as an ACL file has them.
        writes: The user may also write the keys of the namespace, not only read them.
    """

    name: str
    commands: str
    writes: bool

    def line(self, namespace: str, password_hash: str) -> str:
        """Return the line of the user in an ACL file, with access to the keys of one namespace only.

        Args:
            namespace: The first part of every key; the user's name is `<namespace>-<role>`.
            password_hash: SHA-256 of the password, in hexadecimal.
        """
        mode = "~" if self.writes else "%R~"
        keys = f"{mode}{_literally(namespace)}:meta {mode}{_literally(namespace)}:{{*}}:*"
        return f"user {namespace}-{self.name} on #{password_hash} resetchannels {keys} -@all {self.commands}"


def users(*, fsync: bool = False) -> list[User]:
    """Return the five ACL users; with `fsync`, all but the reader may call WAITAOF (Redis 7.2 or later, or Valkey)."""
    more = " +waitaof" if fsync else ""
    reader = _allow(_CONNECT, _READ)
    producer = _allow(_CONNECT, _READ, _APPEND) + more
    worker = _allow(_CONNECT, _READ, _APPEND, _COUNT) + more
    return [
        User("reader", reader, writes=False),
        User("producer", producer, writes=True),
        User("worker", worker, writes=True),
        User("copier", f"{worker} {_allow(_COPY)}", writes=True),
        User("admin", f"{worker} {_OPERATE}", writes=True),
    ]


def render(namespace: str, hashes: Mapping[str, str], *, fsync: bool = False) -> str:
    """Return the text of an ACL file that has the users of `users` and turns the default user off.

    Args:
        namespace: The first part of every key and of every user name.
        hashes: By `User.name`, for every user, SHA-256 of the password in hexadecimal.
        fsync: Allow WAITAOF; see `users`.
    """
    lines = ["user default reset off", *(user.line(namespace, hashes[user.name]) for user in users(fsync=fsync))]
    return "\n".join(lines) + "\n"


def generate(*, fsync: bool = False) -> dict[str, str]:
    """Return a new random password of 256 bits for each user, by `User.name`; nothing is stored. `fsync` is ignored."""
    return {user.name: secrets.token_urlsafe(32) for user in users(fsync=fsync)}


def hashed(passwords: Mapping[str, str]) -> dict[str, str]:
    """Return, by the same keys, the SHA-256 of each password (in UTF-8) as 64 hexadecimal digits.

    The digits are without the `#` that precedes them in an ACL file: `render` and `User.line` add it.
    """
    return {name: hashlib.sha256(password.encode()).hexdigest() for name, password in passwords.items()}


def _allow(*commands: str) -> str:
    return " ".join(f"+{command}" for part in commands for command in part.split())


def _literally(text: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text)
