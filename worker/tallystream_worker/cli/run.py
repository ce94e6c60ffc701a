"""Commands that run until they are stopped."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from prometheus_client import CollectorRegistry

from tallystream_worker.cli.demo import Demo
from tallystream_worker.cli.options import MetricsHost, MetricsPort, Tenants, Where
from tallystream_worker.cli.output import error_console
from tallystream_worker.process import logs
from tallystream_worker.process.listen_address import LOOPBACK
from tallystream_worker.process.signals import stop_on_signals, wait_for
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.runtime.processes import run_many, run_one
from tallystream_worker.server.advisory import warn_of_holes
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.service.server import serving
from tallystream_worker.settings.settings import Settings

Host = Annotated[str | None, Parameter(help="address to listen on; default 127.0.0.1")]
Port = Annotated[int | None, Parameter(help="port to listen on; default 8080, 0 for any free one")]


def worker(
    *,
    processes: Annotated[int | None, Parameter(help="worker processes; one for each core to spend")] = None,
    name: Annotated[str | None, Parameter(help="consumer name; default the host's name")] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = LOOPBACK,
    tenants: Tenants = Tenants(),  # noqa: B008  # frozen
) -> int:
    """Count: consumer-group workers only, until SIGTERM or Ctrl-C.

    With several --config, one for each namespace, one worker counts for all of them.
    """
    settings = [_named(each, name, processes) for each in tenants.settings()]
    log = logs.configure()
    for url in {each.redis.url for each in settings}:
        warn_of_holes(url, log)
    if settings[0].worker.processes > 1:
        return run_many(settings, log, metrics_port, metrics_host)
    return run_one(settings, log, metrics_port, metrics_host)


def serve(
    *,
    host: Host = None,
    port: Port = None,
    where: Where = Where(),  # noqa: B008
) -> None:
    """Serve totals over HTTP, with /metrics for Prometheus, until SIGTERM or Ctrl-C."""
    settings = _listening(where.settings(), host, port)
    logs.configure()
    with stop_on_signals() as stop, serving(settings) as url:
        error_console.print(f"serving on {url}")
        wait_for(stop)


def up(
    *,
    data: Annotated[Path, Parameter(help="folder in which the embedded server keeps its data")] = Path("tally-data"),
    host: Host = None,
    port: Port = None,
    where: Where = Where(),  # noqa: B008
) -> None:
    """Run everything on one machine: server, worker and read service.

    Without --redis (or TALLYSTREAM_REDIS_URL) an embedded server is started, which keeps its data in --data,
    with a snapshot of the counters each minute in snapshot.sqlite beside it.
    """
    settings = _listening(where.settings(), host, port)
    log = logs.configure()
    # Signals first: whatever is started below is stopped again, in reverse order.
    with stop_on_signals() as stop, ExitStack() as stack:
        if not where.names_a_server:
            server = stack.enter_context(EmbeddedServer(data))
            settings = replace(settings, redis=replace(settings.redis, url=server.url))
            if not settings.snapshot.url:
                copy = str(data.resolve() / "snapshot.sqlite")
                settings = replace(settings, snapshot=replace(settings.snapshot, url=copy))
        registry = CollectorRegistry()
        stack.enter_context(counting(settings, log, [WorkerMetrics(registry)]))
        url = stack.enter_context(serving(settings, registry))
        error_console.print(
            f"server     {settings.redis.url}\ndashboard  {url}\nCtrl-C stops everything; counts are kept"
        )
        wait_for(stop)


def demo(
    *,
    events: Annotated[int, Parameter(help="events to emit")] = 1_000_000,
    once: Annotated[
        bool, Parameter(negative="", show_default=False, help="end after the verdict instead of serving on")
    ] = False,
    port: Port = None,
    seed: Annotated[int, Parameter(help="another load, repeatable")] = 1,
    where: Where = Where(),  # noqa: B008
) -> int:
    """Start an embedded server, a worker and the read service, emit a load, and say whether it was counted exactly."""
    settings = _listening(where.settings(), None, port)
    with stop_on_signals() as stop:
        return Demo(settings, events, seed, stop, serve_on=not once, port_is_given=port is not None).run()


def _listening(settings: Settings, host: str | None, port: int | None) -> Settings:
    serve = settings.serve
    serve = replace(serve, host=serve.host if host is None else host, port=serve.port if port is None else port)
    return replace(settings, serve=serve)


def _named(settings: Settings, name: str | None, processes: int | None) -> Settings:
    worker = settings.worker
    worker = replace(worker, name=worker.name if name is None else name, processes=processes or worker.processes)
    return replace(settings, worker=worker)
