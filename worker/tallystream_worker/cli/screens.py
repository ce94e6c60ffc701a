"""The live views: how counting goes, and who leads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tallystream_worker.cli.live_view import sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tallystream.reading.leaderboards import Leaderboard
    from tallystream.reading.ledger import Ledger

_KEPT: Final = 600
_NARROW: Final = 70
_LAG: Final = (1_000, 10_000)
_OLD: Final = (30.0, 120.0)
"""From where a figure is worth a look, and from where it is bad: as in the alert rules."""


class StatusScreen:
    """Rates, lag and books, with the last minutes as sparklines."""

    def __init__(self) -> None:
        self._books: Ledger | None = None
        self._last: tuple[float, int, int] | None = None
        self._rates: dict[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in ("appended", "counted", "lag")}

    def take(self, found: Ledger, at: float) -> None:
        """Take the books of second `at`."""
        self._books = found
        if self._last is not None and at > self._last[0]:
            span = at - self._last[0]
            self._rates["appended"].append(max(0.0, (found.appended - self._last[1]) / span))
            self._rates["counted"].append(max(0.0, (found.counted - self._last[2]) / span))
        self._rates["lag"].append(float(found.waiting or 0))
        self._last = (at, found.appended, found.counted)

    def plain(self) -> Any:
        """Return the books, and the rates of the last look."""
        rates = {
            f"{name}_per_second": round(series[-1], 1) if series else None
            for name, series in self._rates.items()
            if name != "lag"
        }
        return (self._books.summary() if self._books else {}) | rates

    def draw(self, width: int) -> RenderableType:
        """Return the view in so many columns."""
        books = self._books
        if books is None:
            return Text("")
        bars = max(10, min(60, width - 40))
        rates = Table.grid(padding=(0, 2))
        for name, unit in (("appended", "/s"), ("counted", "/s"), ("lag", " entries")):
            series = list(self._rates[name])
            style = _worse(series[-1] if series else 0, _LAG) if name == "lag" else "cyan"
            figure = f"{series[-1]:,.0f}{unit}" if series else "-"
            rates.add_row(name, Text(figure, style="bold", justify="right"), Text(sparkline(series, bars), style=style))
        return Group(
            self._verdict(books), Text(""), rates, Text(""), self._partitions(books, width), self._events(books)
        )

    def _verdict(self, books: Ledger) -> Text:
        if books.unaccounted is None:
            return Text(f"books open: {_count(books.waiting)} entries wait to be counted", style="yellow")
        if books.unaccounted:
            return Text(f"{books.unaccounted:,} events are UNACCOUNTED for", style="bold white on red")
        return Text("books balance: every appended event is accounted for", style="green")

    def _partitions(self, books: Ledger, width: int) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("partition" if width < _NARROW else "stream", style="dim", no_wrap=True)
        for title in ("lag", "pending", "oldest", "dead"):
            table.add_column(title, justify="right")
        for partition in books.partitions:
            name = partition.stream if width >= _NARROW else partition.stream.split("{")[1].split("}")[0]
            lag = partition.position.lag
            oldest = partition.oldest_pending or 0.0
            table.add_row(
                name,
                Text(_count(lag), style="magenta" if lag is None else _worse(lag, _LAG)),
                f"{partition.position.pending:,}",
                Text(f"{oldest:,.1f} s" if oldest else "-", style=_worse(oldest, _OLD)),
                Text(f"{partition.parked:,}", style="bold red" if partition.parked else "dim"),
            )
        return table

    def _events(self, books: Ledger) -> Text:
        shown = [
            f"{name} {books.events[name]:,}"
            for name in ("appended", "counted", "rejected", "duplicate", "late", "retracted")
        ]
        text = Text("  ".join(shown), style="dim")
        for name in ("dead", "trimmed"):
            text.append(f"  {name} {books.events[name]:,}", style="bold red" if books.events[name] else "dim")
        return text


class TopScreen:
    """A leaderboard with a bar for each place, and how fast each grows."""

    def __init__(self, metric: str, window: str) -> None:
        self._metric = metric
        self._window = window
        self._ranking: Leaderboard | None = None
        self._seen: deque[tuple[float, dict[str, int]]] = deque(maxlen=11)

    def take(self, found: Leaderboard, at: float) -> None:
        """Take the leaderboard of second `at`."""
        self._ranking = found
        self._seen.append((at, dict(found.places)))

    def plain(self) -> Any:
        """Return the places with their rates, events a second over the last ten looks."""
        places = self._ranking.places if self._ranking else []
        return {
            "metric": self._metric,
            "window": self._window,
            "top": [{"subject": name, "value": value, "per_second": self._rate(name)} for name, value in places],
            "error": self._ranking.error if self._ranking else 0,
        }

    def draw(self, width: int) -> RenderableType:
        """Return the view in so many columns."""
        ranking = self._ranking
        if ranking is None:
            return Text("")
        table = Table(box=None, padding=(0, 2, 0, 0), title=f"{self._metric}, {self._window}", title_justify="left")
        table.add_column("", justify="right", style="dim")
        table.add_column("subject", overflow="ellipsis", no_wrap=True, max_width=max(12, width // 3))
        table.add_column(self._metric, justify="right", style="bold")
        table.add_column("a second", justify="right")
        bars = max(0, min(40, width - width // 3 - 40))
        if bars:
            table.add_column("")
        most = max((value for _, value in ranking.places), default=0)
        for place, (subject, value) in enumerate(ranking.places, 1):
            rate = self._rate(subject)
            new = rate is None and len(self._seen) > 1
            cells: list[str | Text] = [str(place), Text(subject, style="bold yellow" if new else ""), f"{value:,}"]
            cells.append(Text("new" if new else f"{rate:+,.1f}" if rate else "", style="yellow" if new else "green"))
            if bars:
                cells.append(Text("█" * round(bars * value / most) if most > 0 else "", style="cyan"))
            table.add_row(*cells)
        if not ranking.places:
            return Group(table, Text("nothing was counted yet", style="dim"))
        if ranking.error:
            return Group(table, Text(f"values and order may be off by {ranking.error:,}", style="yellow"))
        return table

    def _rate(self, subject: str) -> float | None:
        """Return how fast a subject grows, `None` where it was not listed before."""
        first, last = self._seen[0], self._seen[-1]
        before = first[1].get(subject)
        if before is None or last[0] <= first[0]:
            return None if len(self._seen) > 1 else 0.0
        return (last[1][subject] - before) / (last[0] - first[0])


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _worse(value: float, bounds: tuple[float, float]) -> str:
    return "green" if value < bounds[0] else "yellow" if value < bounds[1] else "bold red"
