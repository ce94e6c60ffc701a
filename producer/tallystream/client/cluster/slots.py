"""Finds the slot of a command, splits a pipeline by slot, and decides which commands may be sent again; without I/O.

Every command of tallystream has keys of one partition, which are in one slot, or one key without a tag, or no key.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import AskError

from tallystream.client.replies import NOT_EXECUTED

if TYPE_CHECKING:
    from collections.abc import Sequence

Command = tuple[Any, ...]
"""The name of a command, and its arguments."""

SLOTS: Final = 16384
"""The number of slots of a cluster."""

_KEYLESS: Final = frozenset(
    {
        "ACL", "ASKING", "AUTH", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DBSIZE", "DEBUG", "ECHO", "FLUSHALL",
        "HELLO", "INFO", "LATENCY", "PING", "SCRIPT", "SLOWLOG", "TIME", "WAIT", "WAITAOF",
    }
)  # fmt: skip
_EVERYWHERE: Final = frozenset({"SCRIPT LOAD", "SCRIPT FLUSH", "FLUSHALL"})
_FOLLOWING: Final = frozenset({"WAIT", "WAITAOF"})
_WITH_SUBCOMMAND: Final = frozenset({"MEMORY", "OBJECT", "XGROUP", "XINFO"})
_SCRIPTED: Final = frozenset({"EVAL", "EVALSHA"})
_READS: Final = frozenset(
    {
        "BITFIELD_RO", "EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HLEN", "HMGET", "HSCAN", "HVALS",
        "MEMORY", "MGET", "PFCOUNT", "PTTL", "STRLEN", "TIME", "TTL", "TYPE", "XINFO", "XLEN", "XPENDING", "XRANGE",
        "XREAD", "XREVRANGE", "ZCARD", "ZRANGE", "ZREVRANGE", "ZSCORE",
    }
)  # fmt: skip


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key: of its hash tag if it has one, otherwise of the whole key."""
    text = key.encode() if isinstance(key, str) else key
    begin = text.find(b"{")
    if begin >= 0 and (end := text.find(b"}", begin + 1)) > begin + 1:
        text = text[begin + 1 : end]
    return binascii.crc_hqx(text, 0) % SLOTS


def key_of(command: Command) -> str | bytes | None:
    """Return the first key of a command, or `None` if it has no key; for SCAN, return its pattern.

    A command that this module does not list is assumed to have its first argument, if any, as its first key.

    Raises:
        ValueError: a SCAN has no pattern, or its pattern has no hash tag, or only one with a wildcard.
    """
    name, *subcommand = command[0].upper().split()
    if name in _KEYLESS:
        return None
    if name == "SCAN":
        return _scanned(command)
    place = 1
    if name in _SCRIPTED:
        place = 3 if int(command[2]) else len(command)
    elif name in _WITH_SUBCOMMAND:
        place = 1 if subcommand else 2
    elif name == "XREAD":
        place = _behind_streams(command, 1)
    elif name == "XREADGROUP":
        place = _behind_streams(command, 4)  # a group or a consumer may also have the name STREAMS
    key: str | bytes | None = command[place] if place < len(command) else None
    return key


def _scanned(command: Command) -> str:
    """Return the pattern of a SCAN: the argument after MATCH, which must be in capital letters.

    Raises:
        ValueError: there is no pattern; or it has no hash tag, or only one with a wildcard, so that keys on any node
            may match it.
    """
    pattern = next((str(command[i + 1]) for i in range(2, len(command) - 1) if command[i] in ("MATCH", b"MATCH")), "")
    if not re.search(r"\{[^*?\[\]\\{}]+\}", pattern):
        # The keys of one node would be taken for those of all nodes.
        raise ValueError(f"SCAN of a cluster needs a pattern with a hash tag, not {pattern!r}")
    return pattern


def _behind_streams(command: Command, first: int) -> int:
    return next(i for i in range(first, len(command)) if command[i] in ("STREAMS", b"STREAMS")) + 1


def goes_everywhere(command: Command) -> bool:
    """Return whether a command must be executed on every primary: SCRIPT LOAD, SCRIPT FLUSH, FLUSHALL."""
    words = [str(word).upper() for word in command[:2]] if command[0] == "SCRIPT" else [command[0].upper()]
    return " ".join(words) in _EVERYWHERE


