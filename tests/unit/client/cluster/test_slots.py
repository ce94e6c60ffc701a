"""Slots: the slot of each command in a cluster, and the commands of a pipeline that may be sent again."""

from __future__ import annotations

import pytest
from redis.exceptions import MovedError, TryAgainError

from tallystream.client.cluster.slots import CommandPart, guarded, key_of, least, parts_of, slot_of, to_send_again
from tallystream.storage.keys import Layout

STREAM = "tally:{p0.425}:stream"
OTHER = "tally:{p1.1840}:stream"
MOVED = MovedError("1 127.0.0.1:7000")


@pytest.mark.parametrize(
    ("key", "slot"), [("123456789", 12739), ("{user1000}.following", 3443), ("foo{}{bar}", 8363), ("foo{{bar}}", 4015)]
)
def test_slots_are_those_of_the_server(key, slot):
    """`slot_of` returns the slot that the cluster specification defines, also for hash tags."""
    assert slot_of(key) == slot_of(key.encode()) == slot


def test_all_keys_of_a_partition_lie_in_one_slot():
    """All keys of a partition are in the slot of its tag, whatever their subject."""
    for keys in Layout(8).keys:
        names = [keys.stream, keys.ledger, keys.total("view", "a}b{c"), keys.once("vote", "forever", "{x}")]
        assert len({slot_of(name) for name in names}) == 1


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), "k"),
        (("get", "k"), "k"),
        (("MGET", "k", "l"), "k"),
        (("XINFO GROUPS", "k"), "k"),
        (("XINFO", "GROUPS", "k"), "k"),
        (("XGROUP CREATE", "k", "g", "0"), "k"),
        (("MEMORY USAGE", "k"), "k"),
        (("EVALSHA", "sha", 2, "k", "l", "x"), "k"),
        (("EVALSHA", "sha", 0, "x"), None),
        (("XREADGROUP", "GROUP", "STREAMS", "STREAMS", "COUNT", 1, "STREAMS", "k", ">"), "k"),
        (("XREAD", "COUNT", 1, b"STREAMS", "k", "$"), "k"),
        (("SCAN", 0, b"MATCH", "tally:{p0.425}:*", b"COUNT", 10), "tally:{p0.425}:*"),
        (("TIME",), None),
        (("SCRIPT LOAD", "text"), None),
        (("WAIT", 1, 100), None),
    ],
)
def test_the_key_of_a_command(command, key):
    """`key_of` returns the first key of every form of command that tallystream sends."""
    assert key_of(command) == key


def test_a_scan_of_one_node_is_never_taken_for_all():
    """A SCAN whose keys may be on several nodes is refused."""
    with pytest.raises(ValueError, match="hash tag"):
        key_of(("SCAN", 0, b"MATCH", "tally:*"))


def test_a_script_call_declares_a_key_that_never_exists():
    """`guarded` adds a key in the same slot to a script call under a partition's tag, and keeps its arguments."""
    call = guarded(("EVALSHA", "sha", 1, STREAM, "argument"))
    assert call == ("EVALSHA", "sha", 2, STREAM, "tally:{p0.425}:moving", "argument")
    assert slot_of(call[4]) == slot_of(STREAM)
    assert guarded(("EVALSHA", "sha", 1, "tally:meta", "x")) == ("EVALSHA", "sha", 1, "tally:meta", "x")
    assert guarded(("GET", STREAM)) == ("GET", STREAM)


def test_a_pipeline_is_split_by_slot():
    """A split keeps the order within a slot, puts a command without a key with the next one, and WAIT last."""
    commands = [("TIME",), ("XLEN", STREAM), ("TIME",), ("XLEN", OTHER), ("HLEN", STREAM), ("TIME",), ("WAIT", 1, 10)]
    parts, following = parts_of(commands)
    assert parts == [CommandPart(slot_of(STREAM), [0, 1, 4, 5]), CommandPart(slot_of(OTHER), [2, 3])]
    assert following == [6]
    assert parts_of([("TIME",)]) == ([CommandPart(None, [0])], [])


@pytest.mark.parametrize(
    ("replies", "again"),
    [
        ([1, 2, 3], []),
        ([MOVED, MOVED, MOVED], [0, 1, 2]),
        ([1, MOVED, MOVED], [1, 2]),
        ([MOVED, 2, MOVED], []),
        ([MOVED, 2, 3], []),
        ([1, 2, TryAgainError("TRYAGAIN")], []),
    ],
)
def test_writes_are_sent_again_only_in_order(replies, again):
    """Writes that were not executed are sent again only if no write after the first of them was executed."""
    writes = [("EVALSHA", "sha", 1, STREAM, n) for n in range(3)]
    assert to_send_again(writes, CommandPart(1, [0, 1, 2]), replies) == again


@pytest.mark.parametrize("error", [MOVED, TryAgainError("TRYAGAIN")])
def test_reads_are_asked_again_from_the_first_without_an_answer(error):
    """Reads are sent again from the first unexecuted one, in order: values must not be older than their position."""
    reads = [("XINFO GROUPS", STREAM), ("XPENDING", STREAM, "g"), ("MGET", STREAM)]
    assert to_send_again(reads, CommandPart(1, [0, 1, 2]), [1, error, 3]) == [1, 2]


def test_several_nodes_confirm_as_much_as_the_least_of_them():
    """The replies of several nodes to WAIT combine to the least numbers, or to an error if one of them is an error."""
    error = TryAgainError("x")
    assert least([2, 1]) == 1
    assert least([[1, 0], [0, 3]]) == [0, 0]
    assert least([1, error]) is error
