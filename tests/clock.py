"""Server programs whose wall clock a test sets while they run, by libfaketime."""

from __future__ import annotations

from pathlib import Path


def faketime() -> Path | None:
    """Return the path of libfaketime, which changes the clock of a process, or `None` if it is not installed."""
    return next(Path("/usr/lib").glob("**/faketime/libfaketime.so.1"), None)


def with_clock(binary: Path, folder: Path, clock: Path) -> Path:
    """Return the path of a program that runs `binary` with its wall clock shifted as the file `clock` states.

    The file has an offset such as `-3000` (seconds) or `+31d`; a change takes effect at once. The monotonic clock is
    not shifted.
    """
    program = folder / f"{binary.name}-with-clock"
    program.write_text(
        f"#!/bin/sh\nLD_PRELOAD={faketime()} FAKETIME_TIMESTAMP_FILE={clock} FAKETIME_NO_CACHE=1"
        f' FAKETIME_DONT_FAKE_MONOTONIC=1 exec {binary} "$@"\n'
    )
    program.chmod(0o700)
    return program
