"""Broadcasts live updates: one task reads the streams for all readers of a process, and sends them changed totals.

A pass reads the counted position of each partition (its `as_of`), then the entries up to it. From these entries the
pass finds the changed counters that readers follow, reads their totals once, and gives them to the readers. The pass
reads no entry beyond the counted position, so a total always includes the events that changed it, and the position in
a message is never ahead of the totals.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from tallystream.aio import Totals
from tallystream.client.backoff import Backoff
from tallystream.errors import ConfigurationError, EventError, KeyLost, NodeUnreachable, TallyError
from tallystream.reading.freshness import lag_of
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream.wire.stream_id import parse_id
from tallystream_worker.live import cursor
from tallystream_worker.live.changes import changed_between
from tallystream_worker.live.figures import Figures
from tallystream_worker.live.messages import Message, MessageBatch, StaleMessage, UnreachableMessage
from tallystream_worker.live.overview import as_of_counted
from tallystream_worker.live.positions import query_positions
from tallystream_worker.live.subscriber import MAX_HELD
from tallystream_worker.process.state_log import StateLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tallystream.deployment import Deployment
    from tallystream.reading.counters import Counter
    from tallystream.reading.reach import UnreachablePartition
    from tallystream.storage.keys import Layout
    from tallystream.wire.position import CountingPosition
    from tallystream_worker.live.changes import Changes
    from tallystream_worker.live.cursor import Cursor
    from tallystream_worker.live.overview import Overview
    from tallystream_worker.live.subscriber import LiveReader
    from tallystream_worker.live.subscription import Subscription
    from tallystream_worker.settings.settings import RedisSettings

TICK: Final = 0.25
"""The shortest time between two passes, in seconds: at most four updates a second."""

MAX_READERS: Final = 800
"""The largest number of readers at the same time."""

MAX_NAMED: Final = 20_000
"""The largest number of counters that all readers together follow by name, not by pattern; it bounds a pass's time.

