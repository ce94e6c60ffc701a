"""The texts of errors for logs and messages."""

from __future__ import annotations

from redis.exceptions import RedisError

from tallystream.client.replies import missing_group
from tallystream.errors import ConsumerGroupMissing
from tallystream.storage.keys import is_counting_group


def text_of(error: Exception) -> str:
    """Return the text of an error; if it has none, the name of its class. Use it for an expected error.

    If the reply of a server names a missing consumer group, return a text that names the group and its stream; if it is
    a group of the workers, the text also states what mends that.
    """
    if isinstance(error, RedisError) and (found := missing_group(error)) is not None:
        stream, group = found
        if is_counting_group(group):
            return str(ConsumerGroupMissing(stream, group))
        return f"{stream}: consumer group {group!r} is missing"
    return str(error) or type(error).__name__


def named_text(error: Exception) -> str:
    """Return the class and the text of an error, such as `ValueError: not a number`. Use it for an unexpected error."""
    return f"{type(error).__name__}: {error}"
