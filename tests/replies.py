"""Classify an error with every predicate of `tallystream.client.replies`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.client import replies

if TYPE_CHECKING:
    from redis.exceptions import RedisError


def meanings(error: RedisError) -> set[str]:
    """Return the names, without `is_`, of the predicates of `replies` that are true of an error.

    `broken` and `not_executed` are the names of the tuples `BROKEN` and `NOT_EXECUTED`.
    """
    predicates = {name.removeprefix("is_"): value for name, value in vars(replies).items() if name.startswith("is_")}
    found = {name for name, predicate in predicates.items() if predicate(error)}
    kinds = {"broken": replies.BROKEN, "not_executed": replies.NOT_EXECUTED}
    return found | {name for name, kind in kinds.items() if isinstance(error, kind)}
