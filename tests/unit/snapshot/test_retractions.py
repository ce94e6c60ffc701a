"""A restore keeps each known retraction once, also if a repartition has changed its form."""

from __future__ import annotations

from msgspec.structs import replace

from tallystream.rules.retraction import Retraction
from tallystream.storage.keys import Layout
from tallystream_worker.snapshot.retractions import decode_retractions, encode_retractions, missing_retractions

FIRST, LATER = Layout(2), Layout(4, topic=2)
LATEST = 2_000
STREAMS = sorted(keys.stream for keys in FIRST.keys)
OF_ONE = Retraction(dict.fromkeys(STREAMS, "5-0"), actor="bot")
OF_LATER = Retraction({keys.stream: f"{n}000-7" for n, keys in enumerate(LATER.keys)}, actor="bot", metric="view")


def test_the_text_of_retractions_is_read_again():
    """Retractions are the same after they were stored as text."""
    assert decode_retractions(encode_retractions([OF_ONE, OF_LATER])) == [OF_ONE, OF_LATER]


def test_a_known_retraction_is_not_missing():
    """A retraction that the rules have is not missing; one that they lack is, once for all sources."""
    other = replace(OF_ONE, actor="other")
    assert missing_retractions([OF_ONE], [[OF_ONE, other], [other]], FIRST, LATEST) == [other]


def test_a_retraction_from_before_a_repartition_is_compared_by_what_it_describes():
    """Without `until`, a retraction is known if one with the same description is; each stands for one."""
    moved = replace(OF_ONE, until={})
    assert missing_retractions([OF_ONE], [[moved]], FIRST, LATEST) == []
    (missing,) = missing_retractions([OF_ONE], [[moved, moved]], FIRST, LATEST)
    assert missing.until == dict.fromkeys(STREAMS, f"{LATEST}-{2**64 - 1}")


def test_a_retraction_of_another_topic_reaches_to_its_latest_entry():
    """In the restored topic, it applies up to the last millisecond of its own streams."""
    (missing,) = missing_retractions([OF_ONE], [[OF_LATER]], FIRST, LATEST)
    assert missing == replace(OF_LATER, until=dict.fromkeys(STREAMS, f"3000-{2**64 - 1}"))
