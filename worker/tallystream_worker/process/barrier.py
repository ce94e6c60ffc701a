"""Makes a command wait, between two of its steps, until what it wrote is on a replica or on the disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tallystream.client.durability import DurabilityCheck
from tallystream.errors import Unconfirmed

if TYPE_CHECKING:
    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import Layout

PATIENCE: Final = 10.0
"""Seconds in which each step of a command must be confirmed."""

_AGAIN: Final = 0.1
"""Seconds between two attempts to have a step confirmed, if the first was answered at once."""


def confirm(
    client: redis.Redis,
    deployment: Deployment,
    written: str,
    remedy: str = "run the command again",
    *,
    also: Layout | None = None,
) -> None:
    """Wait until all that the servers of a deployment have accepted before has the durability of the deployment.

    Call it after each step of a command whose loss the next step would hide, and read the marks of the step again
    after it: after a failover just before the call, they are gone, although the server confirms what it has. With
    the durability `memory`, do nothing.

    Args:
        client: The server.
        deployment: The deployment.
        written: What was written, as the beginning of the error message: `the events are copied`.
        remedy: What to do if it is not confirmed, as the end of the error message.
        also: The layout of another topic, whose slots are also confirmed.

    Raises:
        Unconfirmed: it was not confirmed within 10 seconds.
        redis.ResponseError: the user lacks the permission for a command.
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
        time.sleep(_AGAIN)
