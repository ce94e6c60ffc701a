"""Makes a command wait, between two of its steps, until what it wrote is on a replica or on the disk.

The last step of a command is also repeated while a node fails over.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from redis.exceptions import AuthenticationError, ReadOnlyError

from tallystream.client.durability import DurabilityCheck
from tallystream.client.replies import BROKEN, NOT_EXECUTED
from tallystream.errors import Unconfirmed
from tallystream_worker.process.failover_watch import AGAIN, FailedOver, FailoverWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout

PATIENCE: Final = 10.0
"""Seconds in which each step of a command must be confirmed."""

_PAUSE: Final = 0.1
"""Seconds between two attempts to have a step confirmed, if the first was answered at once."""

LAST_STEP_TIMEOUT: Final = 30.0
"""Seconds for which the last step of a command is tried again while nodes fail: longer than most failovers take."""

_AGAIN: Final = 0.2
"""Seconds between two attempts of this step."""


def confirm(
    client: redis.Redis,
    deployment: Deployment,
    written: str,
    remedy: str = AGAIN,
    *,
    also: Layout | None = None,
) -> None:
    """Wait until all that the servers of a deployment have accepted before has the durability of the deployment.

    With the durability `memory`, do nothing. After a failover just before the call, a server confirms what it has,
    and that may lack the latest writes: see `step`.

    Args:
        client: The server.
        deployment: The deployment.
        written: What was written, as the beginning of the error message: `the events are copied`.
        remedy: What to do if it is not confirmed, as the end of the error message.
        also: The layout of another topic, whose slots are also confirmed.

    Raises:
        Unconfirmed: it was not confirmed within about 10 seconds, for example because a server does not reply.
        redis.ResponseError: the user lacks the permission for a command.
        ConfigurationError: the server is a node of a cluster, and the URL of the client names none, or the reverse.
    """
    check = DurabilityCheck(deployment.durability)
    if not check.is_needed:
        return
    layouts = [deployment.layout] if also is None else [deployment.layout, also]
    names = list(dict.fromkeys(name for layout in layouts for name in layout.confirmed))
    until = time.monotonic() + PATIENCE
    while reason := check.confirm(client, names):
        if time.monotonic() > until:
            place = "disk" if deployment.durability == "fsync" else "replica"
            raise Unconfirmed(
                f"{written}, but in {PATIENCE:g} seconds no {place} has confirmed it: {reason}. A failover or a crash "
                f"may undo it. Look why the {place} of this node does not confirm ([worker] durability is "
                f"{deployment.durability!r}), and {remedy}"
            )
        time.sleep(_PAUSE)


@contextmanager
def step(
    client: redis.Redis,
    deployment: Deployment,
    written: str,
    remedy: str = AGAIN,
    *,
    also: Layout | None = None,
) -> Iterator[None]:
    """Run a step of a command in the context; at its end, `confirm` it, and raise an error if a node failed over.

    With the durability `memory`, only the failover is an error. If the context raises an error, neither is checked. The
    arguments are those of `confirm`.

    Raises:
        Unconfirmed, ConfigurationError: see `confirm`.
        FailedOver: a node failed over or restarted in the context, or a slot moved to another node.
        redis.RedisError: a server does not reply, or rejects a command.
    """
    failovers = FailoverWatch(client, deployment.layout, *(() if also is None else (also,)))
    yield
    confirm(client, deployment, written, remedy, also=also)
    failovers.ensure_none(written, remedy)


def last_step(attempt: Callable[[], None]) -> None:
    """Call `attempt`, which makes the result of a command live in a `step`; call it again for 30 s while nodes fail.

    It is called again after the errors that a node gives while it fails over: then it is not known whether the result
    is live. A repeated call must change nothing more.

    Raises:
        FailedOver, redis.RedisError: nodes still failed after 30 seconds.
        Exception: any other error of `attempt`, at once, such as a refused password or `Unconfirmed`.
    """
    until = time.monotonic() + LAST_STEP_TIMEOUT
    while True:
        try:
            attempt()
        except AuthenticationError:  # is a ConnectionError, but does not pass
            raise
        except (*BROKEN, *NOT_EXECUTED, ReadOnlyError, FailedOver):
            if time.monotonic() > until:
                raise
        else:
            return
        time.sleep(_AGAIN)
