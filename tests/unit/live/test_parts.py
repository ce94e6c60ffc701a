"""The parts of live updates that work without Redis are correct: filters, positions, readers, rates."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream.deployment import Deployment
from tallystream.errors import EventError
from tallystream.storage.keys import Layout
from tallystream_worker.live import cursor
from tallystream_worker.live.messages import Message, MessageBatch, ResetMessage
from tallystream_worker.live.overview import Rates
from tallystream_worker.live.subscriber import MAX_HELD, LiveReader
from tallystream_worker.live.subscription import MAX_SUBJECTS, Pattern, subscription_of
from tallystream_worker.service.routes.live import _send_events as send_events
from tallystream_worker.service.routes.live import _while_present as while_present

POSITIONS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), min_size=1, max_size=9)


@given(st.text("ab*", min_size=1, max_size=8), st.text("ab", max_size=10))
def test_a_pattern_matches_as_a_shell_does(pattern, subject):
    """`*` matches any text, also an empty one, and every other character matches itself."""
    assert Pattern(pattern)(subject) == fnmatch.fnmatchcase(subject, pattern)


def test_a_hostile_pattern_takes_no_time():
    """A pattern that makes a regular expression backtrack very long is matched in less than a second."""
    began = time.monotonic()
    assert not Pattern("*a*a*a*a*a*a*b")("a" * 1024)
    assert time.monotonic() - began < 1


def test_too_many_patterns_are_refused():
    """Too many patterns, too many stars, or an invalid text are rejected with an error that names the field."""
    for subjects in (["x*" + str(n) for n in range(MAX_SUBJECTS + 1)], ["*********"], ["x" * 1025], ["\x00"], [""]):
        with pytest.raises(EventError, match="subject"):
            subscription_of(["view"], subjects)


def test_a_filter_finds_what_it_names_and_what_matches():
    """A filter finds changed subjects by name and by pattern, only in the metrics that it follows."""
    found = subscription_of(["view", "like"], ["article:1", "user:*"]).among(
        {"view": {"article:1", "article:2", "user:7"}, "like": {"user:"}, "share": {"article:1"}}
    )
    assert found == {("article:1", "view"), ("user:7", "view"), ("user:", "like")}


@given(POSITIONS)
def test_a_position_reads_as_it_was_spelled(positions):
    """The text of a position decodes to the same position; for other data or another number of partitions to `None`."""
    text = cursor.cursor_text("0123abcd", positions)
    assert cursor.read(text, "0123abcd", len(positions)) == tuple(positions)
    assert cursor.read(text, "0123abce", len(positions)) is None
    assert cursor.read(text, "0123abcd", len(positions) + 1) is None


@pytest.mark.parametrize(
    "text", ["", "x", "0123abcd", "0123abcd.", "0123abcd.-1", "0123abcd.g", "0123abcd.1-2-3", "0" * 99_999]
)
def test_what_is_no_position_is_refused(text):
    """A text that is not a position is rejected with an error that names the header."""
    with pytest.raises(EventError, match="last-event-id"):
        cursor.read(text, "0123abcd", 1)


def test_another_generation_is_other_data():
    """The checksum of the data differs between epochs."""
    assert cursor.data_of(Deployment(Layout(4), "a", None)) != cursor.data_of(Deployment(Layout(4), "b", None))


async def _now(reader):
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(reader.next(), 0.01)


def _batch(id_, *counters):
    return MessageBatch({(subject, "view"): (value, 0) for subject, value in counters}, id_, "1-0", 0)


def test_a_slow_reader_gets_the_latest_of_each():
    """A reader that takes nothing for a while gets the latest value of each counter, and the last position."""

    async def scene():
        reader = LiveReader(None)
        for value in range(100):
            reader.counters(_batch(f"id{value}", ("a", value), (f"b{value % 3}", value)))
        (message,) = await reader.next()
        return message

    message = asyncio.run(scene())
    assert message.id == "id99"
    assert {counted.subject: counted.value for counted in message.data.counters} == {
        "a": 99,
        "b0": 99,
        "b1": 97,
        "b2": 98,
    }


def test_a_reader_that_holds_too_much_is_reset():
    """A reader with more than `MAX_HELD` changed counters gets a reset first, and then only later totals."""

    async def scene():
        reader = LiveReader(None)
        reader.counters(_batch("id1", *((str(n), n) for n in range(MAX_HELD + 1))))
        reader.counters(_batch("id2", ("a", 1)))
        return await reader.next()

    reset, after = asyncio.run(scene())
    assert (reset.event, reset.id) == ("reset", "id1")
    assert (after.event, after.id) == ("counters", "id2")


@pytest.mark.parametrize("is_other_data", [False, True])
def test_a_reset_keeps_what_is_followed_by_name(is_other_data):
    """A reset drops the totals of patterns; those that are followed by name are sent after it, except of other data."""

    async def scene():
        reader = LiveReader(subscription_of(["view"], ["a", "b*"]))
        reader.counters(_batch("id1", ("a", 1), ("b1", 1)))
        reader.reset("too much", "id2", is_other_data=is_other_data)
        return await reader.next()

    reset, *after = asyncio.run(scene())
    assert (reset.event, reset.id) == ("reset", "id2")
    told = [(message.id, [(each.subject, each.value) for each in message.data.counters]) for message in after]
    assert told == ([] if is_other_data else [("id2", [("a", 1)])])


def test_what_was_read_first_goes_first():
    """A reader gets no message before its first totals, and later values replace those."""

    async def scene():
        reader = LiveReader(None)
        reader.hold_back()
        reader.counters(_batch("later", ("a", 2)))
        assert await _now(reader) is None
        reader.first(_batch("first", ("a", 1), ("b", 1)))
        reader.release()
        return await reader.next()

    (message,) = asyncio.run(scene())
    assert message.id == "later"
    assert {counted.subject: counted.value for counted in message.data.counters} == {"a": 2, "b": 1}


def test_a_readers_pace_is_kept_and_its_end_is_told():
    """Two updates are at least `every` seconds apart, and `next` returns `None` after the end."""

    async def scene():
        reader = LiveReader(None, 0.3)
        reader.counters(_batch("id1", ("a", 1)))
        assert await reader.next()
        reader.counters(_batch("id2", ("a", 2)))
        began = time.monotonic()
        assert await reader.next()
        assert time.monotonic() - began > 0.2
        reader.end()
        assert await reader.next() is None

    asyncio.run(scene())


def test_the_same_updates_are_put_together_once():
    """Slow readers of one filter that missed the same passes get the same merged message object."""

    async def scene():
        readers = [LiveReader(None) for _ in range(3)]
        late = LiveReader(None)
        for number, batch in enumerate(_batch(f"id{n}", ("a", n), (f"b{n}", n)) for n in range(3)):
            for reader in [*readers, *([late] if number else [])]:
                reader.counters(batch)
        return [(await reader.next())[0] for reader in (*readers, late)]

    first, second, third, late = asyncio.run(scene())
    assert first is second is third
    assert [counted.subject for counted in first.data.counters] == ["a", "b0", "b1", "b2"]
    assert [counted.subject for counted in late.data.counters] == ["a", "b1", "b2"]


def test_silence_is_broken_by_a_sign_of_life():
    """A reader gets a heartbeat after each `patience` seconds, also while `every` delays its messages."""

    async def scene():
        reader = LiveReader(None, 60)
        watching = asyncio.create_task(reader.watch(0.1))
        reader.counters(_batch("id1", ("a", 1)))
        assert await reader.next()
        reader.counters(_batch("id2", ("a", 2)))
        assert [await reader.next(), await reader.next()] == [[], []]
        watching.cancel()

    asyncio.run(asyncio.wait_for(scene(), 5))


def test_a_message_in_its_two_forms():
    """A message has the same name, id and data as a server-sent event and as a WebSocket text."""
    message = Message("reset", ResetMessage("trimmed"), "0123abcd.1")
    assert message.sse == b'id: 0123abcd.1\nevent: reset\ndata: {"reason":"trimmed"}\n\n'
    assert message.text == '{"event":"reset","id":"0123abcd.1","data":{"reason":"trimmed"}}'


def test_a_rate_is_taken_over_the_last_seconds():
    """A rate is not known at first, is constant under a constant load, and falls to 0 after the load ends."""
    rates = Rates()
    rates.take(0.0, {"view": 0})
    assert rates.of("view") is None
    for quarter in range(1, 41):
        rates.take(quarter / 4, {"view": quarter * 25})
    assert rates.of("view") == pytest.approx(100)
    assert rates.of("like") == 0
    for quarter in range(41, 60):
        rates.take(quarter / 4, {"view": 1000})
    assert rates.of("view") == 0


def test_a_reader_that_takes_nothing_is_dropped():
    """A connection that has not sent its messages within the patience is ended."""

    async def scene():
        reader = LiveReader(None)
        reader.counters(_batch("id1", ("a", 1)))
        sent = []

        async def send(message):
            sent.append(message)
            if len(sent) > 1:  # as if the buffers stayed full
                await asyncio.Event().wait()

        await while_present(send_events(send, reader), asyncio.Event().wait(), reader.watch(0.1))
        return sent

    assert len(asyncio.run(asyncio.wait_for(scene(), 5))) == 2
