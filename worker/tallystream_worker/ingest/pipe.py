"""Emits events from a pipe: a pipe cannot be read twice or identified, so its events count each time it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tallystream.errors import EventError
from tallystream.producing.producer import Producer
from tallystream_worker.ingest.formats.registry import PARSERS
from tallystream_worker.ingest.lines import BadLine
from tallystream_worker.ingest.progress import IngestProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallystream.client.durability import Durability
    from tallystream_worker.ingest.formats.registry import Format
    from tallystream_worker.ingest.lines import Mapping
    from tallystream_worker.ingest.source import Source
    from tallystream_worker.settings.settings import RedisSettings


def emit_piped(
    source: Source,
    format_: Format,
    mapping: Mapping,
    store: RedisSettings,
    report: Callable[[IngestProgress], bool],
    *,
    wait: bool,
    durability: Durability = "memory",
) -> IngestProgress:
    """Emit the events of an open source through a new producer, and return when all of them are appended.

    Args:
        source: The open source; it is not closed.
        format_: Its format; not `parquet`.
        mapping: Which part of a line becomes which part of an event.
        store: The server and namespace to append to.
        report: Called with the progress at least after each 1,000 events, and at the end; the reading ends early if it
            returns `False`, and the events read so far are appended.
        wait: Return only when the events are counted.
        durability: The place that must have an event before it counts as appended: see `Producer`.

    Returns:
        The numbers of events and lines by outcome. A line whose event breaks a rule is a bad line, not an error.

    Raises:
        SourceError: the source cannot be read to its end; the events before are appended. If this takes over 5 seconds,
            `FlushTimeout` is raised instead, and some of them may be lost.
        TallyError: the producer cannot append the events; see `Producer.emit` and `Producer.flush`.
        redis.RedisError: only with `wait`: the server cannot be read.
    """
    progress = IngestProgress()
    with Producer(store.url, namespace=store.namespace, durability=durability) as producer:
        for outcome in PARSERS[format_](source, mapping):
            if isinstance(outcome, BadLine):
                progress.note(source.name, outcome.number, outcome.reason)
                continue
            metric, subject, amount, actor, at, id_ = outcome.event
            try:
                producer.emit(metric, subject, amount, actor=actor, at=at, id=id_)
                progress.events += 1
            except EventError as error:
                progress.note(source.name, outcome.number, str(error))
            if progress.events % 1000 == 0:
                progress.read = source.bytes_read
                if not report(progress):
                    break
        progress.read = source.bytes_read
        report(progress)
        producer.flush(wait="counted" if wait else "appended")
    return progress
