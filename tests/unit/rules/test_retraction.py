"""Retractions remove the described events from an entry, and no others."""

from __future__ import annotations

import pytest

from tallystream.errors import EventError
from tallystream.rules.metrics import Metric, Rules
from tallystream.rules.retraction import Retraction
from tallystream.storage.keys import Layout
from tallystream.wire.codec import VERSION, Group, Payload, Reset, Single, encode
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fold import Fold

LAYOUT = Layout(1)
STREAM = LAYOUT.keys[0].stream
UNTIL = {STREAM: "2000000000000-0"}
MINUTE = 1_700_000_040_000 // 60_000
NOW = MINUTE * 60_000
PAYLOAD = Payload(
    [Group("view", MINUTE, ["a", "b"], {"c": 3}, {"d": (10, 2)}), Group("like", MINUTE + 1, ["a"], {}, {})],
    [Single("view", "a", 1, NOW, "spam", None), Single("view", "a", 2, NOW + 60_000, "u", "i")],
)


def folded(entry_id="1700000100000-0", **of):
    """Return totals by metric and subject, and the events that were retracted."""
    rules = Rules({"view": Metric(ids=None), "like": Metric()}, retracted=(Retraction(UNTIL, **of),))
    entry = Entry(entry_id, {b"v": VERSION, b"p": b"p", b"q": b"1", b"n": b"10", b"b": encode(PAYLOAD)})
    batch, _ = Fold(LAYOUT, 0, rules)([entry])
    totals = {
        (place.metric, subject): total for place, sums in batch.batch.sums.items() for subject, total in sums.items()
    }
    events = batch.ledger
    assert events["counted"] + events.get("retracted", 0) == PAYLOAD.events
    assert events.get("retracted", 0) == sum(n for name, n in events.items() if name.startswith("retracted@"))
    return totals, events.get("retracted", 0)


EVERYTHING = {("view", "a"): 4, ("view", "b"): 1, ("view", "c"): 3, ("view", "d"): 10, ("like", "a"): 1}


@pytest.mark.parametrize(
    ("of", "gone", "changed"),
    [
        ({"metric": "like"}, 1, {("like", "a"): None}),
        ({"subject": "a"}, 4, {("view", "a"): None, ("like", "a"): None}),
        ({"subject": "b"}, 1, {("view", "b"): None}),
        ({"metric": "view", "subject": "d"}, 2, {("view", "d"): None}),
        ({"actor": "spam"}, 1, {("view", "a"): 3}),
        ({"id": "i"}, 1, {("view", "a"): 2}),
        ({"actor": "u", "id": "other"}, 0, {}),
        ({"begin": NOW + 60_000}, 2, {("like", "a"): None, ("view", "a"): 2}),
        ({"subject": "a", "end": NOW + 60_000}, 2, {("view", "a"): 2}),
    ],
)
def test_what_agrees_with_everything_stated_is_gone(of, gone, changed):
    """Only the described events are not counted, and the ledger has their number."""
    expected = {key: value for key, value in (EVERYTHING | changed).items() if value is not None}
    assert folded(**of) == (expected, gone)


def test_what_was_appended_later_counts():
    """A retraction does not apply to entries that were appended after it was made."""
    assert folded("2000000000000-1", subject="a") == (EVERYTHING, 0)
    assert folded("2000000000000-0", subject="a")[1] == 4


def test_a_reset_stays():
    """A retraction of a subject's events leaves the resets of the subject."""
    payload = Payload([], [], [Reset("view", "a")])
    assert Retraction(UNTIL, subject="a").without(payload) == payload


def test_a_retraction_of_everything_is_refused():
    """A retraction must describe the events by at least one attribute, and its times must be whole minutes."""
    with pytest.raises(EventError, match="name the events"):
        Retraction(UNTIL)
    with pytest.raises(EventError, match="to: must be a whole minute"):
        Retraction(UNTIL, end=NOW + 1)
