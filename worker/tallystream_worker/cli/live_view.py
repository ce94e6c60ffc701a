"""The output of commands with `--live`: reads at an interval, draws on a terminal, shows when the server is away.

If standard output is not a terminal, each reading is printed after the reading before.
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

from tallystream.client.error_text import text_of
from tallystream_worker.cli.output import print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

T = TypeVar("T")
Found_contra = TypeVar("Found_contra", contravariant=True)

BARS = " ▁▂▃▄▅▆▇█"
"""The characters of a sparkline, from an empty to a full bar."""

_LEAST = 0.1


class Screen(Protocol[Found_contra]):
    """The content of the output: `update` stores each reading, and `draw` and `plain` return the last reading."""

    def update(self, found: Found_contra, at: float) -> None:
        """Store a reading that was made at `at`, in seconds since 1970."""

    def draw(self, width: int) -> RenderableType:
        """Return the last reading as a drawing for `width` columns; only called after a reading."""

    def plain(self) -> Any:
        """Return the last reading as a value that can be printed as JSON; only called after a reading."""


@dataclass
class _Server(Generic[T]):
    """Reads from the server, and stores each reading in the screen; `poll` makes one reading.

    A `RedisError` is not raised: `problem` is its text, empty after a success. While there is a problem, `away_since`
    is the second (since 1970) of the first failed attempt after the last success.
    """

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
            self.problem = text_of(error)
        else:
            self.problem = ""
            self.has_answered = True
            self.screen.update(found, time.time())


def follow(read: Callable[[], T], screen: Screen[T], *, every: float, json: bool) -> None:
    """Read at an interval and show each reading, until the user presses Ctrl-C; then return.

    On a terminal, a reading replaces the one before, and `q` ends the output too. If standard output is not a
    terminal, or with `json`, a reading is printed after the one before.

    Args:
        read: Reads from the server; a `RedisError` is shown as a problem, and the next interval tries again. Any other
            error, such as `KeyLost`, is raised, and ends the output.
        screen: Draws the readings.
        every: Seconds between two readings; less than 0.1 becomes 0.1.
        json: Print one line of JSON for each reading instead, `{"problem": ...}` if it failed.
    """
    every = max(_LEAST, every)
    server = _Server(read, screen)
    console = Console(emoji=False, highlight=False)
    try:
        if json or not console.is_terminal:
            _print(server, console, every, json=json)
        else:
            _draw(server, console, every)
    except KeyboardInterrupt:
        pass


def sparkline(values: list[float], width: int) -> str:
    """Return the last `width` values as bars of one character each, padded on the left with blanks to `width`.

    The largest of these values gets the full bar; if it is 0, all are blank. No value may be negative, and `width` must
    be at least 1.
    """
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
            # Returns early if a key is pressed; a resized window is drawn again within half a second.
            if pressed(min(0.5, max(0.01, every - (time.monotonic() - read_at)))) in ("q", "Q", "\x03"):
                return


def _page(server: _Server[Any], width: int, every: float) -> RenderableType:
    parts: list[RenderableType] = []
    if server.problem:
        away = time.time() - server.away_since
        parts.append(
            Text(f" the server has not answered for {away:,.0f} s: {server.problem} ", style="bold white on red")
        )
    if server.has_answered:
        parts.append(server.screen.draw(width))
    parts.append(Text(f"{time.strftime('%H:%M:%S')}   every {every:g} s   q quits", style="dim"))
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
    """Yield a function that waits some seconds at most for a key, and returns the key, or `""` if none was pressed.

    Within the context, the terminal passes keys on without Enter. If standard input is not a terminal, the function
    waits the whole time and returns `""`.
    """
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
