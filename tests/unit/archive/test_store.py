"""A file of the archive that is damaged or cannot be reached gives an error with its name, never another exception."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.later_topics import later_events
from tallystream_worker.archive.rows import SCHEMA, Rows
from tallystream_worker.archive.store import ArchiveError, Store
from tallystream_worker.counting.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Callable

JSON_FILES: dict[str, Callable[[Store], object]] = {
    "_tallystream.json": lambda store: store.claim("tally", 1, ("epoch",)),
    "_rules.json": lambda store: store.rules(),
    "_files.json": lambda store: store.files_ingested(),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Provide an archive with one file, and one of each JSON file."""
    found = Store(str(tmp_path))
    found.claim("tally", 1, ("epoch",))
    found.add_rules({"1-0": {"view": "{}"}})
    found.add_files_ingested({"name": 5})
    rows = Rows()
    rows.add(Entry("5-0", {b"metric": b"view", b"subject": b"a"}))
    found.put(0, "0-0", "5-0", "5-0", rows.table())
    return found


def fresh(store: Store) -> Store:
    """Return the archive, as a process that starts now has it."""
    return Store(store.url)


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[]", b'{"a": "\xff"}', b"null", b"[" * 100_000])
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_damaged_json_file_is_named(store, name, content):
    """If a JSON file is damaged, the error names it and what to do."""
    path = Path(store.url) / name
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match=f"{path} is damaged: .* Restore this file from a copy of the archive"):
        JSON_FILES[name](fresh(store))


def test_damaged_retractions_are_named(store):
    """If the retractions in the manifest are damaged, the error names the manifest."""
    path = Path(store.url) / "_tallystream.json"
    path.write_text('{"namespace": "tally", "retracted": [3]}')
    with pytest.raises(ArchiveError, match=f"{path} is damaged"):
        fresh(store).retracted()


@pytest.mark.parametrize("partitions", ['"4"', "5000", "0", "null"])
def test_a_damaged_number_of_partitions_is_named(store, partitions):
    """If the number of partitions in a manifest is impossible, the error names the manifest, also for a later topic."""
    path = Path(store.url) / "log=2" / "_tallystream.json"
    path.parent.mkdir()
    path.write_text(f'{{"namespace": "tally", "partitions": {partitions}}}')
    with pytest.raises(ArchiveError, match=f"{path} is damaged"):
        later_events(store.url, "tally", 1)


@pytest.mark.parametrize(
    "metadata",
    [{"tallystream.after": None}, {"tallystream.after": "never"}, {"tallystream.lost": "never"}],
    ids=str,
)
def test_damaged_metadata_is_named(store, metadata):
    """If the metadata of a file lacks a field or has another form of it, the error names the file."""
    file = store.newest(0)
    table = pq.read_table(file.path)
    changed = table.schema.metadata | {name.encode(): value for name, value in metadata.items()}
    kept = {name: value for name, value in changed.items() if value is not None}
    pq.write_table(table.replace_schema_metadata(kept), file.path)
    with pytest.raises(ArchiveError, match=f"{file.path} is damaged: the field tallystream"):
        store.join(file)


@pytest.mark.parametrize("column", SCHEMA.names)
def test_a_column_that_is_missing_or_has_another_type_is_named(store, column):
    """If a file lacks a column, or has another type of it, every reader gets an error with the name of the file."""
    file = store.newest(0)
    table = pq.read_table(file.path)
    other = table.drop_columns([column]).append_column(column, pa.array([1.5] * len(table)))
    for changed in (table.drop_columns([column]), other):
        pq.write_table(changed, file.path)
        for read in (lambda: list(entries(store, 0)), lambda: store.columns(file, [column])):
            with pytest.raises(ArchiveError, match=rf"{file.path} (is damaged|cannot be read): .*\b{column}\b"):
                read()


def test_a_place_that_cannot_be_reached_is_named(tmp_path):
    """If the file system fails when a file is looked for, the error names the file."""
    store = Store(str(tmp_path), namespace="n" * 300)  # longer than a name of a file may be
    for use in (
        lambda: store.put(0, "0-0", "5-0", "5-0", Rows().table()),
        lambda: store.claim("n", 1, ("epoch",)),
        store.rules,
    ):
        with pytest.raises(ArchiveError, match=f"{tmp_path}/namespace=n+/.* cannot be read: .*too long"):
            use()


def test_files_of_other_archivers_are_found_again(tmp_path, monkeypatch):
    """`refresh` makes an `fsspec` file system forget the lists of files that it keeps; others keep none."""
    forgotten = []

    class Kept:
        def invalidate_cache(self):
            forgotten.append(1)

    store = Store(str(tmp_path))
    store.refresh()
    assert forgotten == []
    monkeypatch.setattr(store, "_fs", fs.PyFileSystem(fs.FSSpecHandler(Kept())))
    store.refresh()
    assert forgotten == [1]
