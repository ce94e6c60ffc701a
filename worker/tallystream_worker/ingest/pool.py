"""Runs the jobs of an ingest, in this process if one is enough, else in several, and reports their progress."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.error_text import text_of
from tallystream.errors import TallyError
from tallystream_worker.ingest.job import Job, run
from tallystream_worker.ingest.progress import IngestProgress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess
    from threading import Event

    from tallystream_worker.ingest.progress import Report
    from tallystream_worker.settings.settings import RedisSettings

_SPAWN: Final = multiprocessing.get_context("spawn")
_POLL: Final = 0.2


class IngestFailed(TallyError):
    """A process of an ingest failed or died. Its appended events are kept, and the next run continues after them."""


def run_all(jobs: Sequence[Job], store: RedisSettings, processes: int, stop: Event, report: Report) -> IngestProgress:
    """Run jobs until all are done or `stop` is set; then wait until the present chunks are sent.

    Args:
        jobs: The jobs to run.
        store: The server and namespace to append to.
        processes: The number of processes; with 1, or with one job, the jobs run in this process.
        stop: Ends the jobs early when it is set.
        report: Called with the progress of all jobs together from time to time; its result is ignored. If the jobs run
            in this process, a second thread may call it at the same time.

    Returns:
        The numbers of events and lines of all jobs by outcome, so far if `stop` was set.

    Raises:
        Exception: the errors of `job.run`; only if the jobs run in this process.
        IngestFailed: the same errors, or the death, of another process.
    """
    if 1 in (processes, len(jobs)):
        total = _in_process(jobs, store, stop, report)
    else:
        total = _in_processes(jobs, store, processes, stop, report)
    total.number_from_file()
    return total


def _in_process(jobs: Sequence[Job], store: RedisSettings, stop: Event, report: Report) -> IngestProgress:
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


def _in_processes(
    jobs: Sequence[Job], store: RedisSettings, processes: int, stop: Event, report: Report
) -> IngestProgress:
    tasks, results = _SPAWN.Queue(), _SPAWN.Queue()
    stopping = _SPAWN.Event()
    for task in (*enumerate(jobs), *[None] * processes):
        tasks.put(task)
    workers = [_SPAWN.Process(target=_child, args=(store, tasks, results, stopping)) for _ in range(processes)]
    latest: dict[int, IngestProgress] = {}
    left = len(jobs)
    with ExitStack() as stack:
        stack.callback(tasks.cancel_join_thread)  # jobs that no process takes any more must not delay the exit
        stack.callback(_end, workers, results)
        stack.callback(stopping.set)
        for process in workers:
            process.start()
        while left:
            if stop.is_set():
                stopping.set()
            # Look first: a process that has exited has sent all its results, so an empty queue is then final.
            is_running = any(process.is_alive() for process in workers)
            try:
                number, found, ended = results.get(timeout=_POLL)
            except queue.Empty:
                if not is_running:
                    break
                continue
            if isinstance(found, str):
                raise IngestFailed(found)
            latest[number] = found
            left -= ended
            report(_sum(latest.values()))
        if left and not stop.is_set():
            raise IngestFailed("an ingest process died: run the same command again to append the remaining events")
    return _sum(latest.values())


def _end(workers: Sequence[BaseProcess], results: Any) -> None:
    """Wait until all processes have exited; read and drop their results, because a full queue keeps them running."""
    while any(process.is_alive() for process in workers):
        with suppress(queue.Empty):
            results.get(timeout=_POLL)


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
