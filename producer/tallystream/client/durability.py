"""Durability: checks that a write is in the server's memory, on a replica, or on the server's disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from redis.exceptions import NoScriptError, RedisError, ResponseError

from tallystream.client.cluster.client import node_of
from tallystream.client.replies import is_append_only_file_missing, is_command_unknown, is_permission_missing
from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis
    from redis.client import Pipeline

    from tallystream.storage.scripts import Script

Durability = Literal["memory", "replica", "fsync"]
"""The place where a write must be before it counts as done; see `DurabilityCheck`."""

_PATIENCE: Final = 1000
"""Milliseconds to wait for the durability of a write; after that, the write is unconfirmed."""

_SHORT_PATIENCE: Final = 0.1
"""Seconds to wait for each node, if one of them has not confirmed in time, and is to be named."""

_EXPIRY: Final = 60_000
"""Milliseconds after which the key that `confirm` writes expires."""

NOT_IN_TIME: Final = "no replica or disk has confirmed it in time"
"""The reason why a write is not confirmed, if the server gave no other one."""


class DurabilityCheck:
    """Checks, after a write and on the same connection, that the write has the required durability.

    `run` does so for one script. For a pipeline, `queue` adds the command, and `is_enough` judges its reply. `confirm`
    does so for all earlier writes, of any connection.

    Args:
        durability: `memory`: the server's reply is enough. `replica`: at least one replica must have the write
            (`WAIT`). `fsync`: the write must be in the append-only file on the server's disk (`WAITAOF`; Redis 7.2 or
            Valkey).

    Raises:
        ConfigurationError: `durability` is none of these.
    """

    def __init__(self, durability: Durability = "memory") -> None:
        if durability not in get_args(Durability):
            raise ConfigurationError(f"durability must be memory, replica or fsync, not {durability!r}")
        self._durability = durability

    @property
    def is_needed(self) -> bool:
        """Whether a write needs more than the server's reply: `False` only for `memory`."""
        return self._durability != "memory"

    def check(self, client: redis.Redis) -> None:
        """Check with one command that the server supports `fsync`; for any other durability, do nothing.

        In a cluster, only one primary is checked.

        Raises:
            ConfigurationError: the server has no `WAITAOF`, or writes no append-only file; or it is a node of a
                cluster, and the URL of the client names none, or the reverse.
            redis.RedisError: the server does not answer, or refuses the command.
        """
        if self._durability != "fsync":
            return
        try:
            client.execute_command("WAITAOF", 1, 0, 1)
        except ResponseError as error:
            if is_command_unknown(error):
                raise ConfigurationError(
                    'durability = "fsync" needs WAITAOF, which this server does not have: use Redis 7.2 or later, or '
                    'Valkey, or durability = "memory" with appendfsync always in the server\'s configuration'
                ) from None
            if is_append_only_file_missing(error):
                raise ConfigurationError(
                    'durability = "fsync" needs an append-only file, and this server writes none: set appendonly yes'
                ) from None
            raise

    def queue(self, pipeline: Pipeline, patience: float | None = None) -> None:
        """Add the durability command (`WAIT` or `WAITAOF`) to a pipeline; for `memory`, add nothing.

        Call this after the writes were added. The pipeline must be no transaction: in one, the server does not wait.
        The server waits at most 1 second before it replies, or `patience` seconds if that is less (at least 1
        millisecond). The reply, if it is no error, is the argument of `is_enough`.
        """
        # 0 milliseconds would be no limit.
        most = _PATIENCE if patience is None else max(1, min(_PATIENCE, int(patience * 1000)))
        if self._durability == "replica":
            pipeline.execute_command("WAIT", 1, most)
        elif self._durability == "fsync":
            pipeline.execute_command("WAITAOF", 1, 0, most)

    def is_enough(self, reply: Any) -> bool:
        """Return whether the reply to the durability command confirms the writes before it.

        Args:
            reply: The reply to the command that `queue` added; not an error.
        """
        return bool((reply[0] if isinstance(reply, list) else reply) >= 1)

    def run(self, script: Script, client: redis.Redis, keys: list[str], args: list[Any]) -> tuple[Any, str]:
        """Run a script; the server then waits at most a second for the durability of its writes.

        With `memory`, it does not wait: the reply is enough. If the server lacks the script, load it and run it again.

        Returns:
            The reply of the script, and the reason why its writes are not confirmed; the reason is empty if they are,
            and always with `memory`. An error reply to the durability command is a reason and is not raised, because
            the script has run.

        Raises:
            KeyLost: the partition has lost a key, or the key has another type; the script has appended and counted
                nothing.
            redis.RedisError: the script failed; or the connection broke, or a reply was missing, and the script may
                have run or not.
        """
        if not self.is_needed:
            return script(client, keys, args), ""
        reply, waited = self._attempt(script, client, keys, args)
        if isinstance(reply, NoScriptError):
            script.load(client)
            reply, waited = self._attempt(script, client, keys, args)
        if isinstance(reply, RedisError):
            raise reply
        reply = script.checked(reply)
        if isinstance(waited, RedisError):
            return reply, f"the server could not confirm it: {waited}"
        return reply, "" if self.is_enough(waited) else NOT_IN_TIME

    def confirm(self, client: redis.Redis, names: Iterable[str]) -> str:
        """Wait until all writes that the servers of some keys have executed before this call have the durability.

        To do so, set these keys, which expire after a minute. The servers wait at most a second. If not all confirm,
        and there are several keys, each key is set again, and its server waits at most 0.1 seconds, until one does not
        confirm; if all do, the writes are confirmed. For `memory`, do nothing.

        A replica, and the append-only file, get the writes of a server in their order. So the write of a key is
        confirmed only together with all writes before it, whichever connection they came from.

        Args:
            client: The server or the cluster.
            names: Keys for this purpose (`Layout.confirmed`), at least one on each node.

        Returns:
            The reason why the writes are not confirmed, with the address, if it is known, of a server that has not
            confirmed them; empty if they are confirmed, and for `memory`. Errors of Redis are a reason and are not
            raised, except a missing permission.

        Raises:
            redis.ResponseError: the user lacks the permission for a command.
            ConfigurationError: the server is a node of a cluster, and the URL of the client names none, or the reverse.
        """
        if not self.is_needed:
            return ""
        keys = list(names)
        reason = self._unconfirmed(client, keys)
        if reason and len(keys) > 1:
            alone = (self._unconfirmed(client, [key], _SHORT_PATIENCE) for key in keys)
            return next(filter(None, alone), "")
        return reason

    def _unconfirmed(self, client: redis.Redis, keys: list[str], patience: float | None = None) -> str:
        try:
            with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.execute_command("SET", key, 1, "PX", _EXPIRY)
                self.queue(pipeline, patience)
                *replies, waited = pipeline.execute(raise_on_error=False)
        except RedisError as error:
            replies, waited = [], error
        failed = next((each for each in (*replies, waited) if isinstance(each, RedisError)), None)
        if failed is not None:
            if is_permission_missing(failed):
                raise failed
            return f"{node_of(client, keys[0])} replied: {failed}"
        return "" if self.is_enough(waited) else f"no {self._place} of {node_of(client, keys[0])} has it"

    @property
    def _place(self) -> str:
        return {"replica": "replica", "fsync": "disk"}.get(self._durability, self._durability)

    def _attempt(self, script: Script, client: redis.Redis, keys: list[str], args: list[Any]) -> tuple[Any, Any]:
        with client.pipeline(transaction=False) as pipeline:
            script.queue(pipeline, keys, args)
            self.queue(pipeline)
            reply, waited = pipeline.execute(raise_on_error=False)
        return reply, waited


MEMORY: Final = DurabilityCheck()
"""Durability `memory`: the server's reply is enough."""
