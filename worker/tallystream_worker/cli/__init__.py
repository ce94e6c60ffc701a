"""The command line: `tallystream COMMAND`."""

from tallystream_worker.cli.main import main

__all__ = ["main"]
