"""Compare the read service with variants that use other components, by pairs of runs.

    python -m benchmarks.choices fast-path|server|compression|client|client-many|client-series
        [--pairs 21] [--seconds 1] [--connections 64]

Each variant is a process (see `choice_variants`); all variants of a case run from the beginning and read from the same
server. A pair is one run of the first variant and one run of another, one after the other. Requests a second depend on
the load of the machine. Processor time for a request (user and system, of the service and its children) hardly does.
The result is the median of the ratios of all pairs (other by first), with their lower and upper quartile.
The case `server` needs `uv pip install uvicorn httptools uvloop websockets`.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tallystream.producing.producer import Producer
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.settings.settings import RedisSettings, Settings

from .http_load import Loader, request

if TYPE_CHECKING:
    from collections.abc import Iterator

SUBJECTS = 10_000

ONE = [f"/v1/counters/article:{n * 37 % SUBJECTS}/view" for n in range(2_000)]
MANY = [
    "/v1/counters?metric=view" + "".join(f"&subject=article:{(n * 50 + i) * 37 % SUBJECTS}" for i in range(50))
    for n in range(200)
]
SERIES = [f"{path}?window=hour&last=24" for path in ONE]

CASES = {
    "fast-path": (["as_is", "router", "litestar_route", "asgi_mount"], ONE),
    "server": (["as_is", "uvicorn", "uvicorn_uvloop", "granian_process"], ONE),
    "compression": (["as_is", "litestar_gzip"], MANY),
    "client": (["as_is", "asyncio_client"], ONE),
    "client-many": (["as_is", "asyncio_client"], MANY),
    "client-series": (["as_is", "asyncio_client"], SERIES),
}


@dataclass(frozen=True)
class Run:
    """The figures of one run of a variant.

    Attributes:
        rate: Requests a second.
        cpu: Microseconds of processor time for a request.
        p99: The 99th percentile of the latency, in milliseconds.
        errors: The number of answers without success.
    """

    rate: float
    cpu: float
    p99: float
    errors: int


def main() -> None:
    """Run the pairs of a case, and print a line of JSON for each variant except the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--connections", type=int, default=64)
    given = parser.parse_args()
    names, paths = CASES[given.case]
    with (
        tempfile.TemporaryDirectory() as scratch,
        EmbeddedServer(Path(scratch)) as server,
        Loader() as load,
        ExitStack() as stack,
    ):
        fill(server.url)
        running = {name: stack.enter_context(variant(name, server.url)) for name in names}

        def run(name: str, seconds: float = given.seconds) -> Run:
            port, process = running[name]
            requests = [_request(path, name, packed=given.case == "compression") for path in paths]
            before = _cpu_seconds(process)
            found = load(port, requests, connections=given.connections, seconds=seconds)
            spent = _cpu_seconds(process) - before
            return Run(found.rate, spent / (found.rate * seconds) * 1e6, found.p99 * 1e3, found.errors)

        for name in names:
            run(name, 1)
        for name in names[1:]:
            print(json.dumps(compare(name, [(run(names[0]), run(name)) for _ in range(given.pairs)])), flush=True)


def compare(name: str, pairs: list[tuple[Run, Run]]) -> dict[str, object]:
    """Return the comparison of the variant `name` with the first one, from pairs of runs (first, other).

    It has the medians of both variants, and the median and quartiles of the ratios (other by first).
    """
    middle = statistics.median

    def spread(ratios: list[float]) -> list[float]:
        low, median, high = statistics.quantiles(ratios, n=4)
        return [round(value, 3) for value in (median, low, high)]

    return {
        "variant": name,
        "requests_per_second": [round(middle(run.rate for run in side)) for side in zip(*pairs, strict=True)],
        "rate_ratio": spread([b.rate / a.rate for a, b in pairs]),
        "cpu_us": [round(middle(run.cpu for run in side), 1) for side in zip(*pairs, strict=True)],
        "cpu_ratio": spread([b.cpu / a.cpu for a, b in pairs]),
        "p99_ms": [round(middle(run.p99 for run in side), 1) for side in zip(*pairs, strict=True)],
        "errors": [sum(run.errors for run in side) for side in zip(*pairs, strict=True)],
    }


def fill(url: str) -> None:
    """Count one event for each subject on the server at `url`."""
    settings = Settings(redis=RedisSettings(url=url))
    with counting(settings, logs.configure(quiet=True)), Producer(url) as producer:
        for n in range(SUBJECTS):
            producer.emit("view", f"article:{n}")
        producer.flush(60, wait="counted")


@contextmanager
def variant(name: str, url: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run a variant of the read service in a process until the block ends; yield its port and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.choice_variants", name, url, str(port)])
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def _request(path: str, name: str, *, packed: bool) -> bytes:
    if name in ("litestar_route", "asgi_mount"):
        path = path.replace("/v1/counters/", f"/{name}/")
    made = request("GET", path)
    return made.replace(b"\r\n\r\n", b"\r\nAccept-Encoding: gzip\r\n\r\n") if packed else made


def _cpu_seconds(process: psutil.Process) -> float:
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
