"""Ctrl-C ends every command at any moment, without a traceback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = Path(sys.executable).with_name("tallystream")

HOOK = """
import os, signal, sys
name, mark = os.environ["INTERRUPT_AT"], os.environ["INTERRUPT_MARK"]
class AtImport:
    def find_spec(self, found, *_):
        if found == name and not os.path.exists(mark):
            open(mark, "w").close()
            os.killpg(0, signal.SIGINT)
sys.meta_path.insert(0, AtImport())
"""
"""A `sitecustomize` that sends SIGINT to all processes of the group, as a terminal does, at an import."""

MOMENTS = {
    "demo": ["tallystream_worker.cli.main", "cyclopts", "redis", "tallystream_worker.cli.commands.demo", "granian",
             "multiprocessing.popen_spawn_posix", "multiprocessing.spawn", "tallystream.producing.spool.buffer"],
    "up": ["tallystream_worker.cli.commands.up", "tallystream_worker.server.embedded", "sqlalchemy"],
    "ingest --processes 2 a.ndjson b.ndjson": [
        "tallystream_worker.cli.commands.ingest", "multiprocessing.spawn",
        "tallystream_worker.ingest.formats.ndjson_lines",
    ],
    "worker --processes 2": ["tallystream_worker.cli.commands.worker", "multiprocessing.spawn"],
    "rebuild": ["tallystream_worker.cli.commands.rebuild"],
}  # fmt: skip
"""By command, modules that it or a child process of it imports. Ctrl-C comes when the first process imports it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Provide a folder with the hook and with files to ingest."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    for name in ("a", "b"):
        (tmp_path / f"{name}.ndjson").write_text(f'{{"metric": "view", "subject": "{name}"}}\n' * 1000)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Provide a function that starts a command in its own group; a command that still runs is ended with the test.

    SIGINT is sent to the group at the first import of the module `at` in any process of the group.
    """
    begun: list[subprocess.Popen[str]] = []

    def start(command: str, at: str = "no.module", url: str = "") -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
        environment |= {"PYTHONPATH": str(folder / "hook"), "INTERRUPT_AT": at, "INTERRUPT_MARK": str(folder / "mark")}
        if url:
            environment["TALLYSTREAM_REDIS_URL"] = url
        process = subprocess.Popen(
            [str(PROGRAM), *command.split()],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.terminate()
        process.communicate(timeout=30)


def check(process: subprocess.Popen[str]) -> None:
    """Check that a process ends in time, with the status of a stopped command and without a traceback."""
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in out + err, err
    assert "KeyboardInterrupt" not in out + err, err
    assert process.returncode in (0, 130), (process.returncode, err)


@pytest.mark.parametrize(("command", "at"), [(command, at) for command, names in MOMENTS.items() for at in names])
def test_an_interrupt_while_a_command_starts(fresh_server, folder, start, command, at):
    """If Ctrl-C comes while a command or a child process of it imports a module, all end without a traceback."""
    if command in ("demo", "up"):
        check(start(f"{command} --port 0", at))
    else:
        with Harness(fresh_server().url, metrics=["view"]) as harness:
            check(start(command, at, harness.url))
    assert (folder / "mark").exists(), f"{command} does not import {at}"


@pytest.mark.parametrize(
    "command", ["rebuild", "ingest a.ndjson", "worker --processes 2", "status", "emit view a --wait"]
)
def test_an_interrupt_while_the_server_does_not_reply(start, command):
    """If Ctrl-C comes while a command waits for a server that does not reply, it ends without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = start(command, url=f"redis://127.0.0.1:{listening.getsockname()[1]}")
        listening.settimeout(60)
        connection, _ = listening.accept()
        with connection:
            os.killpg(process.pid, signal.SIGINT)
            check(process)


@pytest.mark.parametrize("command", ["demo", "up"])
def test_an_interrupt_when_the_address_is_printed(start, command):
    """If Ctrl-C comes when the server and the dashboard run, all end without a traceback."""
    process = start(f"{command} --port 0")
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("dashboard"):
            break
    os.killpg(process.pid, signal.SIGINT)
    check(process)
    assert lines


def test_two_interrupts(start):
    """A second Ctrl-C ends a command at once, without a traceback."""
    process = start("demo --port 0")
    for line in process.stderr:
        if line.startswith("dashboard"):
            break
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in out + err, err
