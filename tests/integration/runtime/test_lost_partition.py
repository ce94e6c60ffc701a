"""A partition that has lost all its keys stays without keys until it is reopened, whatever a worker does."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import KeyLost
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.process import logs
from tallystream_worker.rebuild.reopen import reopen
from tallystream_worker.runtime.app import Worker
from tallystream_worker.settings.alerts import Hook
from tallystream_worker.settings.settings import (
    ArchiveSettings,
    RedisSettings,
    Settings,
    SnapshotSettings,
)
from tests.harness import Harness
from tests.rewind import lose
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

RULES = Rules(
    {"view": Metric("", ("hour",), top=5, ids=None), "call": Metric(limit=5, per="total", ids=None)},
    alert=(Alert("busy", "view", above=1000), Alert("fast", "view", over="1h", above=1000)),
)
NO_COUNTERS = {"holds", "hottest", "auditing", "verifying", "confirmed"}
"""The keys that processes may write to a partition that has lost all its keys; `reopen` does not mind them."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_running", [False, True])
def test_no_service_writes_to_a_partition_without_keys(server, tmp_path: Path, is_running):
    """After a pass of each service, the partition has no key that `reopen` would mind, and it can be reopened."""
    settings = Settings(
        redis=RedisSettings(url=server.url, partitions=2),
        rules=RULES,
        hooks={"busy": Hook("http://127.0.0.1:1/")},
        archive=ArchiveSettings(str(tmp_path / "archive"), every=0.2),
        snapshot=SnapshotSettings(str(tmp_path / "snapshot.sqlite"), every=0.2),
    )
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        keys = harness.layout.keys[0]
        for each in harness.layout.keys:
            harness.client.xadd(each.stream, {"metric": "view", "subject": "a"})
        harness.drain()
        made = time.monotonic()
        worker = Worker(settings, logs.configure(quiet=True))
        if is_running:
            worker.start()
            until(lambda: all_passed(worker, made), 40, what="a pass of each service")
        lose(harness.client, keys.prefix)
        lost = time.monotonic()
        if not is_running:
            worker.start()
        try:
            until(lambda: all_passed(worker, lost, but={"reaper"} if is_running else set()), 40, what="a pass of each")
            left = {name.decode().removeprefix(keys.prefix) for name in harness.client.scan_iter(f"{keys.prefix}*")}
            assert left <= NO_COUNTERS
            assert reopen(harness.client, Deployment.load(harness.client)).opened == [keys.stream]
        finally:
            worker.stop()


def all_passed(worker: Worker, moment: float, *, but: Collection[str] = ()) -> bool:
    """Return whether each service has ended a pass that began after a monotonic second, except those in `but`.

    A pass that fails is also a pass.
    """
    return all(
        each.tried > moment and (each.passed > each.tried or each.problem is not None)
        for each in worker.service_health
        if each.name not in but
    )


def test_what_confirms_a_step_does_not_hinder_reopen(server):
    """A barrier writes a key to each partition, also to one that has lost its keys; it can be reopened."""
    with Harness(server.url, partitions=2) as harness:
        keys = harness.layout.keys[0]
        lose(harness.client, keys.prefix)
        with harness.client.pipeline(transaction=False) as pipeline:
            for name in harness.layout.confirmed:
                pipeline.set(name, 1, px=60_000)
            pipeline.execute()
        assert reopen(harness.client, Deployment.find(harness.client)).opened == [keys.stream]


def test_a_description_that_is_lost_while_it_is_read_is_not_created_again(server, monkeypatch):
    """A process that starts at the moment of the loss raises an error: it does not begin a deployment."""
    with Harness(server.url, rules=RULES, partitions=2) as harness, closing(connect(server.url)) as client:
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": "a"})
        harness.drain()
        execute = client.execute_command

        def execute_and_lose(*command: Any, **options: Any) -> Any:
            reply = execute(*command, **options)
            harness.client.delete(harness.layout.root)  # after the first command
            return reply

        monkeypatch.setattr(client, "execute_command", execute_and_lose)
        assert Deployment.create_or_load(client).epoch == harness.deployment.epoch
        assert not harness.client.exists(harness.layout.root)
        with pytest.raises(KeyLost):
            Deployment.create_or_load(client)
        assert not harness.client.exists(harness.layout.root)
