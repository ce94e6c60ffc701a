"""Reads the overview and the leaderboards once for all readers, and sends them to the readers that asked for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tallystream.reading.ledger import query_ledger
from tallystream_worker.live.messages import Message
from tallystream_worker.live.overview import (
    Overview,
    Rates,
    Snapshots,
    overview,
    query_snapshots,
    query_workers,
    top_of,
)
from tallystream_worker.live.positions import Positions

if TYPE_CHECKING:
    from tallystream.aio import Totals
    from tallystream.deployment import Deployment
    from tallystream.reading.ledger import Ledger
    from tallystream_worker.live.subscriber import LiveReader

_SLOWLY: Final = 1.0
"""Seconds between two readings of the workers, the snapshots, and each leaderboard of a window or of the totals."""

_ROLLING: Final = 5.0
"""Seconds between two readings of a leaderboard that is summed over a range such as `7d`."""


class Figures:
    """Reads the overview and the leaderboards, and adds them as messages to the readers that follow them.

    `read` does so for all readers, `welcome` gives a new reader what was read last, and `now` returns the overview.

    Args:
        totals: Reads the figures.
    """

    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._rates = Rates()
        self._latest: Message | None = None
        self._tops: dict[str, tuple[Message, float]] = {}
        self._slow_at = 0.0
        self._workers = 0
        self._snapshots = Snapshots(None, None)

    def welcome(self, reader: LiveReader) -> None:
        """Give a new reader the overview and the leaderboards that it follows, as `read` last read them; read nothing.

        What `read` has never read is left out. They may be old: `read` is called only while a reader follows them, and
        reads only the leaderboards that a reader follows at the time.
        """
        if reader.overview and self._latest is not None:
            reader.tell(self._latest)
        if reader.top in self._tops:
            reader.tell(self._tops[reader.top][0])

    async def read(self, deployment: Deployment, readers: set[LiveReader]) -> Positions:
        """Read the overview and the followed leaderboards that are due, and give them to the readers that follow them.

        The overview is read and sent at each call. A leaderboard is read at most once a second (every 5 seconds for a
        range such as `7d`), and is not sent again if it has not changed.

        Returns:
            The counted positions of the partitions that were read, and the unreachable partitions.

        Raises:
            ConfigurationError: no worker has published the rules yet.
            KeyLost: a partition has lost a key.
            RedisError: a figure cannot be read.

        Any error of `Totals.deployment` is raised too.
        """
        ledger, figures = await self._read_ledger(deployment)
        self._latest = Message("overview", figures)
        for reader in readers:
            if reader.overview:
                reader.tell(self._latest)
        for window in {reader.top for reader in readers if reader.top is not None}:
            await self._read_top(deployment, window, readers)
        return Positions.of(ledger)

    async def now(self) -> Overview:
        """Read and return the present overview; the workers and the snapshots are read at most once a second.

        If that fails, the error is raised, and the calls of the next second return them as they were read before: at
        first 0 workers and no snapshot.

        Raises:
            ConfigurationError: no worker has published the rules yet, or this release cannot read the stored data.
            DeploymentChanged: the stored deployment was deleted, or a restore has not finished.
            KeyLost: a partition, or the hash of the live topic, has lost a key.
            DamagedValue: a value that describes the deployment has a form that tallystream never writes.
            RedisError: a figure cannot be read.
            TallyError: the `Totals` are closed.
        """
        return (await self._read_ledger(await self._totals.deployment()))[1]

    async def _read_ledger(self, deployment: Deployment) -> tuple[Ledger, Overview]:
        deployment.ensure_declared()
        now = time.monotonic()
        if now >= self._slow_at:
            self._slow_at = now + _SLOWLY
            self._workers = await self._totals.run(query_workers(deployment.layout))
            self._snapshots = await self._totals.run(query_snapshots(deployment.layout, time.time()))
        ledger = await self._totals.ask(lambda deployment: query_ledger(deployment.layout))
        self._rates.take(now, ledger.by_metric("counted"))
        figures = overview(deployment.rules, ledger, self._rates, self._workers, self._snapshots)
        return ledger, figures

    async def _read_top(self, deployment: Deployment, window: str, readers: set[LiveReader]) -> None:
        before, due = self._tops.get(window, (None, 0.0))
        now = time.monotonic()
        if now < due:
            return
        rolling = window not in ("all", "minute", "hour", "day", "month")
        message = Message("top", await top_of(self._totals, deployment.rules, window))
        if before is not None and before.body == message.body:
            message = before
        else:
            for reader in readers:
                if reader.top == window:
                    reader.tell(message)
        self._tops[window] = (message, now + (_ROLLING if rolling else _SLOWLY))
