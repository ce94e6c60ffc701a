"""A stream whose entries were archived is not created again by the archiver, whatever else its partition lost."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest

from tallystream import Producer
from tallystream.deployment import Deployment
from tallystream.errors import KeyLost, StreamError
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness


def test_files_stay_if_a_restored_stream_is_deleted(server, tmp_path):
    """After a restore of a lost ledger, the deleted stream is named, and no file of the archive is set aside."""
    store = Store(str(tmp_path / "archive"))
    with (
        Harness(server.url, partitions=1) as harness,
        closing(Database(str(tmp_path / "snapshot.sqlite"))) as database,
    ):
        client, keys = harness.client, harness.layout.keys[0]
        with Producer(server.url) as producer:
            for number in range(20):
                producer.emit("view", f"a{number}")
                producer.flush(10)
        harness.drain()
        Archive(client, store, Deployment.load(client)).run_once(settled=0)
        Snapshotter(client, database, Deployment.load(client)).run_once()
        client.delete(keys.ledger, keys.stream, keys.live)
        restore(client, database, partial(entries, store), force=True)
        archive = Archive(client, store, Deployment.load(client))
        archive.run_once(settled=0)
        files = list(store.files(0))
        client.delete(keys.stream)
        with pytest.raises(StreamError, match="consumer group 'archive'"):
            archive.run_once(settled=0)
        with pytest.raises(KeyLost) as error:  # the next pass begins with the group
            archive.run_once(settled=0)
        assert error.value.key == keys.stream
        assert list(store.files(0)) == files
        assert not client.exists(keys.stream)
