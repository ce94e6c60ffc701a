"""The command `check`: validates a configuration file and prints what each metric stores."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.changes import differences
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.window import DAY
from tallystream_worker.capacity.costs import MemoryCosts, load_costs
from tallystream_worker.capacity.footprint import parts
from tallystream_worker.cli.options import AsJson, RedisUrl
from tallystream_worker.cli.output import console, error_console, print_json, print_table
from tallystream_worker.maintenance.reaper import PRODUCER_SILENCE, SPOOL_SILENCE
from tallystream_worker.settings.load import load

if TYPE_CHECKING:
    from tallystream_worker.settings.settings import Settings


def check(file: Path = Path("config/tallystream.toml"), /, *, json: AsJson = False, redis: RedisUrl = None) -> None:
    """Check a configuration file, and print what each metric stores and how many bytes a subject takes.

    It also prints the bytes that a producer and a dropped dead letter take. `tallystream plan` calculates the memory of
    a whole load. Environment variables and the secrets of alerts are not read.

    With --redis, also print what a worker that starts with this file would change in the rules that are stored there,
    and which stored metrics it would keep although the file lacks them.

    Parameters
    ----------
    file
        the configuration file
    """
    settings = load(file, environment=None)
    memory = load_costs().memory
    rows = {name: explain(metric, memory) for name, metric in settings.rules.metric.items()}
    warnings = list(settings.rules.warnings())
    changes, kept = ([], []) if redis is None else _effect(settings, redis)
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
            | ({} if redis is None else {"changes": changes, "kept": kept})
        )
        return
    table = [[name, stored, f"{cost:,}"] for name, (stored, cost) in rows.items()]
    print_table(f"{file}: valid", ["metric", "stores", "bytes for each subject"], table)
    console.print(
        f"Also, in each partition: {memory.producer:.0f} bytes for each producer that has appended to it in the last "
        f"{PRODUCER_SILENCE // DAY:.0f} days (with a spool, {SPOOL_SILENCE // DAY:.0f} days), and {memory.dropped:.0f} "
        "bytes, which are kept for good, for each dropped dead letter of one event."
    )
    if redis is not None:
        console.print(f"a start would change: {'; '.join(changes) or 'nothing'}", soft_wrap=True)
        if kept:
            console.print(f"a start would keep, although the file lacks them: {', '.join(kept)}", soft_wrap=True)
    for warning in warnings:
        error_console.print(warning)


def _effect(settings: Settings, url: str) -> tuple[list[str], list[str]]:
    """Return what a start of a worker would change in the stored rules, in words, and the metrics that it would keep.

    The second list has the stored metrics that the file lacks; it is empty if the file states no metrics.

    Raises:
        ConfigurationError: the rules of the file contradict stored ones, this release cannot read the stored data, or
            the URL of the server cannot be used.
        DeploymentChanged, KeyLost, DamagedValue, redis.RedisError: see `Deployment.find`.
    """
    with closing(connect(url)) as client:
        deployment = Deployment.find(client, settings.redis.namespace)
    before = deployment.declared
    rules = settings.rules_over(before)
    deployment.refuse_gathering(rules)
    return differences(before or Rules({}), rules), settings.missing_from(before)


def explain(metric: Metric, memory: MemoryCosts) -> tuple[str, int]:
    """Return a text of what a metric stores, and about how many bytes of server memory one active subject takes.

    The figure is for one bucket of each window. Further buckets, actors, ids and leaderboards are not included.
    """
    kept = list(parts(metric, memory))
    return ", ".join(part.text for part in kept), round(sum(part.subject for part in kept))