def is_read(command: Command) -> bool:
    """Return whether a command is known to only read, so that it may be sent again."""
    return command[0].upper().split()[0] in _READS


def guarded(command: Command) -> Command:
    """Return an EVALSHA with one more key, so that no node runs the script while its slot is moved key by key.

    Any other command, and an EVALSHA without keys or whose first key has no hash tag, is returned unchanged.

    The scripts use keys that they do not declare, such as totals under the partition's tag. During such a move, a key
    may already be on the other node, and the script would fail when it reaches that key. The added key never exists:
    with it, the nodes reply TRYAGAIN or ASK, without running the script, until the whole slot is on one node.
    """
    if command[0] != "EVALSHA" or not int(command[2]):
        return command
    count = int(command[2])
    prefix, closing, _ = command[3].partition("}")
    if not closing:
        return command  # `tally:meta`: the script uses no other key
    keys = command[3 : 3 + count]
    return (*command[:2], count + 1, *keys, f"{prefix}}}:moving", *command[3 + count :])


@dataclass
class CommandPart:
    """The commands of a pipeline that go to one slot, with the commands without a key that go along.

    Attributes:
        slot: The slot; `None` for commands that any node can execute.
        places: Places of the commands in the pipeline (the first is 0), in order.
    """

    slot: int | None
    places: list[int] = field(default_factory=list)


def parts_of(commands: Sequence[Command]) -> tuple[list[CommandPart], list[int]]:
    """Split a pipeline by slot.

    A command without a key goes with the next command that has one, or else with the last that has one: `TIME` is the
    time of the node whose replies follow. If no command has a key, there is one part with the slot `None`. `WAIT` and
    `WAITAOF` are in no part; without any other command, there is no part.

    Returns:
        The parts, and the places of `WAIT` and `WAITAOF`, which each node gets after its other commands.

    Raises:
        ValueError: a SCAN has no pattern, or its pattern has no hash tag, or only one with a wildcard.
    """
    parts: dict[int | None, CommandPart] = {}
    following: list[int] = []
    homeless: list[int] = []
    last: CommandPart | None = None
    for place, command in enumerate(commands):
        if command[0] in _FOLLOWING:
            following.append(place)
        elif (key := key_of(command)) is None:
            homeless.append(place)
        else:
            slot = slot_of(key)
            last = parts.setdefault(slot, CommandPart(slot))
            last.places += [*homeless, place]
            homeless = []
    if homeless:
        (last or parts.setdefault(None, CommandPart(None))).places.extend(homeless)
    return list(parts.values()), following


def least(replies: Sequence[Any]) -> Any:
    """Combine the replies of several nodes to one WAIT or WAITAOF.

    Return the first error, if there is one; else the least number, of WAITAOF a list with the least of each position.
    Without a reply, return 0.
    """
    for reply in replies:
        if isinstance(reply, Exception):
            return reply
    if replies and isinstance(replies[0], list):
        return [min(column) for column in zip(*replies, strict=True)]
    return min(replies, default=0)


def to_send_again(commands: Sequence[Command], part: CommandPart, replies: Sequence[Any]) -> list[int]:
    """Return the places of the commands of a part to send again: all from the first that was not executed, or none.

    A command was not executed if its reply is MOVED, ASK, TRYAGAIN, CLUSTERDOWN or MASTERDOWN; after an error of the
    connection, it may have been. The commands from the first one on may be sent again if all of them only read, or if
    each of them got MOVED or ASK: so the order of writes stays, and no write is executed twice. Reads among them may be
    executed twice. Otherwise the list is empty.

    Args:
        commands: The commands of the whole pipeline.
        part: The part.
        replies: The replies of the whole pipeline.
    """
    redirected = [isinstance(replies[place], NOT_EXECUTED) for place in part.places]
    if not any(redirected):
        return []
    rest = part.places[redirected.index(True) :]
    if all(is_read(commands[place]) for place in rest):
        return rest
    all_moved = all(isinstance(replies[place], AskError) for place in rest)
    return rest if all_moved else []
