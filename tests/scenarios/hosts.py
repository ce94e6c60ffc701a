"""Hosts: long-lived child processes with their own clock, in which the parts of the system run on command.

libfaketime changes the clock of a process only if it is loaded when the process starts. So everything that reads a wall
clock runs in a host, never in the process of the test. A host is used for many scenarios, because its start takes a
second.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from tests.paths import ROOT
from tests.scenarios.clocks import Clock

if TYPE_CHECKING:
    from pathlib import Path

NAMES: Final = ("app", "worker", "reader")
"""The hosts: `app` has the producers, `worker` counts, `reader` reads and runs the commands of operators."""


class HostError(AssertionError):
    """A command raised an exception in a host; the text is its traceback."""


class Host:
    """One child process and its clock; `ask` runs a command in it.

    Args:
        name: Name of the host.
        folder: Folder for the clock file, the log and the time zone that the host calls `localtime`.
        zone: The file of that time zone.
    """

    def __init__(self, name: str, folder: Path, zone: Path) -> None:
        self.name = name
        self.clock = Clock(folder / f"{name}.clock")
        self._log = folder / f"{name}.log"
        zones = folder / f"{name}.zones"
        zones.mkdir(exist_ok=True)
        (zones / "localtime").write_bytes(zone.read_bytes())
        self._environment = {
            **os.environ,
            **self.clock.environment,
            "PYTHONTZPATH": f"{zones}:/usr/share/zoneinfo",
        }
        self._process: subprocess.Popen[str] | None = None

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a command of `host_process` in the host, and return its result.

        Raises:
            HostError: the command raised an exception, or the host died.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps([command, arguments]) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self.stop()
            raise HostError(f"host {self.name} died in {command}: {self._log.read_text(errors='replace')[-2000:]}")
        answer = json.loads(line)
        if "raised" in answer:
            raise HostError(f"{command} on host {self.name}: {answer['raised']}")
        return answer["result"]

    def _start(self) -> subprocess.Popen[str]:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.scenarios.host_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=self._environment,
            )
        return self._process

    def stop(self) -> None:
        """End the process, if it runs; the next `ask` starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
