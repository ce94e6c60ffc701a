"""Two snapshots that are written at once: one of them is stored, and the other one is discarded whole."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing

from tallystream.deployment import Deployment
from tallystream_worker.snapshot.database import Database, SnapshotError
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness


class Writer(threading.Thread):
    """Takes a snapshot; `writes` is set when it begins to write, `error` has the error of the snapshot."""

    def __init__(self, harness: Harness, path: str) -> None:
        super().__init__()
        self._harness, self._path = harness, path
        self.writes = threading.Event()
        self.error: SnapshotError | None = None

    def run(self) -> None:
        """Take the snapshot."""
        with closing(Told(self._path, self.writes)) as database, closing(self._harness.connect()) as client:
            try:
                Snapshotter(client, database, Deployment.load(client)).run_once()
            except SnapshotError as error:
                self.error = error


class Told(Database):
    """A snapshot database that sets an event before it writes a partition."""

    def __init__(self, path: str, writes: threading.Event) -> None:
        super().__init__(path)
        self._writes = writes

    def put(self, *arguments):
        """Set the event, and write."""
        self._writes.set()
        return super().put(*arguments)


def test_of_two_snapshots_at_once_one_is_stored_whole(server, tmp_path):
    """If both wait for the lock of the file, the second one finds the first one, and changes nothing."""
    path = str(tmp_path / "snapshot.sqlite")
    with Harness(server.url, partitions=1) as harness, closing(Database(path)) as database:
        keys = harness.layout.keys[0]

        def count(subject: str) -> None:
            harness.client.xadd(keys.stream, {"metric": "view", "subject": subject})
            harness.drain("w")

        count("a")
        Snapshotter(harness.client, database, Deployment.load(harness.client)).run_once()
        count("b")
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        writers = [Writer(harness, path), Writer(harness, path)]
        for writer in writers:
            writer.start()
            assert writer.writes.wait(30)
            count("c")
        lock.execute("ROLLBACK")
        lock.close()
        for writer in writers:
            writer.join(30)
        (error,) = [writer.error for writer in writers if writer.error is not None]
        assert "has written a later snapshot meanwhile" in str(error)
        assert database.damaged(0) == []
