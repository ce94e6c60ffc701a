"""The command `spool`: prints the spools of dead processes, and sends their events."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated

from tallystream.client.connect import connect
from tallystream.client.error_text import text_of
from tallystream.deployment import Deployment
from tallystream.errors import FlushTimeout, SpoolError
from tallystream.producing.producer import Producer
from tallystream.producing.spool.recovery import orphaned_segments, recover
from tallystream.producing.spool.settings import SpoolSettings
from tallystream_worker.cli.options import DAY, AsJson, Where, flag, number
from tallystream_worker.cli.output import error_console, print_json, print_table
from tallystream_worker.cli.progress import events_bar

_POLL = 0.05


def spool(
    folder: Path,
    /,
    *,
    send: Annotated[bool, flag("send the events")] = False,
    timeout: Annotated[float, number("seconds that sending may take at most", 0, DAY)] = 300.0,
    json: AsJson = False,
    where: Where = Where(),
) -> int:
    """List the spools that dead processes left in a folder, with the number of their events; --send sends them first.

    The number is an upper bound, because some may have been sent before. A running process sends its own.
    The exit status is 1 if a spool cannot be read, or if not all events were sent within about --timeout; the rest
    stays in the folder. Without --send, events that wait do not change the exit status.

    Parameters
    ----------
    folder
        the folder that the producers use as spool
    """
    settings = where.settings()
    if not folder.is_dir():
        raise SpoolError(f"{folder} is not a folder: name the folder that the producers use as spool")
    rows = _waiting(folder, settings.redis.namespace)
    sent = 0
    if send and any(row["problem"] is None for row in rows):
        expected = sum(int(str(row["events"])) for row in rows if row["problem"] is None)
        store = settings.redis
        with closing(connect(store.url)) as client:
            durability = Deployment.find(client, store.namespace).durability
        with Producer(store.url, namespace=store.namespace, spool=folder, durability=durability) as producer:
            sent = _deliver(producer, folder, expected, timeout, {str(row["spool"]) for row in rows if row["problem"]})
        rows = _waiting(folder, settings.redis.namespace)
    if json:
        print_json({"waiting": rows, "sent": sent})
    else:
        columns = ["spool", "events at most", "bytes", "problem"]
        print_table(
            "left by dead processes",
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
        except OSError as error:
            problem = f"{segments.folder} cannot be read: {text_of(error)}"
        rows.append({"spool": segments.folder.name, "events": events, "bytes": segments.size, "problem": problem})
        segments.close()
    return rows


def _deliver(producer: Producer, folder: Path, expected: int, timeout: float, stuck: set[str]) -> int:
    deadline = time.monotonic() + timeout
    with events_bar() as progress:
        task = progress.add_task("sending", total=expected)
        while _is_waiting(folder, stuck):
            if time.monotonic() > deadline:
                raise FlushTimeout(f"not all events were sent in {timeout:g} seconds; the rest stays in {folder}")
            producer.flush(timeout)  # raises an error if the events can never be sent
            progress.update(task, completed=producer.stats.adopted)
            time.sleep(_POLL)
    return producer.stats.adopted


def _is_waiting(folder: Path, stuck: set[str]) -> bool:
    return any(path.is_dir() and path.name not in stuck and any(path.glob("*.log")) for path in folder.iterdir())
