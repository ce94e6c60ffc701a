"""Decisions: appends and counts one event in one script call, for callers that need the decision at once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.errors import EventError, GenerationSwitched, KeyLost, StreamError, StreamFull, Unconfirmed
from tallystream.rules.batch import Batch, BucketResolver
from tallystream.storage.deployment_hash import live_mark
from tallystream.storage.scripts import Script
from tallystream.wire.codec import VERSION, Payload, Single, encode
from tallystream.wire.event import MAX_AHEAD, MAX_AMOUNT, Event, check_at

if TYPE_CHECKING:
    import redis

    from tallystream.rules.metrics import Metric, Rules

_DECIDE: Final = Script("tallystream.storage", "decide")

_PATIENCE: Final = 5.0
"""Seconds for which a decision is tried again while another generation or topic becomes live."""

_LOOK: Final = 0.03
"""Seconds between two of these attempts while the new topic is not published yet."""

Reason = Literal["limit", "once", "duplicate"]
"""Reasons why an event was rejected; see `Decision.reason`."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on one event that was counted at once.

    Attributes:
        accepted: Whether the event was counted, or changed the vote of its actor; if not, `reason` states why. A later
            vote with the same amount only changes the time of the vote, and is not accepted.
        total: The subject's total, at least the metric's floor; it includes this event if accepted; `None` if a sketch
            may have it or a part of it (`max_subjects`, or an earlier rule of the metric), or if the event changes no
            total and the key of the total has another type.
        remaining: Events of the subject that the limit still allows in the bucket of this event's time, after this
            event; `None` without a limit, and for a duplicate that replaces nothing.
        reset_at: Second since 1970 at which the bucket of the limit ends; `None` without a limit, with
            `per = "total"`, and for a duplicate that replaces nothing.
        reason: Reason for a rejection: `limit`, `once` (the actor already has this vote, or one with a later time) or
            `duplicate` (the id was already counted); `None` if accepted. A duplicate with an earlier time, or with the
            same time and a smaller amount, may replace the counted event; this changes `total` by the difference.
        id: Stream ID of the entry that records the event, accepted or rejected; not the event's own id.
    """

    accepted: bool
    total: int | None
    remaining: int | None
    reset_at: float | None
    reason: Reason | None
    id: str


class Decider:
    """Decides events of one deployment: call the object with an event. Safe across threads.

    Args:
        client: Client that never sends a command twice.
        deployment: Deployment with published rules.
        durability: Durability that a decision needs; `None` for the memory of the server.

    Attributes:
        deployment: The deployment as it was last read; a decision reads it again if it has changed.

    Raises:
        ConfigurationError: no worker has published the rules yet.
    """

    def __init__(self, client: redis.Redis, deployment: Deployment, durability: DurabilityCheck | None = None) -> None:
        self.deployment = deployment
        self._client = client
        self._durability = durability or DurabilityCheck()
        self._places = {deployment.generation: BucketResolver(deployment.rules)}

    def __call__(self, event: Event) -> Decision:
        """Append and count one event, usually in one round trip, and return the decision; a rejection is no error.

        With durability `replica` or `fsync`, wait at most 1 second more for the confirmation. A rejected event is
        appended too, but changes no total, unless it is a duplicate that replaces the counted event; see
        `Decision.reason`. An event without a time gets that of this host's clock. While another generation, topic or
        rules become live, read the deployment again and repeat, up to 5 seconds.

        Raises:
            EventError: the metric is undeclared, spread or in a sketch, the amount, the actor or the time does not fit
                the metric, the total would exceed the largest amount, or by the server's clock its time is too late or
                too far ahead (a given time also by this host's clock); the event was not appended.
            StreamFull: the stream has reached its limit of entries; the event was not counted.
            KeyLost: the partition or the deployment has lost a key; the event was not counted.
            StreamError: a key of the event's metric has another type; the event was not counted. The message names it.
            ConfigurationError: the server was emptied, and no worker has published rules since, or this release cannot
                read the stored deployment; the event was not counted.
            Unconfirmed: the event was appended and decided (counted or rejected), but no replica or disk confirmed that
                within 1 second, or the server cannot confirm it; the error does not state the decision.
            GenerationSwitched: the counters were being switched to another generation or topic for more than 5 seconds;
                the event was not counted and may be decided again.
            DamagedValue: the deployment has a stored value that tallystream never writes; the event was not counted.
            DeploymentChanged: a restore is replacing the counters; the event was not counted and may be decided again.
            redis.RedisError: the event may or may not be counted; deciding it again may count it twice, unless the
                metric counts once per actor, or ids count once in the metric and the event has one, and both calls
                state the same time.
        """
        deadline = time.monotonic() + _PATIENCE
        while (outcome := self._decide_unless_emptied(event)) is None:
            if time.monotonic() > deadline:
                raise GenerationSwitched(
                    f"the counters have been switching to another generation for {_PATIENCE:g} seconds: "
                    "the event was not counted; decide it again"
                )
            layout, revision = self.deployment.layout, self.deployment.revision
            self._load()
            if (self.deployment.layout, self.deployment.revision) == (layout, revision):
                # The partition is closed, and the new topic is not published yet.
                time.sleep(_LOOK)
        return outcome

    def _load(self) -> None:
        layout = self.deployment.layout
        self.deployment = Deployment.create_or_load(
            self._client, None, layout.namespace, unless_stored=layout.partitions
        )

    def _decide_unless_emptied(self, event: Event) -> Decision | None:
        """Return the result of `_decide`; also `None` if it raises `KeyLost` and another deployment is stored now.

        After a `KeyLost`, `deployment` is read again; if the server was emptied, a new one is stored. If the deployment
        is still the same, the `KeyLost` is raised. Any other error of `_decide`, and any error of
        `Deployment.create_or_load`, is raised too.
        """
        epoch = self.deployment.epoch
        try:
            return self._decide(self.deployment, event)
        except KeyLost:
            self._load()
            if self.deployment.epoch == epoch:
                raise
            return None

    def _decide(self, deployment: Deployment, event: Event) -> Decision | None:
        """Append and decide one event in a deployment's live generation; return `None` if that is not live any more.

        Also return `None` if the partition is closed, or if newer rules than those of the deployment count it. If
        `None` is returned, nothing was appended. The errors are those of a call of this object, without
        `GenerationSwitched`, `DamagedValue` and `DeploymentChanged`.
        """
        keys = deployment.layout.keys_of(event.subject)
        rules = deployment.rules_of(keys.generation)
        rule = _check(rules, event)
        now = time.time()
        at = int((now if event.at is None else event.at) * 1000)
        if event.at is not None:
            check_at(event.at, now)
        places = self._places.get(keys.generation)
        if places is None or places.rules is not rules:
            places = self._places[keys.generation] = BucketResolver(rules)
        place = places(event.metric, at // 60_000)
        batch = Batch(keys, rules.zone, rules.alerts)
        batch.add(place, event.subject, event.amount, at, event.actor, event.id)
        single = Single(event.metric, event.subject, event.amount, at, event.actor, event.id)
        entry = ["v", VERSION, "d", keys.generation, "n", 1, "b", encode(Payload([], [single]))]
        # No rule can reject a plain sum, so its outcome is known here; the script adds other outcomes to the ledger.
        ledger = {"counted": 1, f"counted@{event.metric}": 1} if batch.sums else {}
        total_key = keys.total(event.metric, event.subject)
        names = [keys.stream, keys.live, keys.ledger, keys.topic_ledger, keys.sequences]
        late = rule.late_seconds if event.id is None or not rule.keeps_ids else rule.id_late_seconds
        may_be_late = "" if late is None else late * 1000
        times = [at, may_be_late, MAX_AHEAD * 1000]
        live = live_mark(keys.generation, deployment.revision_of(keys.generation))
        arguments = [batch.encode([], ledger), live, total_key, *times, *entry]
        (answer, *details), unconfirmed = self._durability.run(_DECIDE, self._client, names, arguments)
        if answer in (b"switched", b"outdated"):
            return None
        if answer == b"full":
            raise StreamFull(
                f"{keys.stream} has reached its limit of {int(details[0]):,} entries: "
                "try again when the workers have caught up"
            )
        if answer == b"late":
            ago = "too long" if late is None else f"more than {late:,} seconds"
            raise EventError("at", f"is {ago} ago by the server's clock, too late for {event.metric}")
        if answer == b"ahead":
            raise EventError("at", f"is more than {MAX_AHEAD:,} seconds in the future by the server's clock")
        if answer == b"rejected" and details[0]:
            raise StreamError(
                f"{details[0].decode()}. The event needs this key, so it was not counted. To repair it, rebuild the "
                "counters (tallystream rebuild)"
            )
        if answer != b"decided":
            raise EventError("amount", f"would take the total of {event.subject} out of +-{MAX_AMOUNT:,}")
        id_, accepted, reason, total, used = details
        if unconfirmed:
            raise Unconfirmed(f"the event was decided (counted or rejected) as {id_.decode()}, but {unconfirmed}")
        limited = rule.limit is not None and used
        # A subject has no key before its first amount other than 0, or if the sketch of `max_subjects` counts it.
        # A part of its total may be in the sketch if `max_subjects` was changed.
        value = None if total == b"?" else int(total) if total else 0 if rule.max_subjects is None else None
        return Decision(
            accepted=bool(accepted),
            total=None if value is None else max(value, rule.floor if rule.floor is not None else -MAX_AMOUNT),
            remaining=max(0, (rule.limit or 0) - int(used)) if limited else None,
            reset_at=float(place.limit.end) if limited and place.limit and rule.per != "total" else None,
            reason=reason.decode() or None,
            id=id_.decode(),
        )


def _check(rules: Rules, event: Event) -> Metric:
    rules.refuse_undeclared(event.metric)
    rules.refuse(event.metric, event.amount, event.actor)
    rule = rules.metric[event.metric]
    if not rule.exact:
        raise EventError("metric", f"{event.metric} is kept in a sketch (exact = false): emit it instead")
    if rule.spread:
        raise EventError("metric", f"{event.metric} is spread over the partitions (spread = true): emit it instead")
    return rule
