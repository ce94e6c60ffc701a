"""Configures logging once, at the start of a command: JSON lines, or coloured text on a terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, cast

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor


def configure(*, quiet: bool = False) -> FilteringBoundLogger:
    """Configure structlog for this process to log to standard error, and return the logger to pass to all other parts.

    The lines are coloured text if standard error is a terminal, else JSON.

    Args:
        quiet: Log only warnings and errors, for commands that draw on the terminal.
    """
    terminal = sys.stderr.isatty()
    ending: list[Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if terminal
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *ending,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("warning" if quiet else "info"),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )
    return cast("FilteringBoundLogger", structlog.get_logger())


class _StandardError:
    """A file for the logger that writes to the `sys.stderr` of the moment, and raises no error if a write fails.

    Text that cannot be written, because its reader has gone or the disk is full, is lost: a worker that cannot log must
    continue to count.
    """

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
