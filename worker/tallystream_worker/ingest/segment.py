"""Appends the events of one segment of a file while it is read; what was appended before is skipped."""

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

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from tallystream.deployment import Deployment
    from tallystream_worker.ingest.lines import Block, LineOutcome, Mapping
    from tallystream_worker.ingest.progress import IngestProgress, Report
    from tallystream_worker.ingest.source import Source

_REPORT_EVERY: Final = 2000


class SegmentAppender:
    """Packs events and sends them; each method reads a whole segment, and returns whether to go on with the next.

    Args:
        client: A client that never sends anything twice.
        deployment: What is stored there.
        name: Names the segment among all that were ever read.
        progress: Counts what was read and appended.
        report: Called with it now and then; returns whether to go on.

    Every method raises `SourceMoved` if the segment must be read again, and `RedisError` if the server refuses us.
    """

    def __init__(
        self, client: redis.Redis, deployment: Deployment, name: str, progress: IngestProgress, report: Report
    ) -> None:
        gate = OffsetGate(client, deployment.layout, f"{SOURCE}{name}")
        earlier_offsets = gate.earlier_offsets(deployment.earlier_layouts)
        self.packer = EventPacker(deployment.layout, deployment.declared, gate.offsets(), earlier_offsets)
        self._sender = ChunkSender(gate, progress, report)
        self._progress = progress
        self._report = report

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()

    def append_outcomes(self, outcomes: Iterable[LineOutcome], source: Source) -> bool:
        """Append the events of lines that are parsed one by one."""
        progress = self._progress
        before, end = progress.read, 0
        for count, outcome in enumerate(outcomes, start=1):
            if isinstance(outcome, BadLine):
                progress.note(source.name, outcome.number, outcome.reason)
            else:
                try:
                    full = self.packer.pack_and_seal(outcome.event, outcome.offset)
                except EventError as error:
                    progress.note(source.name, outcome.number, str(error))
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
        """Append the events of an access log, whose lines are parsed a block at a time.

        A chunk ends where a block does: until then everything in the block is packed, in whatever order.
        """
        packer, progress = self.packer, self._progress
        read = BlockReader(mapping, packer)
        before, end = progress.read, 0
        for block in blocks:
            end = block.end
            found = BlockEvents({}, {}, list(block.lines())) if packer.splits(block.offset, end) else read(block)
            for outcome in combined.parse(found.doubtful, mapping):
                if isinstance(outcome, BadLine):
                    progress.note(source.name, outcome.number, outcome.reason)
                    continue
                try:
                    packer.pack(outcome.event, outcome.offset)
                except EventError as error:
                    progress.note(source.name, outcome.number, str(error))
            packer.pack_block(mapping.metric, found, end)
            progress.read = max(before, source.bytes_read)
            if not self._sender.push(packer.full_chunks(end)) or not self._report(progress):
                return False
        return self._finish(end)

    def append_rows(self, path: str, metric: str, begin: int, end: int) -> bool:
        """Append the events of a Parquet file's rows from `begin` to before `end`."""
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
        return is_sent and self._report(self._progress)
