"""The report of a benchmark run, as tables for people and as JSON for programs and the README."""

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from .measure import RATE, Summary
from .suite import Outcome

# The lines for figures other than rates; a line is printed if the case has every figure in it.
_DETAILS = (
    "server busy {apply_p50_ms:.1f} ms a call, p99 {apply_p99_ms:.1f} ms",
    "server CPU {server_cpu_us_per_event:.2f} µs an event",
    "stream {stream_bytes_per_event:.1f} bytes an event",
    "worker memory at most {worker_peak_mib:.0f} MiB",
    "{emit_median_ns:,.0f} ns a call, p99 {emit_p99_ns:,.0f} ns",
    "p50 {visible_p50_ms:.1f} ms, p99 {visible_p99_ms:.1f} ms",
)


def document(client: redis.Redis, outcomes: Sequence[Outcome], *, repeats: int, quick: bool) -> dict[str, Any]:
    """Return all results of a run, with the machine and software it ran on, as values for JSON."""
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": system(),
            "python": platform.python_version(),
            "server": software(client.info("server")),
            "durability": "appendonly yes, appendfsync everysec",
        },
        "repeats": repeats,
        "quick": quick,
        "cases": [_case(outcome, outcomes) for outcome in outcomes],
    }


def print_tables(console: Console, results: dict[str, Any]) -> None:
    """Print a table of the rates of all cases, then a table of their other figures."""
    machine = results["machine"]
    rates = Table(
        title="Counting events, side by side on one server",
        caption=f"{machine['server']}, {machine['durability']}; Python {machine['python']}; "
        f"{machine['cores']} cores, {machine['processor']}; "
        f"medians of {results['repeats']}, ± half the range{'; QUICK RUN' if results['quick'] else ''}\n"
        "x a, x c: ratio to the first line of that letter. The rate of a depends on whether client and server "
        "run on the same core by chance, so compare with its one-core line too.",
        caption_justify="left",
    )
    beside = Table(title="Other figures")
    for heading in ("", "what", "load"):
        rates.add_column(heading, overflow="fold")
    for heading in ("events/s", "±", "x a", "x c"):
        rates.add_column(heading, justify="right", no_wrap=True)
    for heading in ("", "what", "medians"):
        beside.add_column(heading, overflow="fold")
    for case in results["cases"]:
        head = (case["group"], case["name"], case["load"])
        style = "bold" if case["ours"] else None
        rate = case["figures"].get(RATE)
        if rate:
            ratios = (_times(case["ratio_to_a"]), _times(case["ratio_to_c"]))
            rates.add_row(*head, f"{rate['median']:,.0f}", f"{rate['spread']:.0%}", *ratios, style=style)
        details = _details(case)
        if details:
            beside.add_row(case["group"], f"{case['name']}\n{case['load']}", "\n".join(details), style=style)
    for table in (rates, beside):
        if table.row_count:
            console.print(table)


def _details(case: dict[str, Any]) -> list[str]:
    if case["skipped"]:
        return [f"skipped: {case['skipped']}"]
    medians = {name: figure["median"] for name, figure in case["figures"].items()}
    lines = []
    for template in _DETAILS:
        with suppress(KeyError):
            lines.append(template.format_map(medians))
    return lines


def _case(outcome: Outcome, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    case = outcome.case
    return {
        "group": case.group,
        "name": case.name,
        "load": case.load,
        "ours": case.ours,
        "in_chart": case.in_chart,
        "skipped": outcome.skipped,
        "figures": {name: _figure(summary) for name, summary in outcome.figures.items()},
        "ratio_to_a": _ratio(outcome, "a", outcomes),
        "ratio_to_c": _ratio(outcome, "c", outcomes),
    }


def _figure(summary: Summary) -> dict[str, Any]:
    return {
        "median": summary.median,
        "low": summary.low,
        "high": summary.high,
        "spread": summary.spread,
        "values": summary.values,
    }


def _ratio(outcome: Outcome, group: str, outcomes: Sequence[Outcome]) -> float | None:
    """Return the median rate divided by that of the first case of `group`, or `None` if one was not measured."""
    base = next((other for other in outcomes if other.case.group == group), None)
    if base is None or RATE not in base.figures or RATE not in outcome.figures:
        return None
    return outcome.figures[RATE].median / base.figures[RATE].median


def _times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.2f}"


def software(info: Mapping[str, Any]) -> str:
    """Return the name and version of a server from its reply to `INFO server`."""
    if info.get("server_name") == "valkey":
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


def system() -> str:
    """Return the operating system and the machine architecture, such as `Linux x86_64`."""
    return f"{platform.system()} {platform.machine()}"


def processor() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
