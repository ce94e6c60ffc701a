"""Runs the jobs of an ingest, in this process if one is enough, else in several, and reports their progress.

Jobs of which the server has lost events afterwards are run again.
"""

from __future__ import annotations

import multiprocessing
import queue
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.connect import connect
from tallystream.client.error_text import text_of
from tallystream.deployment import Deployment
from tallystream.errors import TallyError
from tallystream_worker.ingest.job import Job, run
from tallystream_worker.ingest.progress import IngestProgress
from tallystream_worker.ingest.sent import lost_sources
from tallystream_worker.process.barrier import confirm
from tallystream_worker.process.signals import start_child

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.process import BaseProcess
    from threading import Event

    from tallystream_worker.ingest.progress import Report
    from tallystream_worker.settings.settings import RedisSettings

_SPAWN: Final = multiprocessing.get_context("spawn")
_POLL: Final = 0.2

_TURNS: Final = 5
"""How often jobs are run again because the server has lost their events."""


class IngestFailed(TallyError):
    """Raised if another process of an ingest failed or died, or if the server lost events again after 5 repeated runs.

    The next run of the same command appends what is missing.
    """


class IngestRun:
    """Runs the jobs of an ingest until the server has what they appended.

    Call `run` once, then `run_lost` until it returns `False` or `stop` is set; `total` has the outcome.

    Args:
        jobs: The jobs to run.
        store: The server and namespace to append to.
        processes: The number of processes; with 1, or with one job, the jobs run in this process.
        stop: Ends the jobs early when it is set.
        report: Called with the progress of all jobs together from time to time; its result is ignored. If the jobs run
            in this process, a second thread may call it at the same time.
    """

    def __init__(self, jobs: Sequence[Job], store: RedisSettings, processes: int, stop: Event, report: Report) -> None:
        self._jobs = jobs
        self._store = store
        self._processes = processes
        self._stop = stop
        self._report = report
        self._latest: dict[int, IngestProgress] = {}
        self._turns = 0

    @property
    def total(self) -> IngestProgress:
        """The numbers of events and lines of all jobs by outcome; a new object at each access.

        Of a job that was run several times, it has the numbers of the last run; events that the server still has from
        an earlier run are in `known`. Files of bad lines may be read, to number these lines from the beginning of
        their file.
        """
        total = _sum(self._latest.values())
        total.number_from_file()
        return total

    def run(self) -> None:
        """Run all jobs, each once, until they are done or `stop` is set; return when no job runs any more.

        An error of a job ends the others early, or they are not run. Events that were appended stay.

        Raises:
            Exception: the errors of `job.run`, if the jobs run in this process.
            IngestFailed: such an error of another process; or another process died, and `stop` is not set.
        """
        self._run(range(len(self._jobs)))

    def lost(self) -> list[int]:
        """Return the numbers of the jobs whose appended events the server has lost; the first job has the number 0.

        Only segments that were read to their end are checked; if there are none, nothing is sent. First, wait until
        what the servers have is confirmed with the durability of the deployment (`memory` does not wait). Identities of
        files that the server has lost are stored again, and a deployment if there is none.

        Raises:
            Unconfirmed: the events are not confirmed in time.
            ConfigurationError, DeploymentChanged, KeyLost, DamagedValue: see `Deployment.create_or_load`.
            RedisError: the server does not answer, or refuses the commands.
        """
        segments = [segment for progress in self._latest.values() for segment in progress.segments]
        if not segments:
            return []
        client = connect(self._store.url)
        try:
            known = segments[0].partitions
            deployment = Deployment.create_or_load(client, None, self._store.namespace, unless_stored=known)
            confirm(client, deployment, "the events of the files are appended")
            sources = lost_sources(client, deployment.layout, segments)
        finally:
            client.close()
        return [
            number
            for number, progress in sorted(self._latest.items())
            if any(segment.source in sources for segment in progress.segments)
        ]

    def run_lost(self) -> bool:
        """Run the jobs again of which the server has lost events; return whether there were any.

        If it returns `True`, call it again, unless `stop` is set: the server may lose events while the jobs run. If
        `stop` is set, some jobs may not be run to their end, and the result is `True` all the same.

        Raises:
            IngestFailed: jobs were run again 5 times before, and the server has lost events once more; or see `run`.
            Exception: the errors of `lost` and of `run`.
        """
        if not (lost := self.lost()):
            return False
        path = self._jobs[lost[0]].path
        if self._turns == _TURNS:
            raise IngestFailed(
                f"{path}: the server has lost events of this file {_TURNS + 1} times after it had stored them. Find "
                "out why its data goes back to an older state, then run the same command again: it appends what is "
                "missing"
            )
        self._turns += 1
        self._run(lost)
        return True

    def _run(self, numbers: Sequence[int]) -> None:
        """Run jobs as `run` does; keep the last stream IDs of their earlier attempts."""
        earlier = {number: self._latest[number].last_ids for number in numbers if number in self._latest}
        try:
            if 1 in (self._processes, len(numbers)):
                self._in_process(numbers)
            else:
                self._in_processes(numbers)
        finally:
            for number, last_ids in earlier.items():
                self._latest[number].wait_for(last_ids)

    def _in_process(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if self._stop.is_set():
                break
            done = _sum(progress for other, progress in self._latest.items() if other != number)

            def report_total(progress: IngestProgress, done: IngestProgress = done) -> bool:
                sum_ = replace(done, examples=[], last_ids={})
                sum_.add(progress)
                sum_.waiting_for = progress.waiting_for
                self._report(sum_)
                return not self._stop.is_set()

            self._latest[number] = run(self._jobs[number], self._store, report_total)

    def _in_processes(self, numbers: Sequence[int]) -> None:
        tasks, results = _SPAWN.Queue(), _SPAWN.Queue()
        stopping = _SPAWN.Event()
        processes, stop = self._processes, self._stop
        for task in (*((number, self._jobs[number]) for number in numbers), *[None] * processes):
            tasks.put(task)
        workers = [
            _SPAWN.Process(target=_child, args=(self._store, tasks, results, stopping)) for _ in range(processes)
        ]
        left = len(numbers)
        with ExitStack() as stack:
            stack.callback(tasks.cancel_join_thread)  # jobs that no process takes any more must not delay the exit
            stack.callback(_end, workers, results)
            stack.callback(stopping.set)
            for process in workers:
                start_child(process)
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
                self._latest[number] = found
                left -= ended
                self._report(_sum(self._latest.values()))
            if left and not stop.is_set():
                raise IngestFailed("an ingest process died: run the same command again to append the remaining events")


def _end(workers: Sequence[BaseProcess], results: Any) -> None:
    """Wait until all processes have exited; read and drop their results, because a full queue keeps them running."""
    while any(process.is_alive() for process in workers):
        with suppress(queue.Empty):
            results.get(timeout=_POLL)


def _sum(parts: Iterable[IngestProgress]) -> IngestProgress:
    total = IngestProgress()
    for part in parts:
        total.add(part)
        total.waiting_for = total.waiting_for or part.waiting_for
    return total


def _child(store: RedisSettings, tasks: Any, results: Any, stopping: Any) -> None:
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
