"""Calculate the table of docs/scale.md with the plan: `python -m benchmarks.scale_table [COSTS]` prints its rows."""

import sys
from dataclasses import replace
from pathlib import Path

from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric
from tallystream_plan.explain import size
from tallystream_plan.load import ExpectedLoad
from tallystream_plan.sizing import plan
from tallystream_worker.capacity.costs import load_costs
from tallystream_worker.settings.settings import RetentionSettings, Settings

_VIEW = Metric(windows=("hour", "day"), retention={"hour": "2d", "day": "30d"}, top=100)
_STEPS = ((10**5, 10**6, 10, 0.005), (10**6, 10**7, 20, 0.02), (10**7, 10**8, 100, 0.2), (10**8, 10**9, 400, 1.0))
_NODE_MEMORY = 64 * 2**30


def main() -> int:
    """Print the rows of the table as Markdown; return 2 if the file of constants cannot be read."""
    try:
        costs = load_costs(Path(sys.argv[1]) if sys.argv[1:] else None)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    settings = replace(Settings(), retention=RetentionSettings(age="1h", bytes=0, backlog_bytes=0))
    for events, subjects, producers, linger in _STEPS:
        load = ExpectedLoad(events, subjects, {"view": _VIEW}, {"view": 1.0}, producers=producers, linger=linger)
        found = plan(load, costs, settings, node_memory=_NODE_MEMORY)
        cells = (
            f"{events:,}",
            f"{subjects:,}",
            f"{producers} x {linger * 1000:g} ms",
            f"{found.packing.entry_events:.0f}",
            str(found.partitions),
            str(found.primaries),
            f"{sum(found.server.values()):.1f}",
            str(found.workers),
            size(found.memory),
            size(found.traffic["from apps"]) + "/s",
            size(found.traffic["to the disk"]) + "/s",
            f"{found.producer:.1f}",
        )
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
