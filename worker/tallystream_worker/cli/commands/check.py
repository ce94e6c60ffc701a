"""The command that explains a configuration before it is used."""

from __future__ import annotations

from pathlib import Path

from tallystream.rules.metrics import Metric
from tallystream_worker.capacity.costs import MemoryCosts, load_costs
from tallystream_worker.capacity.footprint import parts
from tallystream_worker.cli.options import AsJson
from tallystream_worker.cli.output import print_json, print_table
from tallystream_worker.settings.load import load


def check(file: Path = Path("config/tallystream.toml"), /, *, json: AsJson = False) -> None:
    """Check a configuration, and say what each metric stores and about what it costs.

    Parameters
    ----------
    file
        the configuration
    """
    settings = load(file, environment={})
    memory = load_costs().memory
    rows = {name: explain(metric, memory) for name, metric in settings.rules.metric.items()}
    if json:
        print_json(
            {
                "file": str(file),
                "metrics": {
                    name: {"stores": stored, "bytes_per_subject": cost} for name, (stored, cost) in rows.items()
                },
                "ratios": sorted(settings.rules.ratio),
                "zone": settings.rules.zone,
            }
        )
        return
    table = [[name, stored, f"{cost:,}"] for name, (stored, cost) in rows.items()]
    print_table(f"{file}: sound", ["metric", "stores", "bytes for each subject"], table)


def explain(metric: Metric, memory: MemoryCosts) -> tuple[str, int]:
    """Return what a metric stores, and about how many bytes a subject costs that is active in every bucket now.

    Expired buckets cost nothing, so the figure is for one bucket of each window; actors and ids come on top.
    """
    kept = list(parts(metric, memory))
    return ", ".join(part.text for part in kept), round(sum(part.subject for part in kept))