Readers with the same subscription count once."""

_UPDATES: Final = 500
"""Updates a second to all readers together. Each costs about 30 microseconds of processor time. With more than 125
readers the passes are further apart, so that many readers do not slow counting on the same machine."""

_BUDGET: Final = 2**22
"""Bytes of entries that passes read per second. If more were appended, readers that follow patterns are reset."""

_RESUME_BUDGET: Final = 2**23
"""Bytes of entries that are read for a reader that resumes. If there are more, the reader is reset."""

_REST: Final = 1.0
"""Seconds without reading entries after a pass had too many entries, changes or comparisons."""

_MATCHES: Final = 200_000
"""The largest number of comparisons of subjects with patterns in one pass."""

_CHUNK: Final = 2_000
"""The number of counters that one call reads; it blocks the server for about a millisecond."""

_FIRST_PAUSE: Final = 0.5
"""Seconds to wait after the first failed pass."""

_LONGEST_PAUSE: Final = 5.0
"""The longest back-off of failed passes, in seconds."""

_MANY: Final = "too many counters changed to send each of them"

_AWAY: Final = "a node of the cluster does not answer, so it is not known what changed after the given position"

_LOST: Final = "the streams no longer have the entries at the given position: lost by the server, or trimmed"


class TooManyReaders(TallyError):
    """Raised if a reader cannot join.

    The service has its maximum of readers, or of counters that readers follow by name, or it is ending.
    """


class Broadcaster:
    """Sends changed totals, the overview and the leaderboards to the readers of one event loop.

    Call `join` for a new reader, and `leave` when its connection has ended; `drain` and `close` at the end of the
    process. Passes run, in a task, only while there are readers. The methods must be called from the event loop.

    Args:
        store: The server and the namespace of the counters.
        known: A `Totals` of the same event loop and namespace, with which the broadcaster shares what it reads about
            the deployment; `None` for none.

    Raises:
        ConfigurationError: the URL of the server cannot be used.
    """

    def __init__(self, store: RedisSettings, known: Totals | None = None) -> None:
        self._totals = Totals(store.url, namespace=store.namespace)
        if known is not None:
            self._totals.share(known)
        self._readers: set[LiveReader] = set()
        self._channels: dict[Subscription, set[LiveReader]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self._passed = asyncio.Event()
        self._ended = False
        self._problem: StaleMessage | None = None
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._state = StateLog(structlog.get_logger(), failed="live.paused", works="live.resumed")
        self._data = ""
        self._at: Cursor | None = None
        self._positions: Sequence[CountingPosition] = ()
        self._unreachable: Sequence[UnreachablePartition] = ()
        self._rest_until = 0.0
        self._returned: set[int] = set()  # partitions that were unreachable, and whose readers have no totals since
        self._figures = Figures(self._totals)

    async def join(self, reader: LiveReader, since: str | None = None) -> None:
        """Add a reader, and give it its first totals; the next passes give it what changes.

        The first totals are those of the counters that the reader follows by name. With `since` they are those of all
        followed counters that changed after that position; if these cannot be found, the reader gets a reset and the
        totals of the counters that it follows by name. If no pass has ended since the passes began to run, wait for the
        first one. If no pass has succeeded, a reader of counters gets a reset, and the totals of the counters that it
        follows by name with the first pass that succeeds. While passes fail, the reader also gets a message `stale`. If
        it follows the overview or leaderboards, it gets them as they were last read; what was never read comes with a
        later pass. If `since` is ahead of the last pass, wait for the next one.

        Call `leave` when the reader's connection has ended. After an error, the reader is not there.

        Args:
            reader: The reader to add.
            since: The id of the last message that the reader has received; `None` for a new reader.

        Raises:
            TooManyReaders: there are too many readers, or counters followed by name, or the broadcaster was ended.
            EventError: `since` is not a position, or the reader follows a metric whose name is not valid.
            ConfigurationError: this release cannot read the stored data.
            DeploymentChanged: the stored data was deleted, or a restore has not finished.
            KeyLost: a partition of a counter that the reader follows, or the hash of the live topic, has lost a key.
            DamagedValue: a value that describes the deployment has a form that tallystream never writes.
            RedisError: the deployment or the counters cannot be read.
        """
        if self._ended or len(self._readers) >= MAX_READERS:
            raise TooManyReaders(f"this service has its maximum of {MAX_READERS:,} readers: try again later")
        named = sum(len(wanted.subjects) * len(wanted.metrics) for wanted in {*self._channels, reader.wanted} if wanted)
        if named > MAX_NAMED:
            raise TooManyReaders(
                f"readers follow the maximum of {MAX_NAMED:,} counters by name: follow a pattern, or try again later"
            )
        deployment = await self._totals.deployment()
        position = (
            None if since is None else cursor.read(since, cursor.data_of(deployment), deployment.layout.partitions)
        )
        reader.hold_back()
        self._readers.add(reader)
        try:
            await self._following()
            if reader.wanted is not None:
                # From now on the passes give the reader what changes. Read the totals of before, and put them first.
                self._channels[reader.wanted].add(reader)
                await self._catch_up(reader, reader.wanted, since is not None, position)
            if self._problem is not None:
                reader.tell(Message("stale", self._problem))
            if self._unreachable:
                reader.tell(self._of_unreachable)
            self._figures.welcome(reader)
            reader.release()
        except BaseException:
            self.leave(reader)
            raise

    def leave(self, reader: LiveReader) -> None:
        """Remove a reader; do nothing if it has not joined. After the last reader has left, the passes end."""
        self._readers.discard(reader)
        if reader.wanted is not None and reader.wanted in self._channels:
            self._channels[reader.wanted].discard(reader)
            if not self._channels[reader.wanted]:
                del self._channels[reader.wanted]

    def end(self) -> None:
        """End the stream of every reader, and let no reader join any more."""
        self._ended = True
        for reader in self._readers:
            reader.end()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109  # after the timeout the caller continues
        """End the stream of every reader, let no reader join any more, and wait until all have left.

        A reader has left when `leave` was called for it. The wait takes `timeout` seconds at most; no error is raised
        if a reader is still there.
        """
        self.end()
        deadline = time.monotonic() + timeout
        while self._readers and time.monotonic() < deadline:  # noqa: ASYNC110  # once, at the end, and short
            await asyncio.sleep(TICK / 25)

    async def close(self) -> None:
        """End the stream of every reader, stop the passes, wait for their queries, and close the connections."""
        self.end()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._totals.close()

    async def overview(self) -> Overview:
        """Read and return the present overview; see `Figures.now`.

        It works without readers, and after `end`, but not after `close`.

        Raises:
            ConfigurationError: no worker has published the rules yet, or this release cannot read the stored data.
            DeploymentChanged: the stored deployment was deleted, or a restore has not finished.
            KeyLost: a partition, or the hash of the live topic, has lost a key.
            DamagedValue: a value that describes the deployment has a form that tallystream never writes.
            RedisError: a figure cannot be read.
            TallyError: the broadcaster is closed.
        """
        return await self._figures.now()

    async def _following(self) -> None:
        """Start the task of the passes if it does not run; wait until its first pass has ended, if it has not.

        There must be a reader: without one, no pass is made, and the wait does not end. An error of the pass is not
        raised.
        """
        if self._task is None or self._task.done():
            self._at = self._problem = None
            self._backoff.reset()
            self._task = asyncio.create_task(self._follow())
            await self._passed.wait()
        elif self._at is None and self._problem is None:
            await self._passed.wait()

    async def _follow(self) -> None:
        while self._readers:
            pause = await self._attempt()
            passed, self._passed = self._passed, asyncio.Event()
            passed.set()
            await asyncio.sleep(pause)

    async def _attempt(self) -> float:
        """Make one pass; return the seconds to wait before the next one.

        An error of the pass is not raised: it is logged, unless it repeats the error before (see `StateLog`). If the
        pass before did not fail, or this is the first one, the readers get a message `stale`.
        """
        try:
            await self._pass(await self._totals.deployment())
        except Exception as error:  # noqa: BLE001  # if the task ended, no reader would get an update again
            self._failed(error)
            return self._backoff.next()
        self._backoff.reset()
        self._state.works()
        self._problem = None
        # The time of the pass is not subtracted, so that a busy machine makes fewer passes.
        return self._pace

    @property
    def _pace(self) -> float:
        """Seconds from the end of a pass to the next one: the number of readers / 500, but at least 0.25.

        Each pass serves all readers, so that a message is made and encoded once.
        """
        return max(TICK, len(self._readers) / _UPDATES)

    def _failed(self, error: Exception) -> None:
        self._state.failed_with(error)
        if self._problem is None:
            reason = (
                str(error)
                if isinstance(error, ConfigurationError | KeyLost | NodeUnreachable)
                else "the counters cannot be read"
            )
            self._problem = StaleMessage(reason, time.time())
            for reader in self._readers:
                reader.tell(Message("stale", self._problem))

    async def _pass(self, deployment: Deployment) -> None:
        if any(reader.overview or reader.top for reader in self._readers):
            found = await self._figures.read(deployment, self._readers)
        else:
            found = await self._totals.ask(lambda deployment: query_positions(deployment.layout))
        known = self._positions if cursor.data_of(deployment) == self._data else ()
        positions = found.in_order(deployment.layout, known)
        returned = self._note_unreachable(deployment, found.unreachable)
        if not self._channels:
            self._move(cursor.data_of(deployment), positions)
            return
        before = self._data, self._positions, self._at
        try:
            await self._tell(deployment, positions, returned)
        except BaseException:
            self._data, self._positions, self._at = before  # the next pass finds the same changes, and reads them again
            self._returned |= returned
            raise
        self._returned = set()

    def _note_unreachable(self, deployment: Deployment, present: Sequence[UnreachablePartition]) -> set[int]:
        """Tell the readers if other partitions are unreachable than before; return the numbers of returned partitions.

        They were unreachable, have been read again since, and their totals were not given to the readers yet.
        """
        before, self._unreachable = self._unreachable, present
        if set(before) != set(present):
            for reader in self._readers:
                reader.tell(self._of_unreachable)
        streams = {each.stream for each in before} - {each.stream for each in present}
        return self._returned | {number for number, keys in enumerate(deployment.layout.keys) if keys.stream in streams}

    @property
    def _of_unreachable(self) -> Message:
        return Message("unreachable", UnreachableMessage(list(self._unreachable)))

    async def _tell(self, deployment: Deployment, positions: Sequence[CountingPosition], returned: set[int]) -> None:
        """Give the readers the totals of the counters that changed since the last pass: see `_found`.

        Also give them the totals of the counters that they follow by name in the partitions `returned`, which were
        unreachable before. If no pass has succeeded before, give them the totals of all counters that they follow by
        name, and no others. If the data was replaced or rewound, give them a reset and these totals.
        """
        data, before = cursor.data_of(deployment), self._at
        end = _vector(positions)
        if before is None:  # these readers joined while the counters could not be read
            self._move(data, positions)
            await self._hand_out({wanted: set(wanted.named) for wanted in self._channels})
        elif data != self._data or _is_ahead(before, end):
            self._move(data, positions)
            self._reset("the data was replaced or rewound", self._channels, is_other_data=True)
            await self._hand_out({wanted: set(wanted.named) for wanted in self._channels})
        elif end != before or returned:
            changed = await self._found(deployment, before, positions)
            await self._hand_out({each: found | _named(each, returned, deployment) for each, found in changed.items()})

    async def _found(
        self, deployment: Deployment, before: Cursor, positions: Sequence[CountingPosition]
    ) -> dict[Subscription, set[Counter]]:
        """Return, for each subscription, its counters that may have changed from the positions `before` to `positions`.

        They are found by reading the entries between the two. If there are too many entries, changes or comparisons,
        return all counters that are followed by name in the partitions with new entries instead, and reset the readers
        that follow patterns. For a second after that, return these counters without reading entries, and leave the
        position of the messages unchanged; else it becomes `positions`.

        If too many counters of one subscription changed, reset its readers, and return only its counters that are
        followed by name in the partitions with new entries. If a stream no longer has its entry at `before`, reset all
        readers, and also return all counters that are followed by name in these partitions.
        """
        end, layout = _vector(positions), deployment.layout
        moved = {number for number, old in enumerate(before) if end[number] != old}
        if time.monotonic() < self._rest_until:  # too much changed less than a second ago, and probably still does
            return {wanted: _named(wanted, moved, deployment) for wanted in self._channels}
        metrics = frozenset[str]().union(*(wanted.metrics for wanted in self._channels))
        budget = int(_BUDGET * self._pace)
        changed = await changed_between(self._totals, layout, before, end, budget, metrics)
        self._move(cursor.data_of(deployment), positions)
        if changed is None or self._comparisons(changed.subjects) > _MATCHES:
            self._rest_until = time.monotonic() + _REST
            self._reset(_MANY, [wanted for wanted in self._channels if wanted.patterns])
            return {wanted: _named(wanted, moved, deployment) for wanted in self._channels}
        found = {wanted: wanted.among(changed.subjects) for wanted in self._channels}
        if not changed.is_unbroken:
            self._reset(_LOST, self._channels)
            found = {wanted: counters | _named(wanted, moved, deployment) for wanted, counters in found.items()}
        for wanted in [wanted for wanted, counters in found.items() if len(counters) > MAX_HELD]:
            self._reset(_MANY, [wanted])
            found[wanted] = _named(wanted, moved, deployment)
        return found

    def _move(self, data: str, positions: Sequence[CountingPosition]) -> None:
        self._data, self._positions, self._at = data, positions, _vector(positions)

    def _comparisons(self, changed: Changes) -> int:
        return sum(
            len(wanted.patterns) * len(changed.get(metric, ()))
            for wanted in self._channels
            if wanted.patterns
            for metric in wanted.metrics
        )

    def _reset(self, reason: str, channels: Iterable[Subscription], *, is_other_data: bool = False) -> None:
        for wanted in channels:
            for reader in self._channels[wanted]:
                reader.reset(reason, self._id, is_other_data=is_other_data)

    async def _hand_out(self, found: dict[Subscription, set[Counter]]) -> None:
        id_, positions = self._id, self._positions
        values = await self._read(set().union(*found.values()))
        for wanted, counters in found.items():
            if counters and (readers := self._channels.get(wanted)):
                told = {counter: values[counter] for counter in counters if counter in values}
                batch = MessageBatch(told, id_, as_of_counted(positions), lag_of(positions))
                for reader in readers:
                    reader.counters(batch)

    async def _read(self, counters: set[Counter]) -> dict[Counter, tuple[int, int]]:
        """Read and return, by counter, the total and its error.

        Leave out counters whose subject is not valid or not in normal form, and those in partitions whose nodes do not
        answer. The error is by how much an estimated total may be too high; 0 if it is exact: see `Reading.errors`. Any
        error of `Totals.read` but `NodeUnreachable` is raised, such as an `EventError` for a metric whose name is not
        valid.
        """
        wanted = [counter for counter in counters if _is_normal(counter[0])]
        found: dict[Counter, tuple[int, int]] = {}
        for first in range(0, len(wanted), _CHUNK):
            try:
                reading = await self._totals.read(wanted[first : first + _CHUNK])
            except NodeUnreachable:
                continue
            found |= {counter: (value, reading.errors.get(counter, 0)) for counter, value in reading.values.items()}
        return found

    async def _catch_up(self, reader: LiveReader, wanted: Subscription, resumes: bool, since: Cursor | None) -> None:
        """Give a joining reader its first totals, or a reset and its first totals; see `join`.

        If no pass has succeeded yet, give only a reset. If `since` is ahead of the last pass, first wait for the next
        pass. If nodes do not answer, it is not known how far their partitions are counted: that is a reason for a reset
        only if the position that this service last read of such a partition is after `since`.

        Args:
            reader: The reader.
            wanted: The counters that the reader follows.
            resumes: Whether the reader gave a position.
            since: That position; `None` if there is none, or if it is of other data.

        Any error of `_read`, `Totals.deployment` and `changed_between` is raised.
        """
        if self._at is None:  # no pass has succeeded yet
            reader.reset("the counters could not be read when this stream began", "")
            return
        layout = (await self._totals.deployment()).layout
        if since is not None and _is_ahead(since, self._reached(since, self._at, layout)):
            await self._passed.wait()  # the position is from another read service, which made its pass later
        end, id_, positions = self._at, self._id, self._positions
        counters = set(wanted.named)
        if resumes:
            if since is None:
                reader.reset("the data was replaced after the given position", id_)
            elif _is_ahead(since, reached := self._reached(since, end, layout)):
                reader.reset("the data was rewound to before the given position", id_)
            elif _is_ahead(end, reached):
                reader.reset(_AWAY, id_)
            else:
                found = await changed_between(self._totals, layout, since, reached, _RESUME_BUDGET, wanted.metrics)
                if found is None or not found.is_unbroken:
                    reader.reset(_MANY if found is None else _LOST, id_)
                else:
                    counters = wanted.among(found.subjects)
        reader.first(MessageBatch(await self._read(counters), id_, as_of_counted(positions), lag_of(positions)))

    def _reached(self, since: Cursor, end: Cursor, layout: Layout) -> Cursor:
        """Return the position `end`, with that of `since` for the partitions whose nodes do not answer.

        This service does not know how far they are counted. When they are readable again, the next pass gives what
        changed after `end`, or a reset.
        """
        away = {each.stream for each in self._unreachable}
        return tuple(
            given if keys.stream in away else known for keys, given, known in zip(layout.keys, since, end, strict=True)
        )

    @property
    def _id(self) -> str:
        return cursor.cursor_text(self._data, self._at or ())


def _vector(positions: Sequence[CountingPosition]) -> Cursor:
    return tuple(parse_id(position.as_of) for position in positions)


def _is_ahead(one: Cursor, other: Cursor) -> bool:
    return any(mine > theirs for mine, theirs in zip(one, other, strict=True))


def _named(wanted: Subscription, partitions: set[int], deployment: Deployment) -> set[Counter]:
    """Return the counters that a subscription follows by name and that an entry in one of `partitions` may change."""
    spread = deployment.declared.spread if deployment.declared is not None else frozenset()
    return {
        (subject, metric)
        for subject, metric in wanted.named
        if not partitions.isdisjoint(deployment.layout.holding(subject, spread=metric in spread))
    }


def _is_normal(subject: str) -> bool:
    # An entry that the worker has dead-lettered may contain a text that is not a valid subject.
    try:
        return check_text("subject", subject, MAX_SUBJECT_BYTES) == subject
    except EventError:
        return False
