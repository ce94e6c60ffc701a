"""Measure events over HTTP, in lists of 500 a request, with 8 connections to one process of the read service.

    python -m benchmarks.http_events [--seconds 10] [--connections 8]

The goal is 100,000 events a second, each in the stream before the answer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from tallystream.client.connect import connect
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.settings.settings import RedisSettings, Settings

from .http_load import cpu_seconds, load, request, service

LIST = 500


def main() -> None:
    """Send lists of events for some seconds, and print the figures as one line of JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--connections", type=int, default=8)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch, EmbeddedServer(Path(scratch)) as server:
        settings = Settings(redis=RedisSettings(url=server.url))
        deployment = open_deployment(settings)
        requests = [
            request("POST", "/v1/events", json.dumps(
                [{"metric": "view", "subject": f"article:{(n * LIST + i) * 37 % 10_000}"} for i in range(LIST)]
            ).encode())
            for n in range(50)
        ]  # fmt: skip
        with service(server.url) as (port, process):
            load(port, requests, connections=given.connections, seconds=1)
            before, ledger = cpu_seconds(process), appended(server.url, deployment.layout.keys)
            found = load(port, requests, connections=given.connections, seconds=given.seconds)
            events = appended(server.url, deployment.layout.keys) - ledger
            spent = (cpu_seconds(process) - before) / events
    figures = {
        "events_per_second": round(events / given.seconds),
        "p50_ms": round(found.p50 * 1e3, 2),
        "p99_ms": round(found.p99 * 1e3, 2),
        "service_cpu_us_per_event": round(spent * 1e6, 2),
        "errors": found.errors,
    }
    print(json.dumps(figures))


def appended(url: str, partitions: object) -> int:
    """Return the number of appended events in the ledgers; `partitions` are the keys of each partition."""
    with connect(url) as client:
        return sum(int(client.hget(keys.topic_ledger, "appended") or 0) for keys in partitions)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
