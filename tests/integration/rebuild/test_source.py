"""Entries that are trimmed while a stream is read are read from the archive, or reported: none is missing silently."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import KeyLost, StreamError
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.rebuild.source import EntriesTrimmed, entries, stream_entries
from tests.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystream_worker.counting.entry import Entry


@pytest.fixture
def harness(server):
    """Yield a harness of one partition, with 100 entries."""
    with Harness(server.url, partitions=1) as harness:
        for number in range(100):
            harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": "a"}, id=f"{number + 1}-0")
        yield harness


def trim(harness: Harness, left: int) -> None:
    """Trim the stream to a number of entries."""
    harness.client.xtrim(harness.layout.keys[0].stream, maxlen=left, approximate=False)


def ids(found) -> list[int]:
    """Return the milliseconds of the IDs of entries."""
    return [int(entry.id.partition("-")[0]) for entry in found]


@pytest.mark.parametrize("left", [90, 89, 87, 86, 80, 5, 0])
@pytest.mark.parametrize("begins", ["", "3-0"])
def test_entries_that_are_trimmed_while_a_stream_is_read_are_an_error(harness, left, begins):
    """The error names the last entry that was read, and the first that is left; entries that were read may be gone."""
    found = stream_entries(harness.client, harness.layout.keys[0], begins, count=10)
    read = ids(islice(found, 1))
    first = read[0]
    trim(harness, left)
    if 100 - left <= first + 9:
        assert ids(found) == [*range(first + 1, 101)]
        return
    before = f"{101 - left}-0" if left else "the end"
    with pytest.raises(
        EntriesTrimmed, match=rf"stream: .*entries after {first + 9}-0 and before {before} were trimmed"
    ):
        ids(found)


@pytest.mark.parametrize("begins", ["", "3-0"])
@pytest.mark.parametrize("is_archived", [False, True])
def test_a_stream_that_is_deleted_while_it_is_read_is_an_error(harness, tmp_path, begins, is_archived):
    """The entries that were not read yet are missing, whether the stream was deleted or the server emptied."""
    keys, store = harness.layout.keys[0], Store(str(tmp_path / "archive"))
    if is_archived:
        Archive(harness.client, store, Deployment.find(harness.client)).run_once(settled=0)
        trim(harness, 50)
    found = entries(harness.client, keys, store.url, 0) if is_archived else read_from(harness, begins)
    assert len(ids(islice(found, 5))) == 5
    harness.client.flushall() if is_archived else harness.client.delete(keys.stream)
    with pytest.raises(KeyLost, match=r":stream was deleted"):
        ids(found)


@pytest.mark.parametrize("number", [5, 60])
@pytest.mark.parametrize("at", [1, 200])
def test_a_stream_that_is_replaced_while_it_is_read_is_an_error(harness, number, at):
    """The stream has fewer entries than were read from it, or has lost entries that were not read."""
    found = read_from(harness)
    assert ids(islice(found, 15)) == [*range(1, 16)]
    stream = harness.layout.keys[0].stream
    harness.client.delete(stream)
    for each in range(number):
        harness.client.xadd(stream, {"metric": "view", "subject": "b"}, id=f"{at + each}-0")
    with pytest.raises(StreamError, match=r"stream was replaced while it was read"):
        ids(found)


def test_the_number_of_trimmed_entries_is_not_stated_if_it_is_not_known(harness):
    """If another stream has the name, or reading did not begin at the first entry, the difference is no number."""
    assert EntriesTrimmed("s", "1-0", "9-0", 0).number is None
    assert "-3" not in str(EntriesTrimmed("s", "1-0", "9-0", -3))
    found = read_from(harness, "3-0")
    ids(islice(found, 10))
    trim(harness, 50)
    with pytest.raises(EntriesTrimmed, match=r"stream: entries after 13-0 and before 51-0"):
        ids(found)


def read_from(harness: Harness, after: str = "") -> Iterator[Entry]:
    """Yield the entries of the stream after an ID, of which 10 are read at a time."""
    return stream_entries(harness.client, harness.layout.keys[0], after, count=10)


def test_a_stream_that_is_read_to_an_end_may_be_trimmed_there(harness):
    """Entries that are trimmed after the last wanted one are not reported as missing."""
    found = stream_entries(harness.client, harness.layout.keys[0], until="10-0", count=10)
    read = ids(islice(found, 10))
    trim(harness, 5)
    assert [*read, *ids(found)] == [*range(1, 11)]


@pytest.mark.parametrize("at", [1, 40])
def test_the_archive_has_what_is_trimmed_meanwhile(harness, tmp_path, at):
    """With an archive, every entry is yielded once, however far the stream is trimmed while both are read."""
    keys, store = harness.layout.keys[0], Store(str(tmp_path / "archive"))
    Archive(harness.client, store, Deployment.find(harness.client)).run_once(settled=0)
    trim(harness, 50)
    found = entries(harness.client, keys, store.url, 0)
    read = ids(islice(found, at))
    trim(harness, 10)
    assert [*read, *ids(found)] == [*range(1, 101)]


def test_what_the_archive_lacks_is_an_error(harness, tmp_path):
    """Entries that are trimmed before they are archived are reported."""
    keys, store = harness.layout.keys[0], Store(str(tmp_path / "archive"))
    Archive(harness.client, store, Deployment.find(harness.client)).run_once(settled=0)
    for number in range(101, 200):
        harness.client.xadd(keys.stream, {"metric": "view", "subject": "a"}, id=f"{number}-0")
    trim(harness, 149)
    found = entries(harness.client, keys, store.url, 0)
    assert ids(islice(found, 5)) == [1, 2, 3, 4, 5]
    trim(harness, 20)
    with pytest.raises(EntriesTrimmed, match=r"129 entries after 50-0 and before 180-0 were trimmed"):
        ids(found)
