"""The keeper: maintenance beside the counting, in a supervised thread of its own.

In each pass and partition it puts losses into the books, trims the log, bounds what is parked and forgets names
that will not come back. Each step is one script call that is right whoever else does the same, so every worker
runs a keeper and none needs a lock.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.client.replies import is_stream_or_group_missing
from tallystream.deployment import load
from tallystream_worker.dead_letters.store import shorten
from tallystream_worker.maintenance.hot_subjects import advice, show
from tallystream_worker.maintenance.losses import settle_losses
from tallystream_worker.maintenance.reaper import reap_consumers, reap_producers
from tallystream_worker.maintenance.trim import trim

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.maintenance.hot_subjects import HotSubjectTracker
    from tallystream_worker.settings.settings import Settings

EVERY: Final = 2.0
"""Seconds between passes, about."""

_REAP_EVERY: Final = 60.0
_NEARLY: Final = 0.8
_CALLS: Final = 50
"""The most trimming calls of one pass in one partition: what is left waits for the next."""


class Maintenance(threading.Thread):
    """Keeps the logs of all partitions until told to stop.

    Args:
        settings: What was configured.
        meta: What is stored; a server with other data is left alone.
        log: Where losses and changes of state are said.
        consumer: The name that takes over what gone consumers held.
        stopping: Set when it is time to end.
        hottest: What is known of hot subjects; it is shown to others.
        strange: Set while other data, or none, lies there.
    """

    def __init__(
        self,
        settings: Settings,
        meta: Deployment,
        log: FilteringBoundLogger,
        consumer: str,
        stopping: threading.Event,
        hottest: HotSubjectTracker | None = None,
        strange: threading.Event | None = None,
    ) -> None:
        super().__init__(name="tallystream-keeper", daemon=True)
        self._retention = settings.retention
        self._meta = meta
        self._log = log
        self._consumer = consumer
        self._stopping = stopping
        self._hottest = hottest
        self._strange = strange or threading.Event()
        self._hot: dict[str, tuple[str, str]] = {}  # by stream, what was said to be hot
        self._client = connect(settings.redis.url)
        self._cursors = dict.fromkeys(range(meta.layout.partitions), "0")
        self._reap_at = time.monotonic()
        self._said: dict[str, bool] = {}
        self.passed = time.monotonic()
        """Monotonic second of the last complete pass."""

    def run(self) -> None:
        """Keep, until told to stop; an error ends one pass, never the thread."""
        while not self._stopping.is_set():
            try:
                self.keep()
            except RedisError as error:
                # The lanes say what is wrong with the server; here only that nothing is kept meanwhile.
                self._client.connection_pool.disconnect()
                self._say("maintenance", holds=True, error=type(error).__name__)
            except Exception as error:  # noqa: BLE001  # as in the lanes: a silent end is worse than any bug
                self._say("maintenance", holds=True, error=f"{type(error).__name__}: {error}", exc_info=True)
            else:
                self._say("maintenance", holds=False)
                self.passed = time.monotonic()
            self._stopping.wait(EVERY * random.uniform(0.75, 1.25))  # noqa: S311  # a fleet does not keep in step
        self._client.close()

    def keep(self) -> None:
        """Make one pass over all partitions.

        Raises:
            redis.RedisError: the server does not answer, or refuses.
        """
        found = load(self._client, self._meta.layout.namespace)
        if found is None or found.epoch != self._meta.epoch:
            self._strange.set()
            return  # not our data: the lanes sound the alarm
        self._strange.clear()
        if self._hottest is not None:
            self._hottest.tick()
        reaping = time.monotonic() >= self._reap_at
        failed: RedisError | None = None
        for partition, keys in enumerate(found.layout.keys):
            try:
                self._keep(partition, keys, reaping=reaping)
                self._show_hottest(partition, keys, found.rules)
            except RedisError as error:
                # A partition without its stream or group is its lane's to say, and no reason to leave the others.
                if not is_stream_or_group_missing(error):
                    failed = failed or error
        if reaping:
            self._reap_at = time.monotonic() + _REAP_EVERY
        if failed is not None:
            raise failed

    def _keep(self, partition: int, keys: PartitionKeys, *, reaping: bool) -> None:
        for _ in range(_CALLS):
            trimmed = trim(self._client, keys, self._retention)
            if not trimmed.removed or self._stopping.is_set():
                break
        self._say(
            "stream is nearly full: appends beyond its limit are refused", holds=trimmed.nearly_full,
            stream=keys.stream, entries=trimmed.entries, limit=trimmed.limit, held_by=trimmed.holder,
        )  # fmt: skip
        loss = settle_losses(self._client, keys)
        if loss is not None and loss.proved:
            self._log.error(
                "events lost: their entries vanished from the stream before they were counted",
                stream=keys.stream, entries=loss.entries, events=loss.events,
            )  # fmt: skip
        self._say(
            "events unaccounted for", holds=loss is not None and not loss.proved,
            stream=keys.stream, events=loss.events if loss else 0,
        )  # fmt: skip
        self._bound_dead(keys)
        if reaping:
            forgotten, taken = reap_consumers(self._client, keys, self._consumer)
            if forgotten or taken:
                self._log.info("consumers gone", stream=keys.stream, forgotten=forgotten, entries_taken_over=taken)
            self._cursors[partition], producers = reap_producers(self._client, keys, self._cursors[partition])
            if producers:
                self._log.info("producers forgotten", stream=keys.stream, producers=producers)

    def _show_hottest(self, partition: int, keys: PartitionKeys, rules: Rules | None) -> None:
        hot = None if self._hottest is None else self._hottest.of(partition)
        if hot is None or not hot.events_per_second:
            return  # what is shown fades by itself
        show(self._client, keys, hot)
        name = (hot.metric, hot.subject)
        if hot.is_hot and self._hot.get(keys.stream) != name:
            self._hot[keys.stream] = name
            self._log.info(
                "one subject gets most of a partition's events", stream=keys.stream, metric=hot.metric,
                subject=hot.subject, share=round(hot.share, 2), help=advice(hot, rules),
            )  # fmt: skip

    def _bound_dead(self, keys: PartitionKeys) -> None:
        used, entries, events = shorten(self._client, keys, self._retention.dead_bytes)
        for _ in range(_CALLS):
            if used <= 1 or self._stopping.is_set():
                break
            used, more_entries, more_events = shorten(self._client, keys, self._retention.dead_bytes)
            entries, events = entries + more_entries, events + more_events
        if entries:
            self._log.error("parked entries dropped for want of room", stream=keys.dead, entries=entries, events=events)
        self._say("dead stream is nearly full: the oldest will be dropped", holds=used > _NEARLY, stream=keys.dead)

    def _say(self, problem: str, *, holds: bool, stream: str = "", **details: object) -> None:
        """One line when a problem begins, and one when it is over."""
        key = f"{problem} {stream}"
        if holds != self._said.get(key, False):
            self._said[key] = holds
            where = {"stream": stream} if stream else {}
            if holds:
                self._log.error(problem if stream else f"{problem} fails", **where, **details)
            else:
                self._log.info("over: " + problem, **where)
