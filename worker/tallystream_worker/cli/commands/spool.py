"""The command that shows what waits in a spool, and delivers it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tallystream.errors import FlushTimeout, SpoolError
from tallystream.producing.producer import Producer
from tallystream.producing.spool.recovery import orphaned_segments, recover
from tallystream.producing.spool.settings import SpoolSettings
from tallystream_worker.cli.options import AsJson, Where, flag
from tallystream_worker.cli.output import error_console, print_json, print_table
from tallystream_worker.cli.progress import events_bar

_POLL = 0.05


def spool(
    folder: Path,
    /,
    *,
    send: Annotated[bool, flag("deliver what waits")] = False,
    timeout: Annotated[float, Parameter(help="seconds that delivering may take at most")] = 300.0,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """Print what processes that have died left in a spool; a living process delivers its own.

    Parameters
    ----------
    folder
        the folder that was given to producers as spool
    """
    settings = where.settings()
    if not folder.is_dir():
        raise SpoolError(f"{folder} is not a folder: name the one that producers have as spool")
    rows = _waiting(folder, settings.redis.namespace)
    sent = 0
    if send and any(row["problem"] is None for row in rows):
        expected = sum(int(str(row["events"])) for row in rows if row["problem"] is None)
        with Producer(settings.redis.url, namespace=settings.redis.namespace, spool=folder) as producer:
            sent = _deliver(producer, folder, expected, timeout, {str(row["spool"]) for row in rows if row["problem"]})
        rows = _waiting(folder, settings.redis.namespace)
    if json:
        print_json({"waiting": rows, "sent": sent})
    else:
        columns = ["spool", "events at most", "bytes", "problem"]
        print_table(
            "left by processes that have died",
            columns,
            [
                [str(row["spool"]), f"{row['events']:,}", f"{row['bytes']:,}", str(row["problem"] or "-")]
                for row in rows
            ],
        )
        if send:
            error_console.print(f"{sent:,} events sent", highlight=False)
    return 1 if any(row["problem"] for row in rows) else 0


def _waiting(folder: Path, namespace: str) -> list[dict[str, str | int | None]]:
    rows: list[dict[str, str | int | None]] = []
    where = SpoolSettings(folder, 2**20, "os", namespace)
    for segments in orphaned_segments(where.folder):
        events, problem = 0, None
        try:
            events = recover(segments, where.namespace).events
        except SpoolError as error:
            problem = str(error)
        rows.append({"spool": segments.folder.name, "events": events, "bytes": segments.size, "problem": problem})
        segments.close()
    return rows


def _deliver(producer: Producer, folder: Path, expected: int, timeout: float, stuck: set[str]) -> int:
    deadline = time.monotonic() + timeout
    with events_bar() as progress:
        task = progress.add_task("sending", total=expected)
        while _is_waiting(folder, stuck):
            if time.monotonic() > deadline:
                raise FlushTimeout(f"not everything was sent in {timeout:g} seconds; what was not stays in {folder}")
            producer.flush(timeout)  # raises where nothing will ever be sent
            progress.update(task, completed=producer.stats.adopted)
            time.sleep(_POLL)
    return producer.stats.adopted


def _is_waiting(folder: Path, stuck: set[str]) -> bool:
    return any(path.is_dir() and path.name not in stuck and any(path.glob("*.log")) for path in folder.iterdir())
