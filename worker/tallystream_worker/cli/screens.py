"""The contents of `status --live` and `top --live`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tallystream.reading.freshness import Gap
from tallystream.reading.leaderboards import Place
from tallystream.reading.ledger import LedgerSummary
from tallystream.reading.reach import UnreachablePartition  # msgspec reads the type
from tallystream_worker.cli.bounds import bounds_note, reach_notes
from tallystream_worker.cli.live_view import sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tallystream.reading.leaderboards import Leaderboard

_KEPT: Final = 600
_NARROW: Final = 70
_LAG: Final = (1_000, 10_000)
"""Lag in entries from which the figure is yellow, and red: as in the alert rules."""

_OLD: Final = (30.0, 120.0)
"""Age of the oldest pending entry, in seconds, from which the figure is yellow, and red: as in the alert rules."""


class LedgerRates(LedgerSummary, frozen=True, kw_only=True):
    """The JSON output of `status --live`: the ledger with rates."""

    appended_per_second: float | None
    """Events appended per second since the reading before; `null` at the first reading."""

    counted_per_second: float | None
    """Events counted per second since the reading before; `null` at the first reading."""


class PlaceRate(Place, frozen=True):
    """One place of a leaderboard, with the growth of its value per second."""

    per_second: float | None
    """Growth of the value per second, from ten readings before to the last; `null` if the older lacks the subject.

    With fewer readings, from the first one; 0 at the first reading. `null` also if the clock was set back meanwhile.
    """


class LeaderboardRates(msgspec.Struct, frozen=True):
    """The JSON output of `top --live`: a leaderboard, and for each place the growth of its value per second."""

    metric: str
    """The metric."""

    window: str
    """The window or range; `all` for all time."""

    top: list[PlaceRate]
    """The places, the largest total first."""

    error: float | None
    """By how much a value can be wrong; 0 for exact counters; `null` if it is not known."""

    start: int | None
    """The first second (since 1970) that the values cover; `null` for all time."""

    end: int | None
    """The first second after that."""

    complete: bool
    """Whether the values cover the whole range that was asked for."""

    missing: list[Gap]
    """The parts of that range that the values do not cover, for example because their buckets have expired."""

    unreachable: list[UnreachablePartition]
    """The partitions that the values lack, because their nodes of the cluster do not answer."""


class StatusScreen:
    """The content of `status --live`: rates, lag, partitions and ledger, with the last readings as sparklines.

    It is made without arguments, and used as a `live_view.Screen`: `update` stores each reading, `draw` and `plain`
    return the last one. A sparkline shows at most the last 60 figures. Rates are in events per second.
    """

    def __init__(self) -> None:
        self._ledger_summary: LedgerSummary | None = None
        self._last: tuple[float, int, int] | None = None
        self._rates: dict[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in ("appended", "counted", "lag")}

    def update(self, found: LedgerSummary, at: float) -> None:
        """Store the ledger read at `at` (seconds since 1970), and calculate the rates since the reading before.

        A rate is at least 0, also if a figure became smaller. If `at` is not later than that of the reading before, the
        rates stay unchanged. In the line of the lag, `draw` shows an unknown lag as 0.
        """
        self._ledger_summary = found
        appended, counted = found.ledger["appended"], found.ledger["counted"]
        if self._last is not None and at > self._last[0]:
            span = at - self._last[0]
            self._rates["appended"].append(max(0.0, (appended - self._last[1]) / span))
            self._rates["counted"].append(max(0.0, (counted - self._last[2]) / span))
        self._rates["lag"].append(float(found.lag or 0))
        self._last = (at, appended, counted)

    def plain(self) -> LedgerRates | None:
        """Return the last ledger and its rates, rounded to one decimal; `None` before the first reading.

        The rates are `None` if no rate was calculated yet.
        """
        if self._ledger_summary is None:
            return None
        appended, counted = (
            round(series[-1], 1) if (series := self._rates[name]) else None for name in ("appended", "counted")
        )
        fields = msgspec.structs.asdict(self._ledger_summary)
        return LedgerRates(**fields, appended_per_second=appended, counted_per_second=counted)

    def draw(self, width: int) -> RenderableType:
        """Return the last ledger and its rates as a drawing for `width` columns; empty before the first reading."""
        ledger = self._ledger_summary
        if ledger is None:
            return Text("")
        bars = max(10, min(60, width - 40))
        rates = Table.grid(padding=(0, 2))
        for name, unit in (("appended", "/s"), ("counted", "/s"), ("lag", " entries")):
            series = list(self._rates[name])
            style = _worse(series[-1] if series else 0, _LAG) if name == "lag" else "cyan"
            figure = f"{series[-1]:,.0f}{unit}" if series else "-"
            rates.add_row(name, Text(figure, style="bold", justify="right"), Text(sparkline(series, bars), style=style))
        return Group(
            self._balance(ledger), Text(""), rates, Text(""), self._partitions(ledger, width), self._events(ledger)
        )

    def _balance(self, ledger: LedgerSummary) -> Text:
        if ledger.unreachable:
            return Text("\n".join(reach_notes(ledger.unreachable)), style="bold red")
        if ledger.lag is None:
            return Text("ledger open: it is not known how many entries are not counted yet", style="yellow")
        if ledger.unaccounted is None:
            return Text(f"ledger open: {ledger.lag:,} entries are not counted yet", style="yellow")
        if ledger.unaccounted:
            return Text(f"{ledger.unaccounted:,} events are UNACCOUNTED for", style="bold white on red")
        return Text("ledger balances: every appended event is accounted for", style="green")

    def _partitions(self, ledger: LedgerSummary, width: int) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("partition" if width < _NARROW else "stream", style="dim", no_wrap=True)
        for title in ("lag", "pending", "oldest", "dead"):
            table.add_column(title, justify="right")
        for partition in ledger.partitions:
            name = partition.stream if width >= _NARROW else partition.stream.split("{")[1].split("}")[0]
            oldest = partition.oldest_pending_seconds or 0.0
            table.add_row(
                name,
                Text(_count(partition.lag), style="magenta" if partition.lag is None else _worse(partition.lag, _LAG)),
                f"{partition.pending:,}",
                Text(f"{oldest:,.1f} s" if oldest else "-", style=_worse(oldest, _OLD)),
                Text(f"{partition.dead:,}", style="bold red" if partition.dead else "dim"),
            )
        return table

    def _events(self, ledger: LedgerSummary) -> Text:
        shown = [
            f"{name} {ledger.ledger[name]:,}"
            for name in ("appended", "counted", "rejected", "duplicate", "late", "retracted")
        ]
        text = Text("  ".join(shown), style="dim")
        for name in ("dead", "trimmed"):
            text.append(f"  {name} {ledger.ledger[name]:,}", style="bold red" if ledger.ledger[name] else "dim")
        return text


class TopScreen:
    """The content of `top --live`: a leaderboard with a bar and a rate for each place.

    It is made without arguments, and used as a `live_view.Screen`: `update` stores each reading, `draw` and `plain`
    return the last one. The rate is the growth of the value per second, since ten readings before or since the first
    one. A narrow drawing has no bars.
    """

    def __init__(self) -> None:
        self._board: Leaderboard | None = None
        self._seen: deque[tuple[float, dict[str, int]]] = deque(maxlen=11)

    def update(self, found: Leaderboard, at: float) -> None:
        """Store the leaderboard read at `at` (seconds since 1970)."""
        self._board = found
        self._seen.append((at, dict(found.places)))

    def plain(self) -> LeaderboardRates | None:
        """Return the last places with their rates, see `PlaceRate.per_second`; `None` before the first reading."""
        board = self._board
        if board is None:
            return None
        places = [PlaceRate(name, value, self._rate(name)) for name, value in board.places]
        return LeaderboardRates(
            board.metric,
            board.window,
            places,
            board.error,
            board.start,
            board.end,
            board.complete,
            board.missing,
            board.unreachable,
        )

    def draw(self, width: int) -> RenderableType:
        """Return the last leaderboard and its rates as a drawing for `width` columns; empty if there is no reading."""
        board = self._board
        if board is None:
            return Text("")
        window = "all time" if board.window == "all" else board.window
        table = Table(box=None, padding=(0, 2, 0, 0), title=f"{board.metric}, {window}", title_justify="left")
        table.add_column("", justify="right", style="dim")
        table.add_column("subject", overflow="ellipsis", no_wrap=True, max_width=max(12, width // 3))
        table.add_column(board.metric, justify="right", style="bold")
        table.add_column("a second", justify="right")
        bars = max(0, min(40, width - width // 3 - 40))
        if bars:
            table.add_column("")
        most = max((value for _, value in board.places), default=0)
        for place, (subject, value) in enumerate(board.places, 1):
            rate = self._rate(subject)
            new = rate is None and len(self._seen) > 1
            cells: list[str | Text] = [str(place), Text(subject, style="bold yellow" if new else ""), f"{value:,}"]
            cells.append(Text("new" if new else f"{rate:+,.1f}" if rate else "", style="yellow" if new else "green"))
            if bars:
                cells.append(Text("█" * round(bars * value / most) if most > 0 else "", style="cyan"))
            table.add_row(*cells)
        notes = [Text(note, style="yellow")] if (note := bounds_note(board)) else []
        notes += [Text(note, style="bold red") for note in reach_notes(board.unreachable)]
        if not board.places:
            notes.append(Text("nothing is counted yet", style="dim"))
        elif board.error:
            notes.append(Text(f"values and order may be off by {board.error:,}", style="yellow"))
        return Group(table, *notes)

    def _rate(self, subject: str) -> float | None:
        """Return the growth of a listed subject per second, from the oldest kept reading to the last one.

        `None` if the oldest reading lacks the subject or is not earlier than the last; 0 if there is one reading only.
        """
        first, last = self._seen[0], self._seen[-1]
        before = first[1].get(subject)
        if before is None or last[0] <= first[0]:
            return None if len(self._seen) > 1 else 0.0
        return (last[1][subject] - before) / (last[0] - first[0])


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _worse(value: float, bounds: tuple[float, float]) -> str:
    return "green" if value < bounds[0] else "yellow" if value < bounds[1] else "bold red"
