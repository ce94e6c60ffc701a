"""The live views of the command line work on a terminal, and print lines without one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.cli.live_view import sparkline
from tests.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tallystream_worker.server.embedded import EmbeddedServer
    from tests.servers import Server

PROGRAM = str(Path(sys.executable).with_name("tallystream"))
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """A program that runs on a separate pseudo-terminal."""

    def __init__(self, *arguments: str, url: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(40, 100)
        command = [PROGRAM, *arguments, "--redis", url]
        # The terminal determines the width, not the environment of the tests.
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        env |= {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
        )
        os.close(slave)
        self.text = ""

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def shows(self, pattern: str, timeout: float = 20) -> str:
        """Wait until output from now on matches a pattern; return this output without escape sequences."""
        self.text = ""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.master], [], [], 0.1)
            if ready:
                self.text += ESCAPES.sub("", os.read(self.master, 65536).decode(errors="replace"))
            if re.search(pattern, self.text):
                return self.text
        raise AssertionError(f"{pattern!r} was not shown; the last was {self.text[-2000:]!r}")

    def ends(self) -> int:
        """Read output until the program ends; return its exit status."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < deadline:
            ready, _, _ = select.select([self.master], [], [], 0.05)
            if ready:
                try:
                    os.read(self.master, 65536)
                except OSError:
                    break
        return self.process.wait(5)


@contextmanager
def on_terminal(*arguments: str, url: str) -> Iterator[Terminal]:
    """Run a program on a terminal; kill it at the end of the block."""
    terminal = Terminal(*arguments, url=url)
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)


def test_status_ticks_on_a_terminal_until_q(server: Server) -> None:
    """`status --live` shows new counts, adapts to a smaller window, and ends with status 0 on `q`."""
    with Harness(server.url) as harness:
        harness.drain()
        with on_terminal("status", "--live", "--every", "0.1", url=server.url) as terminal:
            terminal.shows("ledger balances")
            with Producer(harness.url) as producer:
                producer.emit("view", "a", 5)
            terminal.shows("ledger open: 1 entries are not counted")
            harness.drain()
            terminal.shows("ledger balances(?s:.*)counted 1 ")
            terminal.resize(24, 50)
            terminal.process.send_signal(signal.SIGWINCH)
            terminal.shows(r"(?m)^p0\.425 ")
            os.write(terminal.master, b"q")
            assert terminal.ends() == 0


def test_top_shows_who_grows(server: Server) -> None:
    """`top --live` shows values and marks new subjects; Ctrl-C ends it with status 0."""
    with Harness(server.url, rules=Rules({"view": Metric("", top=5)})) as harness, Producer(harness.url) as producer:
        producer.emit("view", "article:1", 3)
        producer.flush()
        harness.drain()
        with on_terminal("top", "view", "-n", "5", "--live", "--every", "0.1", url=server.url) as terminal:
            terminal.shows(r"1\s+article:1\s+3\s")
            producer.emit("view", "article:[2]", 9)
            producer.flush()
            harness.drain()
            terminal.shows(r"1\s+article:\[2\]\s+9\s+new")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.ends() == 0


def test_a_server_that_goes_and_comes_back_shows(fresh_server: Callable[..., EmbeddedServer]) -> None:
    """While the server is unavailable, `status --live` shows for how many seconds; afterwards it continues."""
    server = fresh_server(extra=["--appendfsync", "always"])
    with Harness(server.url) as harness:
        harness.drain()
        with on_terminal("status", "--live", "--every", "0.1", url=server.url) as terminal:
            terminal.shows("ledger balances")
            server.kill()
            terminal.shows(r"has not answered for \d+ s")
            server.start()
            text = terminal.shows(r"q quits(?s:.*)ledger balances(?s:.*)q quits")
            assert "has not answered" not in text.rpartition("ledger balances")[2]
            os.write(terminal.master, b"q")
            assert terminal.ends() == 0


def test_without_a_terminal_each_look_is_printed(server: Server) -> None:
    """In a pipe, `status --live` prints text or lines of JSON, without escape sequences, until it is stopped."""
    with Harness(server.url) as harness:
        harness.drain()
        command = [PROGRAM, "status", "--live", "--every", "0.1", "--redis", server.url]
        for more, wanted in (["--json"], '"unaccounted":0'), ([], "ledger balances"):
            with subprocess.Popen(
                [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                found = 0
                while found < 3:
                    line = process.stdout.readline()
                    assert line, process.stderr.read()
                    assert "\x1b" not in line
                    found += wanted in line
                process.send_signal(signal.SIGINT)
                process.stdout.read()
                assert process.wait(10) == 0


def test_sparklines() -> None:
    """In a sparkline, the largest shown value is a full bar, 0 is a space, and the latest value is at the right."""
    assert sparkline([0, 4, 8], 5) == "   ▄█"
    assert sparkline([100, 1, 2], 2) == "▄█"
    assert sparkline([], 3) == "   "
    assert sparkline([0.0], 3) == "   "
