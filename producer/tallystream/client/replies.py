"""Classifies the error replies of a server; no other module reads their text.

redis-py has a class for some replies by their first word (OOM, READONLY, MOVED, ...), and removes that word. Every
other reply is a plain `ResponseError`: its text begins with the server's first word, or follows a generic ERR, which
redis-py also removes. A reply that passed through a Lua script ends with ` script: ...`, and a pipeline that raises an
error puts `Command # 1 (...) of pipeline caused error: ` before its text.

The texts are those of Redis 7.0 and Valkey 9, which are the same unless a comment states a difference;
`tests/integration/client/test_replies.py` provokes each of them on both.
"""

from __future__ import annotations

import re
from typing import Final, TypeGuard

import redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

BROKEN: Final = (redis.ConnectionError, redis.TimeoutError)
"""Errors of a connection that failed or did not reply in time: the command may or may not have been executed.

redis-py also raises them for a few replies of a server that executes no command: LOADING, NOAUTH, WRONGPASS, too many
clients."""

NOT_EXECUTED: Final = (AskError, TryAgainError, ClusterDownError)
"""Errors of a command that was not executed and may be sent again: ASK, MOVED (a subclass of ASK), TRYAGAIN,
CLUSTERDOWN, and MASTERDOWN (a subclass of CLUSTERDOWN)."""

_NO_KEY: Final = (
    # XINFO GROUPS, XINFO STREAM, XINFO CONSUMERS, XSETID
    "no such key",
    # XGROUP DESTROY, XGROUP SETID: "... Note that for CREATE you may want to use the MKSTREAM option ..."
    "The XGROUP subcommand requires the key to exist",
)
_NO_GROUP: Final = tuple(
    map(
        re.compile,
        (
            r"NOGROUP No such key '(?P<stream>.*)' or consumer group '(?P<group>[^']*)'",
            r"NOGROUP No such consumer group '(?P<group>[^']*)' for key name '(?P<stream>.*)'",
            r"NOGROUP (?P<stream>.*) has no consumer group (?P<group>\S+)",  # of streams.lua
        ),
    )
)
_STREAM_DELETED: Final = "UNBLOCKED the stream key"
_NO_PERMISSION_IN_SCRIPT: Final = (
    # Redis 7.2, Valkey: "ACL failure in script: User u has no permissions to run the 'set' command"
    "ACL failure in script",
    # Redis 7.0: "... run this command or subcommand", "... access at least one of the keys mentioned in ..."
    "The user executing the script can't",
)
_OF_THE_SERVER: Final = frozenset(
    {
        "BUSY",  # "BUSY Redis is busy running a script. ...": Valkey calls itself Valkey
        "MISCONF",  # "MISCONF Redis is configured to save RDB snapshots, but ...": Valkey calls itself Valkey
        "NOGROUP",
        "NOREPLICAS",  # "NOREPLICAS Not enough good replicas to write."
        "UNBLOCKED",  # "UNBLOCKED client unblocked via CLIENT UNBLOCK", or by a failover
    }
)
_ANNOTATED, _ANNOTATION_ENDS = "Command # ", " of pipeline caused error: "


def is_unreachable(error: object) -> TypeGuard[RedisError]:
    """Return whether an error shows that a node cannot be reached, or executes no commands now.

    Its connection failed or did not reply in time, it replies that it is loading its data or has too many clients, or
    it replies CLUSTERDOWN or MASTERDOWN. A wrong or missing password, and too many connections in this client's pool,
    are no such errors. Return `False` for an object that is no error.
    """
    return isinstance(error, (*BROKEN, ClusterDownError)) and not isinstance(
        error, (AuthenticationError, MaxConnectionsError)
    )


def is_key_missing(error: RedisError) -> bool:
    """Return whether an XINFO, XSETID or XGROUP command failed because its key, a stream, does not exist.

    Commands that read through a group fail with `NOGROUP` instead: see `is_group_missing`.
    """
    return _is_plain(error) and _text(error).startswith(_NO_KEY)


def is_group_missing(error: RedisError) -> bool:
    """Return whether a command failed because its consumer group, or the stream of the group, does not exist.

    The reply, of the server or a script of tallystream, begins with `NOGROUP`. If the stream is deleted while a read
    waits for entries, Redis 7.0 replies `UNBLOCKED the stream key no longer exists`.
    """
    return _word(error) == "NOGROUP" or (_is_plain(error) and _text(error).startswith(_STREAM_DELETED))


