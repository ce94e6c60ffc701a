"""An ingest is confirmed: the identity of a file before its first event, and its events before the command ends."""

from __future__ import annotations

import threading

import pytest

from tallystream.errors import Unconfirmed
from tallystream_worker.ingest.job import jobs_of
from tallystream_worker.ingest.lines import Mapping
from tallystream_worker.ingest.pool import IngestRun
from tallystream_worker.process import barrier
from tallystream_worker.process.description import note_durability
from tallystream_worker.settings.settings import RedisSettings
from tests.harness import Harness
from tests.integration.client.test_durability import frozen, replica_of


def test_no_event_is_appended_before_the_identity_of_its_file_is_on_a_replica(fresh_server, monkeypatch, tmp_path):
    """A node that loses the identity of a file would let the file count again when it has grown."""
    monkeypatch.setattr(barrier, "PATIENCE", 0.1)
    path = tmp_path / "events.ndjson"
    path.write_text("".join(f'{{"metric": "view", "subject": "a:{n}"}}\n' for n in range(50)))
    primary = fresh_server(port=0, extra=["--repl-diskless-sync-delay", "0"])
    replica = replica_of(fresh_server, primary)
    with Harness(primary.url) as harness:
        note_durability(harness.client, harness.deployment, "replica")
        jobs = jobs_of(str(path), "ndjson", Mapping())
        run = IngestRun(jobs, RedisSettings(url=primary.url), 1, threading.Event(), lambda _: True)
        with frozen(replica), pytest.raises(Unconfirmed, match=r"events\.ndjson is identified, but"):
            run.run()
        assert not any(harness.client.xlen(keys.stream) for keys in harness.layout.keys)
        monkeypatch.setattr(barrier, "PATIENCE", 20)
        run.run()
        assert run.lost() == []
        monkeypatch.setattr(barrier, "PATIENCE", 0.1)
        with frozen(replica), pytest.raises(Unconfirmed, match="the events of the files are appended, but"):
            run.run_lost()
        monkeypatch.setattr(barrier, "PATIENCE", 20)
        assert not run.run_lost()
        harness.drain()
        assert harness.totals() == {("view", f"a:{n}"): 1 for n in range(50)}
