"""The error classes of tallystream; a few modules define subclasses of them, such as `subscribe.SubscriptionRefused`.

TallyError
|- EventError            an event, or an argument of a call, is invalid or not allowed by the rules
|- BufferFull            the producer's buffer is full, and the event was not added
|- FlushTimeout          events that a call waits for were not confirmed (or not counted) within the timeout
|- StreamFull            a stream has reached its limit of entries, because counting lags
|- NodeUnreachable       no partition that a read needs can be read, because nodes of the cluster do not answer
|- Unconfirmed           a write, such as a decision, was executed, but no replica or disk confirmed it in time
|- SpoolError            the spool cannot be written, or its events cannot be delivered
|- ConfigurationError    the settings, or the state of the server, data or host, do not allow a call
|  '- NothingDeclared    no deployment is stored, or no worker has published its rules yet
|- CodecError            the fields of an entry cannot be decoded
|  '- UnknownVersion     the entry has a wire version that this release cannot decode; it is dead-lettered
'- StreamError           a stream, a group, or the data stored with it is missing or inconsistent
   |- KeyLost               a key was deleted or evicted; nothing is appended or counted that needs it
   |- DamagedValue          a stored value has another form than tallystream writes: another client changed it
   |- ConsumerGroupMissing  the consumer group of the workers is missing, which records what is counted
   |- DeploymentChanged     the data that this process started with was deleted or replaced, or is restored
   '- GenerationSwitched    another generation or topic, or newer rules, are live; nothing was counted
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import redis

if TYPE_CHECKING:
    from collections.abc import Mapping


class TallyError(Exception):
    """Base class of the errors of tallystream. Errors of the Redis client (`redis.RedisError`) do not have it.

    `NodeUnreachable` has both base classes.
    """


class EventError(TallyError, ValueError):
    """Raised if an event, or an argument of a call, is invalid, or not allowed by the declared rules.

    The message is `<field>: <problem>`.

    Args:
        field: Name of the invalid field or argument; also an attribute.
        problem: The rule that its value breaks; also an attribute.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class BufferFull(TallyError):
    """Raised if the producer's buffer has reached its limit of events or bytes; the event was not added."""


class FlushTimeout(TallyError, TimeoutError):
    """Raised if events that a call waits for were not confirmed, or not counted, in time.

    After `flush`, they are still sent and counted, unless the producer was closed meanwhile. After `close`, unsent
    events stay in the spool, or are lost without a spool. A read raises this error if the entries up to its `after`
    were not counted in time, or if no replica had the counting in time and the reader has the durability `replica`.
    """


class StreamFull(TallyError):
    """Raised if a stream has reached its limit of entries; nothing was appended.

    Try again when the workers have caught up.
    """


class Unconfirmed(TallyError):
    """Raised if a write was executed, but its durability was not confirmed in time, or cannot be confirmed.

    A failover or a crash could undo the write.

    If the event of a decision is decided again, it may count twice, unless its metric has `once` or its id counts once.
    """


class NodeUnreachable(TallyError, redis.ConnectionError):
    """Raised if nodes of a cluster do not answer, so that a read can read none of the keys that it needs.

    Other keys may still be readable. Work in all partitions, such as the delivery of notifications, raises this
    error if any node does not answer, but first finishes the partitions on the other nodes. It is also a
    `redis.ConnectionError`, so callers that repeat a call after such an error also repeat it after this one.

    Args:
        nodes: By the name of a key that cannot be read, such as the stream of a partition, the address of its node as
            `host:port`; `None` if it is not known which node serves the key.
        problem: The text of the error of one of the nodes.

    Attributes:
        keys: The names of the keys, in the order of the argument `nodes`.
        nodes: The different addresses in the argument `nodes`, sorted; empty if none is known.
    """

    def __init__(self, nodes: Mapping[str, str | None], problem: str) -> None:
        self.keys = list(nodes)
        self.nodes = sorted({node for node in nodes.values() if node is not None})
        shown = ", ".join(self.keys[:_SHOWN]) + (f" and {len(nodes) - _SHOWN:,} more" if len(nodes) > _SHOWN else "")
        where = f"node {', '.join(self.nodes)}" if self.nodes else "no node of the cluster serves them"
        super().__init__(
            f"{shown} cannot be read ({where}): {problem.rstrip('.')}. Start the node, or let a replica of it take over"
        )


