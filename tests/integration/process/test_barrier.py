"""A command waits after each step until a replica, or the disk, has what every process wrote before."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
import structlog
from msgspec.structs import replace as changed_rules
from structlog.testing import LogCapture

from tallystream.client.durability import DurabilityCheck
from tallystream.deployment import Deployment
from tallystream.errors import DeploymentChanged, FlushTimeout, Unconfirmed
from tallystream.producing.buffer import BufferSettings
from tallystream.producing.producer import Producer
from tallystream.producing.spool.buffer import Spool
from tallystream.producing.spool.settings import SpoolSettings
from tallystream.rules.metrics import Metric
from tallystream_worker.cli.commands.dead import dead
from tallystream_worker.cli.commands.emit import emit
from tallystream_worker.cli.commands.reopen import reopen
from tallystream_worker.cli.commands.spool import spool
from tallystream_worker.cli.options import Where
from tallystream_worker.cli.repartition import to_partitions
from tallystream_worker.process import barrier
from tallystream_worker.process.barrier import confirm
from tallystream_worker.process.description import note_durability
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings, WorkerSettings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.integration.client.test_durability import frozen, replica_of


@pytest.fixture
def primary(fresh_server):
    """A server that a replica can follow."""
    return fresh_server(port=0, extra=["--repl-diskless-sync-delay", "0"])


@pytest.fixture
def replica(fresh_server, primary):
    """A replica of the primary, which has all its writes."""
    return replica_of(fresh_server, primary)


def test_a_step_is_confirmed_together_with_the_writes_of_other_connections(primary, replica, monkeypatch):
    """While the replica hangs, a step is `Unconfirmed`; when it is confirmed, the replica has all earlier writes."""
    monkeypatch.setattr(barrier, "PATIENCE", 0.1)
    with Harness(primary.url) as harness:
        deployment = replace(harness.deployment, durability="replica")
        with frozen(replica):
            harness.client.set("tally:{p0.425}:other", "written by another connection")
            with pytest.raises(Unconfirmed, match=r"^the step is made, but in .* no replica .*127\.0\.0\.1:\d+ has it"):
                confirm(harness.connect(), deployment, "the step is made")
        monkeypatch.setattr(barrier, "PATIENCE", 20)
        confirm(harness.connect(), deployment, "the step is made")
        assert harness.connect(replica.url).get("tally:{p0.425}:other") is not None


def test_a_step_can_wait_for_the_disk(fresh_server):
    """With the durability `fsync`, a step is confirmed on a server that syncs once a second."""
    with Harness(fresh_server(extra=["--appendfsync", "everysec"]).url) as harness:
        confirm(harness.client, replace(harness.deployment, durability="fsync"), "the step is made")


def test_the_memory_of_the_server_is_enough_by_default(server):
    """With the durability `memory`, a step writes nothing, and waits for nothing."""
    with Harness(server.url) as harness:
        before = set(harness.client.keys())
        confirm(harness.client, harness.deployment, "the step is made")
        assert set(harness.client.keys()) == before


def test_what_is_written_to_confirm_a_step_expires(server):
    """A step writes one key in the slot of each partition and of the root; each of them expires."""
    with Harness(server.url) as harness:
        names = harness.layout.confirmed
        assert DurabilityCheck("replica").confirm(harness.client, names)  # no replica
        assert all(0 < harness.client.pttl(name) <= 60_000 for name in names)


def test_commands_wait_for_what_the_workers_wait_for(primary):
    """A worker that starts stores its durability, and every process reads it with the deployment."""
    with Harness(primary.url) as harness:
        settings = Settings(RedisSettings(primary.url), rules=harness.rules)
        for durability in ("replica", "memory"):
            waiting = replace(settings, worker=WorkerSettings(durability=durability))
            open_deployment(waiting, structlog.get_logger())
            assert Deployment.load(harness.client).durability == durability


def test_a_restore_waits_until_a_replica_has_it(primary, replica, monkeypatch, tmp_path):
    """If no replica confirms a restore, it has not ended, and readers get an error; it can be repeated."""
    with (
        Harness(primary.url) as harness,
        Producer(primary.url) as producer,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        producer.emit("view", "a")
        producer.flush()
        harness.drain()
        note_durability(harness.client, harness.deployment, "replica")
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        with frozen(replica), monkeypatch.context() as patched:
            patched.setattr(barrier, "PATIENCE", 0.1)
            with pytest.raises(Unconfirmed, match="the partitions are restored, but"):
                restore(harness.client, database, force=True)
            with pytest.raises(DeploymentChanged, match="has not finished"):
                Deployment.load(harness.client)
        restore(harness.client, database)
        assert Deployment.load(harness.client).durability == "replica"
        assert harness.totals() == {("view", "a"): 1}


def test_a_restore_to_an_empty_server_waits_for_what_its_configuration_says(primary, monkeypatch, tmp_path):
    """The server does not state then what workers wait for."""
    monkeypatch.setattr(barrier, "PATIENCE", 0.1)
    with Harness(primary.url) as harness, closing(Database(str(tmp_path / "snapshot.sqlite"))) as database:
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": "a"})
        harness.drain()
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        harness.client.flushall()
        with pytest.raises(Unconfirmed, match="no replica"):
            restore(harness.client, database, durability="replica")


def test_dropped_dead_letters_are_confirmed(primary, replica, monkeypatch, capsys):
    """If no replica confirms that dead letters are dropped, the command does not state that they are."""
    monkeypatch.setattr(barrier, "PATIENCE", 0.1)
    with Harness(primary.url) as harness:
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "unknown", "subject": "a"})
        harness.drain()
        note_durability(harness.client, harness.deployment, "replica")
        with frozen(replica), pytest.raises(Unconfirmed, match="the dead letters are handled, but"):
            dead("drop", all=True, where=Where(redis=primary.url))
        assert not capsys.readouterr().out


def test_rules_that_no_replica_has_are_logged(primary):
    """A worker that publishes rules without a replica starts, and logs that a failover may take the rules back."""
    lines = LogCapture()
    with Harness(primary.url) as harness:
        changed = changed_rules(harness.rules, metric={**harness.rules.metric, "new": Metric()})
        settings = Settings(RedisSettings(primary.url), worker=WorkerSettings(durability="replica"), rules=changed)
        for _ in range(2):
            open_deployment(settings, structlog.wrap_logger(None, processors=[lines]))
    unconfirmed = [line for line in lines.entries if line["event"] == "rules.unconfirmed"]
    assert len(unconfirmed) == 1
    assert "no replica of 127.0.0.1:" in unconfirmed[0]["problem"]


def test_events_of_commands_wait_for_what_the_workers_wait_for(primary, tmp_path):
    """Without a replica, `emit` fails, and `spool --send` leaves the events in the spool."""
    with Harness(primary.url) as harness:
        note_durability(harness.client, harness.deployment, "replica")
        with pytest.raises(FlushTimeout):
            emit("view", "a", timeout=0.5, where=Where(redis=primary.url))
        dead_producer = Spool(BufferSettings(), SpoolSettings(tmp_path, 2**20, "os", "tally"))
        dead_producer.open(harness.layout)
        dead_producer.put(-1, "view", "a", 1, 60.0, None, None)
        dead_producer.abandon()
        with pytest.raises(FlushTimeout):
            spool(tmp_path, send=True, timeout=2, where=Where(redis=primary.url))
        assert any(path.is_dir() for path in tmp_path.iterdir())


def test_a_description_that_is_stored_again_states_what_commands_wait_for(primary, monkeypatch, tmp_path):
    """`reopen` stores the durability of its configuration with a lost `tally:meta`, and waits for it."""
    monkeypatch.setattr(barrier, "PATIENCE", 0.1)
    config = tmp_path / "tallystream.toml"
    config.write_text('[worker]\ndurability = "replica"\n[metric.view]\n')
    with Harness(primary.url) as harness:
        open_deployment(Settings(RedisSettings(primary.url), rules=harness.rules), structlog.get_logger())
        harness.client.delete("tally:meta")
        with pytest.raises(Unconfirmed, match="the keys are mended, but"):
            reopen(where=Where(redis=primary.url, config=config))
        assert Deployment.load(harness.client).durability == "replica"


def test_a_repartition_that_is_repeated_confirms_the_switch(primary, monkeypatch):
    """If the switch of an earlier run is not confirmed, the same command does not state that the partitions exist."""
    monkeypatch.setattr(barrier, "PATIENCE", 0.1)
    with Harness(primary.url) as harness:
        note_durability(harness.client, harness.deployment, "replica")
        settings, deployment = Settings(RedisSettings(primary.url)), Deployment.load(harness.client)
        with pytest.raises(Unconfirmed, match="there are already 4 partitions, but"):
            to_partitions(settings, deployment, 4, "", accept_loss=False, json=True)
