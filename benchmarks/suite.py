"""The list of all cases, and the loop that runs them in rounds: each case once in a round."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import (
    drain,
    emit_cost,
    end_to_end,
    faststream_incr,
    incr_one,
    incr_pipelined,
    redis_benchmark,
    rules_drain,
    visible_latency,
)
from .measure import Sample, Skipped, Summary, summarize
from .server import Arena


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table; `group` is the letter that `--only` takes, and `ours` marks the lines of tallystream."""

    group: str
    name: str
    load: str
    run: Callable[[Arena], Sample]
    ours: bool = False
    in_chart: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a case: a summary of each figure, or the reason that it could not run."""

    case: Case
    figures: dict[str, Summary]
    skipped: str = ""


# The hot subject is not in the chart: a packed entry stores it as one number, so its bar would dwarf the others.
CASES = (
    Case("a", "one INCR at a time, redis-py", "zipf", incr_one.redis_py),
    Case("a", "the same, client and server on one core", "zipf", incr_one.redis_py_one_core),
    Case("a", "one INCR at a time, ioredis", "zipf", incr_one.ioredis),
    Case("b", "pipelined INCR, redis-py", "zipf", incr_pipelined.redis_py),
    Case("c", "redis-benchmark -P 64 INCR", "uniform over 100,000", redis_benchmark.pipelined),
    Case("d", "FastStream consumer, INCR per message", "zipf", faststream_incr.consumer),
    Case("e", "tallystream worker, backlog", "zipf", drain.zipf, ours=True),
    Case("e", "tallystream worker, all shipped rules", "zipf", drain.zipf_shipped_rules, ours=True),
    Case("e", "tallystream worker, backlog", "one hot subject", drain.hot, ours=True, in_chart=False),
    Case("e", "tallystream worker, backlog", "uniform over 1,000,000", drain.uniform, ours=True),
    Case("e", "tallystream worker, plain entries", "zipf", drain.plain, ours=True),
    Case("r", "totals, hours and days", "zipf", rules_drain.windows, ours=True),
    Case("r", "one vote per actor", "zipf", rules_drain.votes, ours=True, in_chart=False),
    Case("r", "limit per key and hour", "zipf", rules_drain.limits, ours=True, in_chart=False),
    Case("r", "decide() from 16 threads", "zipf", rules_drain.decisions, ours=True, in_chart=False),
    Case("f", "tallystream end to end", "zipf", end_to_end.produce_and_count, ours=True),
    Case("g", "emit() in the caller", "zipf", emit_cost.batches, ours=True),
    Case("h", "emit to visible", "zipf, 10,000 events/s", visible_latency.probe, ours=True),
)


def run(
    arena: Arena, cases: Sequence[Case], repeats: int, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Outcome]:
    """Run every case `repeats` times, and yield the outcome of each case at the end.

    Cases run in rounds, so that other load on the machine affects all of them alike. A case that raises `Skipped` does
    not run again.

    Args:
        arena: The server to run against.
        cases: The cases, in their order within each round.
        repeats: The number of rounds.
        tell: A function that is called before each case with a line of progress.
    """
    samples: dict[Case, list[Sample]] = {case: [] for case in cases}
    skipped: dict[Case, str] = {}
    for number in range(1, repeats + 1):
        for case in cases:
            if case in skipped:
                continue
            tell(f"round {number} of {repeats}: {case.group}. {case.name} ({case.load})")
            arena.clear()
            try:
                samples[case].append(case.run(arena))
            except Skipped as reason:
                skipped[case] = str(reason)
    for case in cases:
        if case in skipped:
            yield Outcome(case, {}, skipped[case])
        else:
            yield Outcome(case, summarize(samples[case]))
