"""The command `check`: validates a configuration file and prints what each metric stores."""

from __future__ import annotations

from pathlib import Path

from tallystream.rules.metrics import Metric
from tallystream.wire.window import DAY
from tallystream_worker.capacity.costs import MemoryCosts, load_costs
from tallystream_worker.capacity.footprint import parts
from tallystream_worker.cli.options import AsJson
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.maintenance.reaper import PRODUCER_SILENCE, SPOOL_SILENCE
from tallystream_worker.settings.load import load


def check(file: Path = Path("config/tallystream.toml"), /, *, json: AsJson = False) -> None:
    """Check a configuration file, and print what each metric stores and how many bytes a subject takes.

    It also prints the bytes that a producer and a dropped dead letter take. `tallystream plan` calculates the memory of
    a whole load.

    Parameters
    ----------
    file
        the configuration file
    """
    settings = load(file, environment={})
    memory = load_costs().memory
    rows = {name: explain(metric, memory) for name, metric in settings.rules.metric.items()}
    warnings = list(settings.rules.warnings())
    if json:
        print_json(
            {
                "file": str(file),
                "metrics": {
                    name: {"stores": stored, "bytes_per_subject": cost} for name, (stored, cost) in rows.items()
                },
                "bytes_per_producer": round(memory.producer),
                "bytes_per_dropped_dead_letter": round(memory.dropped),
                "ratios": sorted(settings.rules.ratio),
                "zone": settings.rules.zone,
                "warnings": warnings,
            }
        )
        return
    table = [[name, stored, f"{cost:,}"] for name, (stored, cost) in rows.items()]
    print_table(f"{file}: valid", ["metric", "stores", "bytes for each subject"], table)
    console.print(
        f"Also, in each partition: {memory.producer:.0f} bytes for each producer that has appended to it in the last "
        f"{PRODUCER_SILENCE // DAY:.0f} days (with a spool, {SPOOL_SILENCE // DAY:.0f} days), and {memory.dropped:.0f} "
        "bytes, which are kept for good, for each dropped dead letter of one event."
    )
    for warning in warnings:
        error_console.print(warning)


def explain(metric: Metric, memory: MemoryCosts) -> tuple[str, int]:
    """Return a text of what a metric stores, and about how many bytes of server memory one active subject takes.

    The figure is for one bucket of each window. Further buckets, actors and ids are not included.
    """
    kept = list(parts(metric, memory))
    return ", ".join(part.text for part in kept), round(sum(part.subject for part in kept))
