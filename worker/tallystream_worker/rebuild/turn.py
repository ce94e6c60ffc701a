"""Lets commands that change generations take turns: when a command begins, the steps of all earlier ones are refused.

Without turns, a process that was paused in the middle of a command (SIGSTOP, a sleeping laptop, a slow disk) would
continue when another command has decided otherwise: a switch would undo a later `rebuild --undo`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tallystream.errors import KeyLost, StreamError
from tallystream.storage.keys import TURN
from tallystream.storage.scripts import Script
from tallystream.storage.stored_values import stored_number
from tallystream_worker.process.barrier import step

if TYPE_CHECKING:
    import redis

    from tallystream.deployment import Deployment

_CLAIM: Final = Script("tallystream_worker.rebuild", "claim_turn")
_TAKE: Final = Script("tallystream_worker.rebuild", "take_turn")


class Overtaken(StreamError):
    """Raised if another command that changes generations, or a restore, has begun after this command.

    This one changes nothing more.
    """

    def __init__(self) -> None:
        super().__init__(
            "another rebuild, retract, --undo or --drop, or a restore, has begun after this command, so this one "
            "changes nothing more: let the other one finish, and run this one again if it is still needed"
        )


def take_turn(client: redis.Redis, deployment: Deployment) -> int:
    """Return a new number for a command; from now on, the steps of commands with lower numbers are refused.

    Read the deployment again afterwards: an earlier command may have changed it before its steps were refused. The
    number has the durability of the deployment when this returns.

    Raises:
        Overtaken: another command has begun meanwhile.
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished.
        KeyLost: the hash of the live topic was deleted, or a hash of the description has lost a field.
        ConfigurationError, DamagedValue: this release cannot read what is stored.
        Unconfirmed, FailedOver: the number was not confirmed in time, or a node failed over meanwhile. Call again.
        redis.RedisError: the server does not reply, or rejects a command; some partitions may have the number.
    """
    keys = deployment.layout.keys
    with step(client, deployment, "earlier commands are refused"):
        with client.pipeline(transaction=False) as pipeline:
            for each in keys:
                pipeline.hget(each.sequences, f"!{TURN}")
            found: list[bytes | None] = pipeline.execute()
        highest = max(
            stored_number(each.sequences, number, field=f"!{TURN}") for each, number in zip(keys, found, strict=True)
        )
        answer, *claimed = _CLAIM(client, [deployment.layout.meta], [deployment.epoch, highest])
        if answer == b"gone":
            deployment.reload(client)  # states why
            raise KeyLost(deployment.layout.meta)
        turn = int(claimed[0])
        for each in keys:
            (answer,) = _TAKE(client, [each.sequences], [turn])
            if answer == b"overtaken":
                raise Overtaken
    return turn
