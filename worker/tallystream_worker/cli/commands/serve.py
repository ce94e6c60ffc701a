"""The command `serve`: runs the read service."""

from __future__ import annotations

from tallystream_worker.cli.lost_data import backup_text
from tallystream_worker.cli.options import Host, Port, Where, listening
from tallystream_worker.cli.output import error_console
from tallystream_worker.process import logs
from tallystream_worker.process.signals import stop_on_signals, wait_for
from tallystream_worker.service.server import serving


def serve(*, host: Host = None, port: Port = None, where: Where = Where()) -> None:
    """Serve totals over HTTP, with /metrics for Prometheus, until SIGTERM or Ctrl-C."""
    settings = listening(where.settings(), host, port)
    logs.configure()
    with stop_on_signals() as stop, serving(settings, backup=backup_text(settings)) as url:
        error_console.print(f"serving on {url}")
        wait_for(stop)
