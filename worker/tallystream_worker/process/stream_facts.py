"""Reads the facts of a partition's stream; if there is no stream, states which key the partition has lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from tallystream.client.replies import is_key_missing
from tallystream.errors import KeyLost
from tallystream.storage.sentinels import refuse_lost

if TYPE_CHECKING:
    import redis

    from tallystream.storage.keys import PartitionKeys


def stream_facts(client: redis.Redis, keys: PartitionKeys) -> dict[str, Any]:
    """Return the reply of XINFO STREAM for a stream that a process has counted or may count.

    Raises:
        KeyLost: the stream does not exist. If the partition has also lost a sentinel, the error names the sentinel.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    try:
        facts: dict[str, Any] = client.xinfo_stream(keys.stream)
    except ResponseError as error:
        if not is_key_missing(error):
            raise
        refuse_lost(client, keys)
        raise KeyLost(keys.stream) from None
    return facts


def last_generated(client: redis.Redis, keys: PartitionKeys) -> str:
    """Return the last ID that a stream has generated; `0-0` if it never had an entry, even if it does not exist.

    Raises:
        KeyLost: the stream does not exist, and a ledger states that it had entries, or the partition has lost a
            sentinel. If the stream exists, the sentinels are not checked.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    try:
        return str(stream_facts(client, keys)["last-generated-id"].decode())
    except KeyLost as error:
        if error.key != keys.stream or _has_had_entries(client, keys):
            raise
        return "0-0"


def _has_had_entries(client: redis.Redis, keys: PartitionKeys) -> bool:
    """Return whether the ledger of the topic states appended entries, or that of the generation counted ones."""
    gated = client.hget(keys.topic_ledger, "entries:gated")
    return any(int(number or 0) for number in (gated, client.hget(keys.ledger, "entries:settled")))
