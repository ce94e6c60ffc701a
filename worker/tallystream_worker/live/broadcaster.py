"""The broadcaster: one task follows the log for all readers of this process, and hands each the totals of what changed.

A pass: how far is it counted -> what do the entries up to there touch -> which of that does anyone follow -> their
totals, read once -> to the readers. The log is read up to the counted position only, so a total that is sent already
contains what made it change, and the position that goes with it never promises more than was sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from tallystream.aio import Totals
from tallystream.client.backoff import Backoff
from tallystream.errors import ConfigurationError, EventError, TallyError
from tallystream.reading.freshness import lag_of
from tallystream.reading.query import Query
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream.wire.position import CountingPosition, parse_position, position_commands
from tallystream.wire.stream_id import parse_id
from tallystream_worker.live import cursor
from tallystream_worker.live.changes import changed_between, query_reach
from tallystream_worker.live.figures import Figures
from tallystream_worker.live.messages import Message, MessageBatch, StaleMessage
from tallystream_worker.live.overview import as_of_counted
from tallystream_worker.live.subscriber import MAX_HELD
from tallystream_worker.process.state_log import StateLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tallystream.deployment import Deployment
    from tallystream.reading.counters import Counter
    from tallystream.storage.keys import Layout
    from tallystream_worker.live.changes import Changes
    from tallystream_worker.live.cursor import Cursor
    from tallystream_worker.live.overview import Overview
    from tallystream_worker.live.subscriber import LiveReader
    from tallystream_worker.live.subscription import Subscription
    from tallystream_worker.settings.settings import RedisSettings

TICK: Final = 0.25
"""Seconds between two passes: four updates a second."""

MAX_READERS: Final = 800
MAX_NAMED: Final = 20_000
"""Readers at once, and counters that they follow by name: what bounds a pass."""

_UPDATES: Final = 500
"""Updates a second to all readers together, each about 30 microseconds of this process: with more than 125 readers
passes are further apart, so that a crowd takes no time from counting on the same machine."""

_BUDGET: Final = 2**22
"""Bytes of the log that passes read a second; where more came in, it is only known that much changed."""

_RESUME_BUDGET: Final = 2**23
"""The same for a reader that comes back."""

_REST: Final = 1.0
"""Seconds without reading the log after it was too much."""

_MATCHES: Final = 200_000
"""Comparisons of subjects with patterns in one pass."""

_CHUNK: Final = 2_000
"""Counters read in one call: it holds the server for about a millisecond."""

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 5.0
"""Seconds to wait after the first failed pass, and at most."""

_MANY: Final = "more changed than is told one by one"


class TooManyReaders(TallyError):
    """No more readers are taken at the moment."""


class Broadcaster:
    """Knows everyone who follows; for one event loop. Without readers it asks Redis nothing."""

    def __init__(self, store: RedisSettings) -> None:
        self._totals = Totals(store.url, namespace=store.namespace)
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
        self._rest_until = 0.0
        self._figures = Figures(self._totals)

    async def join(self, reader: LiveReader, since: str | None = None) -> None:
        """Take a reader in: it gets the totals that it names, or with `since` all that changed behind that position.

        Raises:
            TooManyReaders: there are as many readers, or counters followed by name, as there may be.
            EventError: `since` is not a position.
            RedisError: the counters cannot be read.
        """
        if self._ended or len(self._readers) >= MAX_READERS:
            raise TooManyReaders(f"{MAX_READERS:,} readers follow already: try again later")
        named = sum(len(wanted.subjects) * len(wanted.metrics) for wanted in (*self._channels, reader.wanted) if wanted)
        if named > MAX_NAMED:
            raise TooManyReaders(
                f"{MAX_NAMED:,} counters are followed by name already: follow a pattern, or try again later"
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
                # From here on the passes tell it what changes; what was before is read now, and put in front.
                self._channels[reader.wanted].add(reader)
                await self._catch_up(reader, reader.wanted, since is not None, position)
            if self._problem is not None:
                reader.tell(Message("stale", self._problem))
            self._figures.welcome(reader)
            reader.release()
        except BaseException:
            self.leave(reader)
            raise

    def leave(self, reader: LiveReader) -> None:
        """Forget a reader; after the last one the following ends."""
        self._readers.discard(reader)
        if reader.wanted is not None and reader.wanted in self._channels:
            self._channels[reader.wanted].discard(reader)
            if not self._channels[reader.wanted]:
                del self._channels[reader.wanted]

    def end(self) -> None:
        """Let every reader's stream end, and take no more."""
        self._ended = True
        for reader in self._readers:
            reader.end()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109  # the caller goes on then, readers left or not
        """End every reader's stream, and wait until all have left, or for `timeout` seconds."""
        self.end()
        deadline = time.monotonic() + timeout
        while self._readers and time.monotonic() < deadline:  # noqa: ASYNC110  # it happens once, and is over in a moment
            await asyncio.sleep(TICK / 25)

    async def close(self) -> None:
        """End everything and give the connections back."""
        self.end()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._totals.close()

    async def overview(self) -> Overview:
        """Return the overview as it is now."""
        return await self._figures.now()

    async def _following(self) -> None:
        """Make sure that the task runs and has made a pass."""
        if self._task is None or self._task.done():
            self._at = None
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
        """Make one pass; return how many seconds to wait before the next. Whatever a pass raises, the task goes on."""
        try:
            await self._pass(await self._totals.deployment())
        except Exception as error:  # noqa: BLE001  # a task that dies in silence would leave every reader waiting
            self._failed(error)
            return self._backoff.next()
        self._backoff.reset()
        self._state.works()
        self._problem = None
        # Not less by what the pass took: on a busy machine there are fewer passes.
        return self._pace

    @property
    def _pace(self) -> float:
        """Seconds between two passes. Everyone is told after each: what is told is put together and encoded once."""
        return max(TICK, len(self._readers) / _UPDATES)

    def _failed(self, error: Exception) -> None:
        self._state.failed_with(error)
        if self._problem is None:
            reason = str(error) if isinstance(error, ConfigurationError) else "the counters cannot be read"
            self._problem = StaleMessage(reason, time.time())
            for reader in self._readers:
                reader.tell(Message("stale", self._problem))

    async def _pass(self, deployment: Deployment) -> None:
        if any(reader.overview or reader.top for reader in self._readers):
            positions = await self._figures.read(deployment, self._readers)
        else:
            positions = await self._totals.run(_query_positions(deployment.layout))
        if self._channels:
            await self._tell(deployment, positions)
        else:
            self._move(cursor.data_of(deployment), positions)

    async def _tell(self, deployment: Deployment, positions: Sequence[CountingPosition]) -> None:
        """Hand the totals of what was counted since the last pass to those who follow them."""
        data, before = cursor.data_of(deployment), self._at
        end = _vector(positions)
        if before is None:  # these readers came while the counters could not be read
            self._move(data, positions)
            await self._hand_out({wanted: set(wanted.named) for wanted in self._channels})
        elif data != self._data or _is_ahead(before, end):
            self._move(data, positions)
            self._reset("the data was replaced or rewound", self._channels)
            await self._hand_out({wanted: set(wanted.named) for wanted in self._channels})
        elif end != before:
            await self._hand_out(await self._found(deployment, before, positions))

    async def _found(
        self, deployment: Deployment, before: Cursor, positions: Sequence[CountingPosition]
    ) -> dict[Subscription, set[Counter]]:
        """Return what changed, by filter; where that is too much, reset its readers and return only what it names."""
        end, layout = _vector(positions), deployment.layout
        moved = {number for number, old in enumerate(before) if end[number] != old}
        if time.monotonic() < self._rest_until:  # what changed was too much a moment ago, and still will be
            return {wanted: _named(wanted, moved, deployment) for wanted in self._channels}
        metrics = frozenset[str]().union(*(wanted.metrics for wanted in self._channels))
        budget = int(_BUDGET * self._pace)
        changed = await changed_between(self._totals, layout, before, end, budget, metrics)
        self._move(cursor.data_of(deployment), positions)
        if changed is None or self._comparisons(changed) > _MATCHES:
            self._rest_until = time.monotonic() + _REST
            self._reset(_MANY, [wanted for wanted in self._channels if wanted.patterns])
            return {wanted: _named(wanted, moved, deployment) for wanted in self._channels}
        found = {wanted: wanted.among(changed) for wanted in self._channels}
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

    def _reset(self, reason: str, channels: Iterable[Subscription]) -> None:
        for wanted in channels:
            for reader in self._channels[wanted]:
                reader.reset(reason, self._id)

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
        """Return totals, each with its error."""
        wanted = [counter for counter in counters if _is_normal(counter[0])]
        found: dict[Counter, tuple[int, int]] = {}
        for first in range(0, len(wanted), _CHUNK):
            reading = await self._totals.read(wanted[first : first + _CHUNK])
            found |= {counter: (value, reading.errors.get(counter, 0)) for counter, value in reading.values.items()}
        return found

    async def _catch_up(self, reader: LiveReader, wanted: Subscription, resumes: bool, since: Cursor | None) -> None:
        """Give a reader what comes first: all that it names, or all that changed behind `since`."""
        if self._at is None:  # no pass has succeeded yet: the reader is told so, and then to read anew
            reader.reset("the counters could not be read when this began", "")
            return
        if since is not None and _is_ahead(since, self._at):
            await self._passed.wait()  # another read service had looked later than this one
        end, id_, positions = self._at, self._id, self._positions
        counters = set(wanted.named)
        if resumes:
            layout = (await self._totals.deployment()).layout
            changed = None
            if since is None:
                reader.reset("the data is another than before", id_)
            elif _is_ahead(since, end) or not await self._totals.run(query_reach(layout, since)):
                reader.reset("the log does not reach back so far", id_)
            else:
                changed = await changed_between(self._totals, layout, since, end, _RESUME_BUDGET, wanted.metrics)
                if changed is None:
                    reader.reset(_MANY, id_)
            if changed is not None:
                counters = wanted.among(changed)
        reader.first(MessageBatch(await self._read(counters), id_, as_of_counted(positions), lag_of(positions)))

    @property
    def _id(self) -> str:
        return cursor.cursor_text(self._data, self._at or ())


