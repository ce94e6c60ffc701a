"""The fold is pure and its batches are bounded; an event that cannot be counted does not affect other events."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import Layout
from tallystream.wire.codec import ActorColumns, Payload, Single, decode, encode
from tallystream.wire.event import MAX_AHEAD, MAX_AMOUNT
from tallystream.wire.packer import EntryBuilder
from tallystream_worker.counting.dropped import dropped_letters, record_of
from tallystream_worker.counting.entry import Entry
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.fold_result import OVERFLOW

RECEIVED = 1_763_900_000_000
NOW = RECEIVED / 1000
RULES = Rules({"view": Metric(), "like": Metric()})


def fold(**settings) -> Fold:
    """Return the fold of a layout of one partition, to which every subject belongs."""
    return Fold(Layout(1), 0, RULES, **settings)


def entry(*events, number: int = 0, deliveries: int = 1, **fields: bytes) -> Entry:
    """Return an entry of events: tuples of metric, subject, amount, and optionally time, actor and id."""
    pack = EntryBuilder()
    for metric, subject, amount, *rest in events:
        at, actor, id_ = (*rest, *[NOW, None, None][len(rest) :])
        pack.add(metric, subject, amount, at, actor, id_)
    packed = {b"v": b"1", b"p": b"p", b"q": b"1", b"n": str(pack.events).encode(), b"b": pack.build()}
    return Entry(f"{RECEIVED}-{number}", packed | {name.encode(): v for name, v in fields.items()}, deliveries)


def totals(folded) -> dict[str, dict[str, int]]:
    """Return the plain sums by metric and subject, whatever buckets they are in."""
    found: dict[str, Counter[str]] = {}
    for place, sums in folded.batch.sums.items():
        found.setdefault(place.metric, Counter()).update(sums)
    return found


def plain(number: int = 0, **fields: str) -> Entry:
    """Return a plain entry."""
    return Entry(f"{RECEIVED}-{number}", {name.encode(): value.encode() for name, value in fields.items()})


def test_sums_by_metric_and_subject():
    """The ones, counts, sums and singles of several entries are added to one sum for each counter."""
    batch, rest = fold()(
        [
            entry(("view", "a", 1), ("view", "a", 1), ("view", "b", 1), ("like", "a", -2)),
            entry(("view", "a", 1), ("view", "a", 10), ("view", "a", 2**45), ("like", "a", 1, NOW, "u1"), number=1),
            plain(2, metric="view", subject="b", amount="5"),
        ]
    )
    assert not rest
    assert batch.ids == [f"{RECEIVED}-{i}" for i in range(3)]
    assert totals(batch) == {"view": {"a": 13 + 2**45, "b": 6}, "like": {"a": -1}}
    assert batch.counted == {"view": 7, "like": 2}
    assert batch.dead == []
    assert batch.appended == 1
    counted = {"counted": 9, "counted@view": 7, "counted@like": 2}
    assert batch.ledger == {"appended": 1, "plain": 1, "entries:plain": 1, "entries:settled": 3} | counted


def test_nothing_is_nothing():
    """No entries fold to an empty batch."""
    batch, rest = fold()([])
    assert (batch.ids, batch.batch.counters, batch.ledger, list(rest)) == ([], 0, {}, [])


def test_an_entry_that_comes_twice_counts_once():
    """An ID that occurs twice in one read is folded once, because apply.lua would accept both."""
    batch, _ = fold()([entry(("view", "a", 1)), entry(("view", "a", 1))])
    assert (len(batch.ids), totals(batch)["view"]["a"]) == (1, 1)


@given(st.integers(1, 20), st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_a_batch_is_bounded_in_keys(max_keys, sizes):
    """A batch ends with the entry that reaches `max_keys`, and the fold returns all other entries."""
    subjects = iter(range(1000))
    entries = [entry(*(("view", f"s{next(subjects)}", 1) for _ in range(n)), number=i) for i, n in enumerate(sizes)]
    left, settled, found = entries, [], {}
    while left:
        before = len(left)
        batch, left = fold(max_keys=max_keys)(left)
        assert batch.ids
        assert batch.batch.counters < max_keys + sizes[len(settled) + len(batch.ids) - 1]
        assert len(batch.ids) + len(left) == before
        settled += batch.ids
        found |= totals(batch)["view"]
    assert settled == [e.id for e in entries]
    assert len(found) == sum(sizes)


actors = st.sampled_from(["u1", "u2", "\u00e9", "e\u0301", "bad\n", "u" * 300])
minutes = st.sampled_from([int(NOW) // 60 - 3 * 1440, int(NOW) // 60 - 1, int(NOW) // 60, int(NOW) // 60 + 61])
visits = st.builds(
    lambda metric, minute, rows: ActorColumns(metric, minute, *(list(column) for column in zip(*rows, strict=True))),
    st.sampled_from(["view", "vote", "call", "late", "set-aside", "unknown"]),
    minutes,
    st.lists(st.tuples(st.sampled_from(["a", "b", "bad\n"]), actors, st.integers(0, 59_999)), min_size=1, max_size=6),
)
MANY_RULES = Rules(
    {
        "view": Metric(windows=("hour", "day"), unique="day"),
        "vote": Metric(once="day"),
        "call": Metric(limit=3, per="hour", unique="hour"),
        "late": Metric(accept_late="1d"),
        "set-aside": Metric(accept_late="1d", late="aside"),
    }
)


@given(st.lists(visits, min_size=1, max_size=4))
def test_visits_fold_to_what_singles_fold_to(given_visits):
    """Events in columns are counted, rejected, late or dead-lettered exactly as the same events in singles."""
    in_columns = Payload([], [], [], given_visits)
    found = []
    for payload in (in_columns, in_columns.by_singles()):
        fields = {b"v": b"1", b"p": b"p", b"q": b"1", b"n": str(payload.events).encode(), b"b": encode(payload)}
        folded, _ = Fold(Layout(1), 0, MANY_RULES)([Entry(f"{RECEIVED}-0", fields)])
        document = msgspec.msgpack.decode(folded.encode())
        uniques = {
            (prefix, until, subject, actor)
            for _, prefix, until, *_, rows in document.pop("uniques")
            for subject, *names in rows
            for actor in names
        }
        letter = Counter((part.reason, part.events, part.metric, part.fields[b"b"]) for part in folded.dead)
        sums = {(place.metric, place.labels, s): n for place, by in folded.batch.sums.items() for s, n in by.items()}
        limited = {
            (place.metric, place.labels, s): n for place, by in folded.batch.limited.items() for s, n in by.items()
        }
        votes = sorted(str(vote) for _, _, _, *some in document["votes"] for vote in some)
        periods = sorted(map(tuple, document["periods"]))
        found.append((uniques, letter, sums, limited, votes, periods, folded.ledger, folded.settled))
    assert found[0] == found[1]


def test_an_excluded_counter_is_dead_lettered_alone():
    """All events of an excluded counter, in singles and groups, are dead-lettered; the other events are counted."""
    entries = [
        entry(("view", "a", 1), ("view", "a", 1), ("view", "b", 1), ("view", "a", 5), ("view", "c", 7)),
        entry(("view", "a", 1, NOW, "u1"), ("view", "b", 1, NOW, "u1"), ("like", "a", 1), number=1),
    ]
    batch, _ = fold()(entries, {("view", "a"): "because"})
    assert totals(batch) == {"view": {"b": 2, "c": 7}, "like": {"a": 1}}
    assert batch.counted == {"view": 3, "like": 1}
    assert [(p.source, p.reason, p.events, p.metric) for p in batch.dead] == [
        (f"{RECEIVED}-0", "because", 3, "view"),
        (f"{RECEIVED}-1", "because", 1, "view"),
    ]
    assert (batch.ledger["counted"], batch.ledger["dead"], batch.ledger["dead@view"]) == (4, 4, 4)


def test_what_is_dead_lettered_can_be_appended_again():
    """A dead letter has the fields of an entry that contains exactly the events that were not counted."""
    batch, _ = fold()([entry(("view", "a", 1), ("view", "b", 1), ("view", "a", 5))], {("view", "a"): "because"})
    (letter,) = batch.dead
    payload = decode(letter.fields, RECEIVED)
    again, _ = fold()([Entry(f"{RECEIVED + 86_400_000}-0", letter.fields)])
    assert payload.events == letter.events == 2
    assert totals(again) == {"view": {"a": 6}}


def test_an_undeclared_metric_is_dead_lettered_alone():
    """Events of an undeclared metric are dead-lettered with a reason that names it; the ledger has no field for it."""
    batch, _ = fold()([entry(("veiw", "a", 1), ("view", "a", 1), ("veiw", "b", 1, NOW, "u"))])
    assert totals(batch) == {"view": {"a": 1}}
    assert all("veiw is not declared" in letter.reason for letter in batch.dead)
    assert batch.ledger == {"counted": 1, "counted@view": 1, "dead": 2, "entries:settled": len(batch.ids)}


def test_a_metric_of_control_characters_is_dead_lettered():
    """Events with an invalid metric name are dead-lettered, and the reason does not repeat the name."""
    batch, _ = fold()([entry(("\x1b[31m", "a", 1), ("m" * 1000, "a", 1), ("view", "a", 1))])
    assert totals(batch) == {"view": {"a": 1}}
    assert all(letter.reason.isprintable() and len(letter.reason) < 200 for letter in batch.dead)


@pytest.mark.parametrize("subject", ["", "x" * 1025, "a\x1b", "\u202e", "\u2028", "e\u0301"])
@pytest.mark.parametrize("actor", [None, "u1"])
def test_a_bad_subject_is_dead_lettered_alone(subject, actor):
    """An event whose subject emit would reject is dead-lettered, in a group or a single; the others are counted."""
    batch, _ = fold()([entry(("view", subject, 1, NOW, actor), ("view", "a", 1), ("view", "b", 2, NOW, actor))])
    assert totals(batch) == {"view": {"a": 1, "b": 2}}
    (letter,) = batch.dead
    assert letter.reason.startswith("subject: ")
    assert letter.events == 1


@pytest.mark.parametrize(
    ("actor", "id_", "field"), [("", None, "actor"), ("u" * 257, None, "actor"), (None, "\x00", "id")]
)
def test_a_bad_actor_or_id_is_dead_lettered_alone(actor, id_, field):
    """An event whose actor or id emit would reject is dead-lettered; the others are counted."""
    batch, _ = fold()([entry(("view", "a", 1, NOW, actor, id_), ("view", "a", 1))])
    assert totals(batch) == {"view": {"a": 1}}
    assert [letter.reason.partition(":")[0] for letter in batch.dead] == [field]


def test_another_partitions_subject_is_dead_lettered_with_the_right_stream():
    """An event in the stream of another partition is dead-lettered; the reason names the right stream."""
    layout = Layout(4)
    home = layout.keys_of("article:1")
    wrong = next(i for i, keys in enumerate(layout.keys) if keys != home)
    batch, _ = Fold(layout, wrong, RULES)([plain(metric="view", subject="article:1")])
    assert totals(batch).get("view", {}) == {}
    assert [letter.reason for letter in batch.dead] == [
        f"subject: belongs to another partition: append it to {home.stream}"
    ]


@pytest.mark.parametrize("amounts", [[MAX_AMOUNT, 1], [-MAX_AMOUNT, -1], [MAX_AMOUNT] * 3, [2**52, 2**52]])
def test_an_overflow_within_a_batch_is_dead_lettered_alone(amounts):
    """If the sum of a subject in one batch exceeds the bounds, its events are dead-lettered; the others are counted."""
    batch, _ = fold()([entry(("view", "b", 1), *(("view", "a", amount) for amount in amounts))])
    assert totals(batch) == {"view": {"b": 1}}
    assert {letter.reason for letter in batch.dead} == {OVERFLOW}
    assert batch.ledger["dead"] == len(amounts)


def test_the_bounds_themselves_count():
    """A sum of exactly 2^53 - 1 is counted."""
    batch, _ = fold()([entry(("view", "a", MAX_AMOUNT), ("view", "b", -MAX_AMOUNT), ("view", "b", 0))])
    assert totals(batch) == {"view": {"a": MAX_AMOUNT, "b": -MAX_AMOUNT}}


@pytest.mark.parametrize("actor", [None, "u1"])
def test_events_from_the_future_are_dead_lettered(actor):
    """An event more than an hour ahead of the server's clock is dead-lettered; one that is less ahead is counted."""
    soon, later = NOW + MAX_AHEAD - 60, NOW + MAX_AHEAD + 60
    batch, _ = fold()([entry(("view", "a", 1, soon, actor), ("view", "a", 1, later, actor), ("view", "a", 1))])
    assert totals(batch) == {"view": {"a": 2}}
    (letter,) = batch.dead
    assert "3,600 seconds after the server received the entry" in letter.reason
    assert (letter.events, letter.metric) == (1, "view")


