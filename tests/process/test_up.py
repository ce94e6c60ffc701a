"""With `tallystream up`, the other commands find its snapshot, and repair its data while it runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tallystream import Producer, Totals
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tests.paths import ROOT
from tests.up import up
from tests.waiting import until


def test_the_commands_of_the_section_repair_the_data_of_up(tmp_path):
    """After a stream was deleted, the commands of the section on `up` repair it while `up` runs, with its snapshot."""
    section = (ROOT / "docs" / "repair.md").read_text(encoding="utf-8").split("## With `tallystream up`")[1]
    block = re.search(r"```console\n(.*?)```", section, re.DOTALL)[1]
    named, *commands = [line.removeprefix("$ ") for line in block.splitlines()]
    assert named == "export TALLYSTREAM_REDIS_URL=unix://tally-data/server.sock"
    url = f"unix://{tmp_path}/tally-data/server.sock"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    environment |= {"TALLYSTREAM_REDIS_URL": named.partition("=")[2]}

    def run(command: str) -> str:
        program, *rest = shlex.split(command)
        assert program == "tallystream"
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *rest],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    with up(tmp_path), connect(url) as client:
        until((tmp_path / "tally-data" / "snapshot.sqlite").exists, timeout=60, what="a snapshot")
        for _ in range(2):
            run("tallystream emit view article:1 --wait --timeout 60")
        run("tallystream snapshot --once")
        client.delete(Deployment.load(client).layout.keys_of("article:1").stream)
        assert "log.missing" in _wrong(tmp_path, environment)
        for command in commands:
            run(command)
        with Producer(url) as producer:
            producer.emit("view", "article:1")
            producer.flush(60, wait="counted")
        with Totals(url) as totals:
            assert totals.get("article:1", "view").value == 3


def test_up_does_not_count_anew_on_an_emptied_server(tmp_path):
    """If its server was emptied, `up` starts no worker, and prints the command that restores its snapshot."""
    url = f"unix://{tmp_path}/tally-data/server.sock"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    with up(tmp_path), connect(url) as client:
        with Producer(url) as producer:
            producer.emit("view", "article:1")
            producer.flush(60, wait="counted")
        environment["TALLYSTREAM_REDIS_URL"] = url
        program = Path(sys.executable).with_name("tallystream")
        subprocess.run([program, "snapshot", "--once"], cwd=tmp_path, env=environment, check=True, timeout=60)
        client.flushall()
    with up(tmp_path, until_printed="worker.data_lost") as printed, connect(url) as client:
        assert client.keys() == []
        command, variable = re.search(r"run: tallystream (.*?) \(in another terminal, with (\S+)\)", printed).groups()
        assert variable == f"TALLYSTREAM_REDIS_URL={url}"
        subprocess.run([program, *shlex.split(command)], cwd=tmp_path, env=environment, check=True, timeout=60)
        with Producer(url) as producer:
            producer.emit("view", "article:1")
            producer.flush(60, wait="counted")
        with Totals(url) as totals:
            assert totals.get("article:1", "view").value == 2


def _wrong(folder: Path, environment: dict[str, str]) -> str:
    """Return what a verification prints; it must have found a fault."""
    done = subprocess.run(
        [Path(sys.executable).with_name("tallystream"), "verify"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout
