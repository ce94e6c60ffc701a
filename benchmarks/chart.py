"""Draw the chart of the README: a bar with the rate of each way to count."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .measure import RATE

_OURS = "#c8102e"
_THEIRS = "#9aa5b1"
_INK = "#1f2933"
_MUTED = "#6b7683"
_GRID = "#e4e7eb"


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a bar chart of the rates to `path` as SVG; write nothing if the results have no rate."""
    cases = [case for case in results["cases"] if case["in_chart"] and RATE in case["figures"]]
    if not cases:
        return
    # A fixed salt and no date make the file the same for the same figures.
    with mpl.rc_context({"svg.hashsalt": "tallystream", "font.family": "sans-serif", "font.size": 11}):
        figure = Figure(figsize=(10.4, 1.4 + 0.58 * len(cases)), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        for position, case in enumerate(cases):
            _bar(axes, position, case)
        _frame(axes, cases)
        figure.suptitle("Events counted per second", x=0.01, ha="left", color=_INK, weight="bold", fontsize=13)
        figure.supxlabel(_conditions(results), x=0.01, ha="left", color=_MUTED, fontsize=8.5)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _bar(axes: Axes, position: int, case: dict[str, Any]) -> None:
    """Draw the bar of a case with whiskers, its name and load to the left, and its rate to the right."""
    rate = case["figures"][RATE]
    weight = "bold" if case["ours"] else "normal"
    axes.barh(
        position,
        rate["median"],
        height=0.6,
        color=_OURS if case["ours"] else _THEIRS,
        xerr=[[rate["median"] - rate["low"]], [rate["high"] - rate["median"]]],
        error_kw={"ecolor": _INK, "elinewidth": 1, "capsize": 2.5, "alpha": 0.5},
    )
    _left(axes, position, 6, case["name"], color=_INK, weight=weight, fontsize=11)
    _left(axes, position, -7, case["load"], color=_MUTED, weight="normal", fontsize=8.5)
    axes.annotate(
        _value(case),
        xy=(rate["high"], position),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=_INK,
        weight=weight,
    )


def _left(axes: Axes, position: int, lift: float, text: str, **style: Any) -> None:
    """Draw a text to the left of a bar, `lift` points above its middle."""
    axes.annotate(text, (0, position), xytext=(-8, lift), textcoords="offset points", ha="right", va="center", **style)


def _frame(axes: Axes, cases: list[dict[str, Any]]) -> None:
    """Set the scale, grid and ticks of the axes; the first case is at the top."""
    axes.set_xlim(0, max(case["figures"][RATE]["high"] for case in cases) * 1.7)
    axes.set_ylim(len(cases) - 0.45, -0.55)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.tick_params(axis="x", length=0, labelcolor=_MUTED)
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _value(case: dict[str, Any]) -> str:
    text = _short(case["figures"][RATE]["median"])
    ratio = case["ratio_to_c"]
    return f"{text}   {ratio:.2f} x redis-benchmark" if case["ours"] and ratio else text


def _conditions(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"{machine['server']}, {machine['durability']}; {machine['cores']} cores, {machine['processor']}; "
        f"median of {results['repeats']}, whiskers from the lowest to the highest"
    )


def _short(value: float) -> str:
    """Return a number of events in short form, such as 3.6 k, 243 k or 1.49 M."""
    if value >= 1_000_000:
        return f"{value / 1_000_000:.2f}".rstrip("0").rstrip(".") + " M"
    if value >= 1_000:
        return f"{value / 1_000:.0f} k" if value >= 10_000 else f"{value / 1_000:.1f} k"
    return f"{value:.0f}"
