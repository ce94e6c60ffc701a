"""Finds all keys of a partition, and all fields of a hash, page by page, and notices if another node continues.

A cursor of SCAN and HSCAN has a meaning only for the server process that returned it. If another one continues, for
example because the slot has moved to another node, keys can be missing. redis-py's `scan_iter` does not notice it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import StreamError
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

PAGE: Final = 2000
"""About the number of keys or fields of a page."""

_SCAN: Final = Script("tallystream_worker.process", "scan")


class ScanBroken(StreamError):
    """Raised if, between two pages, the node failed over or restarted, or the slot moved to another node."""


def pages_of_keys(client: redis.Redis, key: str, prefix: str) -> Iterator[list[bytes]]:
    """Yield pages of the keys that begin with a prefix; a key may come twice, and a page may be empty.

    Args:
        client: The server.
        key: A key of the slot; it need not exist.
        prefix: The prefix, which has the hash tag of the key.

    Raises:
        ScanBroken: another server would continue, so keys may be missing. Begin again.
        redis.RedisError: the server did not answer, or refused a command; TRYAGAIN if the slot was on two nodes for
            more than 2 seconds.
    """
    return _pages(client, key, "SCAN", "MATCH", f"{_escaped(prefix)}*")


def pages_of_fields(client: redis.Redis, key: str) -> Iterator[dict[bytes, bytes]]:
    """Yield pages of the fields of a hash with their values; a field may come twice, and a page may be empty.

    Raises:
        ScanBroken, redis.RedisError: see `pages_of_keys`.
    """
    for words in _pages(client, key, "HSCAN"):
        yield dict(zip(words[::2], words[1::2], strict=True))


def _pages(client: redis.Redis, key: str, command: str, *options: str) -> Iterator[list[bytes]]:
    cursor: Any = b"0"
    first = None
    while True:
        _, server, cursor, words = _SCAN(client, [key], [command, cursor, *options, "COUNT", PAGE])
        if server != (first := first or server):
            raise ScanBroken(
                f"{key}: the node failed over or restarted while keys were listed, or the slot moved to another node: "
                "the list may lack keys. Run the command again"
            )
        yield words
        if cursor == b"0":
            return


def _escaped(prefix: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix)
