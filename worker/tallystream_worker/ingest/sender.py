"""Appends what was read while the reading goes on: one burst is on its way, the next is gathered."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from tallystream.client.backoff import Backoff
from tallystream.client.replies import BROKEN, is_refusal
from tallystream_worker.process import failpoints

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from tallystream_worker.ingest.offsets import Chunk, OffsetGate
    from tallystream_worker.ingest.progress import IngestProgress, Report

BURST: Final = 256 * 1024
"""Bytes of payload that are worth a call; small enough that the workers begin while the file is read."""

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
"""Seconds to wait after the first attempt that the server took nothing of, and at most."""


class ChunkSender:
    """The stretches of one source on their way through its gate, in the order in which they are pushed.

    Args:
        gate: Where they go.
        progress: Told what was appended.
        report: Asked whether to go on, where the server takes nothing.
    """

    def __init__(self, gate: OffsetGate, progress: IngestProgress, report: Report) -> None:
        self._gate = gate
        self._progress = progress
        self._report = report
        self._gathered: list[tuple[int, Chunk]] = []
        self._bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tallystream-ingest")
        self._on_its_way: Future[bool] | None = None

    def push(self, stretches: Iterable[tuple[int, Chunk]]) -> bool:
        """Take stretches, each with its partition; tell whether to go on reading.

        Raises:
            Moved: what was sent before was refused: the source stands elsewhere.
            RedisError: or the server refuses us for good.
        """
        for partition, stretch in stretches:
            self._gathered.append((partition, stretch))
            self._bytes += len(stretch.payload)
        return self._bytes < BURST or self._hand_over()

    def finish(self) -> bool:
        """Send all there is, and return when it is appended; tell whether it was, or the run is to end."""
        return self._hand_over() and self._arrived()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown(wait=True)

    def _hand_over(self) -> bool:
        if not self._arrived():
            return False
        for partition, stretch in self._gathered:
            self._gate.push(partition, stretch)
        self._gathered, self._bytes = [], 0
        self._on_its_way = self._thread.submit(self._send)
        return True

    def _arrived(self) -> bool:
        sent, self._on_its_way = self._on_its_way, None
        return sent is None or sent.result()

    def _send(self) -> bool:
        """Send until everything is appended; tell whether it was, or the run is to end."""
        backoff, progress = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), self._progress
        while self._gate.waiting:
            failpoints.reach("before-ingest")
            try:
                events, problem = self._gate.send()
            except BROKEN as error:
                if is_refusal(error):
                    raise
                events, problem = 0, str(error)
            failpoints.reach("after-ingest")
            progress.events += events
            progress.waiting_for = problem
            if problem is None or events:
                backoff.reset()
            elif self._report(progress):
                time.sleep(backoff.next())
            else:
                return False
        for partition, last_id in enumerate(self._gate.last_ids):
            if last_id is not None:
                progress.last_ids[partition] = last_id
        return True
