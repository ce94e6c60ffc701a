"""Resets subjects: sets their counters to 0 at one place in the log; counted events stay in the streams.

In each partition, `reset.lua` holds appends back until everything is counted, then appends the entry of the reset and
counts it. Each fold of the log (rebuild, audit, retraction) counts the reset at its place: what is left of the events
before it is taken away, and the later events count. See decision 0040.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import ResponseError

from tallystream.client.replies import is_group_missing
from tallystream.client.server_time import server_time
from tallystream.errors import EventError, StreamError
from tallystream.rules.batch import Batch, BucketResolver
from tallystream.storage.deployment_hash import live_mark
from tallystream.storage.scripts import Script
from tallystream.wire.codec import VERSION, Payload, Reset, encode
from tallystream_worker.process.barrier import step

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys

_RESET: Final = Script("tallystream_worker.rebuild", "reset")

PATIENCE: Final = 10.0
"""Seconds for which a reset waits until the workers have counted everything."""

_LOOK: Final = 0.01
"""Seconds between two calls of `reset.lua`; much shorter than the second for which a call holds appends back."""

_MARGIN: Final = 100
"""Milliseconds between the latest ID of any partition and the IDs of the resets in several partitions."""

_PRESENT: Final = 0
"""Time of a reset in one partition: the script takes the present."""


class _SwitchedError(Exception):
    """Raised if another generation is live in a partition that is not reset yet, or if newer rules count it."""


@dataclass(frozen=True)
class _Part:
    """The reset in one partition.

    Attributes:
        keys: The keys of the partition.
        metrics: The metrics to reset there, in order.
    """

    keys: PartitionKeys
    metrics: tuple[str, ...]


def reset(client: redis.Redis, deployment: Deployment, subject: str, metrics: list[str]) -> dict[str, int]:
    """Set the totals and the sums in buckets of a subject to 0; return the totals before, by metric.

    The numbers of votes up are set to 0 too. Limits, stored ids and unique actors do not change, nor does a part of a
    total that is in a sketch (of a metric that has `max_subjects`, or had it or `exact = false` before); the result
    lacks this part. An entry for the reset is appended to the stream of each partition that may have counters of the
    subject, so a rebuild keeps the reset.

    Events that were appended before the call, and those that are counted while it waits, are taken away; later events
    count. Producers keep their events for a moment, until the workers have counted everything in the partition.

    Args:
        client: Client of the server.
        deployment: The deployment of the subject.
        subject: The subject, in its normal form.
        metrics: Declared metrics, each once.

    Raises:
        EventError: a metric is counted in a sketch, from which nothing can be taken back. Nothing was changed.
        StreamError: a metric is spread and a repartition runs (nothing was changed); or the workers did not count
            everything within 10 seconds, nothing was counted yet, a counter is not a whole number or in a key of
            another type, a repartition has closed the streams, the generation or the rules changed again after 10
            seconds, (`KeyLost`) a partition has lost a key, (`DamagedValue`) a value that describes the deployment has
            a form that tallystream never writes, or (`DeploymentChanged`) the data was deleted or replaced. If a metric
            is spread, some partitions may be reset in these cases. Or a node failed over meanwhile, and the subject is
            reset or not.
        ConfigurationError: no rules are published (nothing was changed), or this release cannot read the rules that
            were published meanwhile.
        Unconfirmed: the subject is reset, and this was not confirmed in time.
        redis.RedisError: the connection broke, or the server rejects a command. Each partition is reset or not; calling
            again is safe, but what the failed call took away is not in the totals of the next call.
    """
    for metric in metrics:
        if not deployment.rules.metric[metric].exact:
            raise EventError("metric", f"{metric} is counted in a sketch (exact = false), which cannot be reset")
        if deployment.rules.metric[metric].spread and deployment.moving is not None:
            # The copies of a pass end at different places of the partitions: some could come after the reset.
            raise StreamError(
                f"{metric} is spread, and a repartition runs: reset it after tallystream rebuild has ended"
            )
    run = _Run(client, deployment, subject, metrics)
    with step(client, deployment, f"{subject} is reset"):
        while True:
            try:
                return run()
            except _SwitchedError:
                run.deployment = deployment.reload(client)


class _Run:
    def __init__(self, client: redis.Redis, deployment: Deployment, subject: str, metrics: Iterable[str]) -> None:
        self.deployment = deployment
        self._client = client
        self._subject = subject
        self._taken = dict.fromkeys(metrics, 0)
        self._done: set[str] = set()  # streams
        self._deadline = time.monotonic() + PATIENCE

    def __call__(self) -> dict[str, int]:
        parts = self._parts()
        try:
            at = _PRESENT
            while left := [part for part in parts if part.keys.stream not in self._done]:
                if len(parts) > 1:
                    at = self._time(left)
                for part in left:
                    if not self._reset(part, at):
                        break  # an entry has a later ID: choose a later time
        finally:
            for part in parts:
                self._client.hdel(part.keys.sequences, "!hold")
        return self._taken

    def _parts(self) -> list[_Part]:
        """Return the reset of each partition that may have counters of the subject."""
        layout, rules = self.deployment.layout, self.deployment.rules
        by_partition: dict[int, list[str]] = {}
        for metric in self._taken:
            for partition in layout.holding(self._subject, spread=rules.metric[metric].spread):
                by_partition.setdefault(partition, []).append(metric)
        return [_Part(layout.keys[partition], tuple(names)) for partition, names in sorted(by_partition.items())]

    def _time(self, parts: Iterable[_Part]) -> int:
        """Wait, partition by partition, until everything is counted; return a time for the resets.

        It is after the last ID that each stream has at the end of its wait, in milliseconds since 1970; 100 if no
        partition has a stream. In each partition, appends are held back until up to a second after its wait; but
        decisions and plain entries are not. With the same time in all partitions, the resets stay in their place in the
        log if a repartition merges the partitions in the order of their IDs. The errors are those of `_reset`.
        """
        ready = [int(reply[0]) for part in parts for answer, *reply in [self._call(part, "")] if answer == b"ready"]
        return max(ready, default=0) + _MARGIN

    def _reset(self, part: _Part, at: int) -> bool:
        """Wait until everything in the partition is counted, append and count its reset, and note it as done.

        The totals before are added to the result. A partition without a stream is done at once.

        Args:
            part: The reset.
            at: The millisecond (since 1970) of the ID of its entry; 0 for the present.

        Returns:
            `True`; but `False`, with nothing reset, if an entry of the partition has an ID of the millisecond `at` or
            later.

        Raises:
            _SwitchedError: another generation is live, or newer rules count the partition.
            StreamError: see `reset`; nothing was done in this partition.
            redis.RedisError: the server does not reply, or rejects a command; the partition is reset or not.
        """
        answer, *details = self._call(part, at)
        if answer == b"passed":
            return False
        if answer == b"reset":
            for metric, total in zip(part.metrics, details, strict=True):
                self._taken[metric] += int(total)
        self._done.add(part.keys.stream)
        return True

    def _call(self, part: _Part, at: int | str) -> Any:
        """Call the script until nothing waits to be counted; return its reply, a list with the status as bytes first.

        While it waits, and for up to a second after that, appends of producers and of ingested files are held back.
        Decisions and plain entries are not: more of them may be appended at any time.

        Args:
            part: The partition, and the metrics to reset.
            at: The millisecond (since 1970) of the ID of the reset's entry, 0 for the present; `""` to reset nothing,
                and only hold these appends back.

        Returns:
            `[b"reset", total, ...]`: the reset was counted; the totals before, in the order of the metrics of the part.
            `[b"ready", millisecond]`, only with `""`: the IDs of all entries are before this time. `[b"passed"]`: an
            entry has an ID of the millisecond `at` or later, and nothing was reset. `[b"none"]`: there is no stream.

        Raises:
            _SwitchedError: another generation is live, or newer rules count the partition.
            StreamError: see `reset`; nothing was reset in this partition.
            redis.RedisError: the server does not reply, or rejects a command; the partition is reset or not.
        """
        keys = part.keys
        names = [keys.stream, keys.live, keys.ledger, keys.topic_ledger, keys.sequences]
        resets = [Reset(metric, self._subject) for metric in part.metrics]
        entry = ["v", VERSION, "d", keys.generation, "n", 0, "b", encode(Payload([], [], resets))]
        mark = live_mark(keys.generation, self.deployment.revision_of(keys.generation))
        arguments = [mark, keys.group, at, self._batch(part), *entry]
        while True:
            try:
                reply = _RESET(self._client, names, arguments)
            except ResponseError as error:
                if not is_group_missing(error):
                    raise
                raise StreamError(f"{keys.stream}: nothing was counted yet: start a worker, then reset") from error
            match reply:
                case [b"waiting", _] if time.monotonic() < self._deadline:
                    time.sleep(_LOOK)
                case [b"waiting", entry_id]:
                    raise StreamError(
                        f"{keys.stream}: entry {entry_id.decode()} was not counted within {PATIENCE:g} seconds, and a "
                        "reset must wait for it. Look whether a worker runs (tallystream status), and reset again when "
                        "the workers have caught up"
                    )
                case [b"switched"] | [b"outdated", _] if time.monotonic() < self._deadline:
                    raise _SwitchedError
                case [b"closed", *_] | [b"switched"] | [b"outdated", _]:
                    raise StreamError(
                        f"{keys.stream}: a repartition has closed it, or its rules have changed: try again in a moment"
                    )
                case [b"rejected", metric, _, reason, *_]:
                    problem = reason.decode() or f"a counter of {self._subject} in {metric.decode()} is no whole number"
                    raise StreamError(
                        f"{keys.stream}: {problem}. Nothing was reset there. "
                        "Count everything again: tallystream rebuild"
                    )
                case _:
                    return reply

    def _batch(self, part: _Part) -> bytes:
        rules = self.deployment.rules_of(part.keys.generation)
        batch = Batch(part.keys, rules.zone, rules.alerts)
        batch.received = server_time(self._client)
        places = BucketResolver(rules)
        for metric in part.metrics:
            batch.add_reset(places(metric, batch.received // 60_000), self._subject, "")
        return batch.encode([], {})
