"""Measure the bytes an event and the events a second of the archive: `python -m benchmarks.archive [--events N]`."""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.server.embedded import EmbeddedServer

from .load import METRIC, zipf


def main() -> None:
    """Archive a Zipf load, read it back, and print the figures as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--events", type=int, default=2_000_000)
    events = arguments.parse_args().events
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder) / "data") as server:
        client = connect(server.url, timeout=60)
        deployment = Deployment.create_or_load(client)
        client.hset(deployment.layout.meta, "rules", publish(Rules({METRIC: Metric()})))
        with Producer(server.url) as producer:
            for subject in zipf(events):
                producer.emit(METRIC, subject)
        stream = sum(client.memory_usage(keys.stream, samples=0) or 0 for keys in deployment.layout.keys)
        store = Store(str(Path(folder) / "archive"))
        began = time.perf_counter()
        written = Archive(client, store, deployment).run_once(settled=0)
        seconds = time.perf_counter() - began
        assert written == events  # noqa: S101
        size = sum(path.stat().st_size for path in Path(folder, "archive").rglob("*.parquet"))
        began = time.perf_counter()
        kinds = Counter(len(entry.fields) for n in range(deployment.layout.partitions) for entry in entries(store, n))
        figures = {
            "events": events,
            "entries": sum(kinds.values()),
            "stream_bytes_per_event": round(stream / events, 2),
            "archive_bytes_per_event": round(size / events, 2),
            "written_events_per_second": round(events / seconds),
            "read_events_per_second": round(events / (time.perf_counter() - began)),
        }
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
