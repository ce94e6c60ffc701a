"""Identifies a file by its content, not its name, so that each of its events is appended once.

A file that is renamed, compressed or extended keeps its identity. So a later ingest finds out how much of the file was
appended before, and continues after that. The mapping to events (metric, subject, actor) is part of the identity: the
same file with another mapping is another source of events.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import Layout

PREFIX: Final = 64 * 1024
"""The number of bytes that identify a file: those at its beginning; for Parquet, half of them are at its end."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a file.

    Attributes:
        name: The identity, as hexadecimal digits.
        size: The number of bytes that it was made from, at most `PREFIX`; the file may be longer. They are those at the
            beginning of the (decompressed) file. For Parquet, they are those that `head_and_tail` returns: half are
            from the end of the file, and of a short file, some are there twice.
    """

    name: str
    size: int


def identify(client: redis.Redis, layout: Layout, head: bytes, salt: str) -> Identity:
    """Return the identity of a file whose first bytes are `head`; store the identity on the server if it is new.

    The identity is that of the longest beginning of `head`, not empty, that was stored with the same salt; if there is
    none, the whole `head` is stored. So a file that grows usually keeps its identity. But a file that begins with all
    bytes of a shorter file, which was identified before, gets the identity of that file; and an empty file, or one of
    Parquet, whose end is part of `head`, gets another identity when it grows.

    Args:
        client: The connection to the server that stores the identities, in a hash: identity -> size of `head` in bytes.
        layout: The layout; `Layout.files` is the key of the hash.
        head: The first `PREFIX` bytes of the (decompressed) file; fewer if the file is shorter. For Parquet, the bytes
            that `head_and_tail` returns.
        salt: A text that is part of the identity; the same file with another salt is another source.

    Two processes that identify a new file at the same time get the same identity, unless the file grows meanwhile.

    Raises:
        RedisError: the identities cannot be read or stored.
    """
    files = layout.files
    stored: dict[bytes, bytes] = client.execute_command("HGETALL", files)
    known = {identity.decode(): int(size) for identity, size in stored.items()}
    # Find the longest beginning that was stored before: the file may have been shorter then.
    for size in sorted({*known.values(), len(head)}, reverse=True):
        if 0 < size <= len(head) and (identity := _digest(head[:size], salt)) in known:
            return Identity(identity, size)
    identity = _digest(head, salt)
    client.hset(files, identity, str(len(head)))
    return Identity(identity, len(head))


def _digest(head: bytes, salt: str) -> str:
    # The length is part of the digest, so that a head matches only one that was stored with the same length.
    salted = hashlib.blake2b(f"{len(head)}\n{salt}".encode(), digest_size=32).digest()
    return hashlib.blake2b(head, key=salted, digest_size=12).hexdigest()
