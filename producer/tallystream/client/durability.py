"""Confirmation: when a write counts as done. In the server's memory, on a replica, or on its disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from redis.exceptions import NoScriptError, RedisError, ResponseError

from tallystream.client.replies import is_append_only_file_missing, is_command_unknown
from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    import redis
    from redis.client import Pipeline

    from tallystream.storage.scripts import Script

Durability = Literal["memory", "replica", "fsync"]

_PATIENCE: Final = 1000
"""Milliseconds that a write waits for its durability before it is taken for unconfirmed."""


class DurabilityCheck:
    """Asks, behind a write and on the same connection, whether the write is as safe as it has to be.

    Args:
        durability: `memory`: the server's answer is enough. `replica`: at least one replica must have it (`WAIT`).
            `fsync`: the server's append-only file must be on its disk (`WAITAOF`; Redis 7.2 or Valkey).

    Raises:
        ConfigurationError: there is no such durability.
    """

    def __init__(self, durability: Durability = "memory") -> None:
        if durability not in get_args(Durability):
            raise ConfigurationError(f"durability must be memory, replica or fsync, not {durability!r}")
        self._durability = durability

    @property
    def is_needed(self) -> bool:
        """Whether a write needs more than the server's answer."""
        return self._durability != "memory"

    def check(self, client: redis.Redis) -> None:
        """Refuse a server that cannot give this durability.

        Raises:
            ConfigurationError: it has no such command, or writes no append-only file.
            redis.RedisError: it cannot be asked.
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

    def queue(self, pipeline: Pipeline) -> None:
        """Ask, behind the writes on a pipeline; its last reply is the one to give to `is_enough`."""
        if self._durability == "replica":
            pipeline.execute_command("WAIT", 1, _PATIENCE)
        elif self._durability == "fsync":
            pipeline.execute_command("WAITAOF", 1, 0, _PATIENCE)

    def is_enough(self, reply: Any) -> bool:
        """Tell whether a reply confirms the writes before it."""
        return bool((reply[0] if isinstance(reply, list) else reply) >= 1)

    def run(self, script: Script, client: redis.Redis, keys: list[str], args: list[Any]) -> tuple[Any, str]:
        """Run a script; return its reply, and why its writes are not confirmed (empty if they are).

        Raises:
            redis.RedisError: as `Script` does. An error of `WAIT` is returned, not raised: the script has run.
        """
        if not self.is_needed:
            return script(client, keys, args), ""
        reply, waited = self._attempt(script, client, keys, args)
        if isinstance(reply, NoScriptError):
            script.load(client)
            reply, waited = self._attempt(script, client, keys, args)
        if isinstance(reply, RedisError):
            raise reply
        if isinstance(waited, RedisError):
            return reply, f"the server could not confirm it: {waited}"
        return reply, "" if self.is_enough(waited) else "no replica or disk has confirmed it in time"

    def _attempt(self, script: Script, client: redis.Redis, keys: list[str], args: list[Any]) -> tuple[Any, Any]:
        with client.pipeline(transaction=False) as pipeline:
            script.queue(pipeline, keys, args)
            self.queue(pipeline)
            reply, waited = pipeline.execute(raise_on_error=False)
        return reply, waited


MEMORY: Final = DurabilityCheck()
"""The server's answer is enough."""
