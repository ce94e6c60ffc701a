"""The snapshot of another namespace is in a separate file, also if the first attempts to open it failed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tallystream.errors import ConfigurationError
from tallystream_worker.snapshot.database import Database, SnapshotError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("owner", [None, "tally"])
def test_the_file_stays_the_same_after_a_failure(tmp_path: Path, owner: str | None) -> None:
    """If the separate file cannot be opened at first, later calls use this file, and not that of another name."""
    url = tmp_path / "x.db"
    if owner is not None:
        with closing(Database(str(url), owner)) as first:
            first.state({"namespace": owner})
    beside = tmp_path / "x.ns.db"
    beside.mkdir()
    with closing(Database(str(url), "ns")) as database:
        for _ in range(3):
            with pytest.raises(SnapshotError, match=r"x\.ns\.db cannot be used"):
                database.facts()
            assert database.owner == owner
        beside.rmdir()
        database.state({"namespace": "ns"})
        assert database.facts() == {"namespace": "ns"}
        assert database.place == str(beside)
        assert database.owner == owner
    assert beside.is_file()
    assert not (tmp_path / "x.ns.ns.db").exists()


def test_a_missing_file_is_named_each_time(tmp_path: Path) -> None:
    """With `is_there`, each call names the same missing file."""
    with closing(Database(str(tmp_path / "x.db"), "ns", is_there=True)) as database:
        for _ in range(3):
            with pytest.raises(ConfigurationError, match=r"/x\.ns\.db: there is no such snapshot"):
                database.facts()


@pytest.mark.parametrize("begin", ["", "CREATE TABLE notes (text)", "PRAGMA journal_mode = DELETE"])
def test_a_look_at_a_file_does_not_change_it(tmp_path: Path, begin: str) -> None:
    """With `is_there`, a look at a database without a snapshot, or in another journal mode, writes nothing."""
    file = tmp_path / "x.ns.db"
    if "PRAGMA" in begin:
        with closing(Database(str(tmp_path / "x.db"), "ns")) as database:
            database.state({"namespace": "ns"})
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(begin)
        connection.execute("PRAGMA user_version = 1")  # so that there is a file
    before = file.read_bytes()
    with closing(Database(str(tmp_path / "x.db"), "ns", is_there=True)) as database:
        assert database.facts() == ({"namespace": "ns"} if "PRAGMA" in begin else {})
        assert database.position(0) is None
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.ns.db"]
