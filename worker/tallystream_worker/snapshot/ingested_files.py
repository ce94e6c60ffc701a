"""Copies the identities of ingested files into the facts of a snapshot and back.

The offsets of the files are among the sequences of producers. If the offset of a file were restored without its
identity, a file that has grown would be taken for a new one: see `tallystream_worker.ingest.file_identity`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tallystream.storage.keys import Layout
    from tallystream_worker.snapshot.restore_lock import Fence

FILES: Final = "ingested-files"
"""The fact with the identities: the fields of `Layout.files`. It changes no counter."""


def ingested_files(client: redis.Redis, layout: Layout, known: str = "{}") -> str:
    """Return the value of the fact `FILES`: the identities of the server, and those of an earlier value `known`.

    The value is a JSON object: by identity, a number of bytes (see `Layout.files`). If the server and `known` have
    different numbers for an identity, that of the server is returned.

    Raises:
        redis.RedisError: the server did not answer, or refused the command.
    """
    found: dict[bytes, bytes] = client.execute_command("HGETALL", layout.files)
    sizes = msgspec.json.decode(known, type=dict[str, int])
    sizes |= {identity.decode(): int(size) for identity, size in found.items()}
    return msgspec.json.encode(sizes, order="sorted").decode()


def restore_ingested_files(fence: Fence, layout: Layout, facts: Mapping[str, str], archived: Mapping[str, int]) -> None:
    """Add the identities in the facts of a snapshot, and those of an archive, to those that the server has.

    The value of an identity that the server has too becomes that of the snapshot or the archive; if both have it, that
    of the archive. Do nothing if neither has any.

    Args:
        fence: The fence of the first partition.
        layout: The layout of the restored topic.
        facts: The facts of the snapshot.
        archived: By identity of each file whose entries are archived, a number of bytes (see `Layout.files`).

    Raises:
        RestoreOvertaken: another restore has taken over.
        redis.RedisError: the server did not answer, or refused a command.
    """
    if sizes := msgspec.json.decode(facts[FILES], type=dict[str, int]) | dict(archived):
        fence("HSET", layout.files, *(part for pair in sizes.items() for part in pair))
