"""The bar of commands that go through the log: what they are at, and how many entries that were."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tallystream_worker.cli.output import error_console


def entries_bar() -> Progress:
    """Return a bar whose tasks have a field `entries`; it is drawn on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[entries]:,} entries"),
        TimeRemainingColumn(),
        console=error_console,
        disable=not error_console.is_terminal,
    )
