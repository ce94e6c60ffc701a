"""Publishes rules to producers, readers and other workers, each change once, with its record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tallystream.client.replies import is_unreachable
from tallystream.errors import KeyLost
from tallystream.reading.query import raise_on_error
from tallystream.rules.changes import differences
from tallystream.rules.metrics import publish, read
from tallystream.storage.deployment_hash import spread_fields
from tallystream.storage.rule_changes import read_changes
from tallystream.storage.scripts import Script
from tallystream.wire.stream_id import parse_id
from tallystream_worker.process.publisher import publisher
from tallystream_worker.snapshot.lost_changes import lacked, merged
from tallystream_worker.snapshot.rule_records import recorded_numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.settings.settings import Settings

_PUBLISH: Final = Script("tallystream_worker.runtime", "publish")
_REGAIN: Final = Script("tallystream_worker.runtime", "regain_rules")


@dataclass(frozen=True)
class Published:
    """The rules that were published.

    Attributes:
        before: The rules that were stored before; `None` if none were.
        rules: The rules that are stored now.
        kept: The stored metrics that the configuration lacks, and that were kept; empty if it states no metrics.
        lost: The number that identified later rules (their revision, no count), which the server lost after a partition
            was counted by them; 0 if no partition shows such a loss.
    """

    before: Rules | None
    rules: Rules
    kept: list[str]
    lost: int

    @property
    def has_changed(self) -> bool:
        """Whether no rules were stored before, or there are `differences`, or later rules were lost."""
        return self.before is None or self.lost > 0 or bool(self.differences)

    @property
    def differences(self) -> list[str]:
        """The differences from the rules before, in words; empty if there are none, or no rules were stored before.

        Another order of metrics, ratios, alerts or retractions is no difference, although it is stored and recorded.
        """
        return [] if self.before is None else differences(self.before, self.rules)


def publish_rules(
    client: redis.Redis, settings: Settings, deployment: Deployment, removing: Collection[str] = ()
) -> Published:
    """Publish the rules of a configuration, together with the stored metrics that it lacks; record the change.

    If the rules equal the stored ones, and are in the same order, they are not published again, and no change is
    recorded. But if the server lost later rules that a partition was counted by, any rules are published, with a number
    above that of the lost ones. If another process publishes rules at the same time, the rules are made again from
    those.

    Args:
        client: The server.
        settings: The configuration.
        deployment: The deployment as it was read last.
        removing: The stored metrics to remove, if the configuration lacks them.

    Raises:
        ConfigurationError: the rules contradict stored ones, turn `spread` off for a metric whose events are spread, or
            this release cannot read the rules that another process published meanwhile.
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished.
        KeyLost: the stored deployment is not complete.
        DamagedValue: a stored value has a form that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    while True:
        before = deployment.declared
        rules = settings.rules_over(before, removing)
        deployment.refuse_gathering(rules)
        # A cluster may have lost rules that a partition on another node was counted by: use no number again.
        counting = counting_number(client, deployment, deployment.layout.keys)
        lost = counting if counting > deployment.revision else 0
        if _store(client, deployment, rules, lost) != b"moved":
            kept = [name for name in settings.missing_from(before) if name in rules.metric]
            return Published(before, rules, kept, lost)
        deployment = deployment.reload(client)


