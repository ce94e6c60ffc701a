"""The command `replay`: prints stored events, as `ingest` reads them."""

from __future__ import annotations

import sys
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from cyclopts import Parameter

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream_worker.cli.moments import parse_moment
from tallystream_worker.cli.options import FromArchive, Where
from tallystream_worker.cli.output import error_console
from tallystream_worker.rebuild.replay import Left, ReplaySelection, replay_archive
from tallystream_worker.rebuild.replay import replay as events

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

_PAGE: Final = 5000


def replay(
    *,
    from_: Annotated[
        str | None,
        Parameter(name="--from", help="time of the first event: 2026-11-01, 2026-11-01T12:00Z or seconds since 1970"),
    ] = None,
    to: Annotated[str | None, Parameter(help="end of the range, not included")] = None,
    metric: Annotated[list[str] | None, Parameter(help="metric; repeat for several; default all")] = None,
    subject: Annotated[list[str] | None, Parameter(help="subject; repeat for several; default all")] = None,
    archive: FromArchive = None,
    format: Literal["ndjson", "parquet"] = "ndjson",
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="file to write to; default standard output")
    ] = None,
    where: Where = Where(),
) -> None:
    """Print the stored events as `ingest` reads them; entries that the streams no longer have come from the archive.

    The events come partition by partition, not in order of time. Parquet needs a file (`-o`). Most events without an
    actor and an id are stored with their minute only: its first second is printed as their time, and decides whether
    they are in the range of --from and --to. If the amounts of such events of a subject in an entry are not all 1, one
    event has their sum, and the others have 0.

    If the archive is of other data than that of the server, for example of a server that was emptied, only the archived
    events are printed.

    Rejected, duplicate and retracted events are printed too. Resets, entries that cannot be read, and events of dead
    letters that were dropped with a record are left out; their numbers are printed on standard error. Entries that
    neither the streams nor the archive have when the reading of their partition begins are missing, without an error.
    """
    if format == "parquet" and output is None:
        raise ConfigurationError("Parquet cannot be written to standard output: name a file with -o FILE")
    wanted = ReplaySelection(
        parse_moment("--from", from_),
        parse_moment("--to", to, float("inf")),
        frozenset(metric or ()),
        frozenset(subject or ()),
    )
    settings = where.settings()
    left = Left()
    with closing(connect(settings.redis.url)) as client:
        deployment = Deployment.find(client, settings.redis.namespace)
        deployment.ensure_stored()
        found = _replayed(client, deployment, wanted, left, settings.archive.url if archive is None else archive)
        with error_console.status("reading") as status:
            written = 0
            for n in _parquet(output, found) if format == "parquet" and output else _lines(output, found):
                written += n
                status.update(f"{written:,} events")
    error_console.print(f"{written:,} events")
    if left.resets:
        error_console.print(f"{left.resets:,} resets were left out, because they are not events")
    if left.dropped:
        error_console.print(f"{left.dropped:,} events were left out, because their dead letters were dropped")
    if left.unreadable:
        error_console.print(f"{left.unreadable:,} entries were left out, because they cannot be read")


def _replayed(
    client: redis.Redis, deployment: Deployment, wanted: ReplaySelection, left: Left, archive: str
) -> Iterator[dict[str, Any]]:
    """Return the events of the streams and the archive; only those of the archive, with a note, if it is of other data.

    Errors are those of `replay` and `replay_archive`.
    """
    if archive:
        from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

        namespace = deployment.layout.namespace
        if not Store(archive, namespace, deployment.layout.topic).is_of(deployment.epoch):
            error_console.print(
                f"{archive} is the archive of other data than that of the server: only the archived events are printed",
                soft_wrap=True,
            )
            return replay_archive(archive, namespace, wanted, left)
    return events(client, deployment.layout, wanted, left, archive)


def _lines(output: Path | None, found: Iterator[dict[str, Any]]) -> Iterator[int]:
    encode = msgspec.json.Encoder().encode_lines
    stream = sys.stdout.buffer if output is None else output.open("wb")
    try:
        while page := list(islice(found, _PAGE)):
            stream.write(encode(page))
            stream.flush()
            yield len(page)
    finally:
        if output is not None:
            stream.close()


def _parquet(output: Path, found: Iterator[dict[str, Any]]) -> Iterator[int]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError:
        raise ConfigurationError("Parquet needs pyarrow: pip install 'tallystream-worker[archive]'") from None
    schema = pa.schema(
        [
            ("metric", pa.string()),
            ("subject", pa.string()),
            ("amount", pa.int64()),
            ("at", pa.float64()),
            ("actor", pa.string()),
            ("id", pa.string()),
        ]
    )
    with pq.ParquetWriter(output, schema, compression="zstd") as writer:
        while page := list(islice(found, _PAGE * 10)):
            writer.write_table(pa.Table.from_pylist([event | {"at": float(event["at"])} for event in page], schema))
            yield len(page)
