"""Where everything lies in Redis: partitions, their hash tags, and the keys under each tag.

All keys of a partition carry its tag, so one script call, and one node of a cluster, has them together.
Text that a user chose comes last and behind the tag, so a subject such as `a}b{c` changes neither the slot
nor the key's shape.
"""

from __future__ import annotations

import binascii
import zlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYOUT: Final = 1
"""The version of the key layout, stored in `tally:meta`."""

NAMESPACE: Final = "tally"
"""The first part of every key, where an application names no other."""

DEFAULT_PARTITIONS: Final = 4
MAX_PARTITIONS: Final = 1024
GROUP: Final = "tally"
"""The consumer group that counts the first generation; see `PartitionKeys.group`. Others have names of their own."""

FIRST: Final = 1
"""The generation of counters that every deployment begins with; a rebuild makes the next."""

FIRST_TOPIC: Final = 1
"""The log that every deployment begins with; a move to another number of partitions makes the next."""


def partition_of(subject: str, partitions: int) -> int:
    """Return the number of the partition that counts `subject`."""
    return zlib.crc32(subject.encode()) % partitions


@lru_cache(maxsize=MAX_PARTITIONS)
def tag_of(partition: int) -> str:
    """Return the hash tag of a partition: `p0.425`, `p1.1840`, ...

    The suffix is the smallest number that puts the tag into the 1/1,024 of the slot space that the
    bit-reversed partition number names: so the first P tags lie evenly over the slots for every P, and no
    tag changes when P grows.
    """
    wanted = int(f"{partition:010b}"[::-1], 2)
    suffix = 0
    # CRC-16/XMODEM is the cluster's slot function; the top 10 of its 14 bits are compared.
    while binascii.crc_hqx(f"p{partition}.{suffix}".encode(), 0) % 16384 >> 4 != wanted:
        suffix += 1
    return f"p{partition}.{suffix}"


@dataclass(frozen=True)
class PartitionKeys:
    """The names of one partition's keys: those of its log, and those of one generation of its counters.

    The first generation's counters lie directly under the partition's prefix, those of a later one behind its
    number: `tally:{p0.425}:total:view:article:1`, then `tally:{p0.425}:g2:total:view:article:1`. A later log has
    another prefix, `tally:{p0.425}:l2:`, and everything below it.
    """

    prefix: str
    generation: int = FIRST

    @property
    def namespace(self) -> str:
        """The first part of every key."""
        return self.prefix.partition(":")[0]

    @property
    def topic(self) -> int:
        """The log that it is a partition of."""
        below = self.prefix.rpartition("}:")[2]
        return int(below[1:-1]) if below else FIRST_TOPIC

    # -- the log's, whatever the generation -------------------------------------------------------------

    @cached_property
    def stream(self) -> str:
        """The log."""
        return self.prefix + "stream"

    @cached_property
    def sequences(self) -> str:
        """Hash: producer id -> last appended sequence and its stream ID; `!limit` and `!closed` are the log's own."""
        return self.prefix + "seq"

    @cached_property
    def copied(self) -> str:
        """Hash: partition of the log before -> ID of its last entry that was copied to here."""
        return self.prefix + "copied"

    @cached_property
    def retention_holds(self) -> str:
        """Hash: holder -> stream ID up to which it is done with the log; entries above it are not trimmed."""
        return self.prefix + "holds"

    @cached_property
    def live(self) -> str:
        """The generation that counts and is read here; absent where there has only been the first."""
        return self.prefix + "live"

    @cached_property
    def hot_subject(self) -> str:
        """The subject that gets the most of the partition's events, as JSON; for a minute."""
        return self.prefix + "hottest"

    @cached_property
    def topic_ledger(self) -> str:
        """Hash: `appended`, what the gate let in; it is the first generation's ledger as well."""
        return self.prefix + "ledger"

    # -- the generation's -------------------------------------------------------------------------------

    @cached_property
    def counters(self) -> str:
        """What the names of the generation's keys begin with; the first generation's is the partition's own."""
        return self.prefix if self.generation == FIRST else f"{self.prefix}g{self.generation}:"

    @property
    def group(self) -> str:
        """The consumer group that counts it: its pending list says which entries are not in the counters yet."""
        return GROUP if self.generation == FIRST else f"{GROUP}-{self.generation}"

    @cached_property
    def begun(self) -> str:
        """The last stream ID before a later generation began: it counts as appended up to it."""
        return self.counters + "begun"

    @cached_property
    def backfilled(self) -> str:
        """Up to where a later generation has counted what the stream no longer holds."""
        return self.counters + "backfilled"

    @cached_property
    def dead(self) -> str:
        """The stream of parked entries and events."""
        return self.counters + "dead"

    @cached_property
    def ledger(self) -> str:
        """Hash: outcome -> events."""
        return self.counters + "ledger"

    @cached_property
    def archive(self) -> str:
        """Hash: the range of entries that is being archived."""
        return self.prefix + "archive"

    @cached_property
    def outbox(self) -> str:
        """The stream of notifications that are not delivered yet."""
        return self.prefix + "alerts"

    def alerting(self, alert: str, label: str) -> str:
        """Hash: subject -> the notification by which its alert began to fire, and the value."""
        return f"{self.prefix}alerting:{alert}:{label}"

    def watched(self, alert: str) -> str:
        """Sorted set: the subjects of an alert on a range, by the millisecond of their last count."""
        return f"{self.prefix}watched:{alert}"

    def total(self, metric: str, subject: str) -> str:
        """The all-time counter of one subject."""
        return f"{self.counters}total:{metric}:{subject}"

    def up(self, metric: str, subject: str) -> str:
        """The number of standing votes above 0."""
        return f"{self.counters}up:{metric}:{subject}"

    def window(self, window: str, metric: str, label: str) -> str:
        """Hash: subject -> sum in one bucket of a window."""
        return f"{self.counters}{window}:{metric}:{label}"

    def top(self, metric: str) -> str:
        """Sorted set: the subjects with the largest totals."""
        return f"{self.counters}top:{metric}"

    def window_top(self, window: str, metric: str, label: str) -> str:
        """Sorted set: the subjects with the largest sums in one bucket of a window."""
        return f"{self.counters}top:{window}:{metric}:{label}"

    def limit(self, metric: str, label: str) -> str:
        """Hash: subject -> events asked for in one bucket of a limit."""
        return f"{self.counters}limit:{metric}:{label}"

    def once(self, metric: str, label: str, subject: str) -> str:
        """Hash: actor -> standing vote, `<at> <amount> <labels>`."""
        return f"{self.counters}once:{metric}:{label}:{subject}"

    def seen(self, metric: str, label: str) -> str:
        """Hash: subject and id -> standing event, `<at> <amount> <labels>`."""
        return f"{self.counters}seen:{metric}:{label}"

    def unique(self, metric: str, label: str, subject: str) -> str:
        """HyperLogLog of the actors of one subject in one bucket."""
        return f"{self.counters}unique:{metric}:{label}:{subject}"

    def sketch(self, metric: str) -> str:
        """Count-Min Sketch of the subjects that have no counter of their own."""
        return f"{self.counters}sketch:{metric}"


