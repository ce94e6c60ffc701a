"""The real programs that the cases start, each in a process of its own, each stopped by its own handle."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .server import until

_ROOT = Path(__file__).parent.parent
_STOP_SECONDS = 15

TOTALS_ONLY = Path(__file__).with_name("totals_only.toml")
"""Rules that keep one counter for each subject: the work that an INCR does."""

SHIPPED = _ROOT / "config" / "tallystream.toml"
"""The rules that the project ships: windows, unique actors and a leaderboard for `view`."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started program and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """What the program has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Raise RuntimeError, with the program's last words, when it has failed."""
        if self.process.poll():
            name = " ".join(str(part) for part in list(self.process.args)[:4])  # type: ignore[arg-type]
            raise RuntimeError(f"{name} ended with status {self.process.returncode}:\n{self.output[-2000:]}")

    def wait_for_line(self, line: str) -> None:
        """Wait until the program has printed `line`."""

        def printed() -> bool:
            self.check()
            return line in self.output.splitlines()

        until(printed, f"{line!r} in {self.log.name}")

    def say(self, line: str) -> None:
        """Send a line to the program's standard input."""
        assert self.process.stdin is not None  # noqa: S101  # ours are all started with a pipe
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def finish(self, timeout: float = 120) -> str:
        """Wait for a program that ends by itself and return what it printed."""
        self.process.wait(timeout)
        self.check()
        return self.output


@contextmanager
def worker(url: str, scratch: Path, rules: Path = TOTALS_ONLY) -> Iterator[Running]:
    """Run `tallystream worker` for as long as the block.

    The rules are named, never found: what `view` is declared to store decides how much work an event is.
    """
    program = Path(sys.executable).with_name("tallystream")
    command = [str(program), "worker", "--redis", url, "--config", str(rules)]
    with _stopped_at_end(command, scratch / "worker.log") as running:
        yield running


@contextmanager
def program(*arguments: str, log: Path) -> Iterator[Running]:
    """Run another command of `tallystream` for as long as the block."""
    with _stopped_at_end([str(Path(sys.executable).with_name("tallystream")), *arguments], log) as running:
        yield running


@contextmanager
def module(name: str, *arguments: str, scratch: Path) -> Iterator[Running]:
    """Run a module of this package as a program, stopped at the end of the block if it has not ended."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    with _stopped_at_end(command, scratch / f"{name}.log") as running:
        yield running


@contextmanager
def _stopped_at_end(command: list[str], log: Path) -> Iterator[Running]:
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=_ROOT) as process,
    ):
        try:
            yield Running(process, log)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
