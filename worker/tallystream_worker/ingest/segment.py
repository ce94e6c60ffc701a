"""Appends the events of one segment of a file while the segment is read; skips events that were appended before.

A segment is a part of a file that has its own offsets: see `job.SEGMENT`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from tallystream.errors import EventError
from tallystream_worker.ingest.blocks import BlockReader
from tallystream_worker.ingest.formats import combined
from tallystream_worker.ingest.formats.parquet_rows import pack_rows
from tallystream_worker.ingest.lines import BadLine, BlockEvents
from tallystream_worker.ingest.offsets import SOURCE, OffsetGate
from tallystream_worker.ingest.packer import EventPacker
from tallystream_worker.ingest.sender import ChunkSender
from tallystream_worker.ingest.sent import SentSegment

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from tallystream.deployment import Deployment
    from tallystream_worker.ingest.file_identity import Identity
    from tallystream_worker.ingest.lines import Block, LineOutcome, Mapping
    from tallystream_worker.ingest.progress import IngestProgress, Report
    from tallystream_worker.ingest.source import Source

_REPORT_EVERY: Final = 2000


class SegmentAppender:
    """Packs and appends the events of one segment of a file.

    Call one method `append_...`, once, within the context (`with`), which ends the sender's thread. It reads a whole
    segment, and returns when the events are appended: whether to continue with the next segment, or `False` if `report`
    returned `False`. It raises `SourceMoved` if the segment must be read again, `SourceError` if the file cannot be
    read (`append_rows` also raises the errors that its docstring names), `KeyLost` if a partition has lost a key, and
    `RedisError` if the server rejects the appends and would do so again. The constructor reads the stored offsets, and
    raises `RedisError` if it cannot.

    Args:
        client: A client that never sends a command twice.
        deployment: The deployment to append to.
        identity: The identity of the file.
        number: The number of the segment in the file, counted from 0.
        progress: Gets the numbers of events and lines by outcome, and the segment when its events are appended.
        report: Called with the progress from time to time, also by the sender's thread; returns whether to continue.

    Attributes:
        packer: Checks and packs the events.
    """

    def __init__(
        self,
        client: redis.Redis,
        deployment: Deployment,
        identity: Identity,
        number: int,
        progress: IngestProgress,
        report: Report,
    ) -> None:
        self._source = f"{SOURCE}{identity.name}:{number}"
        self._identity = identity
        self._gate = gate = OffsetGate(client, deployment.layout, self._source)
        earlier_layouts = list(deployment.earlier_layouts)
        earlier_offsets = gate.earlier_offsets(earlier_layouts)
        self._earlier = {
            (layout.topic, partition): offset
            for layout, offsets in zip(earlier_layouts, earlier_offsets, strict=True)
            for partition, offset in enumerate(offsets)
        }
        self.packer = EventPacker(deployment.layout, deployment.declared, gate.offsets(), earlier_offsets)
        self._sender = ChunkSender(gate, progress, report)
        self._progress = progress
        self._report = report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()

    def append_outcomes(self, outcomes: Iterable[LineOutcome], source: Source) -> bool:
        """Append the events of the parsed lines of a segment; return whether to continue with the next segment.

        If `report` returns `False`, the reading ends early, and so does this call, with `False`: events that are still
        unsent are not appended. Lines that are not events are noted in the progress, and events that were appended
        before are skipped.

        Args:
            outcomes: The parsed lines, in order.
            source: The file that they are read from, for the progress.

        Raises:
            SourceMoved, SourceError, KeyLost, RedisError: see `SegmentAppender`.
        """
        progress = self._progress
        before, end = progress.read, 0
        for count, outcome in enumerate(outcomes, start=1):
            if isinstance(outcome, BadLine):
                progress.note(source.name, outcome.number, outcome.reason, begin=source.begin)
            else:
                try:
                    full = self.packer.pack_and_seal(outcome.event, outcome.offset)
                except EventError as error:
                    progress.note(source.name, outcome.number, str(error), begin=source.begin)
                else:
                    end = outcome.offset + 1
                    if full is not None and not self._sender.push([full]):
                        return False
            if count % _REPORT_EVERY == 0:
                progress.read = max(before, source.bytes_read)
                if not self._report(progress):
                    return False
        progress.read = max(before, source.bytes_read)
        return self._finish(end)

    def append_blocks(self, blocks: Iterable[Block], mapping: Mapping, source: Source) -> bool:
        """Append the events of blocks of an access log; return whether to continue with the next segment.

        If `report` returns `False`, the reading ends early, and so does this call, with `False`: events that are still
        unsent are not appended. Lines that are not events are noted in the progress, and events that were appended
        before are skipped.

        Args:
            blocks: The blocks of the segment, in order.
            mapping: Which part of a line becomes which part of an event; `is_summable` is true for its metric.
            source: The file that the blocks are read from, for the progress.

        Raises:
            SourceMoved, SourceError, KeyLost, RedisError: see `SegmentAppender`.
        """
        packer, progress = self.packer, self._progress
        read = BlockReader(mapping, packer)
        before, end = progress.read, 0
        for block in blocks:
            end = block.end
            found = BlockEvents({}, {}, list(block.lines())) if packer.splits(block.offset, end) else read(block)
            for outcome in combined.parse(found.doubtful, mapping):
                if isinstance(outcome, BadLine):
                    progress.note(source.name, outcome.number, outcome.reason, begin=source.begin)
                    continue
                try:
                    packer.pack(outcome.event, outcome.offset)
                except EventError as error:
                    progress.note(source.name, outcome.number, str(error), begin=source.begin)
            packer.pack_block(mapping.metric, found, end)
            progress.read = max(before, source.bytes_read)
            if not self._sender.push(packer.full_chunks(end)) or not self._report(progress):
                return False
        return self._finish(end)

    def append_rows(self, path: str, metric: str, begin: int, end: int) -> bool:
        """Append the events of a Parquet file's rows from `begin` to before `end`; return `False` if `report` did.

        Rows are counted from 0. A row without a metric gets `metric`. Rows that are not events are noted in the
        progress, and events that were appended before are skipped. If `report` returns `False`, events that are still
        unsent are not appended.

        Raises:
            OSError, pyarrow.ArrowException: a part of the file cannot be read; see `pack_rows`.
            ConfigurationError: pyarrow is not installed.
            SourceMoved, SourceError, KeyLost, RedisError: see `SegmentAppender`.
        """
        progress, at = self._progress, begin

        def note(row: int, reason: str, rows: int) -> None:
            progress.note(path, row + 1, reason, rows)

        for at in pack_rows(path, metric, begin, end, self.packer, note):
            progress.read = at - begin
            if not self._sender.push(self.packer.remaining_chunks(at)) or not self._report(progress):
                return False
        return self._finish(at)

    def _finish(self, end: int) -> bool:
        is_sent = self._sender.push(self.packer.remaining_chunks(end)) and self._sender.finish()
        self._progress.known += self.packer.known
        if is_sent:
            gate = self._gate
            marks = self._earlier | {(gate.topic, partition): end for partition, end in enumerate(gate.ends)}
            offsets = {place: offset for place, offset in marks.items() if offset}
            self._progress.segments += (SentSegment(self._source, self._identity, offsets, len(gate.ends)),)
        return is_sent and self._report(self._progress)
