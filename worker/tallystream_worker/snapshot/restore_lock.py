"""Keeps two restores apart: one holds the lock of the namespace, and each of its writes is refused after a takeover.

The lock is a key of the server that expires if the process does not renew it, so a killed restore can be repeated some
seconds later. A process that was only paused may continue after that. So each of its writes is checked in the script
call that makes it: see `Fence`.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from redis.exceptions import NoScriptError, RedisError

from tallystream.errors import StreamError
from tallystream.storage.keys import CLOSING
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import redis

    from tallystream.storage.keys import Layout

LEASE: Final = 5.0
"""Seconds after which the lock of a process that does not renew it expires."""

_LONGEST: Final = 4000
"""The most words of a command that a script runs: `unpack` fails at about 8,000."""

_STEP: Final = 2000
"""Words of the parts of a longer command; an even number, because fields and values are pairs."""

RESTORED_BY: Final = "restoring-by"
"""The field of the root hash with the token of the restore that runs, or was interrupted last: see `RestoreLock.token`.
It exists only with `RESTORING`. If the root hash is lost, two restores may have the same number, but never the same
token."""

_RENEW: Final = 0.5
_LOOK: Final = 0.1

_MOST_LOOKS: Final = 2 * LEASE / _LOOK
"""The number of looks at a lock after which it is removed, if no process has renewed it. Not a time: after a pause of
this process, it must look again several times, and then finds that the lock is renewed."""

_HOLD: Final = Script("tallystream_worker.snapshot", "hold_restore")
_FENCED: Final = Script("tallystream_worker.snapshot", "fenced")


class RestoreOvertaken(StreamError):
    """Raised if another restore of the same namespace runs, or has taken over from this one.

    This restore then writes nothing more. Also raised if the key that shows which restore may write is lost.
    """


class RestoreLock:
    """The lock of the restores of one namespace: a context manager that takes, renews, and at the end releases it.

    On entry, it waits for the lock of a killed restore to expire. Inside, call `note`, then `run` for the script that
    begins the restore, then `note_begun`; `renew` checks that no other restore has taken over. If the server does not
    answer at the end, the lock stays until it expires. An object can be entered once.

    Args:
        client: The server to restore to; another thread uses it too, to renew the lock.
        layout: A layout of the namespace.
        waiting: Called on entry with a text about the process that has the lock, if this one has to wait; again if
            another process takes it meanwhile.

    Raises:
        RestoreOvertaken: on entry, another restore is running.
        redis.RedisError: on entry, the server did not answer, or refused a command.
    """

    def __init__(self, client: redis.Redis, layout: Layout, waiting: Callable[[str], None] = lambda _: None) -> None:
        self._client: Any = client
        self.key = layout.restore_lock
        """The key of the lock."""
        self.token = uuid.uuid4().hex
        """A text that no other restore has."""
        self.value = f"{self.token} {time.time():.0f} {os.getpid()} {socket.gethostname()}"
        """The value of the key while this process has the lock."""
        self.closing = ""
        """The number of the closing that this restore has made; empty before `note_begun`."""
        self._latest: tuple[bytes | str, bytes | str] = "?", ""
        self._tell = waiting
        self._root = layout.root
        self._stopping = threading.Event()
        self._renewing = threading.Thread(target=self._keep, name="tallystream-restore-lock", daemon=True)

    def __enter__(self) -> Self:
        known: bytes | None = None
        seen, looks = 0, 0
        while not self._client.set(self.key, self.value, nx=True, px=int(LEASE * 1000)):
            holder, left = self._client.get(self.key), self._client.pttl(self.key)
            if holder is None:
                continue
            if holder != known:
                known, looks = holder, 0
                self._tell(_process(holder))
            elif left > seen:  # its process has renewed it
                raise RestoreOvertaken(
                    f"{self._root}: another restore is running ({_process(holder)}). Let it finish; or end that "
                    "process, and run this command again"
                )
            elif looks > _MOST_LOOKS:  # the server's clock was set back: the lock would expire too late
                _HOLD(self._client, [self.key, self._root], [holder, 0, "?", ""])
                continue
            seen, looks = left, looks + 1
            time.sleep(_LOOK)
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._renewing.join()
        with suppress(RedisError):
            _HOLD(self._client, [self.key, self._root], [self.value, 0, "?", ""])

    def note(self, root: Mapping[bytes, bytes]) -> None:
        """Note the fields of the root hash, read while this process has the lock, and before this restore begins.

        If the lock expires later, `renew` takes it again, unless another restore has begun since. Without this call,
        `renew` raises `RestoreOvertaken` instead, although no other restore has begun.
        """
        self._latest = root.get(CLOSING.encode(), b""), root.get(RESTORED_BY.encode(), b"")

    def note_begun(self, closing: str) -> None:
        """Note that this restore has begun: set `closing`, the number of its closing, for `renew` and the fences."""
        self.closing = closing
        self._latest = closing, self.token

    def run(self, script: Script, keys: list[str], arguments: list[Any]) -> list[Any]:
        """Run a script that refuses with `overtaken` without the lock, and return its reply.

        If it refuses because the lock has only expired, take the lock again, and run the script once more.

        Args:
            script: The script. It must compare the value of the lock's key with that of this restore, and change
                nothing if they differ.
            keys: The keys of the script; the caller puts `key`, the key of the lock, at its place among them.
            arguments: The arguments of the script; the caller puts `value` at its place among them.

        Raises:
            RestoreOvertaken: another restore has the lock, or has begun; the script has changed nothing.
            redis.RedisError: the server did not answer, and may have run the script or not; or it refused a command.
        """
        for _ in range(2):
            reply: list[Any] = script(self._client, keys, arguments)
            if reply[0] != b"overtaken":
                return reply
            self.renew()
        raise self.overtaken()

    def renew(self) -> None:
        """Renew the lock, or take it again if it has expired and no other restore has begun.

        Raises:
            RestoreOvertaken: another restore has the lock, or has begun; also if the lock has expired before `note`
                was called.
            redis.RedisError: the server did not answer, or refused a command.
        """
        arguments = [self.value, int(LEASE * 1000), *self._latest]
        (answer,) = _HOLD(self._client, [self.key, self._root], arguments)
        if answer == b"lost":
            raise self.overtaken()

    def overtaken(self) -> RestoreOvertaken:
        """Return, not raise, the error of a restore that another one has taken over from.

        The lock is read to name the other process. If it cannot be read, or no other process has it, the error names
        none. It is not checked whether another restore has taken over.
        """
        with suppress(RedisError):
            if (holder := self._client.get(self.key)) is not None and holder != self.value.encode():
                return RestoreOvertaken(
                    f"{self._root}: another restore ({_process(holder)}) has taken over, because this one had stopped "
                    f"for more than {LEASE:g} seconds. This one writes nothing more: let the other one finish"
                )
        return RestoreOvertaken(
            f"{self._root}: another restore has taken over, because this one had stopped for more than {LEASE:g} "
            "seconds. This one writes nothing more; the other one may have finished"
        )

    def _keep(self) -> None:
        while not self._stopping.wait(_RENEW):
            with suppress(RedisError, RestoreOvertaken):  # the next write finds out
                self.renew()


class Fence:
    """Runs write commands in one slot, as long as no other restore has taken over (see `__call__` for long commands).

    Call the object to run one command, or `run` for several. `check` only looks whether another restore has taken over.

    Args:
        client: The server.
        lock: The lock of this restore, for the error.
        key: The key that shows which restore may write; all keys of the commands must be in its slot.
        value: The value of the key while this restore may write.
    """

    def __init__(self, client: redis.Redis, lock: RestoreLock, key: str, value: str) -> None:
        self._client = client
        self._lock = lock
        self.key = key
        """The key that shows which restore may write."""
        self.value = value
        """The value of `key` while this restore may write."""

    def __call__(self, *command: Any) -> Any:
        """Run a command, and return its reply, as the server sends it to a script.

        An HSET or ZADD of more than 4,000 words is run in parts, and the reply is that of the last part. Any other
        command of this length is sent by the client after a check: a takeover between the two is not noticed, and the
        reply is that of the client.

        Args:
            command: The name and the arguments. The first argument must be the only key, except in the commands
                that `_keys_of` names.

        Raises:
            RestoreOvertaken: another restore has taken over; nothing was changed, except by earlier parts.
            redis.RedisError: the server did not answer, and may have run the command; or it refused it.
        """
        *before, last = _parts(command)
        for part in before:
            self(*part)
        if len(last) > _LONGEST:  # Lua cannot pass on so many arguments
            self.check()
            return self._client.execute_command(*last)
        return self._reply(_FENCED(self._client, [self.key, *_keys_of(last)], [self.value, *last]))

    def run(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Run several commands, and drop their replies.

        Most are sent together: a later one may run although an earlier one has failed. Long ones are run in parts, or
        after a check, as a call of this object runs them.

        Args:
            commands: The commands, each with the arguments of a call of this object. If there are none, do nothing.

        Raises:
            RestoreOvertaken: another restore has taken over; the commands since then were not run.
            redis.RedisError: the server did not answer, or refused a command; some commands may have run.
        """
        left: list[tuple[Any, ...]] = []
        for each in (part for command in commands for part in _parts(command)):
            if len(each) > _LONGEST:
                self.run(left)
                self(*each)
                left = []
            else:
                left.append(each)
        while left:
            with self._client.pipeline(transaction=False) as pipeline:
                for command in left:
                    _FENCED.queue(pipeline, [self.key, *_keys_of(command)], [self.value, *command])
                replies = pipeline.execute(raise_on_error=False)
            again = []
            for command, reply in zip(left, replies, strict=True):
                if isinstance(reply, NoScriptError):
                    again.append(command)  # it was not run
                elif isinstance(reply, Exception):
                    raise reply
                else:
                    self._reply(reply)
            if again:
                _FENCED.load(self._client)
            left = again

    def check(self) -> None:
        """Read the key, and raise `RestoreOvertaken` if it does not have the value: another restore has taken over.

        Raises:
            RestoreOvertaken: another restore has taken over, or the key is lost.
            redis.RedisError: the server did not answer, or refused a command.
        """
        found: Any = self._client.get(self.key)
        if found != self.value.encode():
            raise self._lock.overtaken()

    def overtaken(self) -> RestoreOvertaken:
        """Return, not raise, the error of a restore that another one has taken over from; it is not checked here."""
        return self._lock.overtaken()

    def _reply(self, reply: Any) -> Any:
        if reply[0] == b"overtaken":
            raise self._lock.overtaken()
        return reply[1] if len(reply) > 1 else None


def _parts(command: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield shorter commands that together do the same as an HSET or ZADD of more than `_LONGEST` words.

    Any other command is yielded unchanged, however long.
    """
    if command[0] not in ("HSET", "ZADD") or len(command) <= _LONGEST:
        yield command
        return
    for first in range(2, len(command), _STEP):
        yield (*command[:2], *command[first : first + _STEP])


def _keys_of(command: Sequence[Any]) -> list[str]:
    name = command[0]
    if name == "MSET":
        return list(command[1::2])
    if name in ("DEL", "UNLINK"):
        return list(command[1:])
    if name == "XGROUP":
        return [command[2]]
    if name == "XREADGROUP":
        return [command[command.index("STREAMS") + 1]]
    return [command[1]]


def _process(holder: bytes) -> str:
    """Return the process in a value of the lock, such as `process 4711 on web-1, since 2026-11-24 10:00:00 UTC`."""
    _, since, number, host = holder.decode(errors="replace").split(" ", 3)
    moment = dt.datetime.fromtimestamp(int(since), dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {number} on {host}, since {moment}"
