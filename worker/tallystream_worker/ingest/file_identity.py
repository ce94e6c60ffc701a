"""Tells whether a file has been seen before, by what it says rather than by its name.

A log that is renamed, compressed or appended to stays the same file; so the events that are counted of it already are
known, and only the rest is counted. What is asked of the file (metric, subject, actor) belongs to its identity: the
same log counted in another way is a source of other events.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import Layout

PREFIX: Final = 64 * 1024
"""Bytes from the beginning of a file that tell it from all others."""


def identify(client: redis.Redis, layout: Layout, head: bytes, salt: str) -> str:
    """Return the identity of a file whose first bytes are `head`, and remember it.

    A file that was shorter than `PREFIX` when it was first seen is known again, however much follows now. An empty
    file is the beginning of no other.

    Args:
        client: Where what was seen before is remembered, in a hash: identity -> bytes of its head.
        layout: Names the hash.
        head: The first `PREFIX` bytes, fewer only where the file has no more. Decompressed, where it is compressed.
        salt: What else makes it another source.

    Two runs that see a new file at the same time agree, unless it grows between them.
    """
    files = layout.files
    stored: dict[bytes, bytes] = client.execute_command("HGETALL", files)
    known = {identity.decode(): int(size) for identity, size in stored.items()}
    # The longest beginning that was seen before: a file may have been shorter then.
    for size in sorted({*known.values(), len(head)}, reverse=True):
        if 0 < size <= len(head) and (identity := _digest(head[:size], salt)) in known:
            return identity
    identity = _digest(head, salt)
    client.hset(files, identity, str(len(head)))
    return identity


def _digest(head: bytes, salt: str) -> str:
    # The length belongs to it, or a file would be known by a beginning that another one has of another length.
    salted = hashlib.blake2b(f"{len(head)}\n{salt}".encode(), digest_size=32).digest()
    return hashlib.blake2b(head, key=salted, digest_size=12).hexdigest()
