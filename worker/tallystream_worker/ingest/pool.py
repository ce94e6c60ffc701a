"""Runs the jobs of an ingest, in this process if one is enough, else in several, and reports their progress."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.error_text import text_of
from tallystream.errors import TallyError
from tallystream_worker.ingest.job import Job, run
from tallystream_worker.ingest.progress import IngestProgress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Event

    from tallystream_worker.ingest.progress import Report
    from tallystream_worker.settings.settings import RedisSettings

_SPAWN: Final = multiprocessing.get_context("spawn")


class IngestFailed(TallyError):
    """A process of an ingest failed or died. Its appended events are kept, and the next run continues after them."""


def run_all(jobs: Sequence[Job], store: RedisSettings, processes: int, stop: Event, report: Report) -> IngestProgress:
    """Run jobs until all are done or `stop` is set; then wait until the present chunks are sent.

    Args:
        jobs: The jobs to run.
        store: The server and namespace to append to.
        processes: The number of processes; with 1, or with one job, the jobs run in this process.
        stop: Ends the jobs early when it is set.
        report: Called with the progress of all jobs together from time to time; its result is ignored.

    Returns:
        The numbers of events and lines of all jobs by outcome, so far if `stop` was set.

    Raises:
        SourceError, ConfigurationError, RedisError: see `job.run`; only if the jobs run in this process.
        IngestFailed: the same errors, or the death, of another process.
    """
    if processes == 1 or len(jobs) == 1:
        total = IngestProgress()
        for job in jobs:
            if stop.is_set():
                break

            def report_total(progress: IngestProgress, done: IngestProgress = total) -> bool:
                sum_ = replace(done, examples=[])
                sum_.add(progress)
                sum_.waiting_for = progress.waiting_for
                report(sum_)
                return not stop.is_set()

            total.add(run(job, store, report_total))
        return total
    return _in_processes(jobs, store, processes, stop, report)


def _in_processes(
    jobs: Sequence[Job], store: RedisSettings, processes: int, stop: Event, report: Report
) -> IngestProgress:
    tasks, results = _SPAWN.Queue(), _SPAWN.Queue()
    stopping = _SPAWN.Event()
    for number, job in enumerate(jobs):
        tasks.put((number, job))
    workers = [_SPAWN.Process(target=_child, args=(store, tasks, results, stopping)) for _ in range(processes)]
    latest: dict[int, IngestProgress] = {}
    left = len(jobs)
    with ExitStack() as stack:
        for process in workers:
            process.start()
            stack.callback(process.join)
        stack.callback(stopping.set)
        for _ in workers:
            tasks.put(None)
        while left and any(process.is_alive() for process in workers):
            if stop.is_set():
                stopping.set()
            try:
                number, found, ended = results.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(found, str):
                raise IngestFailed(found)
            latest[number] = found
            left -= ended
            report(_sum(latest.values()))
        if left and not stop.is_set():
            raise IngestFailed("an ingest process died: run the same command again to append the remaining events")
    return _sum(latest.values())


def _sum(parts: Any) -> IngestProgress:
    total = IngestProgress()
    for part in parts:
        total.add(part)
        total.waiting_for = total.waiting_for or part.waiting_for
    return total


def _child(store: RedisSettings, tasks: Any, results: Any, stopping: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    parent = multiprocessing.parent_process()

    def goes_on() -> bool:
        return not stopping.is_set() and (parent is None or parent.is_alive())

    while goes_on() and (task := tasks.get()) is not None:
        number, job = task

        def report(progress: IngestProgress, number: int = number) -> bool:
            results.put((number, progress, 0))
            return goes_on()

        try:
            results.put((number, run(job, store, report), 1))
        except Exception as error:  # noqa: BLE001  # the parent ends the run with it
            results.put((number, text_of(error), 1))
