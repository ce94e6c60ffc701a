"""Runs one worker in this process, or several worker processes that a parent restarts if they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from tallystream_worker.process import logs
from tallystream_worker.process.listen_address import LOOPBACK
from tallystream_worker.process.signals import start_child, stop_on_signals, wait_for
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.runtime.health import HealthProbe, HealthProbes
from tallystream_worker.runtime.lost_data import wait_for_data
from tallystream_worker.runtime.metrics import ByNamespace, WorkerMetrics, serve_metrics

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from multiprocessing.context import SpawnProcess

    from structlog.typing import FilteringBoundLogger

    from tallystream_worker.runtime.app import Worker
    from tallystream_worker.settings.settings import Settings

_SPAWN: Final = multiprocessing.get_context("spawn")
_RESTART_PAUSE: Final = 1.0


def run_one(
    tenants: Sequence[Settings],
    log: FilteringBoundLogger,
    metrics_port: int | None,
    metrics_host: str = LOOPBACK,
    *,
    removing: Mapping[str, Collection[str]] = MappingProxyType({}),
    publishing: bool = True,
) -> int:
    """Run a worker for each namespace in this process until SIGTERM or Ctrl-C; return the exit status 0.

    If the server may have lost the data of a namespace, all workers wait until it is back: see `wait_for_data`. The
    status is 0 even if a worker's running work did not end within `[worker] stop_timeout`.

    Args:
        tenants: The settings of each namespace; its consumer name is that of its own settings.
        log: Logger for the changes of state.
        metrics_port: Port for Prometheus metrics and health; `None` to serve neither.
        metrics_host: Address for Prometheus metrics and health.
        removing: By namespace, the stored metrics to remove; see `open_deployment`.
        publishing: Whether to publish the rules of the settings; see `open_deployment`.

    Raises:
        ConfigurationError: the port cannot be used; or see `Worker`.
        DeploymentChanged, KeyLost, DamagedValue, ArchiveError, ImportError, redis.RedisError: see `Worker`.
    """
    consumer, several = tenants[0].worker.consumer, len(tenants) > 1
    registries: dict[str, CollectorRegistry] = {}
    probes: dict[str, HealthProbe] = {}
    workers: list[Worker] = []
    health = None if metrics_port is None else (metrics_host, metrics_port)
    with stop_on_signals() as stop, ExitStack() as stack:
        wait_for_data(tenants, log, stop, health, creating=publishing)
        if stop.is_set():
            return 0
        for settings in tenants:
            namespace = settings.redis.namespace
            registry = registries[namespace] = CollectorRegistry()
            said = log.bind(namespace=namespace) if several else log
            worker = stack.enter_context(
                counting(
                    settings,
                    said,
                    [WorkerMetrics(registry)],
                    removing=removing.get(namespace, ()),
                    publishing=publishing,
                )
            )
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
            worker.quiet()  # tell all workers to end before the first is waited for
    log.info("worker.stopped", consumer=consumer)
    return 0


def run_many(
    tenants: Sequence[Settings],
    log: FilteringBoundLogger,
    metrics_port: int | None,
    metrics_host: str = LOOPBACK,
    *,
    removing: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> int:
    """Run several worker processes until SIGTERM or Ctrl-C, and restart each that dies; return the exit status 0.

    Each process has a stable consumer name, `<name>-<number>`, so a restarted process continues at once with its
    pending entries. Only process 0 archives, takes snapshots, audits and verifies. Process 0 uses `metrics_port`,
    process 1 the port after it, and so on. A process is killed if it does not end within the sum of the namespaces'
    `stop_timeout` and 2 seconds; the status is 0 then too. This process publishes the rules, once, before it starts the
    others. Before, it waits while the server may have lost the data of a namespace: see `wait_for_data`.

    Args:
        tenants: The settings of each namespace; the number of processes is that of the first.
        log: Logger for the changes of state.
        metrics_port: Port for Prometheus metrics and health of process 0; `None` to serve neither.
        metrics_host: Address for Prometheus metrics and health.
        removing: By namespace, the stored metrics to remove; see `open_deployment`.

    Raises:
        ConfigurationError, ImportError: see `wait_for_data`.
        TallyError, redis.RedisError: see `open_deployment`. Errors of the processes raise nothing here.
    """
    health = None if metrics_port is None else (metrics_host, metrics_port)
    with stop_on_signals() as stop:
        wait_for_data(tenants, log, stop, health)
        if stop.is_set():
            return 0
        for settings in tenants:
            # A wrong setting fails once here, instead of once in each process. Only this process publishes the rules:
            # a child that is restarted later must not bring back rules that were replaced meanwhile.
            open_deployment(settings, log, removing=removing.get(settings.redis.namespace, ()))
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
    start_child(process)
    return process


def _child(tenants: Sequence[Settings], number: int, metrics_port: int | None, metrics_host: str) -> None:
    threading.Thread(target=_end_with_parent, name="tallystream-parent", daemon=True).start()
    numbered = [_numbered(settings, number) for settings in tenants]
    run_one(numbered, logs.configure(), metrics_port, metrics_host, publishing=False)


def _end_with_parent() -> None:
    """Wait until the parent process ends, then send SIGTERM to this process, which would otherwise run on alone."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  # this function runs in a child process only
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _numbered(settings: Settings, number: int) -> Settings:
    named = replace(settings, worker=replace(settings.worker, name=f"{settings.worker.consumer}-{number}"))
    if number > 0:
        # Archive, snapshots, audits and verifications run in process 0 only.
        named = replace(
            named,
            archive=replace(settings.archive, url=""),
            snapshot=replace(settings.snapshot, url=""),
            audit=replace(settings.audit, every=""),
            verify=replace(settings.verify, every=""),
        )
    return named
