"""Worker processes: one in the foreground, or several that a parent keeps alive."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from tallystream_worker.process import logs
from tallystream_worker.process.listen_address import LOOPBACK
from tallystream_worker.process.signals import stop_on_signals, wait_for
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.runtime.health import HealthProbe, HealthProbes
from tallystream_worker.runtime.metrics import ByNamespace, WorkerMetrics, serve_metrics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.context import SpawnProcess

    from structlog.typing import FilteringBoundLogger

    from tallystream_worker.runtime.app import Worker
    from tallystream_worker.settings.settings import Settings

_SPAWN: Final = multiprocessing.get_context("spawn")
_RESTART_PAUSE: Final = 1.0


def run_one(
    tenants: Sequence[Settings], log: FilteringBoundLogger, metrics_port: int | None, metrics_host: str = LOOPBACK
) -> int:
    """Count in this process until SIGTERM or Ctrl-C; return the exit status.

    Args:
        tenants: The settings of each namespace.
        log: Where changes of state are said.
        metrics_port: A port for metrics and health, or `None`.
        metrics_host: The address that they are served on.
    """
    consumer, several = tenants[0].worker.consumer, len(tenants) > 1
    registries: dict[str, CollectorRegistry] = {}
    probes: dict[str, HealthProbe] = {}
    workers: list[Worker] = []
    with stop_on_signals() as stop, ExitStack() as stack:
        for settings in tenants:
            namespace = settings.redis.namespace
            registry = registries[namespace] = CollectorRegistry()
            said = log.bind(namespace=namespace) if several else log
            worker = stack.enter_context(counting(settings, said, [WorkerMetrics(registry)]))
            probes[namespace] = probe = HealthProbe(worker)
            registry.register(probe)
            workers.append(worker)
        if metrics_port is not None:
            if several:
                registry = CollectorRegistry()
                registry.register(ByNamespace(registries))
            serve_metrics(registry, metrics_host, metrics_port, HealthProbes(probes) if several else probe)
        log.info("worker.started", consumer=consumer)
        wait_for(stop)
        log.info("worker.stopping", consumer=consumer)
        for worker in workers:
            worker.quiet()  # all at once: they are waited for one after the other
    log.info("worker.stopped", consumer=consumer)
    return 0


def run_many(
    tenants: Sequence[Settings], log: FilteringBoundLogger, metrics_port: int | None, metrics_host: str = LOOPBACK
) -> int:
    """Keep as many workers alive as the first of `tenants` says, until SIGTERM or Ctrl-C; return the exit status.

    Each has a stable consumer name of its own, `<name>-<number>`, so that a restarted one goes on at once with
    what its predecessor held. `metrics_port` is the first one's, the next has the next.
    """
    for settings in tenants:
        open_deployment(settings, log)  # a mistake in the settings is one message here, not one from each process
    with stop_on_signals() as stop:
        pool = [_start(tenants, number, metrics_port, metrics_host) for number in range(tenants[0].worker.processes)]
        while not stop.wait(0.2):
            for number, process in enumerate(pool):
                if process.exitcode is not None:
                    log.error("worker.process_died", number=number, status=process.exitcode)
                    stop.wait(_RESTART_PAUSE)
                    pool[number] = _start(tenants, number, metrics_port, metrics_host)
        for process in pool:
            process.terminate()
        deadline = time.monotonic() + sum(settings.worker.stop_timeout for settings in tenants) + 2.0
        for process in pool:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
    return 0


def _start(tenants: Sequence[Settings], number: int, metrics_port: int | None, metrics_host: str) -> SpawnProcess:
    port = None if metrics_port is None else metrics_port + number
    process = _SPAWN.Process(
        target=_child, args=(tenants, number, port, metrics_host), name=f"tallystream-worker-{number}"
    )
    process.start()
    return process


def _child(tenants: Sequence[Settings], number: int, metrics_port: int | None, metrics_host: str) -> None:
    threading.Thread(target=_end_with_parent, name="tallystream-parent", daemon=True).start()
    run_one([_numbered(settings, number) for settings in tenants], logs.configure(), metrics_port, metrics_host)


def _end_with_parent() -> None:
    """Stop, as on SIGTERM, when the parent was killed: nobody would start this process again, or stop it."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  # it has started us
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _numbered(settings: Settings, number: int) -> Settings:
    named = replace(settings, worker=replace(settings.worker, name=f"{settings.worker.consumer}-{number}"))
    if number > 0:
        # One of them is enough.
        named = replace(
            named,
            archive=replace(settings.archive, url=""),
            snapshot=replace(settings.snapshot, url=""),
            audit=replace(settings.audit, every=""),
        )
    return named
