"""The first blocks of the READMEs work as they are printed, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.up import up
from tests.waiting import until

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """A new folder with the configuration of a clone."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "producer/README.md"])
def test_the_first_block_of_python(page, folder):
    """The block prints what its comments show, on a server that `tallystream up` started with no option."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    expected = re.findall(r"print\(.*\)  # (.*)", block)
    block = block.replace("redis://127.0.0.1:6379", "unix://tally-data/server.sock")
    with up(folder) as printed:
        done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[: len(expected)] == expected
    assert f"unix://{folder}/tally-data/server.sock" in printed


def test_the_first_block_of_console():
    """The block has three commands, and the first prints the line that is shown, but for its figures."""
    block = re.search(r"```console\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert [line for line in block if line.startswith("$ ")] == [
        "$ make demo ARGS=--once",
        "$ source .venv/bin/activate",
        "$ tallystream up",
    ]
    done = subprocess.run(
        ["make", "--no-print-directory", "demo", "ARGS=--once --events 50000"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert shape(done.stdout.strip().splitlines()[-1]) == shape(block[1])


def test_up_prints_the_lines_of_the_readme(folder):
    """`tallystream up` prints where the server and the dashboard are, and how to stop."""
    block = re.search(r"```console\n(.*?)```", README, re.DOTALL)[1].splitlines()
    shown = [line.replace("/home/you/tallystream", str(folder)) for line in block[-3:]]
    with up(folder) as printed:
        lines = [line for line in printed.splitlines() if not line.startswith("{")]
    assert [shape(line) for line in lines] == [shape(line) for line in shown]


def test_the_commands_of_the_page_find_the_server(folder):
    """After the lines for the second terminal, the commands of the page work as they are printed, in its order."""
    lines = README.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("    export TALLYSTREAM_REDIS_URL="))
    name, _, url = lines[begin].split()[1].partition("=")
    matches = [re.match(r"(?:\| `|    )(tallystream [^`#]+)", line) for line in lines]
    commands = [(number, found[1].strip()) for number, found in enumerate(matches) if found]
    assert len(commands) > 6
    shutil.copytree(ROOT / "examples", folder / "examples")
    environment = {**os.environ, name: url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with up(folder):
        for number, command in commands:
            assert number > begin, f"{command} is on the page before the line that names the server"
            done = subprocess.run(
                shlex.split(command),
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=110,
                check=False,
            )
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def test_an_error_names_the_server_of_up(folder):
    """A command that finds no server names the variable for the server that `tallystream up` started in its folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TALLYSTREAM_REDIS_URL": NO_SERVER}

    def status() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["tallystream", "status"], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    with up(folder):
        said = status()
        assert said.returncode == 1
        assert "export TALLYSTREAM_REDIS_URL=unix://tally-data/server.sock" in said.stderr
        environment["TALLYSTREAM_REDIS_URL"] = said.stderr.split("TALLYSTREAM_REDIS_URL=")[1].split()[0]
        assert status().returncode == 0
    environment["TALLYSTREAM_REDIS_URL"] = NO_SERVER
    assert "or start one with: tallystream up" in status().stderr


NO_SERVER = "redis://127.0.0.1:1"


def test_up_serves_the_metrics_of_its_worker(folder):
    """`tallystream up` serves the metrics of the worker's services together with those of the read service."""
    with up(folder) as printed:
        port = re.search(r"dashboard +http://127.0.0.1:(\d+)", printed)[1]

        def served() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                return answer.read().decode()

        until(lambda: 'tallystream_partition_up{partition="0"} 1.0' in served(), timeout=30, what="the first pass")
        found = served()
    assert "tallystream_batch_events_count" in found
    assert "tallystream_lag_entries" in found


def shape(line: str) -> str:
    """Return a line with each number as `0`."""
    return re.sub(r"\d[\d,.]*", "0", line)
