"""Counts, archives and trims the copies in a new topic, as workers do in a live one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Self

from tallystream.client.connect import connect
from tallystream.client.error_text import named_text
from tallystream.errors import ConsumerGroupMissing
from tallystream_worker.counting.fetch import COPIES, Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.maintenance.trim import trim

if TYPE_CHECKING:
    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream_worker.archive.service import Archive
    from tallystream_worker.counting.entry import Entry
    from tallystream_worker.settings.settings import Settings

CLAIM_IDLE: Final = 1.0
"""Seconds after which an entry that an interrupted repartition left pending is claimed."""

_MOST_TRIES: Final = 1_000_000
"""Deliveries after which an entry is dead-lettered. An interrupted repartition leaves entries pending that it never
tried to count, so deliveries alone must not dead-letter an entry."""

_THREADS: Final = 8
_TRIMS: Final = 20


class CatchUpCounter:
    """Counts the entries of a topic that is not live yet; a context manager that closes its connections at its end.

    The constructor creates the streams and the consumer groups of the topic that do not exist. If an archive is
    configured, it also writes the manifest of the topic's archive if there is none, and the live retractions into it.
    Not thread-safe.

    Args:
        settings: The configuration.
        deployment: The deployment whose layout is that of the topic.
        rules: The rules to count by.

    Call the object to count what waits. `waiting` is the number of entries that still wait, or a lower bound;
    `obstacle()` returns why they wait.

    Raises:
        KeyLost, ConsumerGroupMissing: a partition has lost a key or its group; the groups before it are created.
        ArchiveError: the archive belongs to other data, or its manifest cannot be read or written.
        ConfigurationError: the URL of the server or of the archive cannot be used.
        ImportError: an archive is configured, and the package pyarrow is not installed; the groups are created.
        redis.RedisError: the server does not reply, or rejects a command.
    """

    def __init__(self, settings: Settings, deployment: Deployment, rules: Rules) -> None:
        self._settings = settings
        self._deployment = deployment
        self._rules = rules
        self._open = ExitStack()
        self._threads = self._open.enter_context(ThreadPoolExecutor(_THREADS, thread_name_prefix="tallystream-move"))
        self._client = self._connect()
        self._failed: dict[tuple[str, str], str] = {}
        self._consumers = [self._consumer(partition) for partition in range(deployment.layout.partitions)]
        self._archive = self._open_archive()

    def __call__(self) -> int:
        """Count the entries that wait in the topic, then archive and trim what may be; return how many were counted.

        Dead-lettered entries count too. Nothing is archived or trimmed if no entry was counted. An entry that fails
        alone, or that another running repartition has just fetched, may stay uncounted; see `waiting`.

        Raises:
            StreamError, redis.RedisError: see `CountingLoop.run_once`; other partitions may still be counted
                afterwards, until the context ends. Or archiving or trimming failed (see `Archive.run_once` and `trim`);
                then the entries are counted.
            ArchiveError, CodecError, ConfigurationError: see `Archive.run_once`; the entries are counted.

        Any other error of `CountingLoop.run_once` is raised too.
        """
        counted = sum(self._threads.map(_count, self._consumers))
        if counted:
            self._shorten()
        return counted

    @property
    def waiting(self) -> int:
        """The number of entries that are not counted yet, read from the server, or a lower bound; 0 only if none.

        Raises:
            ConsumerGroupMissing: a consumer group of the topic is missing.
            redis.RedisError: a stream is missing, or the server does not reply.
        """
        waiting = 0
        for keys in self._deployment.layout.keys:
            groups = self._client.xinfo_groups(keys.stream)
            group = next((each for each in groups if each["name"] == keys.group.encode()), None)
            if group is None:
                raise ConsumerGroupMissing(keys.stream, keys.group)
            about: dict[str, Any] = self._client.xinfo_stream(keys.stream)
            behind = group["last-delivered-id"] != about["last-generated-id"]
            waiting += int(group["pending"]) + (int(group["lag"]) if group["lag"] is not None else int(behind))
        return waiting

    def obstacle(self) -> str:
        """Return a text on why entries are not counted yet; empty if no entry waits.

        It is about the first pending entry of the first partition that has one: its last error in this process, or,
        without one, the consumer that has fetched it. If entries wait, but none is pending, it states that entries were
        not read.

        Raises:
            redis.RedisError: a stream or its consumer group is missing, or the server does not reply.
            ConsumerGroupMissing: a consumer group was removed while this call read the server.
        """
        for keys in self._deployment.layout.keys:
            pending: list[dict[str, Any]] = self._client.xpending_range(keys.stream, keys.group, "-", "+", 1)
            for entry in pending:
                name, consumer = entry["message_id"].decode(), entry["consumer"].decode()
                error = self._failed.get((keys.stream, name))
                if error is not None:
                    return f"entry {name} of {keys.stream} fails: {error}"
                return f"entry {name} of {keys.stream} is pending for the consumer {consumer!r}"
        return "entries of the new streams were not read" if self.waiting else ""

    def _shorten(self) -> None:
        """Archive the topic if an archive is configured, and trim what is counted, archived and past retention.

        `trim` is called at most 20 times for a partition; what is left then is trimmed by a later call.
        """
        if self._archive is not None:
            self._archive.run_once(settled=0)
        for keys in self._deployment.layout.keys:
            for _ in range(_TRIMS):
                if not trim(self._client, keys, self._settings.retention).removed:
                    break

    def _consumer(self, partition: int) -> CountingLoop:
        fetch = Fetch(self._connect(), self._deployment.layout.keys[partition], COPIES, claim_idle=CLAIM_IDLE)
        fetch.ensure_group()
        fold = Fold(
            self._deployment.layout,
            partition,
            self._rules,
            max_keys=self._settings.worker.max_keys,
            max_deliveries=_MOST_TRIES,
            watching=False,
        )
        stream = self._deployment.layout.keys[partition].stream

        def on_refused(entry: Entry, error: Exception) -> None:
            self._failed[stream, entry.id] = named_text(error)

        return CountingLoop(
            self._connect(), self._deployment.layout, partition, fetch, fold, live_only=False, on_refused=on_refused
        )

    def _open_archive(self) -> Archive | None:
        url, layout = self._settings.archive.url, self._deployment.layout
        if not url:
            return None
        from tallystream_worker.archive.service import Archive  # noqa: PLC0415  # pyarrow is an extra
        from tallystream_worker.archive.store import Store  # noqa: PLC0415

        return Archive(self._client, Store(url, layout.namespace, layout.topic), self._deployment)

    def _connect(self) -> Any:
        client = connect(self._settings.redis.url)
        self._open.callback(client.close)
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


def _count(consumer: CountingLoop) -> int:
    counted = 0
    while settled := consumer.run_once():
        counted += settled
    return counted