def missing_group(error: RedisError) -> tuple[str, str] | None:
    """Return the stream and the consumer group that `NOGROUP` names; `None` for any other error, or without the names.

    The stream itself may be missing, too.
    """
    if _word(error) != "NOGROUP":
        return None
    found = next(filter(None, (pattern.match(_text(error)) for pattern in _NO_GROUP)), None)
    return None if found is None else (found["stream"], found["group"])


def is_stream_or_group_missing(error: RedisError) -> bool:
    """Return whether a command on a stream failed because the stream or its consumer group does not exist."""
    return is_key_missing(error) or is_group_missing(error)


def is_group_there(error: RedisError) -> bool:
    """Return whether XGROUP CREATE failed because the group exists: `BUSYGROUP Consumer Group name already exists`."""
    return _word(error) == "BUSYGROUP"


def is_command_unknown(error: RedisError) -> bool:
    """Return whether a command, not one in a script, failed because the server does not have it.

    The reply is `unknown command 'WAITAOF', with args beginning with: '1' '0' `. An unknown subcommand does not count.
    """
    return _is_plain(error) and _text(error).startswith("unknown command")


def is_append_only_file_missing(error: RedisError) -> bool:
    """Return whether WAITAOF failed because the server writes no append-only file.

    Redis 7.2, Valkey: `WAITAOF cannot be used when numlocal is set but appendonly is disabled.`
    """
    return _is_plain(error) and "appendonly is disabled" in _text(error)


def is_single_server(error: RedisError) -> bool:
    """Return whether CLUSTER SLOTS failed because the server is not a node of a cluster.

    `This instance has cluster support disabled`
    """
    return _is_plain(error) and "cluster support disabled" in _text(error)


def is_asking(error: RedisError) -> TypeGuard[AskError]:
    """Return whether a reply is ASK: a slot is being moved, and the named node executes the command after ASKING."""
    return isinstance(error, AskError) and not isinstance(error, MovedError)


def is_permission_missing(error: RedisError) -> bool:
    """Return whether a command failed because its user lacks a permission: NOPERM, or another text in a script."""
    return isinstance(error, NoPermissionError) or (
        _is_plain(error) and _text(error).startswith(_NO_PERMISSION_IN_SCRIPT)
    )


def is_refusal(error: RedisError) -> bool:
    """Return whether an error stays until a person mends its cause, so that a retry alone does not help.

    It does for a wrong or missing password, a missing permission, and a key of a wrong type (`WRONGTYPE`); of all other
    errors, return `False`.
    """
    return isinstance(error, AuthenticationError) or is_permission_missing(error) or _word(error) == "WRONGTYPE"


def is_wrong_type(error: object) -> TypeGuard[ResponseError]:
    """Return whether an object is the error of a command whose key has another type than the command needs.

    `WRONGTYPE Operation against a key holding the wrong kind of value`
    """
    return isinstance(error, ResponseError) and _word(error) == "WRONGTYPE"


def is_about_server(error: RedisError) -> bool:
    """Return whether an error comes from the server's state, the connection or the user's permissions.

    Such an error usually does not depend on the arguments of the command: other arguments do not help, but a later
    attempt may. Return `True` for all errors that are not a plain `ResponseError` (a broken connection, a wrong
    password, OOM, READONLY, NOSCRIPT, MOVED, CROSSSLOT, ...), and for NOGROUP, BUSY, MISCONF, NOREPLICAS, UNBLOCKED and
    a missing permission. Return `False` for any other error: it may depend on the arguments.
    """
    return not _is_plain(error) or _word(error) in _OF_THE_SERVER or is_permission_missing(error)


def is_connection_stale(error: RedisError) -> bool:
    """Return whether idle connections must be closed: after READONLY (a demoted server) and after a connection error.

    Every error that is not a `ResponseError` counts as a connection error, also a timeout or LOADING.
    """
    return isinstance(error, ReadOnlyError) or not isinstance(error, ResponseError)


def is_certificate_untrusted(error: RedisError) -> bool:
    """Return whether the TLS handshake failed because the server's certificate was not accepted, for any reason.

    Reasons: no trusted authority signed it, it has expired, or it is for another host name.
    """
    return isinstance(error, redis.ConnectionError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _is_plain(error: RedisError) -> bool:
    return type(error) is ResponseError


def _word(error: RedisError) -> str:
    """Return the first word of an error reply that redis-py leaves a plain `ResponseError`; `""` for any other error.

    redis-py removes a leading `ERR`: the word of `ERR unknown command ...` is `unknown`.
    """
    return _text(error).partition(" ")[0] if _is_plain(error) else ""


def _text(error: RedisError) -> str:
    text = str(error)
    return text.partition(_ANNOTATION_ENDS)[2] if text.startswith(_ANNOTATED) else text
