"""A pool: one supervised thread for each partition, running the loop until it is told to stop.

Stopping: the threads finish the batch in hand, apply it, and end. What was read and not applied stays pending,
and whoever comes next begins with it.
"""

from __future__ import annotations

import random
import re
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.client.durability import DurabilityCheck
from tallystream.client.replies import is_connection_stale
from tallystream.deployment import load
from tallystream.errors import GenerationSwitched, StreamError, Unconfirmed
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.loop import CountingLoop, is_entry_error
from tallystream_worker.maintenance.hot_subjects import HotSubject, HotSubjectTracker
from tallystream_worker.maintenance.maintenance import Maintenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.counting.outcome import BatchSubscriber
    from tallystream_worker.settings.settings import Settings

BLOCK: Final = 1.0
"""Seconds that a read waits on the server for new entries: also the most by which a stop is delayed."""

_MOVED_PAUSE: Final = 0.05
"""Seconds between looks which generation is live: none is, while the log is moved to another one."""

_BACKOFF: Final = (0.1, 5.0)
"""Seconds to wait after the first failure, and at the most."""


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


class WorkerPool:
    """Counts all partitions until stopped.

    Args:
        settings: What was configured.
        meta: What is stored.
        log: Where changes of state are said.
        subscribers: Who is told of each applied batch.
        consumer: The name in the group, where it is not the configured one.
    """

    def __init__(
        self,
        settings: Settings,
        meta: Deployment,
        log: FilteringBoundLogger,
        subscribers: Sequence[BatchSubscriber] = (),
        *,
        consumer: str | None = None,
    ) -> None:
        self.layout = meta.layout
        self._stopping = threading.Event()
        consumer = consumer or settings.worker.consumer
        self._hottest = HotSubjectTracker(meta.layout.partitions)
        subscribers = [*subscribers, self._hottest]
        # Over a cluster, FLUSHALL is not one moment: a thread may begin anew before the meta hash is gone.
        strange = threading.Event()
        self._workers = [
            PartitionWorker(
                settings,
                meta,
                partition,
                consumer,
                subscribers,
                log,
                self._stopping,
                strange,
            )
            for partition in range(meta.layout.partitions)
        ]
        self._keeper = Maintenance(settings, meta, log, consumer, self._stopping, self._hottest, strange)

    def start(self) -> None:
        """Begin to count."""
        for worker in self._workers:
            worker.start()
        self._keeper.start()

    def quiet(self) -> None:
        """Read nothing more; the batches in hand are finished, and `stop` waits for them."""
        self._stopping.set()

    def stop(self, timeout: float) -> bool:
        """Finish the batches in hand; tell whether all threads ended within `timeout` seconds.

        A thread that did not is left alone: what it holds stays pending, and is counted by whoever comes next.
        """
        self.quiet()
        deadline = time.monotonic() + timeout
        threads = [*self._workers, self._keeper]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    @property
    def health(self) -> list[PartitionHealth]:
        """How each partition's thread is."""
        return [replace(worker.health, hot_subject=self._hottest.of(n)) for n, worker in enumerate(self._workers)]