@dataclass(frozen=True)
class Layout:
    """How many partitions there are, under which prefix, and which generation of its counters each one means.

    `generations` is by partition; empty where all mean the first. `topic` is the topic that they are partitions of.
    """

    partitions: int = DEFAULT_PARTITIONS
    namespace: str = NAMESPACE
    generations: tuple[int, ...] = ()
    topic: int = FIRST_TOPIC

    def __post_init__(self) -> None:
        if not 1 <= self.partitions <= MAX_PARTITIONS:
            raise ConfigurationError(f"partitions must be 1 to {MAX_PARTITIONS:,}, not {self.partitions:,}")

    @property
    def root(self) -> str:
        """The hash that says which log holds, and what the first one is like."""
        return f"{self.namespace}:meta"

    @property
    def meta(self) -> str:
        """The hash that says what is stored in this log."""
        return self.root if self.topic == FIRST_TOPIC else self._prefix(0) + "meta"

    @property
    def files(self) -> str:
        """Hash: identity of a file that was ingested -> bytes of its head; one for all logs."""
        return f"{self.namespace}:{{{tag_of(0)}}}:files"

    @cached_property
    def keys(self) -> tuple[PartitionKeys, ...]:
        """The keys of every partition, by partition number."""
        generations = self.generations or (FIRST,) * self.partitions
        return tuple(PartitionKeys(self._prefix(i), generation) for i, generation in enumerate(generations))

    @cached_property
    def routes(self) -> range:
        """What a buffer knows the partitions by: numbers that no other log's partitions have."""
        return range(self.topic * MAX_PARTITIONS, self.topic * MAX_PARTITIONS + self.partitions)

    def of(self, generation: int) -> Layout:
        """Return the same with one generation's counters in every partition."""
        return replace(self, generations=() if generation == FIRST else (generation,) * self.partitions)

    def _prefix(self, partition: int) -> str:
        below = "" if self.topic == FIRST_TOPIC else f"l{self.topic}:"
        return f"{self.namespace}:{{{tag_of(partition)}}}:{below}"

    def holding(self, subject: str, *, spread: bool) -> Sequence[int]:
        """Return the numbers of the partitions that may hold counters of `subject`: its own, or, spread, all."""
        return range(self.partitions) if spread else (partition_of(subject, self.partitions),)

    def keys_of(self, subject: str) -> PartitionKeys:
        """Return the keys of the partition that counts `subject`."""
        return self.keys[partition_of(subject, self.partitions)]
