"""A view that stays open: reads every so often, draws in place on a terminal, and shows when the server is away.

If standard output is no terminal there is nothing to draw in: then each reading is printed, one after the other.
"""

from __future__ import annotations

import select
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from redis.exceptions import RedisError
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tallystream_worker.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

T = TypeVar("T")
Found_contra = TypeVar("Found_contra", contravariant=True)

BARS = " ▁▂▃▄▅▆▇█"
_LEAST = 0.1


class Screen(Protocol[Found_contra]):
    """What a view shows: it is updated with each reading, and draws what it has."""

    def update(self, found: Found_contra, at: float) -> None:
        """Take what was read at second `at`."""

    def draw(self, width: int) -> RenderableType:
        """Return what to show in so many columns."""

    def plain(self) -> Any:
        """Return the last reading as plain types, for programs."""


@dataclass
class _Server(Generic[T]):
    """The last answer, and since when there is none."""

    read: Callable[[], T]
    screen: Screen[T]
    problem: str = ""
    away_since: float = 0.0
    has_answered: bool = False

    def poll(self) -> None:
        try:
            found = self.read()
        except RedisError as error:
            if not self.problem:
                self.away_since = time.time()
            self.problem = str(error) or type(error).__name__
        else:
            self.problem = ""
            self.has_answered = True
            self.screen.update(found, time.time())


def follow(read: Callable[[], T], screen: Screen[T], *, every: float, json: bool) -> None:
    """Show until `q` or Ctrl-C.

    Args:
        read: Reads from the server.
        screen: Shows what it said.
        every: Seconds between two readings.
        json: Print a JSON document for each reading instead.
    """
    every = max(_LEAST, every)
    server = _Server(read, screen)
    console = Console(highlight=False)
    try:
        if json or not console.is_terminal:
            _print(server, console, every, json=json)
        else:
            _draw(server, console, every)
    except KeyboardInterrupt:
        pass


def sparkline(values: list[float], width: int) -> str:
    """Return the latest values as bars, the largest of them as the full one."""
    shown = values[-width:]
    most = max(shown, default=0.0)
    scale = len(BARS) - 1
    return "".join(BARS[round(value / most * scale) if most > 0 else 0] for value in shown).rjust(width)


def _draw(server: _Server[Any], console: Console, every: float) -> None:
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        read_at = 0.0
        while True:
            if time.monotonic() - read_at >= every:
                read_at = time.monotonic()
                server.poll()
            live.update(_page(server, console.width, every), refresh=True)
            # Wakes for a key; a new size of the window shows with the next drawing, at the latest in half a second.
            if pressed(min(0.5, max(0.01, every - (time.monotonic() - read_at)))) in ("q", "Q", "\x03"):
                return


def _page(server: _Server[Any], width: int, every: float) -> RenderableType:
    parts: list[RenderableType] = []
    if server.problem:
        away = time.time() - server.away_since
        parts.append(
            Text(f" the server does not answer for {away:,.0f} s: {server.problem} ", style="bold white on red")
        )
    if server.has_answered:
        parts.append(server.screen.draw(width))
    parts.append(Text(f"{time.strftime('%H:%M:%S')}   every {every:g} s   q ends", style="dim"))
    return Group(*parts)


def _print(server: _Server[Any], console: Console, every: float, *, json: bool) -> None:
    while True:
        server.poll()
        if json:
            print_json({"problem": server.problem} if server.problem else server.screen.plain())
        elif server.problem:
            console.print(f"the server does not answer: {server.problem}")
        else:
            console.print(server.screen.draw(console.width))
        sys.stdout.flush()
        time.sleep(every)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits for a key for some seconds, and returns it or nothing."""
    if not sys.stdin.isatty():

        def wait(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield wait
        return
    import termios  # noqa: PLC0415  # not on every system
    import tty  # noqa: PLC0415

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def key(seconds: float) -> str:
        ready, _, _ = select.select([terminal], [], [], seconds)
        return sys.stdin.read(1) if ready else ""

    try:
        tty.setcbreak(terminal)
        yield key
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