def _query_positions(layout: Layout) -> Query[Sequence[CountingPosition]]:
    commands = [command for keys in layout.keys for command in position_commands(keys)]

    def parse(replies: list[Any]) -> Sequence[CountingPosition]:
        pairs = [replies[first : first + 2] for first in range(0, len(replies), 2)]
        return [parse_position(pair, keys.group) for pair, keys in zip(pairs, layout.keys, strict=True)]

    return Query(commands, parse)


def _vector(positions: Sequence[CountingPosition]) -> Cursor:
    return tuple(parse_id(position.as_of) for position in positions)


def _is_ahead(one: Cursor, other: Cursor) -> bool:
    return any(mine > theirs for mine, theirs in zip(one, other, strict=True))


def _named(wanted: Subscription, partitions: set[int], deployment: Deployment) -> set[Counter]:
    """Return the counters that a reader names and that may have changed in one of these partitions."""
    spread = deployment.declared.spread if deployment.declared is not None else frozenset()
    return {
        (subject, metric)
        for subject, metric in wanted.named
        if not partitions.isdisjoint(deployment.layout.holding(subject, spread=metric in spread))
    }


def _is_normal(subject: str) -> bool:
    # An entry that the worker has parked may name what no subject can be.
    try:
        return check_text("subject", subject, MAX_SUBJECT_BYTES) == subject
    except EventError:
        return False
