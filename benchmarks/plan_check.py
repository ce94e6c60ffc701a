"""Compare the figures of `tallystream plan` with measurements of loads that its constants were not measured with.

Run: `python -m benchmarks.plan_check`.

Each load goes through a real producer, a real server and the counting loop in four partitions. A table shows the
figures of the plan, from `costs.json` or `--costs FILE`, next to the measured ones. These are the least of three
rounds; the constants are such minima too. Times are only comparable if the machine is as busy as it was when the
constants were measured: `--fresh` measures them first.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import redis
from rich.console import Console
from rich.table import Table

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream_plan.load import ExpectedLoad
from tallystream_plan.packing import pack
from tallystream_plan.processor import server_seconds, worker_seconds
from tallystream_plan.storage import entry_bytes
from tallystream_worker.capacity.costs import Costs, load_costs
from tallystream_worker.capacity.footprint import parts
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.server.embedded import EmbeddedServer

from . import costs as pieces
from .memory import held

_PARTITIONS: Final = 4
_ALLOWED: Final = 0.25
_ROUNDS: Final = 3


@dataclass(frozen=True)
class Case:
    """A load.

    Attributes:
        name: A description for the table.
        metric: The rules of the events.
        events: The number of events.
        subjects: The number of subjects.
        skew: The skew of the subjects: the Zipf exponent (0 = uniform).
        actors: The number of actors of each subject, each with one event; subjects then take turns. 0 for events
            without actors.
    """

    name: str
    metric: Metric
    events: int
    subjects: int
    skew: float
    actors: int = 0


CASES: Final = (
    Case("zipf 1.05, hours and days", Metric(windows=("hour", "day")), 400_000, 100_000, 1.05),
    Case(
        "zipf 0.8, all of `view` but uniques", Metric(windows=("hour", "day", "month"), top=100), 300_000, 50_000, 0.8
    ),
    Case("all alike, a limit", Metric(limit=100, per="day"), 200_000, 70_000, 0.0),
    Case("votes, 5 actors a post", Metric(once="forever"), 60_000, 12_000, 0.0, 5),
)


def measure(case: Case) -> dict[str, float]:
    """Run a load in three rounds; return the least of each figure for an event, in microseconds or bytes."""
    rounds = [_measure(case) for _ in range(_ROUNDS)]
    return {name: min(each[name] for each in rounds) for name in rounds[0]}


def _measure(case: Case) -> dict[str, float]:
    weights = np.arange(1, case.subjects + 1, dtype=np.float64) ** -case.skew
    draws = np.searchsorted(np.cumsum(weights / weights.sum()), np.random.default_rng(7).random(case.events))
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(server.url)
        client.config_set("auto-aof-rewrite-percentage", 0)
        layout = Deployment.create_or_load(client, _PARTITIONS).layout
        rules = Rules({"view": case.metric})
        client.hset(layout.meta, "rules", publish(rules))
        consumers = []
        for partition, keys in enumerate(layout.keys):
            fetch = Fetch(client, keys, "check")
            fetch.ensure_group()
            consumers.append(CountingLoop(client, layout, partition, fetch, Fold(layout, partition, rules)))
        before = held(client)
        spent = _server(client)
        with Producer(server.url, linger=5.0) as producer:
            for at, draw in enumerate(draws.tolist() if not case.actors else np.arange(case.events) % case.subjects):
                who = f"user:{at // case.subjects * 7919 % 1_000_000:06}" if case.actors else None
                producer.emit("view", f"article:{min(draw, case.subjects - 1):05}", actor=who)
            producer.flush(120)
        began = time.thread_time()
        for consumer in consumers:
            while consumer.run_once():
                pass
        folding = time.thread_time() - began
        stream = sum(int(client.memory_usage(keys.stream, samples=0) or 0) for keys in layout.keys)
        spent = _server(client) - spent
        client.delete(*(keys.stream for keys in layout.keys))
        figures = {
            "server, us": spent * 1e6 / case.events,
            "worker, us": folding * 1e6 / case.events,
            "log, bytes": stream / case.events,
            "counters, bytes": (held(client) - before) / case.events,
        }
        client.close()
    return figures


def predict(case: Case, constants: Costs) -> dict[str, float]:
    """Return the figures that the plan calculates for a load, at a rate that fills the entries."""
    load = ExpectedLoad(1e9, case.subjects, {"view": case.metric}, {"view": 1.0}, case.actors, 1, 5.0, case.skew)
    seen = case.subjects if case.actors else load.distinct(case.events)
    # The worker remembers no subject at the start.
    packing = replace(pack(load, _PARTITIONS, 3000), fresh=load.events * seen / case.events)
    votes = min(case.actors or 1, case.events / seen)
    stored = sum(
        seen * (part.subject + part.actor * votes) + part.partition * _PARTITIONS
        for part in parts(case.metric, constants.memory)
    )
    return {
        "server, us": sum(server_seconds(load, packing, constants).values()) / load.events * 1e6,
        "worker, us": worker_seconds(packing, constants) / load.events * 1e6,
        "log, bytes": entry_bytes(packing, constants) / load.events,
        "counters, bytes": stored / case.events,
    }


def _server(client: redis.Redis) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])


def main() -> int:
    """Compare each figure of each load with the plan; return 1 if one is off by more than a quarter, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_check", description=__doc__.partition("\n")[0])
    parser.add_argument("--costs", type=Path, help="file with the constants; default: those of the product")
    parser.add_argument("--fresh", action="store_true", help="measure the constants first")
    arguments = parser.parse_args()
    console = Console()
    constants = pieces.collect(console.print) if arguments.fresh else load_costs(arguments.costs)
    table = Table("load", "figure, an event", "planned", "measured", "planned / measured")
    worst = 0.0
    for case in CASES:
        planned, found = predict(case, constants), measure(case)
        for name, figure in found.items():
            ratio = planned[name] / figure
            worst = max(worst, abs(ratio - 1))
            table.add_row(case.name, name, f"{planned[name]:.3f}", f"{figure:.3f}", f"{ratio:.2f}")
    console.print(table)
    console.print(f"off by at most {worst:.0%}; the plan should be off by at most {_ALLOWED:.0%}")
    return int(worst > _ALLOWED)


if __name__ == "__main__":
    raise SystemExit(main())