class PartitionWorker(threading.Thread):
    """Counts one partition until told to stop, and recovers from whatever goes wrong."""

    def __init__(
        self,
        settings: Settings,
        meta: Deployment,
        partition: int,
        consumer: str,
        subscribers: Sequence[BatchSubscriber],
        log: FilteringBoundLogger,
        stopping: threading.Event,
        strange: threading.Event,
    ) -> None:
        super().__init__(name=f"tallystream-partition-{partition}", daemon=True)
        self._settings = settings
        self._partition = partition
        self._reader = consumer
        self._subscribers = subscribers
        self._log = log.bind(stream=meta.layout.keys[partition].stream)
        self._meta = meta
        self._stopping = stopping
        self._strange = strange
        self._reading = connect(settings.redis.url, block=BLOCK)
        self._applying = connect(settings.redis.url)
        self._durability = DurabilityCheck(settings.worker.durability)
        self._consumer: CountingLoop | None = None
        self._refusal = ""
        self._problem: str | None = "starting"
        self._passed = self._tried = time.monotonic()

    @property
    def health(self) -> PartitionHealth:
        """State of this thread."""
        return PartitionHealth(self._partition, self._problem, self._passed, self._tried)

    def run(self) -> None:
        """Run pass after pass."""
        failures = 0
        while not self._stopping.is_set():
            self._tried = time.monotonic()
            try:
                consumer = self._consumer
                if consumer is None or self._problem is not None or self._strange.is_set():
                    consumer = self._open()
                consumer.run_once(BLOCK)
            except GenerationSwitched as moved:
                # What is in hand stays pending in the old generation: should a rebuild be undone, it is counted then.
                self._say(str(moved))
                self._stopping.wait(_MOVED_PAUSE)
            except (RedisError, StreamError, Unconfirmed) as error:
                failures += 1
                self._lost(error)
                self._recover(as_delivery=is_entry_error(error))
                self._pause(failures)
            except Exception as error:  # noqa: BLE001  # a thread that dies in silence is worse than any bug
                # The batch in hand stays pending; delivered too often without success, its entries are parked.
                failures += 1
                self._say(f"{type(error).__name__}: {error}", exc_info=True)
                self._recover(as_delivery=True)
                self._pause(failures)
            else:
                failures = 0
                self._passed = time.monotonic()
                self._say(None)
        self._reading.close()
        self._applying.close()

    def _open(self) -> CountingLoop:
        """Begin, or go on after a problem: with the generation that is live by now, and with what was in hand.

        Refuse to go on where the data is not the one that this worker began with.

        After FLUSHALL, or on a wrong or restored server, a group created at the beginning of the stream would count
        without a word on top of nothing, or twice.
        """
        found = self._stored()
        keys = found.layout.keys[self._partition]
        consumer = self._consumer
        if consumer is None or consumer.keys != keys:
            consumer = self._consumer = self._counting(found, keys)
        consumer.fetch.ensure_group()
        # Again: emptied just before the group was made, the server holds a new one, and nothing would look wrong.
        # Emptied from now on, it has no group, and the next read says so; of a cluster, node by node, the keeper does.
        self._stored()
        consumer.fetch.recover()
        return consumer

    def _stored(self) -> Deployment:
        found = load(self._applying, self._meta.layout.namespace)
        if found is None or found.epoch != self._meta.epoch:
            raise StreamError(
                f"{self._meta.layout.meta} is {'another' if found else 'gone'}: this is not the data that the worker "
                "began with. Bring it back (tallystream restore), or restart the worker to begin anew with what is here"
            )
        return found

    def _recover(self, *, as_delivery: bool) -> None:
        if self._consumer is not None:
            self._consumer.fetch.recover(as_delivery=as_delivery)

    def _counting(self, found: Deployment, keys: PartitionKeys) -> CountingLoop:
        """Return what counts the generation that is live here, by its rules."""
        worker = self._settings.worker
        begun: bytes | None = self._applying.execute_command("GET", keys.begun)
        return CountingLoop(
            self._applying,
            found.layout,
            self._partition,
            found.rules_of(keys.generation) or self._settings.rules,
            Fetch(self._reading, keys, self._reader, claim_idle=worker.claim_idle),
            self._subscribers,
            max_keys=worker.max_keys,
            max_deliveries=worker.max_deliveries,
            durability=self._durability,
            on_refused=self._refused,
            begun=begun.decode() if begun else "0-0",
            latest=lambda: self._rules_of(keys.generation),
        )

    def _rules_of(self, generation: int) -> Rules | None:
        found = load(self._applying, self._meta.layout.namespace)
        return None if found is None or found.epoch != self._meta.epoch else found.rules_of(generation)

    def _lost(self, error: Exception) -> None:
        if not isinstance(error, RedisError) or is_connection_stale(error):
            # Pooled connections would keep going to a node that was demoted, or is gone.
            self._reading.connection_pool.disconnect()
            self._applying.connection_pool.disconnect()
        self._say(str(error) or type(error).__name__)

    def _say(self, problem: str | None, **details: object) -> None:
        """One line for each change of state, however often it is met."""
        if _kind(problem) != _kind(self._problem):
            if problem is None:
                self._log.info("counting")
            else:
                self._log.error("not counting", problem=problem, **details)
        self._problem = problem

    def _refused(self, entry: Entry, error: Exception) -> None:
        """One line for each kind of error that single entries fail with, until they are parked."""
        text = f"{type(error).__name__}: {error}"
        if _kind(text) != self._refusal:
            self._refusal = _kind(text)
            self._log.warning("entry left pending", entry=entry.id, deliveries=entry.deliveries, problem=text)

    def _pause(self, failures: int) -> None:
        first, most = _BACKOFF
        # Jitter, so that a fleet does not come back in step.
        self._stopping.wait(min(most, first * 2 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0))  # noqa: S311


def _kind(problem: str | None) -> str:
    """Return what a problem is the same as, whatever addresses and counts its text names."""
    return "" if problem is None else re.sub(r"[0-9a-f]*\d[0-9a-f]*", "#", problem)
