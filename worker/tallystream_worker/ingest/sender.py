"""Appends chunks in a thread while the file is read.

While one burst (chunks that are sent together) is sent, the next burst is collected.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from tallystream.client.backoff import Backoff
from tallystream.client.replies import BROKEN, is_refusal
from tallystream_worker.process import failpoints

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from tallystream_worker.ingest.offsets import Chunk, OffsetGate
    from tallystream_worker.ingest.progress import IngestProgress, Report

BURST: Final = 256 * 1024
"""Bytes of payload in one burst; it is small enough that the workers begin to count while the file is read."""

_FIRST_PAUSE: Final = 0.2
"""Most seconds to wait after the first attempt that appended nothing."""

_LONGEST_PAUSE: Final = 5.0
"""The longest back-off of attempts that append nothing, in seconds."""


class ChunkSender:
    """Sends the chunks of one source through its offset gate; those of a partition in the order of their pushes.

    `push` adds chunks, which a thread sends; `finish` waits until all are appended; `close` ends the thread.

    Args:
        gate: Appends the chunks.
        progress: Gets the number of appended events, why nothing is appended, and, when all chunks of a burst are
            appended, the last stream IDs.
        report: Called, in the thread, if nothing can be appended at the moment, before each further attempt; returns
            whether to continue.
    """

    def __init__(self, gate: OffsetGate, progress: IngestProgress, report: Report) -> None:
        self._gate = gate
        self._progress = progress
        self._report = report
        self._buffered: list[tuple[int, Chunk]] = []
        self._buffered_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tallystream-ingest")
        self._in_flight: Future[bool] | None = None

    def push(self, chunks: Iterable[tuple[int, Chunk]]) -> bool:
        """Add chunks, each with its partition; if they fill a burst, wait for the burst before, and start to send.

        Returns:
            `True`, or `False` if `report` ended the run.

        Raises:
            KeyLost: earlier chunks were rejected, because a partition has lost a key.
            SourceMoved: earlier chunks were rejected, and the source must be read again.
            RedisError: earlier chunks were rejected, and another attempt would fail too.
        """
        for partition, chunk in chunks:
            self._buffered.append((partition, chunk))
            self._buffered_bytes += len(chunk.payload)
        return self._buffered_bytes < BURST or self._start_sending()

    def finish(self) -> bool:
        """Send all chunks and wait until they are appended; return `False` if `report` ended the run before.

        Raises:
            KeyLost: chunks were rejected, because a partition has lost a key.
            SourceMoved: chunks were rejected, and the source must be read again.
            RedisError: chunks were rejected, and another attempt would fail too.
        """
        return self._start_sending() and self._await_sent()

    def close(self) -> None:
        """Wait until the thread has ended its present burst, then end the thread; chunks after this burst are not sent.

        The burst ends when it is appended, or fails (the error is not raised), or, while nothing can be appended, when
        `report` returns `False`.
        """
        self._thread.shutdown(wait=True)

    def _start_sending(self) -> bool:
        if not self._await_sent():
            return False
        for partition, chunk in self._buffered:
            self._gate.push(partition, chunk)
        self._buffered, self._buffered_bytes = [], 0
        self._in_flight = self._thread.submit(self._send)
        return True

    def _await_sent(self) -> bool:
        sent, self._in_flight = self._in_flight, None
        return sent is None or sent.result()

    def _send(self) -> bool:
        """Send until the gate has appended everything; return `False` if `report` ended the run before.

        If nothing can be appended at the moment, call `report`, and try again after a back-off. A lost connection is no
        error here; the errors are those of `finish`.
        """
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
                progress.last_ids[self._gate.topic, partition] = last_id
        return True