def test_the_past_is_welcome():
    """An event of 1970 is counted."""
    batch, _ = fold()([entry(("view", "a", 1, 0.0), ("view", "a", 1, 0.0, "u1"))])
    assert totals(batch) == {"view": {"a": 2}}


def test_an_entry_delivered_too_often_is_dead_lettered_unread():
    """An entry that exceeds `max_deliveries` is dead-lettered unchanged, with the number of events that it states."""
    poison = entry(("view", "a", 1), ("view", "b", 1), deliveries=11)
    batch, _ = fold(max_deliveries=10)([poison, entry(("view", "a", 1), number=1, deliveries=10)])
    assert totals(batch) == {"view": {"a": 1}}
    (letter,) = batch.dead
    assert (letter.reason, letter.events, letter.fields) == ("delivered 10 times without success", 2, poison.fields)


def test_an_entry_with_a_dropped_part_is_not_given_up():
    """Events whose dead letter was dropped do not become a part of another dead letter of the same entry."""
    undeclared = entry(("clap", "a", 1), ("clap", "b", 1)).fields
    poison = entry(("view", "a", 1), ("clap", "a", 1), ("clap", "b", 1), deliveries=11)
    records = [record_of(poison.id, undeclared, 2, "", whole=False)]
    batch, _ = fold(max_deliveries=10, dropped=dropped_letters(records))([poison])
    assert totals(batch) == {"view": {"a": 1}}
    assert batch.dead == []
    assert batch.ledger == {"counted": 1, "counted@view": 1, "dead": 2, "dropped": 2, "entries:settled": 1}


