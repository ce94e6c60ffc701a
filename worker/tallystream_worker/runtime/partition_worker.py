"""Counts one partition in a loop; tries again after a lost server, a bug, or while its data is lost or changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from redis.exceptions import ResponseError

from tallystream.client.backoff import Backoff
from tallystream.client.cluster.client import node_of
from tallystream.client.durability import DurabilityCheck
from tallystream.client.error_text import named_text
from tallystream.client.replies import is_group_missing
from tallystream.errors import (
    ConsumerGroupMissing,
    DeploymentChanged,
    GenerationSwitched,
    KeyLost,
    NodeUnreachable,
    StreamError,
)
from tallystream.storage.sentinels import begun_of, refuse_lost
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.counting.quarantine import is_entry_error
from tallystream_worker.counting.refreshing_fold import RefreshingFold
from tallystream_worker.maintenance.eviction import MAY_EVICT
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.process.state_log import StateLog, kind_of
from tallystream_worker.runtime.publication import publish_again, warn_of_lost_rules

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    import redis
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.maintenance.hot_subjects import HotSubject
    from tallystream_worker.settings.settings import Settings

BLOCK: Final = 1.0
"""Seconds for which a read waits on the server for new entries; a stop is delayed by at most this time."""

_MOVED_PAUSE: Final = 0.05
"""Seconds to wait if the counted generation is not live; while a repartition switches, no generation is live."""

_LONGEST_SWITCH: Final = 10.0
"""Seconds for which no live generation is a part of a switch; if it takes longer, it is logged as a problem."""

_FIRST_PAUSE: Final = 0.1
"""Seconds of the back-off after the first failed pass."""

_CHECK: Final = 5.0
"""Seconds between two checks of the partition's keys, so that a lost key is also noticed if no entry arrives."""

_LONGEST_PAUSE: Final = 5.0
"""Longest back-off between failed passes, in seconds."""


@dataclass(frozen=True)
class PartitionHealth:
    """The state of the thread of one partition.

    Attributes:
        partition: Number of the partition.
        problem: Why the last pass failed; `None` if it succeeded; `starting` before the first pass ends. A failure that
            is a part of a switch (`PartitionWorker.is_normal`) does not change it.
        passed: Monotonic second at which the last successful pass ended; see `ServiceHealth`.
        tried: Monotonic second at which the last pass began, successful or not; see `ServiceHealth`.
        hot_subject: The subject with the most events of the partition, hot or not, by a sample of those that this
            worker counted, in which newer events weigh more; `None` if the sample shows none, as before 100
            events.
        lost_key: The key that the last pass found lost; `None` if it found none.
    """

    partition: int
    problem: str | None
    passed: float
    tried: float
    hot_subject: HotSubject | None = None
    lost_key: str | None = None


