"""The command `plan`: calculates and prints what a load needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Column, Table

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import MAX_PARTITIONS
from tallystream_plan.explain import PlanLine, document, drivers, lines
from tallystream_plan.load import ExpectedLoad
from tallystream_plan.sizing import plan as make
from tallystream_worker.capacity.costs import load_costs
from tallystream_worker.cli.options import DAY, AsJson, number, positive, whole
from tallystream_worker.cli.output import console, print_json
from tallystream_worker.settings.load import load
from tallystream_worker.settings.settings import Settings

GIB = 2**30
"""Bytes of a GiB."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Expected:
    """The options of `plan`: the expected load and the servers; `load` makes an `ExpectedLoad` of them.

    `node_memory` is in GiB, `linger` in seconds; `retention` is a duration such as `7d`.
    """

    events_per_second: Annotated[float, positive("events per second at the peak", 1e15)]
    subjects: Annotated[int, whole("different subjects in a year", 1, 10**15)]
    metric: Annotated[
        tuple[str, ...],
        Parameter(negative="", help="declared metric, NAME or NAME=SHARE of the events; repeatable; default the first"),
    ] = ()
    actors: Annotated[int, whole("different actors of a subject in a year; 0: events have no actor", 0, 10**15)] = 0
    retention: Annotated[str | None, Parameter(help="time for which entries are kept; default as configured")] = None
    producers: Annotated[int, whole("number of processes that emit events", 1, 10**15)] = 10
    linger: Annotated[float, number("seconds that an event waits for others in its entry", 0, DAY)] = 0.005
    skew: Annotated[float, number("skew of the subjects: Zipf exponent, 0 for uniform", 0, 3)] = 1.0
    partitions: Annotated[
        int | None, whole("fixed number of partitions; default as few as suffice", 1, MAX_PARTITIONS)
    ] = None
    replicas: Annotated[int, whole("replicas of each primary", 0, 100)] = 1
    node_memory: Annotated[float, positive("GiB of memory of one server", 1e6)] = 16.0

    def load(self, settings: Settings) -> ExpectedLoad:
        """Return the load to calculate with; its metrics have the rules that the settings declare.

        Metrics without a share get equal parts of what the other shares leave. Of a metric that is given twice, the
        last share counts. Without `metric`, all events are of the first declared metric.

        Raises:
            ConfigurationError: an option is out of range, a metric is not declared (or none is), a share is not a
                number more than 0, or the shares do not add up to 1 (if a metric has none: not to less than 1).
        """
        shares = self._shares(settings)
        rules = {name: settings.rules.metric[name] for name in shares}
        return ExpectedLoad(
            self.events_per_second, self.subjects, rules, shares, self.actors, self.producers, self.linger, self.skew
        )

    def _shares(self, settings: Settings) -> dict[str, float]:
        declared = settings.rules.metric
        given: dict[str, float | None] = {}
        for text in self.metric or (next(iter(declared), ""),):
            name, _, share = text.partition("=")
            if name not in declared:
                known = ", ".join(declared) or "none"
                raise ConfigurationError(
                    f"--metric {name}: is not declared; declared are {known}. Name another file with --config"
                )
            try:
                given[name] = float(share) if share else None
            except ValueError:
                raise ConfigurationError(f"--metric {text}: the share must be a number, such as {name}=0.1") from None
        stated = sum(share for share in given.values() if share is not None)
        others = sum(share is None for share in given.values())
        if (others and not stated < 1) or (not others and not math.isclose(stated, 1)):
            raise ConfigurationError(
                f"--metric: the shares add up to {stated:g}: make the sum 1, or leave a rest for the others"
            )
        return {name: (1 - stated) / others if share is None else share for name, share in given.items()}


def plan(
    expected: Expected,
    *,
    config: Annotated[
        Path | None,
        Parameter(help="configuration file; default tallystream.toml or config/tallystream.toml, if it exists"),
    ] = None,
    costs: Annotated[
        Path | None, Parameter(help="costs of your machines, measured by: python -m benchmarks.costs --into FILE")
    ] = None,
    json: AsJson = False,
) -> None:
    """Print the partitions, primaries, workers, memory and network traffic that a load needs, and its largest costs.

    Environment variables and the secrets of alerts are not read. With `--retention`, only the age bounds the streams,
    not their bytes. `--json` prints the same plan without the reasons.
    """
    settings = load(config, environment=None)
    if expected.retention is not None:
        # Without a bound in bytes, so that the plan is for this age.
        kept = replace(settings.retention, age=expected.retention, bytes=0, backlog_bytes=0)
        settings = replace(settings, retention=kept)
    constants = load_costs(costs)
    asked = expected.load(settings)
    room = expected.node_memory * GIB
    found = make(asked, constants, settings, node_memory=room, partitions=expected.partitions)
    if json:
        print_json(document(asked, found, constants, settings, expected.replicas))
        return
    _print("what it needs", lines(asked, found, constants, settings, expected.replicas, room))
    _print("what costs most", drivers(found))
    console.print(f"Calculated from costs measured with {constants.software} on {constants.machine}.")


def _print(title: str, rows: Sequence[PlanLine]) -> None:
    table = Table("", Column("figure", justify="right", no_wrap=True), "because", title=title, title_justify="left")
    for line in rows:
        table.add_row(line.name, line.figure, line.because)
    console.print(table)
