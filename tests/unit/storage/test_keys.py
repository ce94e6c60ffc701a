"""Any client can compute the names of the keys, and the keys are spread evenly over a cluster."""

from __future__ import annotations

import zlib
from collections import Counter

import pytest
from redis.crc import key_slot

from tallystream.errors import ConfigurationError
from tallystream.storage.keys import MAX_PARTITIONS, Layout, partition_of, tag_of

SLOTS = 16_384


def test_the_tags_of_the_contract():
    """The tags of the first partitions are those in the documentation."""
    assert [tag_of(i) for i in range(4)] == ["p0.425", "p1.1840", "p2.171", "p3.1534"]


def test_a_tag_names_its_part_of_the_slots():
    """Every tag is in the 1/1,024 of the slots with the bit-reversed partition number, and no two tags share one."""
    parts = [key_slot(tag_of(i).encode()) >> 4 for i in range(MAX_PARTITIONS)]
    assert parts == [int(f"{i:010b}"[::-1], 2) for i in range(MAX_PARTITIONS)]
    assert len(set(parts)) == MAX_PARTITIONS


@pytest.mark.parametrize("partition", [-1, MAX_PARTITIONS, MAX_PARTITIONS + 1, 5000, 2**40])
def test_a_partition_without_a_tag_is_refused(partition):
    """A number that is not one of the 1,024 partitions is refused at once."""
    with pytest.raises(ConfigurationError, match="partitions have the numbers 0 to 1,023"):
        tag_of(partition)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("partitions", [2, 4, 8, 32, 128])
def test_partitions_lie_evenly_over_nodes(nodes, partitions):
    """On nodes with equal numbers of slots, the numbers of partitions differ by at most 2; 32 on 3 are 11, 11, 10."""
    load = Counter(dict.fromkeys(range(nodes), 0))
    load.update(key_slot(tag_of(i).encode()) * nodes // SLOTS for i in range(partitions))
    assert max(load.values()) - min(load.values()) <= 2
    if (nodes, partitions) == (3, 32):
        assert sorted(load.values(), reverse=True) == [11, 11, 10]


@pytest.mark.parametrize("subject", ["article:1", "a}b{c", "{}", "{p9.1}", "}", "a:b:c", "\u65e5\u672c", "{" * 100])
def test_a_subject_does_not_move_its_keys(subject):
    """All keys of a partition are in one slot, whatever characters the subject contains."""
    keys = Layout(8).keys_of(subject)
    slots = {
        key_slot(key.encode())
        for key in (keys.stream, keys.dead, keys.sequences, keys.ledger, keys.total("view", subject))
    }
    assert len(slots) == 1
    assert keys.total("view", subject).endswith(f":total:view:{subject}")


def test_the_names_of_the_contract():
    """Keys have the names in the documentation, so that any client can read them."""
    keys = Layout().keys_of("article:1")
    number = zlib.crc32(b"article:1") % 4
    prefix = f"tally:{{{tag_of(number)}}}:"
    assert (keys.stream, keys.dead) == (prefix + "stream", prefix + "dead")
    assert (keys.sequences, keys.ledger) == (prefix + "seq", prefix + "ledger")
    assert keys.total("view", "article:1") == prefix + "total:view:article:1"
    assert Layout().meta == "tally:meta"
    assert Layout(4, "shop").keys[0].stream == "shop:{p0.425}:stream"


def test_counters_do_not_share_keys():
    """Two different pairs of metric and subject never have the same key, because a metric contains no colon."""
    keys = Layout(1).keys[0]
    assert keys.total("a", "b:c") != keys.total("a.b", "c")
    assert keys.total("view", "x:y") == keys.prefix + "total:view:x:y"


def test_the_partition_of_a_subject():
    """The partition of a subject is the CRC-32 of its UTF-8 text, modulo the number of partitions."""
    assert partition_of("\u00e9", 7) == zlib.crc32(b"\xc3\xa9") % 7
    assert {partition_of(f"article:{i}", 4) for i in range(100)} == {0, 1, 2, 3}


@pytest.mark.parametrize("partitions", [0, -1, 1025])
def test_a_number_of_partitions_out_of_bounds(partitions):
    """A number of partitions that is not 1 to 1,024 is a configuration error."""
    with pytest.raises(ConfigurationError, match=r"partitions must be 1 to 1,024"):
        Layout(partitions)
