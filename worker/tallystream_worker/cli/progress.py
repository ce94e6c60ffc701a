"""Progress bars for commands, drawn only if standard error is a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from tallystream_worker.cli.output import error_console

if TYPE_CHECKING:
    from typing import Self

    from tallystream_worker.ingest.progress import IngestProgress


def entries_bar() -> Progress:
    """Return a progress bar that shows the field `entries` of each task, for commands that read the streams.

    Every task needs the field: `add_task(..., entries=0)`.
    """
    return _bar(TextColumn("{task.fields[entries]:,} entries"))


def events_bar() -> Progress:
    """Return a progress bar that shows how many events of each task's total are done."""
    return _bar(MofNCompleteColumn())


def _bar(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=error_console,
        disable=not error_console.is_terminal,
    )


class IngestBar:
    """The progress bar of `ingest`: percentage, events, events a second since it was made, and remaining time.

    It is shown within its context (`with`) if standard error is a terminal; call it with each progress.

    Args:
        size: Size of the input in bytes, or in rows for Parquet, as `size_of` returns it; `None` if it is unknown.
    """

    def __init__(self, size: int | None) -> None:
        self._bar = _bar(
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[events]:,} events, {task.fields[rate]:,.0f}/s"),
        )
        self._size = size
        self._task = TaskID(0)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        self._task = self._bar.add_task("reading", total=self._size, events=0, rate=0.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: IngestProgress) -> bool:
        """Show the progress, and return true, so that the run continues."""
        seconds = max(time.monotonic() - self._began, 0.001)
        self._bar.update(
            self._task,
            completed=progress.read,
            events=progress.events,
            rate=progress.events / seconds,
            description=f"waiting: {progress.waiting_for}" if progress.waiting_for else "reading",
        )
        return True
