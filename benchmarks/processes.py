"""Start the programs that the cases need, each in a separate process, and stop each when its block ends."""

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
"""Rules that keep one counter for each subject, as INCR does."""

SHIPPED = _ROOT / "config" / "tallystream.toml"
"""The configuration that the project ships, with windows, unique actors and a leaderboard for `view`."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started program, and the file with its output."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """All that the program has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def check(self) -> None:
        """Raise `RuntimeError`, with the end of the program's output, if it has ended with an error."""
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
        assert self.process.stdin is not None  # noqa: S101  # `_stopped_at_end` opens a pipe
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def finish(self, timeout: float = 120) -> str:
        """Wait at most `timeout` seconds until the program ends by itself, and return its output."""
        self.process.wait(timeout)
        self.check()
        return self.output


@contextmanager
def worker(url: str, scratch: Path, rules: Path = TOTALS_ONLY) -> Iterator[Running]:
    """Run `tallystream worker` with a configuration file until the block ends.

    The file is always given, since the rules of `view` decide how much work an event is.
    """
    program = Path(sys.executable).with_name("tallystream")
    command = [str(program), "worker", "--redis", url, "--config", str(rules)]
    with _stopped_at_end(command, scratch / "worker.log") as running:
        yield running


@contextmanager
def program(*arguments: str, log: Path) -> Iterator[Running]:
    """Run a command of `tallystream` until the block ends; its output goes to `log`."""
    with _stopped_at_end([str(Path(sys.executable).with_name("tallystream")), *arguments], log) as running:
        yield running


@contextmanager
def module(name: str, *arguments: str, scratch: Path) -> Iterator[Running]:
    """Run a module of this package as a program; stop it when the block ends, if it still runs."""
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
