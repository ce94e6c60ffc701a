"""The JavaScript code of the documentation emits events."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tallystream.rules.metrics import Metric, Rules
from tests.harness import Harness
from tests.http_service import http_service
from tests.paths import ROOT

PAGE = ROOT / "docs" / "integrations" / "javascript.md"


@pytest.fixture
def node():
    """Provide a function that runs JavaScript in Node.js and returns its output."""
    program = shutil.which("node")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("Node.js is not installed: apt-get install nodejs")
        pytest.skip("Node.js is not installed")

    def run(script: str) -> str:
        command = [program, "--input-type=module", "--eval", script]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    return run


def test_the_lines_of_the_page(server, node):
    """The code of the page emits two events, and reports a second vote of the same voter."""
    emit, _beacon, decide = re.findall(r"```javascript\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    rules = Rules({"view": Metric(), "like": Metric(), "vote": Metric(once="forever")})
    with Harness(server.url, rules=rules) as harness, http_service(server.url) as client:
        address = str(client.base_url).rstrip("/")
        emit, decide = (script.replace("http://127.0.0.1:8080", address) for script in (emit, decide))
        assert node(emit) == ""
        harness.drain()
        assert harness.totals() == {("view", "article:1"): 1, ("like", "article:1"): 1}
        assert [node(decide), node(decide)] == ["", "you voted already"]
        assert harness.totals()["vote", "post:123"] == 1
