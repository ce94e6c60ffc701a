"""The command `demo`: runs everything on this machine, counts a generated load, and checks every counter.

The load is generated from a seed. Producer processes generate and emit it. Then this process generates the same load
again, adds it up in a dictionary, and compares the sums with the counters.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from prometheus_client import CollectorRegistry
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tallystream.producing.producer import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream_worker.cli.options import Port, Where, flag, listening, whole
from tallystream_worker.cli.output import console, error_console
from tallystream_worker.process import logs
from tallystream_worker.process.signals import start_child, stop_on_signals
from tallystream_worker.runtime.app import counting
from tallystream_worker.runtime.metrics import WorkerMetrics
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.service.server import serving

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from multiprocessing.context import SpawnProcess

    from tallystream_worker.settings.settings import Settings

PRODUCERS: Final = 2
"""Number of producer processes."""

SUBJECTS: Final = 20_000
"""Number of different subjects in the load."""

METRICS: Final = {"view": 80, "like": 12, "share": 5, "clap": 3}
"""The demo's metrics with their share of the load, in percent."""

TRICKLE: Final = 400
"""Events a second that the demo emits after it has printed the result."""

ACTORS: Final = 5_000
"""Number of different actors in the events after the result."""

STALL: Final = 60.0
"""Seconds without progress after which the demo gives up."""

_SPAWN: Final = multiprocessing.get_context("spawn")
_CHUNK: Final = 5_000


def demo(
    *,
    events: Annotated[int, whole("events to emit", 1)] = 1_000_000,
    once: Annotated[bool, flag("exit after the result")] = False,
    port: Port = None,
    seed: Annotated[int, whole("seed of the load: the same seed gives the same load")] = 1,
    where: Where = Where(),
) -> int:
    """Start an embedded server, a worker and the read service, emit a load, and check that every event was counted.

    If all counters are right, a small load is then emitted until Ctrl-C, except with --once. At the end, the data is
    removed. The exit status is 1 if a counter is wrong, counting stalls, or a producer fails; it is 130 if the demo is
    stopped before the result.
    """
    settings = listening(where.stated(), None, port)
    with stop_on_signals() as stop:
        return Demo(settings, events, seed, stop, serve_on=not once, port_is_given=port is not None).run()


def load(seed: int, events: int) -> Iterator[tuple[str, str]]:
    """Yield `events` random pairs `(metric, subject)`, most for few subjects: the same for the same seed and number."""
    draw = random.Random(seed)  # noqa: S311  # repeatable on purpose
    weights = list(accumulate(1 / (rank + 1) ** 1.05 for rank in range(SUBJECTS)))
    subjects = [f"article:{number}" for number in range(1, SUBJECTS + 1)]
    while events > 0:
        count = min(events, _CHUNK)
        metrics = draw.choices(list(METRICS), weights=list(METRICS.values()), k=count)
        yield from zip(metrics, draw.choices(subjects, cum_weights=weights, k=count), strict=True)
        events -= count


def emit_load(url: str, namespace: str, seed: int, events: int) -> None:
    """Emit the events of `load` and return when all are appended; the main function of a producer process."""
    with Producer(url, namespace=namespace) as producer:
        emit = producer.emit
        for metric, subject in load(seed, events):
            emit(metric, subject)
        producer.flush()


class Demo:
    """One run of the demo.

    Args:
        settings: The configuration; its server is replaced by an embedded one.
        events: Number of events to emit.
        seed: Seed of the load.
        stop: Ends the demo when it is set.
        serve_on: After the result, if it is right, keep serving with a small load until `stop` is set.
        port_is_given: The user chose the port; otherwise any free port is used if the default one is taken.
    """

    def __init__(
        self,
        settings: Settings,
        events: int,
        seed: int,
        stop: threading.Event,
        *,
        serve_on: bool,
        port_is_given: bool,
    ) -> None:
        self._settings = settings
        self._shares = [events // PRODUCERS + (number < events % PRODUCERS) for number in range(PRODUCERS)]
        self._seeds = [seed * 1000 + number for number in range(PRODUCERS)]
        self._events = events
        self._stop = stop
        self._serve_on = serve_on
        self._port_is_given = port_is_given

    def run(self) -> int:
        """Run the demo; return 0 if every event was counted once, 1 if not, 130 if `stop` was set before the result.

        It is 1 also if counting stalls, or a producer process fails. With `serve_on`, after the result 0, return only
        when `stop` is set. Errors of the server, the worker and the service are raised.
        """
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tally-", ignore_cleanup_errors=True))
            server = stack.enter_context(EmbeddedServer(Path(folder), is_scratch=True))
            settings = replace(self._settings, redis=replace(self._settings.redis, url=server.url))
            registry = CollectorRegistry()
            stack.enter_context(counting(settings, logs.configure(quiet=True), [WorkerMetrics(registry)]))
            url = stack.enter_context(serving(settings, registry, any_port=not self._port_is_given))
            error_console.print(f"server     {server.url}\ndashboard  {url}")
            totals = stack.enter_context(Totals(server.url, namespace=settings.redis.namespace))
            began = time.monotonic()
            producers: list[SpawnProcess] = []
            try:
                for seed, share in zip(self._seeds, self._shares, strict=True):
                    producers.append(self._producer(settings, seed, share))
                finished = self._watch(totals, producers, began)
            finally:
                for process in producers:
                    process.terminate()
                    process.join()
            if not finished:
                return 130 if self._stop.is_set() else self._stalled(totals)
            status = self._result(totals, time.monotonic() - began)
            if self._serve_on and status == 0:
                error_console.print(
                    f"now emitting {TRICKLE} events/s: open {url} (one counter: {url}/v1/counters/article:1)\n"
                    "Ctrl-C stops the demo and removes its data",
                    soft_wrap=True,
                )
                self._go_on(settings)
            return status

    def _go_on(self, settings: Settings) -> None:
        """Emit at most `TRICKLE` events a second until `stop` is set, so that the dashboard shows changes."""
        draw = random.Random()  # noqa: S311  # no secret depends on it
        with Producer(settings.redis.url, namespace=settings.redis.namespace) as producer:
            for metric, subject in load(self._seeds[-1] + 1, sys.maxsize):
                producer.emit(metric, subject, actor=f"user:{draw.randrange(ACTORS)}" if metric == "view" else None)
                if self._stop.wait(1 / TRICKLE):
                    return

    def _producer(self, settings: Settings, seed: int, share: int) -> SpawnProcess:
        args = (settings.redis.url, settings.redis.namespace, seed, share)
        process = _SPAWN.Process(target=emit_load, args=args, daemon=True)
        start_child(process)
        return process

    def _watch(self, totals: Totals, producers: list[SpawnProcess], began: float) -> bool:
        """Show the progress until everything is counted, and return `True`.

        Return `False` at a stop, after a stall of 60 seconds, or if a producer process has failed.
        """
        moved, counted_before = time.monotonic(), -1
        with Live(console=error_console, refresh_per_second=8, transient=True) as live:
            while not self._stop.is_set():
                ledger = totals.run(query_ledger(totals.deployment.layout))
                live.update(self._view(totals, ledger.appended, ledger.counted, time.monotonic() - began))
                if ledger.counted >= self._events and all(process.exitcode == 0 for process in producers):
                    return True
                if ledger.counted + ledger.appended != counted_before:
                    moved, counted_before = time.monotonic(), ledger.counted + ledger.appended
                if time.monotonic() - moved > STALL or any(process.exitcode for process in producers):
                    return False
                self._stop.wait(0.1)
        return False

    def _view(self, totals: Totals, appended: int, counted: int, seconds: float) -> Table:
        view = Table.grid(padding=(0, 3))
        view.add_row("appended", f"{appended:,}", f"{appended / seconds:,.0f} events/s")
        view.add_row("counted", f"{counted:,}", f"{counted / seconds:,.0f} events/s")
        first = [(f"article:{number}", "view") for number in range(1, 6)]
        for each in totals.get_many(first).counters:
            view.add_row(Text(each.subject, style="dim"), f"{each.value:,}", Text("views", style="dim"))
        return view

    def _stalled(self, totals: Totals) -> int:
        ledger = totals.run(query_ledger(totals.deployment.layout))
        error_console.print(
            f"gave up: {ledger.counted:,} of {self._events:,} events were counted, then progress stopped"
        )
        return 1

    def _result(self, totals: Totals, seconds: float) -> int:
        """Compare every counter with the sums of the same load; print the result and return the exit status."""
        expected: Counter[tuple[str, str]] = Counter()
        for seed, share in zip(self._seeds, self._shares, strict=True):
            expected.update((subject, metric) for metric, subject in load(seed, share))
        names = [(f"article:{number}", metric) for number in range(1, SUBJECTS + 1) for metric in METRICS]
        found: dict[tuple[str, str], int] = {}
        remaining = iter(names)
        while chunk := list(islice(remaining, _CHUNK)):
            found |= totals.get_many(chunk).values
        wrong = [name for name in names if found[name] != expected[name]]
        rate = f"{self._events / seconds:,.0f} events/s end to end" if seconds else ""
        if not wrong and sum(found.values()) == self._events:
            console.print(
                f"counted exactly: {self._events:,} of {self._events:,} events over {len(expected):,} counters"
                f" in {seconds:.1f} s ({rate})",
                soft_wrap=True,
            )
            return 0
        console.print(f"NOT counted exactly: {len(wrong):,} of {len(names):,} counters differ")
        for subject, metric in wrong[:20]:
            name = (subject, metric)
            console.print(f"  {subject} {metric}: expected {expected[name]:,}, found {found[name]:,}")
        return 1
