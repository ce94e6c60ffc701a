"""Worker processes: one in the foreground, or several that a parent keeps alive."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from tallystream_worker import logs
from tallystream_worker.app import counting, open_books
from tallystream_worker.metrics import WorkerMetrics, serve_metrics
from tallystream_worker.signals import stop_on_signals, wait_for
from tallystream_worker.vigil import Vigil

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from structlog.typing import FilteringBoundLogger

    from tallystream_worker.settings import Settings

_SPAWN: Final = multiprocessing.get_context("spawn")
_RESTART_PAUSE: Final = 1.0


def run_one(settings: Settings, log: FilteringBoundLogger, consumer: str, metrics_port: int | None) -> int:
    """Count in this process until SIGTERM or Ctrl-C; return the exit status."""
    with stop_on_signals() as stop:
        registry = CollectorRegistry()
        with counting(settings, log, [WorkerMetrics(registry)], consumer=consumer) as crew:
            vigil = Vigil(lambda: crew.health)
            registry.register(vigil)
            if metrics_port is not None:
                serve_metrics(registry, settings.serve.host, metrics_port, vigil)
            log.info("worker started", consumer=consumer)
            wait_for(stop)
            log.info("worker stopping", consumer=consumer)
    log.info("worker stopped", consumer=consumer)
    return 0


def run(settings: Settings, log: FilteringBoundLogger, metrics_port: int | None) -> int:
    """Keep `settings.worker.processes` workers alive until SIGTERM or Ctrl-C; return the exit status.

    Each has a stable consumer name of its own, `<name>-<number>`, so that a restarted one goes on at once with
    what its predecessor held. `metrics_port` is the first one's, the next has the next.
    """
    open_books(settings, log)  # a mistake in the settings is one message here, not one from each process
    with stop_on_signals() as stop:
        crew = [_start(settings, number, metrics_port) for number in range(settings.worker.processes)]
        while not stop.wait(0.2):
            for number, process in enumerate(crew):
                if process.exitcode is not None:
                    log.error("worker process died", number=number, status=process.exitcode)
                    stop.wait(_RESTART_PAUSE)
                    crew[number] = _start(settings, number, metrics_port)
        for process in crew:
            process.terminate()
        deadline = time.monotonic() + settings.worker.stop_timeout + 2.0
        for process in crew:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
    return 0


def _start(settings: Settings, number: int, metrics_port: int | None) -> SpawnProcess:
    port = None if metrics_port is None else metrics_port + number
    process = _SPAWN.Process(target=_child, args=(settings, number, port), name=f"tallystream-worker-{number}")
    process.start()
    return process


def _child(settings: Settings, number: int, metrics_port: int | None) -> None:
    named = replace(settings, worker=replace(settings.worker, name=f"{settings.worker.consumer}-{number}"))
    if number > 0:
        named = replace(named, archive=replace(settings.archive, url=""))  # one of them is enough
    run_one(named, logs.configure(), named.worker.consumer, metrics_port)
