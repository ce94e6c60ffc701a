"""Entries that are trimmed while a stream is read are read from the archive, or reported: none is missing silently."""

from __future__ import annotations

from itertools import islice

import pytest

from tallystream.deployment import Deployment
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.rebuild.source import EntriesTrimmed, entries, stream_entries
from tests.harness import Harness


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


@pytest.mark.parametrize("left", [90, 89, 80, 5, 0])
@pytest.mark.parametrize("begins", ["", "3-0"])
def test_entries_that_are_trimmed_while_a_stream_is_read_are_an_error(harness, left, begins):
    """The error names the last entry that was read, and the first that is left; entries that were read may be gone."""
    found = stream_entries(harness.client, harness.layout.keys[0], begins, count=10)
    read = ids(islice(found, 1))
    first = read[0]
    trim(harness, left)
    if 100 - left <= first + 9 - (begins != ""):
        assert ids(found) == [*range(first + 1, 101)]
        return
    before = f"{101 - left}-0" if left else "the end"
    with pytest.raises(
        EntriesTrimmed, match=rf"stream: .*entries after {first + 9}-0 and before {before} were trimmed"
    ):
        ids(found)


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
