"""Changes fields of the hashes that describe a deployment; never creates a hash that was deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import KeyLost
from tallystream.storage.deployment_hash import DURABILITY
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Mapping

    import redis

    from tallystream.client.durability import Durability
    from tallystream.deployment import Deployment

_NOTE: Final = Script("tallystream_worker.process", "note")
_ADD: Final = Script("tallystream_worker.process", "add")
_FORGET: Final = Script("tallystream_worker.process", "forget")


def note(client: redis.Redis, deployment: Deployment, fields: Mapping[str, Any]) -> None:
    """Set fields of the hash of the deployment's topic (`meta`), if it has the epoch of the deployment.

    Without fields, do nothing. The errors but the last one are raised only if the hash does not have this epoch.

    Raises:
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished; nothing was changed.
        ConfigurationError, DamagedValue: this release cannot read the description that is stored now; nothing was
            changed.
        KeyLost: the data is still stored, but this hash was deleted (that of a later topic), or a hash of the
            description has lost a field; nothing was changed.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    if not fields:
        return
    flat = [part for field in fields.items() for part in field]
    (answer,) = _NOTE(client, [deployment.layout.meta], [deployment.epoch, *flat])
    if answer == b"gone":
        _refuse(client, deployment, deployment.layout.meta)


def note_durability(client: redis.Redis, deployment: Deployment, durability: Durability) -> None:
    """Store the durability that the writes of each step of a command must have before the next step.

    It is `memory`, `replica` or `fsync`, and replaces the stored one. If `deployment` has the same one already, nothing
    is sent to the server.

    Raises:
        DeploymentChanged, ConfigurationError, DamagedValue, KeyLost: see `add`; nothing was changed.
        redis.RedisError: the server does not reply, or rejects the command.
    """
    if deployment.durability != durability:
        (answer,) = _NOTE(client, [deployment.layout.root], [deployment.epoch, DURABILITY, durability])
        if answer == b"gone":
            _refuse(client, deployment, deployment.layout.root)


def add(client: redis.Redis, deployment: Deployment, key: str, field: str, by: int = 1) -> int:
    """Add `by` to a number in a hash of the description, and return the new number; a missing field counts as 0.

    `key` is `root` or `meta` of the deployment's layout. The errors but the last one are raised only if this hash does
    not have the epoch of the deployment.

    Raises:
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished; nothing was changed.
        ConfigurationError, DamagedValue: this release cannot read the description that is stored now; nothing was
            changed.
        KeyLost: the data is still stored, but this hash was deleted (that of a later topic), or a hash of the
            description has lost a field; nothing was changed.
        redis.RedisError: the server does not reply, or rejects the command, for example if the field is not a number.
    """
    answer, *found = _ADD(client, [key], [deployment.epoch, field, by])
    if answer == b"gone":
        _refuse(client, deployment, key)
    return int(found[0])


def forget(client: redis.Redis, key: str, field: str, value: int) -> None:
    """Remove a field of the hash `key` of the description; do nothing if it has another value than `value`.

    Raises:
        redis.RedisError: the server does not reply, or rejects the command.
    """
    _FORGET(client, [key], [field, value])


def _refuse(client: redis.Redis, deployment: Deployment, key: str) -> None:
    deployment.reload(client)  # raises `DeploymentChanged` if that is the reason
    raise KeyLost(key)
