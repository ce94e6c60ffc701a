"""Measure reads over HTTP of one counter a request, with 64 connections to one process of the read service.

    python -m benchmarks.http_reads [--seconds 10] [--connections 64]

The goal is 8,000 reads a second with a p99 below 10 ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from tallystream.producing.producer import Producer
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.settings.settings import RedisSettings, Settings

from .http_load import cpu_seconds, load, request, service

SUBJECTS = 10_000


def main() -> None:
    """Count a load, read its counters, and print the figures as one line of JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--connections", type=int, default=64)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch, EmbeddedServer(Path(scratch)) as server:
        settings = Settings(redis=RedisSettings(url=server.url))
        with counting(settings, logs.configure(quiet=True)), Producer(server.url) as producer:
            for n in range(SUBJECTS):
                producer.emit("view", f"article:{n}")
            producer.flush(60, wait="counted")
        requests = [request("GET", f"/v1/counters/article:{n * 37 % SUBJECTS}/view") for n in range(2_000)]
        with service(server.url) as (port, process):
            load(port, requests, connections=given.connections, seconds=1)
            before = cpu_seconds(process)
            found = load(port, requests, connections=given.connections, seconds=given.seconds)
            spent = (cpu_seconds(process) - before) / (found.rate * given.seconds)
    figures = {
        "reads_per_second": round(found.rate),
        "p50_ms": round(found.p50 * 1e3, 2),
        "p99_ms": round(found.p99 * 1e3, 2),
        "service_cpu_us_per_read": round(spent * 1e6, 1),
        "errors": found.errors,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
