"""Which slot of a cluster a command belongs to: pure, so that threads and asyncio share it.

Every command of ours names keys of one partition, which lie in one slot, or a key without a tag, or none at all.
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

SLOTS: Final = 16384

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
    """Return a key's slot: that of its hash tag, where it has one."""
    text = key.encode() if isinstance(key, str) else key
    begin = text.find(b"{")
    if begin >= 0 and (end := text.find(b"}", begin + 1)) > begin + 1:
        text = text[begin + 1 : end]
    return binascii.crc_hqx(text, 0) % SLOTS


def key_of(command: Command) -> str | bytes | None:
    """Return the first key that a command names, `None` where it names none."""
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
        place = _behind_streams(command, 4)  # a group or a consumer may be called so as well
    key: str | bytes | None = command[place] if place < len(command) else None
    return key


def _scanned(command: Command) -> str:
    """Return the pattern of a SCAN, whose hash tag says which node has all that it matches."""
    pattern = next((str(command[i + 1]) for i in range(2, len(command) - 1) if command[i] in ("MATCH", b"MATCH")), "")
    if not re.search(r"\{[^*?\[\]\\{}]+\}", pattern):
        # One node's keys would look like all of them.
        raise ValueError(f"SCAN of a cluster needs a pattern with a hash tag, not {pattern!r}")
    return pattern


def _behind_streams(command: Command, first: int) -> int:
    return next(i for i in range(first, len(command)) if command[i] in ("STREAMS", b"STREAMS")) + 1


def goes_everywhere(command: Command) -> bool:
    """Tell whether a command without a key concerns every node."""
    words = [str(word).upper() for word in command[:2]] if command[0] == "SCRIPT" else [command[0].upper()]
    return " ".join(words) in _EVERYWHERE


def is_read(command: Command) -> bool:
    """Tell whether a command changes nothing, so that it may be asked again."""
    return command[0].upper().split()[0] in _READS


def guarded(command: Command) -> Command:
    """Return a script call so that no node runs it while its slot is being moved.

    Scripts of ours reach keys that they do not declare: a total lies where its partition's tag says. While a slot is
    moved key by key, such a key may be on the other node already, and the script would fail where it meets it.
    So each call declares one key more, one that never exists: with it, either node answers TRYAGAIN until the whole
    slot is in one place, and runs nothing.
    """
    if command[0] != "EVALSHA" or not int(command[2]):
        return command
    count = int(command[2])
    prefix, closing, _ = command[3].partition("}")
    if not closing:
        return command  # `tally:meta`: its one key is all that the script reaches
    keys = command[3 : 3 + count]
    return (*command[:2], count + 1, *keys, f"{prefix}}}:moving", *command[3 + count :])


@dataclass
class CommandPart:
    """What a pipeline asks of one slot (`None`: of any node): places in the pipeline, in order."""

    slot: int | None
    places: list[int] = field(default_factory=list)


def parts_of(commands: Sequence[Command]) -> tuple[list[CommandPart], list[int]]:
    """Split a pipeline by slot.

    A command without a key goes where the next one with a key goes, or else the last: `TIME` is that of the node whose
    answers follow.

    Returns:
        The parts; and the places of those (`WAIT`) that each node is asked behind its other commands.
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
    """Return what several nodes' answers to one `WAIT` or `WAITAOF` say of all of them: an error, or the least."""
    for reply in replies:
        if isinstance(reply, Exception):
            return reply
    if replies and isinstance(replies[0], list):
        return [min(column) for column in zip(*replies, strict=True)]
    return min(replies, default=0)


def to_send_again(commands: Sequence[Command], part: CommandPart, replies: Sequence[Any]) -> list[int]:
    """Return the places of a part from the first that was not executed on, where all of these may be sent again.

    They may where none of them was executed, or where those that were have only read: so order is kept, and nothing is
    written twice. Nothing, else: then the errors stay, for the caller to answer.
    """
    redirected = [isinstance(replies[place], NOT_EXECUTED) for place in part.places]
    if not any(redirected):
        return []
    rest = part.places[redirected.index(True) :]
    if all(is_read(commands[place]) for place in rest):
        return rest
    all_moved = all(isinstance(replies[place], AskError) for place in rest)
    return rest if all_moved else []
