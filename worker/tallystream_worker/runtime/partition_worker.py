"""Counts one partition, and recovers from whatever goes wrong: the server, the data under it, a bug."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from tallystream.client.backoff import Backoff
from tallystream.client.connect import connect
from tallystream.client.durability import DurabilityCheck
from tallystream.errors import GenerationSwitched
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.counting.quarantine import is_entry_error
from tallystream_worker.counting.refreshing_fold import RefreshingFold
from tallystream_worker.process.periodic import PeriodicService
from tallystream_worker.process.state_log import StateLog, kind_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.maintenance.hot_subjects import HotSubject
    from tallystream_worker.settings.settings import Settings

BLOCK: Final = 1.0
"""Seconds that a read waits on the server for new entries: also the most by which a stop is delayed."""

_MOVED_PAUSE: Final = 0.05
"""Seconds between looks which generation is live: none is, while the log is moved to another one."""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
"""Seconds to wait after the first failed pass, and at most."""


@dataclass(frozen=True)
class PartitionHealth:
    """How one partition's thread is.

    Attributes:
        partition: Which.
        problem: Why it does not count, `None` while it does.
        passed: Monotonic second of the last pass that succeeded.
        tried: Monotonic second at which the last pass began, whatever became of it.
        hot_subject: The subject with the most of the events that were counted here lately.
    """

    partition: int
    problem: str | None
    passed: float
    tried: float
    hot_subject: HotSubject | None = None


class PartitionWorker:
    """Counts one partition, pass after pass.

    Args:
        settings: What was configured.
        deployment: The data that the worker began with.
        partition: The one to count.
        consumer: The name in the group.
        subscribers: Called with the result of each applied batch.
        log: Where changes of state are logged.
        foreign: Set while the server holds other data, or none.
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
    ) -> None:
        self._settings = settings
        self._deployment = deployment
        self._partition = partition
        self._reader = consumer
        self._subscribers = subscribers
        self._log = log.bind(stream=deployment.layout.keys[partition].stream)
        self._foreign = foreign
        self._reading = connect(settings.redis.url, block=BLOCK)
        self._applying = connect(settings.redis.url)
        self._durability = DurabilityCheck(settings.worker.durability)
        self._loop: CountingLoop | None = None
        self._has_failed = False
        self._left = ""  # the kind of error that the last entry was left pending for
        self._subscriber_problem = ""  # the kind of error that a subscriber raised last

    def service(self) -> PeriodicService:
        """Return the service that makes pass after pass: without an interval, since a pass itself waits for entries."""
        return PeriodicService(
            f"partition-{self._partition}",
            0.0,
            self.run_once,
            self._log,
            state=StateLog(self._log, failed="partition.paused", works="partition.resumed", problem="starting"),
            backoff=Backoff(_FIRST_PAUSE, _LONGEST_PAUSE),
            recover=self.recover,
            clients=[self._reading, self._applying],
        )

    def run_once(self) -> None:
        """Count what is there, or wait up to a second for it.

        Raises:
            DeploymentChanged: the server holds other data than the worker began with.
            StreamError: the group is gone.
            Exception: see `CountingLoop.run_once`.
        """
        loop = self._loop
        if loop is None or self._has_failed or self._foreign.is_set():
            loop = self._open()
            self._has_failed = False
        loop.run_once(BLOCK)

    def recover(self, error: Exception) -> float | None:
        """Begin the next pass with what is in hand, after one that failed; return the seconds to wait, if special."""
        self._has_failed = True
        if isinstance(error, GenerationSwitched):
            # What is in hand stays pending in the old generation: should a rebuild be undone, it is counted then.
            return _MOVED_PAUSE
        if self._loop is not None:
            # Of a bug, too: delivered too often without success, the entries of the batch are parked.
            self._loop.fetch.recover(as_delivery=is_entry_error(error))
        return None

    def _open(self) -> CountingLoop:
        """Begin, or go on after a problem: with the generation that is live by now, and with what was in hand.

        Refuse to go on where the data is not the one that this worker began with.

        After FLUSHALL, or on a wrong or restored server, a group created at the beginning of the stream would count
        without a word on top of nothing, or twice.
        """
        found = self._deployment.reload(self._applying)
        keys = found.layout.keys[self._partition]
        loop = self._loop
        if loop is None or loop.keys != keys:
            loop = self._loop = self._counting(found, keys)
        loop.fetch.ensure_group()
        # Again: emptied just before the group was made, the server holds a new one, and nothing would look wrong.
        # Emptied from now on, it has no group, and the next read says so; of a cluster, node by node, `foreign` does.
        found.ensure_same(self._applying)
        loop.fetch.recover()
        return loop

    def _counting(self, found: Deployment, keys: PartitionKeys) -> CountingLoop:
        """Return what counts the generation that is live here, by its rules."""
        worker = self._settings.worker
        begun: bytes | None = self._applying.execute_command("GET", keys.begun)
        fold = partial(
            Fold,
            found.layout,
            self._partition,
            max_keys=worker.max_keys,
            max_deliveries=worker.max_deliveries,
            begun=begun.decode() if begun else "0-0",
        )
        rules = found.rules_of(keys.generation)
        return CountingLoop(
            self._applying,
            found.layout,
            self._partition,
            Fetch(self._reading, keys, self._reader, claim_idle=worker.claim_idle),
            RefreshingFold(rules, fold, lambda: self._deployment.reload(self._applying).rules_of(keys.generation)),
            self._subscribers,
            durability=self._durability,
            on_refused=self._left_pending,
            on_subscriber_error=self._subscriber_failed,
        )

    def _left_pending(self, entry: Entry, error: Exception) -> None:
        """Log one line for each kind of error that single entries fail with, until they are parked."""
        text = f"{type(error).__name__}: {error}"
        if kind_of(text) != self._left:
            self._left = kind_of(text)
            self._log.warning("entry.left_pending", entry=entry.id, deliveries=entry.deliveries, problem=text)

    def _subscriber_failed(self, error: Exception) -> None:
        """Log one line for each kind of error that subscribers raise; the batch is counted."""
        text = f"{type(error).__name__}: {error}"
        if kind_of(text) != self._subscriber_problem:
            self._subscriber_problem = kind_of(text)
            self._log.error("subscriber.failed", problem=text, exc_info=error)