@pytest.mark.parametrize(
    ("fields", "events"),
    [
        ({b"v": b"99", b"n": b"7", b"b": b"?"}, 7),
        ({b"v": b"1", b"n": b"7", b"b": b"?"}, 7),
        ({b"v": b"1", b"n": b"7", b"b": encode(Payload([], []))}, 7),
        ({b"v": b"1", b"n": b"1000000000", b"b": b"?"}, 1),
        ({b"v": b"1"}, 1),
        ({}, 1),
        ({b"\xff": b"\xff"}, 1),
    ],
)
def test_an_unreadable_entry_is_dead_lettered_whole(fields, events):
    """An entry that cannot be decoded is dead-lettered unchanged, with the events it states; others are counted."""
    batch, _ = fold()([Entry("1-0", fields), entry(("view", "a", 1))])
    assert totals(batch) == {"view": {"a": 1}}
    (letter,) = batch.dead
    assert (letter.source, letter.events, letter.fields) == ("1-0", events, fields)
    assert (batch.appended, batch.ledger["dead"]) == (events, events)


def test_only_the_gate_has_counted_as_appended():
    """Events of an entry without a sequence are added to the ledger's `appended` by the batch; others already are."""
    gated = entry(("view", "a", 1))
    foreign = Entry("1-0", {name: value for name, value in gated.fields.items() if name not in (b"p", b"q")})
    assert fold()([gated])[0].appended == 0
    assert fold()([foreign])[0].appended == 1


def test_a_forged_single_is_checked():
    """A payload that our producers would not make is checked by the same rules."""
    single = Single("view", "a", 1, RECEIVED, "\x1b", None)
    forged = Entry(f"{RECEIVED}-0", {b"v": b"1", b"n": b"1", b"b": msgspec.msgpack.encode(Payload([], [single]))})
    batch, _ = fold()([forged])
    assert batch.batch.counters == 0
    assert [letter.reason for letter in batch.dead] == ["actor: must not contain control characters"]