_SHOWN: Final = 8
"""The most keys that the text of a `NodeUnreachable` names."""


class SpoolError(TallyError):
    """Raised if the spool on disk cannot be written or is damaged, or its events are of another deployment."""


class ConfigurationError(TallyError):
    """Raised if the settings, or the state of the server, of its data or of this host, do not allow what was called.

    For example: a setting is invalid or does not fit the stored deployment, the stored data is of another release, no
    rules are published yet (`NothingDeclared`), a package is missing, or a rebuild or repartition is not finished.
    """


class NothingDeclared(ConfigurationError):
    """Raised if the server has no deployment, or one whose rules no worker has published yet.

    This is so before a worker has started for the first time, and after the server has lost its data.
    """


class CodecError(TallyError, ValueError):
    """Raised if the fields of a stream entry cannot be decoded."""


class UnknownVersion(CodecError):
    """Raised if a stream entry has a wire version that this release cannot decode."""


class StreamError(TallyError):
    """Raised if a stream, its consumer group, or the data stored with it is missing or not as a call needs it."""


class KeyLost(StreamError):
    """Raised if a key was deleted or evicted, or another client replaced it or deleted a field that it must have.

    Nothing that needs the key is appended, counted or read. The message states what repairs it.

    Args:
        key: Name of the key; also an attribute.
        kind: The type that the key has instead of the right one, such as `list`; `None` if the key does not exist.
        field: The field that the key, a hash, has lost, although it exists; `None` if the whole key is lost.
    """

    def __init__(self, key: str, kind: str | None = None, *, field: str | None = None) -> None:
        remedy = next(remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, key))
        if field is not None:
            problem = f"has lost its field {field}: another client deleted it"
            remedy = f"Delete the whole key. {remedy}"
        elif kind is None:
            problem = "was deleted or evicted: this deployment had it before"
        else:
            problem = f"has the type {kind}: another client replaced it"
            remedy = remedy if "tallystream rebuild;" in remedy else f"Delete it. {remedy}"
        super().__init__(f"{key} {problem}. Nothing is appended, counted or read that needs it. {remedy}")
        self.key = key


class DamagedValue(StreamError, ValueError):
    """Raised if a stored value has another form than tallystream writes, because another client has changed it.

    The message states what repairs it.

    Args:
        key: Name of the key.
        value: The value, or the value of the field.
        field: The field of the key, a hash; `None` if the key is no hash.
    """

    def __init__(self, key: str, value: bytes, *, field: str | None = None) -> None:
        remedy = next((each for pattern, each in _OF_FIELDS.items() if re.search(pattern, f"{key} {field}")), None)
        if remedy is None:
            remedy = next(remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, key))
            remedy = f"Set it to its former value, or delete the whole key. {remedy}"
        what = key if field is None else f"the field {field} of {key}"
        shown = value[:_SHOWN_OF_VALUE].decode(errors="backslashreplace") + ("..." if value[_SHOWN_OF_VALUE:] else "")
        super().__init__(
            f"{what} has the value '{shown}', which tallystream never writes: another client has changed it. {remedy}"
        )


_SHOWN_OF_VALUE: Final = 40
"""The most bytes of a damaged value that an error shows."""


_OF_FIELDS: Final = {
    r":seq !limit$": "Delete the field (redis-cli HDEL); a worker that runs writes it again",
    r":seq !hold$": "Delete the field (redis-cli HDEL); only a reset that runs needs it",
    r":seq !closed$": "If no repartition runs, delete the field (redis-cli HDEL)",
    r":seq !closing$": (
        "Set it to the value of the field closing of the key NAMESPACE:meta; if there is no such field, delete the "
        "field (redis-cli HDEL)"
    ),
    r":seq !turn$": "Delete the field (redis-cli HDEL); the next command that changes generations writes it again",
    r":seq !restored(-at)?$": (
        "Delete the field (redis-cli HDEL); it only shows whether the server lacks entries of a snapshot because of a "
        "restore"
    ),
    r":holds ": (
        "Set it to 0-0; the reader with this name writes it again. If no such reader runs any more, delete the field "
        "(redis-cli HDEL): with 0-0, nothing would be trimmed"
    ),
}
"""By a pattern in a key's name, a space and a field's name, what to do if the field has another form; the first pattern
that matches applies."""


