"""The command `check`: validates a configuration file and prints what each metric stores."""

from __future__ import annotations

from pathlib import Path

from tallystream.rules.metrics import Metric
from tallystream_worker.capacity.costs import MemoryCosts, load_costs
from tallystream_worker.capacity.footprint import parts
from tallystream_worker.cli.options import AsJson
from tallystream_worker.cli.output import error_console, print_json, print_table
from tallystream_worker.settings.load import load


def check(file: Path = Path("config/tallystream.toml"), /, *, json: AsJson = False) -> None:
    """Check a configuration file, and print what each metric stores and how many bytes a subject takes.

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
                "ratios": sorted(settings.rules.ratio),
                "zone": settings.rules.zone,
                "warnings": warnings,
            }
        )
        return
    table = [[name, stored, f"{cost:,}"] for name, (stored, cost) in rows.items()]
    print_table(f"{file}: valid", ["metric", "stores", "bytes for each subject"], table)
    for warning in warnings:
        error_console.print(warning)


def explain(metric: Metric, memory: MemoryCosts) -> tuple[str, int]:
    """Return a text of what a metric stores, and about how many bytes of server memory one active subject takes.

    The figure is for one bucket of each window. Further buckets, actors and ids are not included.
    """
    kept = list(parts(metric, memory))
    return ", ".join(part.text for part in kept), round(sum(part.subject for part in kept))
