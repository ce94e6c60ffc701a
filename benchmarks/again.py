"""Compare the rates of a rebuild and an audit with that of the first count, on the same events and the same server.

python -m benchmarks.again [EVENTS]
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream_worker.process import logs
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.runtime.app import counting
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.settings.settings import RedisSettings, Settings

from .load import zipf
from .server import until


def timed(name: str, events: int, call: Callable[[], object]) -> float:
    """Call `call`, which processes `events` events; print and return its rate in events a second."""
    began = time.perf_counter()
    call()
    rate = events / (time.perf_counter() - began)
    print(f"{name:8} {rate:12,.0f} events/s")
    return rate


def main(events: int) -> None:
    """Append events, then count, rebuild and audit them, and print the rates and their ratios."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        settings = Settings(redis=RedisSettings(url=server.url))
        client = connect(server.url)
        with Producer(server.url) as producer:
            for subject in zipf(events):
                producer.emit("view", subject)
            producer.flush(300)

        def count() -> None:
            with counting(settings, structlog.wrap_logger(logs.configure(quiet=True))), Totals(server.url) as totals:
                until(
                    lambda: totals.run(query_ledger(totals.deployment.layout)).counted >= events,
                    "everything to be counted",
                )

        def rebuild() -> None:
            generation = propose(client, Deployment.create_or_load(client), settings.rules)
            with Rebuild(settings, Deployment.create_or_load(client), generation) as run:
                run.begin()
                run.catch_up()
                run.switch()

        def check() -> None:
            report = audit(client, Deployment.create_or_load(client), settings.rules)
            assert not report.differences  # noqa: S101  # the figure of a wrong count is worthless
            print(f"         {report.counters:,} counters, no difference")

        drained = timed("count", events, count)
        print(f"rebuild / count {timed('rebuild', events, rebuild) / drained:.2f}")
        print(f"audit / count {timed('audit', events, check) / drained:.2f}")
        client.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
