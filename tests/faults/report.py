"""The report of a run of the fault suite, as text for people and as JSON for programs."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.faults.table import ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.run import Result


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Return the figures of a run, summed over its results; `drain_*` are seconds."""
    faults: Counter[str] = Counter()
    for result in results:
        faults.update(result.faults)
    drains = sorted(result.drain for result in results if result.drain is not None)
    return {
        "scenarios": len(results),
        "rows": len({result.row for result in results}),
        "seeds": len({result.seed for result in results}),
        "faults": sum(faults.values()),
        "confirmed": sum(result.confirmed for result in results),
        "unknown": sum(result.unknown for result in results),
        "refused": sum(result.refused for result in results),
        "lost": sum(result.lost for result in results if not result.allowed),
        "lost_as_allowed": sum(result.lost for result in results if result.allowed),
        "doubled": sum(result.doubled for result in results),
        "unaccounted": sum(abs(result.unaccounted) for result in results),
        "looks_at_pairs": sum(result.looks for result in results),
        "drain_median": statistics.median(drains) if drains else None,
        "drain_max": max(drains, default=None),
        "failed": sum(bool(result.failures) for result in results),
        "faults_by_kind": dict(faults.most_common()),
    }


def text(results: Sequence[Result]) -> str:
    """Return the report as text: a line for each row, then the sums of the run."""
    lines = [
        (
            f"{'row':>3}  {'fault':<52} {'seeds':>5} {'faults':>7} {'confirmed':>10} {'lost':>6} {'allowed':>7}"
            f" {'doubled':>7} {'drain s':>14}  verdict"
        )
    ]
    for number in sorted({result.row for result in results}):
        of_row = [result for result in results if result.row == number]
        figures = summary(of_row)
        drain = (
            "-" if figures["drain_median"] is None else f"{figures['drain_median']:.2f} / {figures['drain_max']:.2f}"
        )
        verdict = f"{figures['failed']} FAILED" if figures["failed"] else "passed"
        lines.append(
            f"{number:>3}  {ROWS[number].name[:52]:<52} {len(of_row):>5} {figures['faults']:>7,}"
            f" {figures['confirmed']:>10,} {figures['lost']:>6,} {figures['lost_as_allowed']:>7,}"
            f" {figures['doubled']:>7,} {drain:>14}  {verdict}"
        )
    whole = summary(results)
    drained = (
        ""
        if whole["drain_median"] is None
        else (f"\ndrained after healing: median {whole['drain_median']:.2f} s, longest {whole['drain_max']:.2f} s")
    )
    lines.append(
        f"\n{whole['faults']:,} faults in {whole['scenarios']:,} scenarios ({whole['rows']} rows,"
        f" {whole['seeds']:,} seeds); {whole['looks_at_pairs']:,} readings of the pairs meanwhile"
        f"\nevents: {whole['confirmed']:,} confirmed, {whole['unknown']:,} unknown to their producers,"
        f" {whole['refused']:,} refused by full buffers"
        f"\nlost {whole['lost']:,}, lost within what the row allows {whole['lost_as_allowed']:,},"
        f" doubled {whole['doubled']:,}, unaccounted {whole['unaccounted']:,}{drained}"
        f"\nfailed: {whole['failed']} of {whole['scenarios']:,}"
    )
    return "\n".join(lines)


def document(results: Sequence[Result], **run: Any) -> str:
    """Return the report as JSON: the settings of the run, its figures, those of each row, and every failed result."""
    rows = {
        number: {"name": ROWS[number].name} | summary([result for result in results if result.row == number])
        for number in sorted({result.row for result in results})
    }
    failed = [result.plain() for result in results if result.failures]
    return json.dumps({"run": run, "summary": summary(results), "rows": rows, "failed": failed}, indent=2)
