"""The users of a server that holds our counters: a user for each part, with the commands and keys that it needs.

A script runs with the rights of the user who calls it, so a user needs every command that the scripts call, on every
key that they touch. Only commands of Redis 7.0 are named: an unknown one makes a server refuse the whole file.

    reader      the read service, `get`, `top`, `status`, Prometheus: reads, and changes nothing
    producer    reads and appends; apps, `emit`, `ingest`, a read service that takes events by POST
    worker      counts, parks and trims
    copier      that, and archives, takes snapshots and audits: a worker that does so beside counting, or the commands
    admin       operators: the command line, all of the namespace's keys
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
    "get mget strlen exists hget hmget hgetall hkeys hvals hexists hlen hscan zrange zrevrange zscore zcard "
    "pfcount bitfield_ro xlen xrange xrevrange xread xpending xinfo|groups xinfo|consumers xinfo|stream memory|usage "
    "info time multi exec discard command|info"
)
_APPEND: Final = (
    "wait evalsha script|load xadd hset hincrby mset set bitfield pexpireat pfadd zadd zremrangebyrank hdel "
    "pttl pexpire rpush sadd copy"  # while a snapshot is read: see copy_on_write.lua
)
_COUNT: Final = (
    "xreadgroup xautoclaim xclaim xack xdel xtrim xgroup|create xgroup|createconsumer xgroup|delconsumer "
    "xgroup|setid del unlink"  # see losses.lua; who may write the counters gains nothing by it
)
_COPY: Final = "scan type hsetnx llen lpop lrange pexpiretime"
"""SCAN names the keys of every namespace on the server: so the plain worker, which does without, may not."""

_OPERATE: Final = "+@read +@write -@dangerous -function +xgroup +xinfo +info +scan"


@dataclass(frozen=True)
class User:
    """A user: its commands as the ACL has them, and whether it may write the keys that it may read."""

    name: str
    commands: str
    writes: bool

    def line(self, namespace: str, password_hash: str) -> str:
        """Return the user's line in an ACL file."""
        mode = "~" if self.writes else "%R~"
        keys = f"{mode}{_literally(namespace)}:meta {mode}{_literally(namespace)}:{{*}}:*"
        return f"user {namespace}-{self.name} on #{password_hash} resetchannels {keys} -@all {self.commands}"


def users(*, fsync: bool = False) -> list[User]:
    """Return the users; with `fsync`, those that confirm writes with WAITAOF may use it (Redis 7.2 or later)."""
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
    """Return an ACL file.

    Args:
        namespace: The first part of every key, and of every user's name.
        hashes: SHA-256 of the passwords in hexadecimal, by user.
        fsync: See `users`.
    """
    lines = ["user default reset off", *(user.line(namespace, hashes[user.name]) for user in users(fsync=fsync))]
    return "\n".join(lines) + "\n"


def generate(*, fsync: bool = False) -> dict[str, str]:
    """Return a new password of 256 bits for each user."""
    return {user.name: secrets.token_urlsafe(32) for user in users(fsync=fsync)}


def hashed(passwords: Mapping[str, str]) -> dict[str, str]:
    """Return the passwords as an ACL file has them."""
    return {name: hashlib.sha256(password.encode()).hexdigest() for name, password in passwords.items()}


def _allow(*commands: str) -> str:
    return " ".join(f"+{command}" for part in commands for command in part.split())


def _literally(text: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text)
