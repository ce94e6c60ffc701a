"""Reads one file, or a part of one, into the streams: each line counts once, however often this is done."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import EventError
from tallystream_worker.ingest.blocks import BlockReader
from tallystream_worker.ingest.formats import combined
from tallystream_worker.ingest.formats.parquet_rows import SEGMENT_ROWS, head_and_tail, pack_rows, rows_of
from tallystream_worker.ingest.formats.registry import PARSERS, Format
from tallystream_worker.ingest.identity import PREFIX, identify
from tallystream_worker.ingest.lines import BadLine, Block, BlockEvents, Line, Mapping
from tallystream_worker.ingest.offsets import SOURCE, OffsetGate, SourceMoved
from tallystream_worker.ingest.packer import EventPacker
from tallystream_worker.ingest.progress import IngestProgress, Report
from tallystream_worker.ingest.sender import ChunkSender
from tallystream_worker.ingest.source import Source, open_source

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from tallystream_worker.ingest.lines import LineOutcome
    from tallystream_worker.settings.settings import RedisSettings

SEGMENT: Final = 64 * 2**20
"""Bytes of text in one source: parts of a file that are read side by side each have a place of their own."""

_REPORT_EVERY: Final = 2000
_AGAIN: Final = 0.1


@dataclass(frozen=True)
class Job:
    """A file, and which part of it: the segments from `first` on, all of them where `segments` is `None`."""

    path: str
    format: Format
    mapping: Mapping
    salt: str = ""
    first: int = 0
    segments: int | None = None

    @property
    def question(self) -> str:
        """What is asked of the file: it belongs to the identity of the source."""
        return f"{self.salt}\n{self.format}\n{self.mapping}"


def jobs_of(path: str, format_: Format, mapping: Mapping, salt: str = "") -> list[Job]:
    """Return the jobs that a file is cut into: one for each segment of text, one in all where it is compressed.

    Raises:
        SourceError: there is no such file, or it may not be read.
    """
    if format_ == "parquet":
        count = max(1, -(-rows_of(path) // SEGMENT_ROWS))
        return [Job(path, format_, mapping, salt, number, 1) for number in range(count)]
    with open_source(path) as source:
        if source.compressed or source.total is None:
            return [Job(path, format_, mapping, salt)]
        count = max(1, -(-source.total // SEGMENT))
    return [Job(path, format_, mapping, salt, number, 1) for number in range(count)]


def run(job: Job, store: RedisSettings, report: Report = lambda _: True) -> IngestProgress:
    """Append what is not appended yet of a job's lines.

    Args:
        job: What to read.
        store: Where to.
        report: Told of the progress now and then; where it answers `False`, the job ends early.

    Raises:
        SourceError: the file cannot be read on; all lines before that place have been appended.
        RedisError: the server refuses us for good.
    """
    client = connect(store.url)
    try:
        deployment = Deployment.create_or_load(client, store.expected, store.namespace)
        while True:
            progress = IngestProgress()
            if _pass(job, client, deployment, progress, report):
                return progress
            time.sleep(_AGAIN)  # where the events go on to other partitions, it takes a moment until it says where
            deployment = Deployment.create_or_load(client, None, store.namespace)
    finally:
        client.close()


def _pass(job: Job, client: redis.Redis, deployment: Deployment, progress: IngestProgress, report: Report) -> bool:
    """Read the job's segments once; tell whether that was all, or they must be read again."""
    if job.format == "parquet":
        return _pass_rows(job, client, deployment, progress, report)
    with open_source(job.path) as source:
        head = source.head(PREFIX)
        if not head:
            return True
        identity = identify(client, deployment.layout, head, job.question)
        # The first segment has the header of a CSV file; the others are read under it as well.
        header = [Line(0, 0, head.partition(b"\n")[0])] if job.format == "csv" else []
        source.seek(job.first * SEGMENT)
        for number, blocks in itertools.groupby(source.blocks(SEGMENT), key=lambda block: block.offset // SEGMENT):
            if job.segments is not None and number >= job.first + job.segments:
                break
            gate = OffsetGate(client, deployment.layout, f"{SOURCE}{identity}:{number}")
            packing = EventPacker(
                deployment.layout, deployment.declared, gate.offsets(), gate.before(deployment.earlier_layouts)
            )
            try:
                with ChunkSender(gate, progress, report) as sending:
                    if job.format == "combined" and packing.takes_together(job.mapping.metric):
                        goes_on = _append_blocks(blocks, job.mapping, packing, sending, source, progress, report)
                    else:
                        lines = itertools.chain.from_iterable(block.lines() for block in blocks)
                        outcomes = PARSERS[job.format](itertools.chain(header if number else [], lines), job.mapping)
                        goes_on = _append(outcomes, packing, sending, source, progress, report)
            except SourceMoved:
                return False
            if not goes_on:
                return True
    return True


def _pass_rows(job: Job, client: redis.Redis, deployment: Deployment, progress: IngestProgress, report: Report) -> bool:
    identity = identify(client, deployment.layout, head_and_tail(job.path, PREFIX), job.question)
    gate = OffsetGate(client, deployment.layout, f"{SOURCE}{identity}:{job.first}")
    packing = EventPacker(
        deployment.layout, deployment.declared, gate.offsets(), gate.before(deployment.earlier_layouts)
    )
    begin = job.first * SEGMENT_ROWS

    def note(row: int, reason: str, rows: int) -> None:
        progress.note(job.path, row + 1, reason, rows)

    try:
        with ChunkSender(gate, progress, report) as sending:
            for end in pack_rows(job.path, job.mapping.metric, begin, begin + SEGMENT_ROWS, packing, note):
                progress.read = end - begin
                if not sending.push(packing.rest(end)) or not report(progress):
                    return True
            sending.finish()
    except SourceMoved:
        return False
    progress.known += packing.known
    return True


def _append(
    outcomes: Iterable[LineOutcome],
    packing: EventPacker,
    sending: ChunkSender,
    source: Source,
    progress: IngestProgress,
    report: Report,
) -> bool:
    """Append the events of one segment; tell whether to go on with the next."""
    before, end = progress.read, 0
    for count, outcome in enumerate(outcomes, start=1):
        if isinstance(outcome, BadLine):
            progress.note(source.name, outcome.number, outcome.reason)
        else:
            try:
                full = packing.add(outcome.event, outcome.offset)
            except EventError as error:
                progress.note(source.name, outcome.number, str(error))
            else:
                end = outcome.offset + 1
                if full is not None and not sending.push([full]):
                    return False
        if count % _REPORT_EVERY == 0:
            progress.read = max(before, source.bytes_read)
            if not report(progress):
                return False
    progress.read = max(before, source.bytes_read)
    return _finish(end, packing, sending, progress, report)


def _append_blocks(
    blocks: Iterable[Block],
    mapping: Mapping,
    packing: EventPacker,
    sending: ChunkSender,
    source: Source,
    progress: IngestProgress,
    report: Report,
) -> bool:
    """Append the events of one segment of an access log; tell whether to go on with the next.

    A stretch ends where a block does: until then everything in the block is taken, in whatever order.
    """
    read = BlockReader(mapping, packing)
    before, end = progress.read, 0
    for block in blocks:
        end = block.end
        found = BlockEvents({}, {}, list(block.lines())) if packing.splits(block.offset, end) else read(block)
        for outcome in combined.parse(found.doubtful, mapping):
            if isinstance(outcome, BadLine):
                progress.note(source.name, outcome.number, outcome.reason)
                continue
            try:
                packing.take(outcome.event, outcome.offset)
            except EventError as error:
                progress.note(source.name, outcome.number, str(error))
        packing.add_found(mapping.metric, found, end)
        progress.read = max(before, source.bytes_read)
        if not sending.push(packing.full(end)) or not report(progress):
            return False
    return _finish(end, packing, sending, progress, report)


def _finish(end: int, packing: EventPacker, sending: ChunkSender, progress: IngestProgress, report: Report) -> bool:
    goes_on = sending.push(packing.rest(end)) and sending.finish()
    progress.known += packing.known
    return goes_on and report(progress)