_REMEDIES: Final = {
    r":(total|seen|limit|labels):|:g\d+:(ledger|begun|gone|backfilled)$|:(forgotten|periods|resets)$": (
        "To repair it, rebuild the counters (tallystream rebuild; if a rebuild is not finished, give it up first with "
        "tallystream rebuild --drop)"
    ),
    r":cut(:before|:copied)?$": "The next snapshot creates it",
    r"\}:(l\d+:)?copied$": (
        "To repair it, give the repartition up or, if it is finished, remove the earlier topic (tallystream rebuild "
        "--drop)"
    ),
    r":alerts$": (
        "The next notification creates it. Those that waited in it are lost, so compare the alerts that fire with the "
        "messages that you received"
    ),
    r":files$": (
        "To repair it, restore the latest snapshot (tallystream restore --force). Without a snapshot, the next ingest "
        "creates it: do not ingest a file again that was shorter than 64 KiB and has grown since"
    ),
    r":adopted$": (
        "The places of earlier changes of the rules are lost; no counter depends on them. To count all events by the "
        "live rules, rebuild the counters (tallystream rebuild)"
    ),
    r":rules$": (
        "To write it again, mend the other lost keys first, then run: tallystream reopen. It takes the earlier changes "
        "from the archive; without an archive, the record begins with the live rules. No counter depends on it"
    ),
    r":seq$": (
        "To repair it, restore the latest snapshot (tallystream restore --force). Only if there is no snapshot, let "
        "the partition begin again without its counters and events: tallystream reopen, if it has lost all its keys; "
        "tallystream reopen --force, if it has keys left"
    ),
    r"\}:(l\d+:)?ledger$": (
        "To repair it, restore the latest snapshot (tallystream restore --force). Only if there is no snapshot, let "
        "the partition begin again without its counters and events: tallystream reopen --force"
    ),
    r"": (
        "To repair it, restore the latest snapshot (tallystream restore --force). Only if there is no snapshot, "
        "continue without the data that is lost (tallystream reopen)"
    ),
}
"""By a pattern in a key's name, what to do if the key is lost; the first pattern that matches applies."""


BRING_BACK: Final = (
    "restore the snapshot (tallystream restore --force); tallystream status names the snapshot or the archive that has "
    "the data"
)
"""What to do about lost data.

An error does not name the backup, because it may be sent to any client of HTTP. Only `/readyz` names it, and only to a
client that gets the reasons: one with a token or a session, if the service needs tokens.
"""

COUNT_AGAIN: Final = (
    "tallystream rebuild (if entries are gone from the streams: tallystream rebuild --archive URL; without an archive: "
    "tallystream restore --force)"
)
"""What counts all entries again."""

GROUP_REMEDY: Final = f"if nothing was counted: tallystream worker, which creates the group. Otherwise: {COUNT_AGAIN}"
"""What mends a missing consumer group of the workers, wherever it is noticed."""


class ConsumerGroupMissing(StreamError):
    """Raised if the consumer group of the workers is missing, so that it is not known which entries are counted.

    The message states what mends it.

    Args:
        stream: Name of the stream.
        group: Name of the group.
    """

    def __init__(self, stream: str, group: str) -> None:
        super().__init__(
            f"{stream}: consumer group {group!r} is missing, so it is not known which entries are counted. Nothing is "
            f"counted in this partition. To mend it: {GROUP_REMEDY}. If the stream was deleted too: tallystream "
            "restore --force. If a rebuild ends with this error, first run tallystream rebuild --drop"
        )


class DeploymentChanged(StreamError):
    """Raised if the data that this process started with was deleted or replaced, or is being restored."""


class DeploymentDeleted(DeploymentChanged):
    """Raised if the hash that describes the data was deleted since this process read it."""


class GenerationSwitched(StreamError):
    """Raised if the caller's generation, topic or rules are not the live ones, so its event or batch was not counted.

    If `Producer.decide` raises it, call `decide` again, which loads the deployment itself. Any other caller must load
    the deployment before it tries again.
    """
