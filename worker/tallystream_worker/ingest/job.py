"""Appends the events of a file, or of a part of it, to the streams: each line once, however often it is read."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import KeyLost
from tallystream_worker.ingest.file_identity import PREFIX, identify
from tallystream_worker.ingest.formats.parquet_rows import SEGMENT_ROWS, head_and_tail, rows_of
from tallystream_worker.ingest.formats.registry import PARSERS, Format
from tallystream_worker.ingest.lines import Line, Mapping
from tallystream_worker.ingest.offsets import SourceMoved
from tallystream_worker.ingest.progress import IngestProgress, Report
from tallystream_worker.ingest.segment import SegmentAppender
from tallystream_worker.ingest.source import open_source
from tallystream_worker.process.barrier import step

if TYPE_CHECKING:
    from collections.abc import Iterable

    import redis

    from tallystream_worker.ingest.file_identity import Identity
    from tallystream_worker.settings.settings import RedisSettings

SEGMENT: Final = 64 * 2**20
"""The number of bytes of text in one segment. Segments have separate offsets, so that processes can read them in
parallel."""

_RETRY_PAUSE: Final = 0.1


@dataclass(frozen=True)
class Job:
    """A file, or a part of it, to append.

    A segment is `SEGMENT` bytes of (decompressed) text; of a Parquet file, it is `SEGMENT_ROWS` rows.

    Attributes:
        path: The path of the file.
        format: The format of the file.
        mapping: Which part of a line becomes which part of an event.
        salt: A text of the user, usually empty; with another salt, the events of the same file are appended again.
        first: The number of the first segment, counted from 0.
        segments: The number of segments; `None` for all from the first on. Of a Parquet file, a job appends one segment
            in any case.
    """

    path: str
    format: Format
    mapping: Mapping
    salt: str = ""
    first: int = 0
    segments: int | None = None

    @property
    def question(self) -> str:
        """The salt, the format and the mapping as one text: the salt of `identify`."""
        return f"{self.salt}\n{self.format}\n{self.mapping}"


def jobs_of(path: str, format_: Format, mapping: Mapping, salt: str = "") -> list[Job]:
    """Return the jobs of a file: one for each segment, or a single job if it is gzip or not a regular file.

    The file is opened to find this out, and closed again.

    Args:
        path: The path of the file; not `-` (standard input) or a named pipe, whose first bytes would be lost.
        format_: The format of the file.
        mapping: Which part of a line becomes which part of an event.
        salt: See `Job`.

    Raises:
        SourceError: the file does not exist or cannot be read, or is not Parquet, or is Parquet with wrong columns.
        ConfigurationError: the format is Parquet, and pyarrow is not installed.
    """
    if format_ == "parquet":
        count = max(1, -(-rows_of(path) // SEGMENT_ROWS))
        return [Job(path, format_, mapping, salt, number, 1) for number in range(count)]
    with open_source(path) as source:
        if source.compressed or source.total is None:
            return [Job(path, format_, mapping, salt)]
        count = max(1, -(-source.total // SEGMENT))
    return [Job(path, format_, mapping, salt, number, 1) for number in range(count)]


def size_of(jobs: Iterable[Job]) -> int | None:
    """Return the size of jobs that `jobs_of` returned, in the unit of `IngestProgress.read`; `None` for no jobs.

    It is the sum of the bytes on disk (of gzip, the compressed ones) and, for Parquet files, of the rows.

    Raises:
        OSError: a file that is not Parquet does not exist or cannot be read.
        SourceError: a Parquet file cannot be read, is not Parquet, or has wrong columns.
        ConfigurationError: there is a Parquet file, and pyarrow is not installed.
    """
    sizes = [_size(job) for job in jobs]
    return sum(sizes) if sizes else None


def _size(job: Job) -> int:
    if job.format == "parquet":
        return min(SEGMENT_ROWS, rows_of(job.path) - job.first * SEGMENT_ROWS)
    left = Path(job.path).stat().st_size - job.first * SEGMENT
    return left if job.segments is None else min(SEGMENT, left)


def run(job: Job, store: RedisSettings, report: Report = lambda _: True) -> IngestProgress:
    """Append the events of a job that were not appended before.

    Return when they are appended, or when `report` has returned `False`; do not wait until they are counted. Begin
    again if another run appends the same events, or the topic is closed. Store a deployment if there is none; if the
    server was emptied meanwhile, with as many partitions as before. While a stream is full, or the server is lost
    during the appends, wait and try again.

    Args:
        job: The file, or the part of it, to read.
        store: The server and namespace to append to.
        report: Called with the progress from time to time, also by a second thread at the same time; the job ends early
            if it returns `False`.

    Returns:
        The numbers of events and lines by outcome, of the last attempt; events that an earlier attempt appended are in
        `known`.

    Raises:
        SourceError: the file cannot be read.
        OSError, EOFError, zlib.error: the first bytes of the text cannot be read; see `Source.head`.
        OSError, pyarrow.ArrowException: a part of a Parquet file cannot be read; see `pack_rows`.
        EventError: the format is `combined`, and the metric of the mapping is not valid or not declared.
        ConfigurationError: the stored data disagrees with `store`, or is of another release; the URL of `store` cannot
            be used; or the format is Parquet, and pyarrow is not installed.
        DeploymentChanged: a restore has not finished.
        DamagedValue: the deployment has a stored value that tallystream never writes.
        Unconfirmed, StreamError: the identity of the file is not confirmed; nothing more was appended.
        KeyLost: the deployment or a partition has lost a key; nothing more was appended to that partition.
        RedisError: the server cannot be reached at the beginning of the job or of a segment, or rejects the appends and
            would do so again.
    """
    client = connect(store.url)
    try:
        deployment = Deployment.create_or_load(client, store.expected, store.namespace)
        last_ids: dict[tuple[int, int], str] = {}  # of all attempts: their events may still be uncounted
        while True:
            progress = IngestProgress(last_ids=last_ids)
            try:
                (_append_rows if job.format == "parquet" else _append_text)(job, client, deployment, progress, report)
            except SourceMoved:
                lost = None  # read it again
            except KeyLost as error:
                lost = error
            else:
                return progress
            time.sleep(_RETRY_PAUSE)  # during the switch to a new topic, its number is not published yet
            epoch = deployment.epoch
            known = deployment.layout.partitions
            deployment = Deployment.create_or_load(client, None, store.namespace, unless_stored=known)
            if lost is not None and deployment.epoch == epoch:  # otherwise the server was emptied meanwhile
                raise lost
    finally:
        client.close()


def _append_text(
    job: Job, client: redis.Redis, deployment: Deployment, progress: IngestProgress, report: Report
) -> None:
    """Append the segments of a job of a file of lines, until `report` returns `False`; add the outcomes to `progress`.

    Of an empty file, nothing is appended or stored.

    Raises:
        SourceMoved: the segments must be read again.
        EventError: the format is `combined`, and the metric of the mapping is not valid or not declared.
        SourceError, OSError, EOFError, zlib.error, Unconfirmed, StreamError, redis.RedisError: see `run`.
    """
    with open_source(job.path) as source:
        head = source.head(PREFIX)
        if not head:
            return
        identity = _identified(client, deployment, head, job)
        # The header of a CSV file is in the first segment, and is put before the lines of every other segment.
        header = [Line(0, 0, head.partition(b"\n")[0])] if job.format == "csv" else []
        source.seek(job.first * SEGMENT, None if job.segments is None else (job.first + job.segments) * SEGMENT)
        for number, blocks in itertools.groupby(source.blocks(SEGMENT), key=lambda block: block.offset // SEGMENT):
            if job.segments is not None and number >= job.first + job.segments:
                return
            with SegmentAppender(client, deployment, identity, number, progress, report) as segment:
                if job.format == "combined" and segment.packer.is_summable(job.mapping.metric):
                    goes_on = segment.append_blocks(blocks, job.mapping, source)
                else:
                    lines = itertools.chain.from_iterable(block.lines() for block in blocks)
                    outcomes = PARSERS[job.format](itertools.chain(header if number else [], lines), job.mapping)
                    goes_on = segment.append_outcomes(outcomes, source)
            if not goes_on:
                return


def _identified(client: redis.Redis, deployment: Deployment, head: bytes, job: Job) -> Identity:
    """Return the identity of the file of a job, after waiting until it has the durability of the deployment (`step`).

    If it were lost, a file that has grown since would count again.

    Raises:
        Unconfirmed, StreamError: see `step`.
        redis.RedisError: the identities cannot be read or stored.
    """
    with step(client, deployment, f"{job.path} is identified"):
        return identify(client, deployment.layout, head, job.question)


def _append_rows(
    job: Job, client: redis.Redis, deployment: Deployment, progress: IngestProgress, report: Report
) -> None:
    """Append the one segment of a job of a Parquet file; add the outcomes to `progress`.

    Raises:
        SourceMoved: the segment must be read again.
        SourceError, OSError, pyarrow.ArrowException, ConfigurationError, Unconfirmed, StreamError, redis.RedisError:
            see `run`.
    """
    identity = _identified(client, deployment, head_and_tail(job.path, PREFIX), job)
    begin = job.first * SEGMENT_ROWS
    with SegmentAppender(client, deployment, identity, job.first, progress, report) as segment:
        segment.append_rows(job.path, job.mapping.metric, begin, begin + SEGMENT_ROWS)
