"""The command `up`: runs server, worker and read service on one machine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from prometheus_client import CollectorRegistry

from tallystream_worker.cli.lost_data import backup_text
from tallystream_worker.cli.options import Host, Port, Where, listening
from tallystream_worker.cli.output import error_console
from tallystream_worker.cli.replace_rules import ReplaceRules
from tallystream_worker.process import logs
from tallystream_worker.process.signals import stop_on_signals, wait_for
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.health import HealthProbe
from tallystream_worker.runtime.lost_data import wait_for_data
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.server.data_folder import SNAPSHOT
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.service.server import serving


def up(
    *,
    data: Annotated[Path, Parameter(help="folder in which the embedded server keeps its data")] = Path("tally-data"),
    host: Host = None,
    port: Port = None,
    replacing: ReplaceRules = ReplaceRules(),
    where: Where = Where(),
) -> None:
    """Run everything on one machine, until SIGTERM or Ctrl-C: server, worker and read service.

    Without --redis or TALLYSTREAM_REDIS_URL, an embedded server is started. It keeps its data in the folder --data, to
    which a snapshot of the counters is also written (snapshot.sqlite), unless [snapshot] names a database; [snapshot]
    every is the time between two snapshots, by default a minute. If the server has no data, and the snapshot or the
    archive has it, nothing is counted before a restore: a log line names the command.
    """
    settings = listening(where.stated(), host, port)
    log = logs.configure()
    # Signals first, so that everything started below is stopped again, in reverse order.
    with stop_on_signals() as stop, ExitStack() as stack:
        if not where.names_a_server:
            server = stack.enter_context(EmbeddedServer(data))
            settings = replace(settings, redis=replace(settings.redis, url=server.url))
            if not settings.snapshot.url:
                copy = str(data.resolve() / SNAPSHOT)
                settings = replace(settings, snapshot=replace(settings.snapshot, url=copy))
        hint = (
            "" if where.names_a_server else f" (in another terminal, with TALLYSTREAM_REDIS_URL={settings.redis.url})"
        )
        wait_for_data([settings], log, stop, hint=hint)
        if stop.is_set():
            return
        registry = CollectorRegistry()
        removing = replacing.removing(settings)
        worker = stack.enter_context(counting(settings, log, [WorkerMetrics(registry)], removing=removing))
        registry.register(HealthProbe(worker))
        url = stack.enter_context(serving(settings, registry, backup=backup_text(settings)))
        error_console.print(
            f"server     {settings.redis.url}\ndashboard  {url}\nCtrl-C stops everything; the counters are kept",
            soft_wrap=True,  # a path that is longer than a line stays in one piece
        )
        wait_for(stop)
