"""The command line: `tallystream COMMAND`."""

from typing import NoReturn

from tallystream_worker.process.signals import exit_on_interrupt

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line of this process and exit; see `tallystream_worker.cli.main.main`."""
    exit_on_interrupt()  # before the long imports
    from tallystream_worker.cli.main import main as run  # noqa: PLC0415

    run()
