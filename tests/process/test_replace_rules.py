"""`tallystream worker --replace-rules` asks on a terminal before it removes a metric."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.waiting import until

PROGRAM = Path(sys.executable).with_name("tallystream")
BOTH = Rules({"view": Metric(), "like": Metric()})


@pytest.mark.parametrize(
    ("answer", "left", "processes"), [("y", ["view"], 1), ("", ["like", "view"], 1), ("yes", ["view"], 2)]
)
def test_the_terminal_is_asked(server, tmp_path, answer, left, processes):
    """The question names each metric and its events. Only `y` or `yes` removes it; else the worker does not start."""
    with Harness(server.url, rules=BOTH) as harness:
        open_deployment(Settings(RedisSettings(server.url), rules=BOTH))
        with Producer(server.url) as producer:
            for _ in range(3):
                producer.emit("like", "a")
            producer.flush(10)
        harness.drain()
    (tmp_path / "tallystream.toml").write_text("[metric.view]\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
    ours, theirs = pty.openpty()
    command = [PROGRAM, "worker", "--redis", server.url, "--replace-rules", "--processes", str(processes)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    try:
        with closing(connect(server.url)) as client:
            if answer:
                until(lambda: sorted(Deployment.load(client).rules.metric) == left, 60, what="the metric to be removed")
                with Producer(server.url) as producer:
                    producer.emit("view", "a")
                    producer.flush(60, wait="counted")  # the worker runs
                process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
            assert sorted(Deployment.load(client).rules.metric) == left
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "like: 3 events were counted" in said
    assert "Remove them? [y/N]" in said
    assert process.returncode == (0 if answer else 1)
    assert ("the removal was not confirmed" in said) == (not answer)
