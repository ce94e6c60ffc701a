"""A quarantine isolates poison entries: all entries around them are counted, and only they are left pending."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import BusyLoadingError

from tallystream.errors import GenerationSwitched
from tallystream.rules.batch import Batch
from tallystream.storage.keys import Layout
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fold_result import FoldResult
from tallystream_worker.counting.quarantine import Quarantine

KEYS = Layout(1).keys[0]


class PoisonError(Exception):
    """The error that a poison entry causes."""


def entries(number: int) -> list[Entry]:
    """Return `number` entries with the IDs 0-1, 0-2 and so on."""
    return [Entry(f"0-{n}", {}) for n in range(1, number + 1)]


def fold_of(poison: set[str], size: int):
    """Return a fold whose batches have at most `size` entries, and that fails if one of these is in `poison`."""

    def fold(given, excluded):
        if any(entry.id in poison for entry in given[:size]):
            raise PoisonError
        return FoldResult(Batch(KEYS, "UTC"), excluded or {}, given[:size]), given[size:]

    return fold


@given(
    st.integers(0, 40), st.sets(st.integers(1, 40), max_size=7), st.sets(st.integers(1, 40), max_size=7),
    st.integers(1, 50),
)  # fmt: skip
def test_everything_but_the_poison_is_counted(number, unreadable, unwritable, size):
    """Each entry that fails in the fold or in the script is refused once; every other entry is counted once."""
    in_fold, in_script = {f"0-{n}" for n in unreadable}, {f"0-{n}" for n in unwritable}
    refused, counted = [], []
    quarantine = Quarantine(fold_of(in_fold, size), lambda entry, _: refused.append(entry.id))

    def count(batches):
        for batch in batches:
            if in_script.isdisjoint(batch.ids):
                counted.extend(batch.ids)
                quarantine.clear()
            else:
                count(quarantine.bisect(batch.entries, PoisonError()))

    given = entries(number)
    try:
        count(quarantine.batches(given))
    except PoisonError:  # eight failed with no batch counted between them
        assert len(in_fold | in_script) >= 8
        return
    assert sorted(refused + counted) == sorted(entry.id for entry in given)
    assert set(refused) == {entry.id for entry in given} & (in_fold | in_script)


def test_the_eighth_failure_is_not_about_an_entry():
    """After eight failed entries with no batch counted between them, the error is raised; `clear` resets the number."""
    refused = []
    quarantine = Quarantine(fold_of({entry.id for entry in entries(8)}, 1), lambda entry, _: refused.append(entry.id))
    assert list(quarantine.batches(entries(7))) == []
    quarantine.clear()
    with pytest.raises(PoisonError):
        list(quarantine.batches(entries(8)))
    assert len(refused) == 7 + 7


@pytest.mark.parametrize("error", [BusyLoadingError("LOADING"), GenerationSwitched("another")])
def test_an_error_of_the_server_blames_no_entry(error):
    """An error that no entry can have caused is raised, and no entry is refused."""
    refused = []
    quarantine = Quarantine(fold_of(set(), 1), lambda entry, _: refused.append(entry.id))
    with pytest.raises(type(error)):
        list(quarantine.bisect(entries(1), error))
    assert refused == []


def test_a_batch_that_was_stale_says_so():
    """A batch states how often its entries were in a stale batch, and which counters are excluded from it."""
    quarantine = Quarantine(fold_of(set(), 2), lambda *_: None)
    found = list(quarantine.batches(entries(3), {("view", "a"): "because"}, conflicts=2))
    assert [(batch.ids, batch.conflicts, dict(batch.excluded)) for batch in found] == [
        (["0-1", "0-2"], 2, {("view", "a"): "because"}),
        (["0-3"], 2, {("view", "a"): "because"}),
    ]
