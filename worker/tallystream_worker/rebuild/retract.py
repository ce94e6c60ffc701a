"""Retracts events, as if they had never happened: finds them in the streams, and builds a generation without them.

Compensating amounts cannot do that: without a vote, the actor's earlier vote counts again; a sketch cannot remove an
actor; without an event, a later copy of it counts. A new fold without the events gets all of this right. Every later
fold leaves them out too, because the rules of the generation record the retraction.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from tallystream.errors import CodecError, EventError
from tallystream.rules.retraction import applying
from tallystream.wire.codec import decode
from tallystream_worker.counting.dropped import is_whole, without
from tallystream_worker.dead_letters.store import dropped
from tallystream_worker.process.stream_facts import last_generated
from tallystream_worker.rebuild.rebuild import ensure_proposable, propose
from tallystream_worker.rebuild.source import entries

if TYPE_CHECKING:
    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.rules.retraction import Retraction
    from tallystream.wire.codec import Payload


@dataclass
class Effect:
    """The events that a retraction removes, before any rule is applied to them.

    Attributes:
        events: Number of events, by metric and subject.
        amounts: Sum of their amounts, by metric and subject.
    """

    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    amounts: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """The number of events that the retraction removes, of all metrics and subjects."""
        return self.events.total()


def ends(client: redis.Redis, deployment: Deployment) -> dict[str, str]:
    """Return the last ID that each stream has generated, by stream; a retraction that is made now reaches up to these.

    The ID is `0-0` if the stream never had an entry.

    Raises:
        KeyLost: a partition has lost its stream, or a sentinel.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    return {keys.stream: last_generated(client, keys) for keys in deployment.layout.keys}


def effect(client: redis.Redis, deployment: Deployment, retraction: Retraction, archive: str = "") -> Effect:
    """Return the numbers and amounts of the events that a retraction would remove; change nothing.

    The archived entries (if `archive`, a URL, is not empty) and the streams are read, up to `retraction.until`, which
    must have each stream of the live topic: see `ends`. Entries that are in neither when their partition is begun are
    left out, without an error. Events of earlier retractions and of dead letters that were dropped with a record (see
    `dead_letters.store.dropped`) are left out, and so are entries that cannot be decoded.

    Raises:
        ArchiveError, CodecError: the archive cannot be read, a file of it is missing, or a row is damaged.
        ConfigurationError: the URL of the archive cannot be used, or no rules are published.
        ImportError: an archive is named, and the package pyarrow is not installed.
        EntriesTrimmed: entries were trimmed from a stream before they were read, and the archive lacks them.
        KeyLost, StreamError: a stream was deleted or replaced before all its entries were read, or a node failed over
            while the records of dropped dead letters were read.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    found = Effect()
    for partition, keys in enumerate(deployment.layout.keys):
        gone = dropped(client, keys)
        for entry in entries(client, keys, archive, partition, until=retraction.until[keys.stream]):
            if not retraction.reaches(keys.stream, entry.id):
                break  # the archive also has later entries
            letters = gone.get(entry.id, ())
            if is_whole(letters):
                continue
            try:
                payload = without(decode(entry.fields, entry.received), letters)
            except (CodecError, EventError):
                continue  # dead-lettered, and not counted
            for earlier in applying(deployment.rules.retracted, keys.stream, entry.id, entry.fields).values():
                payload = earlier.without(payload)
            before, after = _sums(payload), _sums(retraction.without(payload))
            found.events.update(before.events - after.events)
            before.amounts.subtract(after.amounts)
            found.amounts.update({key: amount for key, amount in before.amounts.items() if amount})
    return found


def unfinished(deployment: Deployment, retraction: Retraction) -> Retraction | None:
    """Return the retraction that the generation being built adds, if it equals `retraction` except for `until`.

    Return `None` if no generation is being built, if its rules have no retraction, or if the last one in them is
    another one, or one that the live rules have too.
    """
    rules = deployment.others.get(deployment.building) if deployment.building is not None else None
    if rules is None or not rules.retracted:
        return None
    last = rules.retracted[-1]
    if last in deployment.rules.retracted:
        return None
    return last if _is_same(last, retraction) else None


def is_repetition(deployment: Deployment, retraction: Retraction) -> bool:
    """Return whether the last retraction of the live rules equals `retraction`, except for `until`.

    The command may be repeated after an error that came after the switch. Only events since then can match.
    """
    retracted = deployment.rules.retracted
    return bool(retracted) and _is_same(retracted[-1], retraction)


def _is_same(earlier: Retraction, retraction: Retraction) -> bool:
    return msgspec.structs.replace(earlier, until=retraction.until) == retraction


def ensure_retractable(client: redis.Redis, deployment: Deployment, retraction: Retraction) -> None:
    """Check that a generation without the retracted events can be begun, before they are read; change nothing.

    Do not call it for a retraction that `unfinished` returns: it raises an error, although the retraction can continue.

    Raises:
        ConfigurationError: see `propose_without`; or any generation is being built.
        DeploymentChanged, KeyLost, DamagedValue, redis.RedisError: see `propose`.
    """
    ensure_proposable(client, deployment, _rules_without(deployment, retraction))


def propose_without(client: redis.Redis, deployment: Deployment, retraction: Retraction) -> int:
    """Return the number of the generation to build without the retracted events; reserve it unless it is being built.

    Raises:
        ConfigurationError: a repartition is running, another generation is being built, an old one is still kept,
            partitions count a generation of which the server has no record, or no rules are published.
        DeploymentChanged, KeyLost, DamagedValue, Unconfirmed, FailedOver, redis.RedisError: see `propose`.
    """
    rules = _rules_without(deployment, retraction)
    return propose(client, replace(deployment, declared=rules), rules)


def _rules_without(deployment: Deployment, retraction: Retraction) -> Rules:
    return msgspec.structs.replace(deployment.rules, retracted=(*deployment.rules.retracted, retraction))


def _sums(payload: Payload) -> Effect:
    sums = Effect()

    def add(metric: str, subject: str, amount: int, events: int) -> None:
        sums.events[metric, subject] += events
        sums.amounts[metric, subject] += amount

    for group in payload.groups:
        for subject in group.ones:
            add(group.metric, subject, 1, 1)
        for subject, events in group.counts.items():
            add(group.metric, subject, events, events)
        for subject, (amount, events) in group.sums.items():
            add(group.metric, subject, amount, events)
    for single in payload.singles:
        add(single.metric, single.subject, single.amount, 1)
    return sums