def publish_again(client: redis.Redis, deployment: Deployment, above: int) -> Deployment:
    """Give the stored rules a number above `above`, record this as a change, and return the deployment, read again.

    If their number is above it already, change nothing. If another process has published rules since `deployment` was
    read, publish nothing, and return the deployment with those: their number may be lower.

    Args:
        client: The server.
        deployment: The deployment, with published rules.
        above: The number.

    Raises:
        ConfigurationError: the stored data is of another release.
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished.
        KeyLost: the stored deployment is not complete.
        DamagedValue: a stored value has a form that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    _store(client, deployment, deployment.rules, above)
    return deployment.reload(client, in_part=True)


def publish_lost(
    client: redis.Redis, deployment: Deployment, archived: Mapping[str, Mapping[str, str]]
) -> tuple[list[int], bool]:
    """Publish the rules that the server has lost, and that an archive has; return the numbers of the lost changes.

    Also return whether the rules of the last one are live again. `lacked` states which changes are lost. Without one,
    write nothing, and return an empty list and `False`. The rules are those of the last lost change, together with
    later changes on the server, which have precedence: see `merged`. If the two together are not valid, the stored
    rules stay live, and the second result is `False`.

    The lost changes are recorded again, in the call that stores the rules. If the stored rules differ from these, or if
    their number is not above those of the lost changes, the rules get a new number. If another process publishes rules
    at the same time, the rules are made again from those.

    Args:
        client: The server.
        deployment: The deployment, with published rules.
        archived: The changes in the archive of the live topic, by ID: see `Store.rules`.

    Raises:
        ConfigurationError: this release cannot read the rules of a change, or the rules turn `spread` off for a metric
            whose events are spread.
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished.
        KeyLost: the stored deployment is not complete.
        DamagedValue: a stored value has a form that tallystream never writes.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    while True:
        recorded, highest = recorded_numbers(client, deployment)
        lost = lacked(archived, deployment.epoch, recorded, highest)
        if not lost:
            return [], False
        first, last = parse_id(next(iter(lost))), list(lost.values())[-1]
        records = read_changes(client, deployment.layout)
        earlier = [fields[b"rules"] for name, fields in records if parse_id(name.decode()) < first]
        base = read(earlier[-1]) if earlier else deployment.rules
        both = merged(base, read(last["rules"].encode()), deployment.rules)
        rules = deployment.rules if both is None else both
        deployment.refuse_gathering(rules)
        told = [int(fields["number"]) for fields in lost.values()]
        again = [(name, [part for field in fields.items() for part in field]) for name, fields in lost.items()]
        arguments = [publish(rules), publisher(), max(told), msgspec.json.encode(again), *spread_fields(rules.spread)]
        if _run(_REGAIN, client, deployment, arguments) != b"moved":
            return told, both is not None
        deployment = deployment.reload(client)


def counting_number(
    client: redis.Redis, deployment: Deployment, partitions: Iterable[PartitionKeys], *, in_part: bool = False
) -> int:
    """Return the revision of the rules by which `partitions` count the generation of `deployment`.

    If the partitions have different revisions, return the highest; if none has one, return 0. A partition whose live
    generation is another one is left out; with `in_part`, so is one whose node of a cluster does not answer.

    Raises:
        redis.RedisError: a server does not reply, or rejects a command.
    """
    with client.pipeline(transaction=False) as pipeline:
        for keys in partitions:
            pipeline.get(keys.live)
        replies = pipeline.execute(raise_on_error=False)
    reached = [reply for reply in replies if not (in_part and is_unreachable(reply))]
    found: list[bytes | None] = [raise_on_error(reply) for reply in reached]
    numbers = (value.split() for value in found if value is not None)
    of_generation = str(deployment.generation).encode()
    return max(
        (int(each[1]) for each in numbers if each[0] == of_generation and each[1:2] and each[1].isdigit()), default=0
    )


def warn_of_lost_rules(log: FilteringBoundLogger, deployment: Deployment, number: int) -> None:
    """Log a warning that the server lost the rules with this number, after a worker or a partition followed them."""
    log.warning(
        "rules.lost",
        number=number,
        problem=f"the server lost the change {number} of the rules in {deployment.layout.meta}: a replica that lacked "
        "it was promoted, or older data was loaded. Events are counted by the rules that the server still has",
        action="apply the configuration again: start a worker that has the latest one (tallystream worker)",
    )


def _store(client: redis.Redis, deployment: Deployment, rules: Rules, above: int = 0) -> bytes:
    return _run(_PUBLISH, client, deployment, [publish(rules), publisher(), above, *spread_fields(rules.spread)])


def _run(script: Script, client: redis.Redis, deployment: Deployment, arguments: Sequence[Any]) -> bytes:
    """Run a script that stores rules unless others were stored since `deployment` was read: then it returns `moved`.

    Return the status of the script. The number of the rules is compared, not the epoch. So if the data was replaced,
    the status is `moved`; but if the new rules have the same number, the rules are stored in the new data. Of lost
    fields, only `layout` is noticed.

    Args:
        script: The script. Its keys are the hash and the recorded changes of the topic of `deployment`.
        client: The server.
        deployment: The deployment that was read.
        arguments: The arguments of the script after its first one, which is the number of the rules of `deployment`.

    Raises:
        DeploymentChanged: the data was deleted (the root hash is gone), or a restore has not finished.
        KeyLost: the hash of a later topic is gone, or the hash of the topic has lost its field `layout`.
        ConfigurationError, DamagedValue: one of these, and the deployment cannot be read: see `Deployment.reload`.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    layout = deployment.layout
    status: bytes = script(client, [layout.meta, layout.rule_changes], [deployment.revision, *arguments])[0]
    if status == b"gone":
        deployment.reload(client)  # states why
        raise KeyLost(layout.meta)
    return status