class PartitionWorker:
    """Counts one partition with `run_once` and `recover`, which the periodic service of `service` calls.

    Args:
        settings: The configuration.
        deployment: The deployment that the worker began with.
        partition: Number of the partition.
        consumer: Consumer name in the group.
        subscribers: Called with the result of each applied batch.
        log: Logger for the changes of state.
        foreign: Set by the thread that follows the topic, while the server has the data of another deployment, or none,
            or a restore has not finished. Each pass then checks the deployment first, and fails if this is still so.
        evicting: By stream, the policy by which its server may evict keys; such a stream is not counted.
        reading: Client whose blocking reads wait up to `BLOCK` seconds; other partitions may share it.
        applying: Client for everything else; other partitions may share it.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: Deployment,
        partition: int,
        consumer: str,
        subscribers: Sequence[BatchSubscriber],
        log: FilteringBoundLogger,
        foreign: threading.Event,
        evicting: Mapping[str, str],
        reading: redis.Redis,
        applying: redis.Redis,
    ) -> None:
        self._settings = settings
        self._deployment = deployment
        self._partition = partition
        self._reader = consumer
        self._subscribers = subscribers
        self._log = log.bind(stream=deployment.layout.keys[partition].stream)
        self._foreign = foreign
        self._evicting = evicting
        self._reading = reading
        self._applying = applying
        self._durability = DurabilityCheck(settings.worker.durability)
        self._loop: CountingLoop | None = None
        self._rules: Rules | None = None  # the rules that `_loop` began with
        self._fold: tuple[int, RefreshingFold] | None = None  # of `_loop`, and the generation that it counts
        self._has_failed = False
        self._switching: float | None = None  # the monotonic second since which no pass found the live generation
        self._check_at = 0.0
        self.lost_key: str | None = None
        """The key that the last pass found lost; `None` if it found none."""
        self._left = ""  # the kind of error for which an entry was left pending last
        self._subscriber_problem = ""  # the kind of error that a subscriber raised last

    def service(self) -> PeriodicService:
        """Return a new periodic service, not started, that runs the passes. Call it once.

        Its interval is 0, because a pass waits for entries. The Redis clients stay open when it ends.
        """
        return PeriodicService(
            f"partition-{self._partition}",
            0.0,
            self.run_once,
            self._log,
            state=StateLog(
                self._log,
                failed="partition.paused",
                works="partition.resumed",
                problem="starting",
                started="partition.started",
            ),
            backoff=Backoff(_FIRST_PAUSE, _LONGEST_PAUSE),
            recover=self.recover,
            is_normal=self.is_normal,
            shared=[self._reading, self._applying],
        )

    def run_once(self) -> None:
        """Read entries once and count them; wait up to a second if there are none.

        The first pass, the pass after a failed one, and each pass while `foreign` is set first find the live generation
        (and the consumer group; see `_open`), and begin with the pending entries of this consumer. Every 5 seconds, a
        pass first checks whether the partition has lost a sentinel (see `lost_key` in `storage/sentinels.py`).

        If another generation of the same topic has become live, also if the counted one was already removed, the pass
        ends without an error, and the next pass counts the live generation.

        Raises:
            GenerationSwitched: another topic is live, no generation is live because a repartition switches, or newer
                rules count the partition than those that the server has.
            DeploymentChanged: the server has other data than the worker began with, or none, or a restore has not
                finished.
            ConsumerGroupMissing: entries were counted, but the consumer group is gone.
            KeyLost: the partition has lost a key.
            DamagedValue: a stored value has a form that tallystream never writes.
            StreamError: the server may evict keys, and nothing was read; or see `CountingLoop.run_once`.
            ConfigurationError: no rules are published, or the stored data is of another release.
            redis.RedisError: the server does not reply, or rejects a command.
            Exception: see `CountingLoop.run_once`.
        """
        stream = self._deployment.layout.keys[self._partition].stream
        if policy := self._evicting.get(stream):
            raise StreamError(f"{stream}: {MAY_EVICT.format(policy)}. Set maxmemory-policy noeviction on the server")
        loop = self._loop
        if loop is None or self._has_failed or self._foreign.is_set():
            loop = self._open()
            self._has_failed = False
        try:
            if time.monotonic() >= self._check_at:
                refuse_lost(self._applying, loop.keys)
                self._check_at = time.monotonic() + _CHECK
            loop.run_once(BLOCK)
        except KeyLost:
            found = self._reload()  # an emptied server, or a topic that was removed, has lost every key
            if found.layout.keys[self._partition] == loop.keys:
                raise
            self._open()  # the generation was removed after a rebuild
        except (GenerationSwitched, ConsumerGroupMissing, ResponseError) as error:
            if isinstance(error, ResponseError) and not is_group_missing(error):
                raise
            if self._open() is loop:
                raise
        self.lost_key = None
        self._switching = None

    def notice(self, deployment: Deployment) -> None:
        """If the rules of `deployment` have a higher number, count by the published rules from the next batch on.

        The pass of that batch reads them from the server; this call reads nothing. Before the first pass, do
        nothing: that pass reads them. Safe across threads.
        """
        if self._fold is not None:
            generation, fold = self._fold
            fold.notice(deployment.revision_of(generation))

    def is_normal(self, error: Exception) -> bool:
        """Return whether an error is a `GenerationSwitched` in the first 10 seconds of a switch.

        It is raised while a repartition switches, and until the pool of the new topic has replaced this one. The first
        call with it after a successful pass begins the 10 seconds; after these, return false until a pass succeeds.
        """
        if not isinstance(error, GenerationSwitched):
            return False
        if self._switching is None:
            self._switching = time.monotonic()
        return time.monotonic() - self._switching < _LONGEST_SWITCH

    def recover(self, error: Exception) -> float | None:
        """Make the next pass begin with the pending entries of this consumer, in the generation that is live then.

        If the error may be caused by an entry, these entries count one more delivery. If another generation is live
        (`GenerationSwitched`), the entries stay pending in the old one. Also set `lost_key`: to the key of a `KeyLost`,
        else to `None`.

        Args:
            error: The exception of the failed pass.

        Returns:
            The seconds to wait before the next pass: 0.05 after `GenerationSwitched`; `None`, for the back-off, after
            any other error.
        """
        self._has_failed = True
        self.lost_key = error.key if isinstance(error, KeyLost) else None
        if isinstance(error, GenerationSwitched):
            # The entries stay pending in the old generation: if the rebuild is undone, they are counted then.
            return _MOVED_PAUSE
        if self._loop is not None:
            # If an entry causes the error, even by a bug, this delivery counts towards max_deliveries: after these,
            # the entries of the batch are dead-lettered.
            self._loop.fetch.recover(as_delivery=is_entry_error(error))
        return None

    def _open(self) -> CountingLoop:
        """Return the loop for the generation that is live now, which begins with this consumer's pending entries.

        Creates the consumer group if it is missing and nothing was counted. Fails if the deployment is not the one that
        this worker began with, as after FLUSHALL: a new group at the beginning of the stream would silently count onto
        nothing, or count twice.

        Raises:
            GenerationSwitched: another topic is live, which another pool counts; or the live generation changed during
                the call.
            DeploymentChanged: the server has the data of another deployment, or none, or a restore has not finished.
            ConsumerGroupMissing: entries were counted, but the consumer group is gone.
            KeyLost: the partition has lost a key.
            DamagedValue: a stored value has a form that tallystream never writes.
            ConfigurationError: no rules are published, or the stored data is of another release.
            redis.RedisError: the server does not reply, or rejects a command.
        """
        found = self._reload()
        try:
            return self._begin(found)
        except (KeyLost, DeploymentChanged):  # as if the topic or generation was removed meanwhile
            now = self._reload()
            if now.layout.keys[self._partition] == found.layout.keys[self._partition]:
                raise
            raise GenerationSwitched(f"another generation of topic {now.layout.topic} is live than before") from None

    def _begin(self, found: Deployment) -> CountingLoop:
        """Return the loop for the live generation of a deployment; it begins with this consumer's pending entries.

        It is the present loop, unless that counts another generation or began with other rules. Creates the consumer
        group as `_open` does.

        The errors are those of `_open`, without `GenerationSwitched`: if the topic or the generation was removed since
        the deployment was read, this is a `KeyLost` or `DeploymentChanged`.
        """
        keys = found.layout.keys[self._partition]
        loop = self._loop
        rules = found.rules_of(keys.generation)
        if loop is None or loop.keys != keys or self._rules != rules:  # a restore may have brought back other rules
            loop = self._loop = self._counting(found, keys)
            self._rules = rules
        loop.fetch.ensure_group()
        # Check again: if the server was emptied just before the group was created, the new group would hide that. If it
        # is emptied later, the group is gone and the next read fails. On a cluster, which is emptied node by node,
        # `foreign` reports it.
        found.ensure_same(self._applying)
        loop.fetch.recover()
        return loop

    def _reload(self) -> Deployment:
        """Return the deployment as it is stored now; other partitions may be on nodes that do not answer.

        Raises:
            GenerationSwitched: another topic is live than the one of this worker.
            NodeUnreachable: the node of this partition does not answer.
            DeploymentChanged, KeyLost, DamagedValue, ConfigurationError, redis.RedisError: see `Deployment.reload`.
        """
        found = self._deployment.reload(self._applying, in_part=True)
        if found.layout.topic != self._deployment.layout.topic:
            raise GenerationSwitched(f"topic {found.layout.topic} is live, not {self._deployment.layout.topic}")
        if problem := found.unreachable.get(self._partition):
            stream = found.layout.keys[self._partition].stream
            raise NodeUnreachable({stream: node_of(self._applying, stream)}, problem)
        return found

    def _counting(self, found: Deployment, keys: PartitionKeys) -> CountingLoop:
        """Return a new counting loop for a generation of this partition, with the rules of that generation.

        From now on, `notice` changes the rules of this loop.

        Args:
            found: The deployment as read now.
            keys: The keys of the partition in the generation.

        Raises:
            KeyLost: a later generation has lost the key `begun`, as if it was removed since `found` was read.
            ConfigurationError: no rules are published.
            redis.RedisError: the server does not reply, or rejects a command.
        """
        worker = self._settings.worker
        fold = partial(
            Fold,
            found.layout,
            self._partition,
            max_keys=worker.max_keys,
            max_deliveries=worker.max_deliveries,
            begun=begun_of(self._applying, keys),
        )
        rules, revision = found.numbered_rules_of(keys.generation)
        refreshing = RefreshingFold(rules, fold, partial(self._latest, keys.generation), revision)
        self._fold = keys.generation, refreshing
        return CountingLoop(
            self._applying,
            found.layout,
            self._partition,
            Fetch(self._reading, keys, self._reader, claim_idle=worker.claim_idle),
            refreshing,
            self._subscribers,
            durability=self._durability,
            follow=refreshing.follow,
            on_refused=self._left_pending,
            on_subscriber_error=self._subscriber_failed,
        )

    def _latest(self, generation: int, revision: int) -> tuple[Rules, int]:
        """Return the published rules of a generation and their number.

        If the number is below `revision`, the server lost the latest rules, after a partition was counted by them.
        Then, if the generation is live, publish the stored rules again with a number above `revision`, and log a
        warning. If other rules were published meanwhile, or the generation is not live, the returned number may be
        lower.
        """
        found = self._deployment.reload(self._applying, in_part=True)
        if found.revision_of(generation) < revision and generation == found.generation:
            found = publish_again(self._applying, found, revision)
            warn_of_lost_rules(self._log, found, revision)
        return found.numbered_rules_of(generation)

    def _left_pending(self, entry: Entry, error: Exception) -> None:
        """Log an entry that was left pending after an error.

        Do not log it if the text of the error, apart from numbers, is that of the last logged one.
        """
        text = named_text(error)
        if kind_of(text) != self._left:
            self._left = kind_of(text)
            self._log.warning("entry.left_pending", entry=entry.id, deliveries=entry.deliveries, problem=text)

    def _subscriber_failed(self, error: Exception) -> None:
        """Log an error of a subscriber; the batch is counted nevertheless.

        Do not log it if its text, apart from numbers, is that of the last logged error, even if the subscriber has
        worked since.
        """
        text = named_text(error)
        if kind_of(text) != self._subscriber_problem:
            self._subscriber_problem = kind_of(text)
            self._log.error("subscriber.failed", problem=text, exc_info=error)
