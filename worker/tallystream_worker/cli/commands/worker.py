"""The command `worker`: counts events in one or several processes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tallystream_worker.cli.options import MAX_PROCESSES, MetricsHost, MetricsPort, Tenants, whole
from tallystream_worker.cli.replace_rules import ReplaceRules
from tallystream_worker.process import logs
from tallystream_worker.process.listen_address import LOOPBACK
from tallystream_worker.runtime.processes import run_many, run_one
from tallystream_worker.server.advisory import warn_of_vulnerabilities

if TYPE_CHECKING:
    from tallystream_worker.settings.settings import Settings


def worker(
    *,
    processes: Annotated[
        int | None,
        whole("number of worker processes, one for each core to use; default [worker] processes", 1, MAX_PROCESSES),
    ] = None,
    name: Annotated[
        str | None, Parameter(help="consumer name; default [worker] name, or else the name of the host")
    ] = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = LOOPBACK,
    replacing: ReplaceRules = ReplaceRules(),
    tenants: Tenants = Tenants(),
) -> int:
    """Count events until SIGTERM or Ctrl-C; the exit status is 0 then.

    With several --config files, one for each namespace, the worker counts for all of these namespaces; [worker]
    processes is that of the first file.

    The rules of the file are stored in Redis. Stored metrics that the file lacks are kept and counted; --replace-rules
    removes them.
    """
    settings = [_with_options(each, name, processes) for each in tenants.settings()]
    log = logs.configure()
    for url in {each.redis.url for each in settings}:
        warn_of_vulnerabilities(url, log)
    removing = {each.redis.namespace: replacing.removing(each) for each in settings}
    run = run_many if settings[0].worker.processes > 1 else run_one
    return run(settings, log, metrics_port, metrics_host, removing=removing)


def _with_options(settings: Settings, name: str | None, processes: int | None) -> Settings:
    worker = settings.worker
    worker = replace(worker, name=worker.name if name is None else name, processes=processes or worker.processes)
    return replace(settings, worker=worker)
