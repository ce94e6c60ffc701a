"""The command that explains a configuration before it is used."""

from __future__ import annotations

from pathlib import Path

from tallystream.rules import Metric
from tallystream_worker.cli.options import AsJson
from tallystream_worker.cli.output import print_json, print_table
from tallystream_worker.settings import load

# Bytes a subject of 13 bytes on Valkey 9.1, as `python -m benchmarks.memory` measures them.
TOTAL, FIELD, VOTES, VOTE, UNIQUE = 106, 41, 200, 32, 186


def check(file: Path = Path("config/tallystream.toml"), /, *, json: AsJson = False) -> None:
    """Check a configuration, and say what each metric stores and about what it costs.

    Parameters
    ----------
    file
        the configuration
    """
    settings = load(file, environment={})
    rows = {name: explain(metric) for name, metric in settings.rules.metric.items()}
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


def explain(metric: Metric) -> tuple[str, int]:
    """Return what a metric stores, and about how many bytes a subject costs that is active in every bucket now.

    Expired buckets cost nothing, so the figure is for one bucket of each window; actors and ids come on top.
    """
    if not metric.exact:
        return "sketch of 1 MiB for each partition, any number of subjects", 0
    stored, cost = ["total"], TOTAL
    for window in metric.windows:
        kept = metric.retention.get(window)
        stored.append(f"{window}s" + (f" for {kept}" if kept else ""))
        cost += FIELD
    if metric.top:
        stored.append(f"top {metric.top}")
    if metric.limit is not None:
        stored.append(f"limit {metric.limit:,} per {metric.per}")
        cost += FIELD
    if metric.once is not None:
        stored.append(f"a vote per actor ({metric.once}), {VOTE} bytes each")
        cost += VOTES
    if metric.unique is not None:
        stored.append(f"unique actors by {metric.unique}, up to 12 KiB")
        cost += UNIQUE
    if metric.floor is not None:
        stored.append(f"shown from {metric.floor}")
    return ", ".join(stored), cost
