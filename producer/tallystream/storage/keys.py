"""The names of all keys in Redis: partitions, their hash tags, and the keys under each tag.

All keys of a partition contain its tag, so they are on one node of a cluster and one script call can use them together.
Text that a user chose comes last, after the tag. So a subject such as `a}b{c` changes neither the slot nor the form of
the key.
"""

from __future__ import annotations

import binascii
import re
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYOUT: Final = 6
"""The version of the key layout, stored in `tally:meta`."""

NAMESPACE: Final = "tally"
"""The default namespace: the first part of every key."""

DEFAULT_PARTITIONS: Final = 4
"""The number of partitions of a new deployment, if none is configured."""

MAX_PARTITIONS: Final = 1024
"""The largest number of partitions of a topic."""

GROUP: Final = "tally"
"""The consumer group that counts the first generation. `PartitionKeys.group` has the names for later generations."""

BEGUN: Final = "!begun"
"""Field of the sequences, a sentinel: the partition was opened; see `lib/sentinels.lua`."""

REAPED: Final = "!reaped"
"""Field of the sequences: `<horizon> <newest mark>`, of the producers without a spool; see `lib/producers.lua`."""

REAPED_SPOOL: Final = "!reaped:spool"
"""As `REAPED`, of the producers with a spool."""

HORIZONS: Final = [REAPED, REAPED_SPOOL]
"""The fields of the sequences that show whether a missing record may have been removed."""

CLOSED: Final = "!closed"
"""Field of the sequences: the topic to append to instead, `""` or none if the stream is open: see `appending.lua`."""

STATED: Final = "!stated"
"""Field of the sequences: the ID of the last entry that states an earlier time than that of its ID, and the earliest
time that such an entry states; see `lib/appending.lua`."""

CLOSING: Final = "closing"
"""Field of the root hash: the highest number of a closing; see `repartition/lua/close.lua`."""

TURN: Final = "turn"
"""Field of the hash of a topic: the number of the last command that changes generations. Each partition has the number
too, in the field `!turn` of its sequences; see `rebuild/lua/claim_turn.lua` and `take_turn.lua`."""

LEFT: Final = "left"
"""Field of the root hash: topics that nothing uses, each as `<number>:<partitions>`; see `repartition.topic.drop_left`.
A restore of another topic has left them, or they were given up."""

RESTORED: Final = "!restored"
"""Field of the sequences, about the last restore of the partition: the mark of the snapshot, the ID up to which every
entry was in its counters, and the number of entries in its counters that the restored stream lacked."""

RESTORED_AT: Final = "!restored-at"
"""Field of the sequences: when the last restore of the partition ran, in milliseconds since 1970, by the server's
clock."""

RESTORED_UP_TO: Final = "!restored-up-to"
"""Field of the sequences: the last ID of the restored stream when the last restore of the partition wrote it. Every
entry that the stream or the archive had then has this ID or an earlier one. Missing if the restore read no archive."""

SNAPSHOTS: Final = "!snapshots"
"""Field of the sequences: the marks of the snapshots that contain nothing that the server has lost; see `mark.lua`."""

DUE: Final = "!due"
"""Field of `PartitionKeys.forgotten`: when periods were due to be removed, and until when these were kept."""

UNTIL: Final = "!until"
"""Field of `PartitionKeys.forgotten`: the millisecond until which the period that was removed last was kept."""

UNORDERED: Final = "entries:unordered:"
"""Prefix of fields of the ledger: the number of rules follows, see `PartitionKeys.adopted`."""

FIRST_RULES: Final = "entries:first"
"""Field of the ledger: the number of the rules that counted the partition before the first place in `adopted`."""

FIRST: Final = 1
"""The generation of counters that every deployment begins with; a rebuild makes the next."""

FIRST_TOPIC: Final = 1
"""The topic that every deployment begins with; a repartition makes the next."""


def is_counting_group(name: str) -> bool:
    """Return whether `name` has the form of a generation's consumer group: `tally`, or `tally-` and a number."""
    return re.fullmatch(rf"{GROUP}(-[0-9]+)?", name) is not None


def partition_of(subject: str, partitions: int) -> int:
    """Return the number of the partition that counts `subject`: the CRC-32 of its UTF-8 modulo `partitions`.

    `subject` must be in Unicode normal form C, as in an `Event`. Events of a spread metric may be in any partition,
    unless they have an id.
    """
    return zlib.crc32(subject.encode()) % partitions


@lru_cache(maxsize=MAX_PARTITIONS)
def tag_of(partition: int) -> str:
    """Return the hash tag of a partition: `p0.425`, `p1.1840`, ...

    Divide the cluster's slots into 1,024 equal ranges. The suffix is the smallest number that puts the tag into the
    range whose number is the bit-reversed partition number. So the first tags are spread over the slots, and no tag
    depends on the number of partitions.

    Raises:
        ConfigurationError: `partition` is not 0 to 1,023.
    """
    if not 0 <= partition < MAX_PARTITIONS:
        raise ConfigurationError(
            f"there is no partition {partition:,}: partitions have the numbers 0 to {MAX_PARTITIONS - 1:,}"
        )
    wanted = int(f"{partition:010b}"[::-1], 2)
    suffix = 0
    # CRC-16/XMODEM is the cluster's slot function; the top 10 of its 14 bits are compared.
    while binascii.crc_hqx(f"p{partition}.{suffix}".encode(), 0) % 16384 >> 4 != wanted:
        suffix += 1
    return f"p{partition}.{suffix}"


@dataclass(frozen=True)
class PartitionKeys:
    """The names of one partition's keys: those of its topic, and those of one generation of its counters.

    The first generation's counters are directly under the partition's prefix: `tally:{p0.425}:total:view:article:1`.
    Those of a later generation have its number after the prefix: `tally:{p0.425}:g2:total:view:article:1`. In a later
    topic the prefix itself is longer: `tally:{p0.425}:l2:`.

    Attributes:
        prefix: The beginning of every key of the partition.
        generation: The generation that the counter keys belong to.
    """

    prefix: str
    generation: int = FIRST

    @property
    def namespace(self) -> str:
        """The namespace: the first part of every key."""
        return self.prefix.partition(":")[0]

    @property
    def topic(self) -> int:
        """The number of the topic that the partition belongs to."""
        below = self.prefix.rpartition("}:")[2]
        return int(below[1:-1]) if below else FIRST_TOPIC

    # -- keys of the topic: the same for every generation -----------------------------------------------

    @cached_property
    def stream(self) -> str:
        """Stream: the entries of the partition."""
        return self.prefix + "stream"

    @cached_property
    def sequences(self) -> str:
        """Hash: producer id -> `<last appended sequence> <its stream ID>`.

        A field that begins with `file:` is a source, a segment of an ingested file: its value is `<offset up to which
        the source was appended> <stream ID>` (see `ingest.lua`). If `@<topic>.<partition>` follows its name, the offset
        is that in an earlier topic.

        Fields that begin with `!` are neither. `!begun` is a sentinel (see `sentinels.lua`). `!limit` is the most
        entries that the stream may have, and `!closed` is the topic to append to instead; if it is `""` or missing, the
        stream is open. `!closing` is the number of the last closing or reopening, and `!turn` that of the last command
        that changes generations (see `TURN`). `!copying` is `<topic> <stream ID>`: a repartition to `<topic>` reads the
        stream up to this ID. `!hold` is the millisecond until which a reset holds appends back. `!stated` has the ID of
        the last entry that states an earlier time than that of its ID, and the earliest time that such an entry states
        (see `appending.lua`). `!clock` is the server's time at the last trim and at the last step of its clock, and
        `!dead` is how many bytes the dead stream may have (see `trim.lua`). `!reaped` and `!reaped:spool` are how far
        records of silent producers were removed; `!active`, `!marks:drawn` and `!marks:spool` measure the silence (see
        `reap_producers.lua`). `!snapshots` has the marks of snapshots (see `mark.lua`). `!restored`, `!restored-at` and
        `!restored-up-to` are about the last restore of the partition (see `RESTORED`, `RESTORED_AT` and
        `RESTORED_UP_TO`).
        """
        return self.prefix + "seq"

    @cached_property
    def copied(self) -> str:
        """Hash: partition of the previous topic -> ID up to which a repartition copied its entries to this partition.

        The entry with this ID is included; it need not have events of this partition.
        """
        return self.prefix + "copied"

    @cached_property
    def retention_holds(self) -> str:
        """Hash: name of a reader -> stream ID after which it needs the entries: trimming removes none of these."""
        return self.prefix + "holds"

    @cached_property
    def live(self) -> str:
        """String: the number of the partition's live generation, a space, and the number of the rules that count it.

        The second number may be missing until an entry is counted by published rules. ` closed` follows if a
        repartition, or a restore of another topic, closed the partition. While a restore replaces the counters,
        ` restoring` follows, the number of its closing, and the token of the restore, which no other one has. With
        either word, or without the key, no generation is live. Every partition of the live topic has this key (see
        `sentinels.lua`).
        """
        return self.prefix + "live"

    @cached_property
    def hot_subject(self) -> str:
        """String: the metric and subject with the most recent events, by a sample, as JSON; kept for a minute."""
        return self.prefix + "hottest"

    @cached_property
    def topic_ledger(self) -> str:
        """Hash: the ledger of the topic; it is also the ledger of the first generation.

        Its field `appended` has the events that the scripts appended, and the events of plain entries that the first
        generation counted, which are also in `plain`.
        """
        return self.prefix + "ledger"

    # -- keys of the generation -------------------------------------------------------------------------

    @cached_property
    def counters(self) -> str:
        """The prefix of the generation's keys; for the first generation it is the prefix of the partition."""
        return self.prefix if self.generation == FIRST else f"{self.prefix}g{self.generation}:"

    @property
    def group(self) -> str:
        """The name of the consumer group that counts the generation."""
        return GROUP if self.generation == FIRST else f"{GROUP}-{self.generation}"

    @cached_property
    def begun(self) -> str:
        """String: the last ID of the stream when a rebuild began this generation.

        When an entry up to this ID is counted, its events are added to `appended` in the ledger of the generation.
        """
        return self.counters + "begun"

    @cached_property
    def gone(self) -> str:
        """String: how many entries the stream lacked when a rebuild began this generation, a space, and its first ID.

        Only the entries before this ID are counted from the archive. If the stream was empty, the ID is missing, and
        the entries up to `begun` are counted from the archive.
        """
        return self.counters + "gone"

    @cached_property
    def adopted(self) -> str:
        """Hash: number of rules -> two stream IDs: where in the log the generation's counters began to follow them.

        Entries before the first ID follow the rules before, and entries after the second ID follow these. An entry
        between the two follows the rules before if it was counted already when the rules changed. If there may be such
        entries, other than decided ones, the ledger has the field `UNORDERED` with the number. The first rules of the
        generation are not in the hash.
        """
        return self.counters + "adopted"

    @cached_property
    def backfilled(self) -> str:
        """String: the stream ID of the last entry that a rebuild counted from the archive; missing before the first.

        Only entries that the stream no longer has are counted from there.
        """
        return self.counters + "backfilled"

    @cached_property
    def dead(self) -> str:
        """Stream: the dead letters of the generation."""
        return self.counters + "dead"

    @cached_property
    def dropped(self) -> str:
        """Hash: consumer group, space, and ID in the dead stream -> record of a dead letter that was dropped for good.

        No later generation counts its events: there is one hash for all generations. A dead letter that was dropped
        without a record, because the dead stream was too large, is not in it.
        """
        return self.prefix + "dropped"

    @cached_property
    def ledger(self) -> str:
        """Hash: the ledger of the generation, outcome -> number of events.

        It also has fields that are no numbers of events, such as `entries:gated` and `total@<metric>`: see
        `tallystream.reading.ledger`.
        """
        return self.counters + "ledger"

    @cached_property
    def archive(self) -> str:
        """Hash: the range of entries that is being archived, IDs `first` to `last`, and their number, `entries`.

        One for all generations.
        """
        return self.prefix + "archive"

    @cached_property
    def outbox(self) -> str:
        """Stream: the notifications; each is removed after it was delivered or abandoned. One for all generations."""
        return self.prefix + "alerts"

    def alerting(self, alert: str, label: str) -> str:
        """Hash: subject -> state of `alert` in the bucket `label`, which is `""` if the alert has no window.

        If the alert fires for the subject, the state is `<ID of the notification> <value when it began to fire>`. If
        it fired until the bucket ended, and this was notified, the state is `ended`. Other subjects are missing. There
        is one hash for all generations.
        """
        return f"{self.prefix}alerting:{alert}:{label}"

    def watched(self, alert: str) -> str:
        """Sorted set: the subjects of an alert on a range, by the millisecond of the last batch with the subject.

        One for all generations. The millisecond is above that of all earlier batches, also if the clock was set back.
        Only the 10,000 latest subjects are kept.
        """
        return f"{self.prefix}watched:{alert}"

    def total(self, metric: str, subject: str) -> str:
        """String: the total of one subject in the partition, without what the sketch has; see `sketch`."""
        return f"{self.counters}total:{metric}:{subject}"

    def up(self, metric: str, subject: str) -> str:
        """String: the number of a subject's votes with an amount above 0."""
        return f"{self.counters}up:{metric}:{subject}"

    def window(self, window: str, metric: str, label: str) -> str:
        """Hash: subject -> sum in one bucket of a window."""
        return f"{self.counters}{window}:{metric}:{label}"

    def top(self, metric: str) -> str:
        """Sorted set: the subjects with the largest totals; more than are shown, see `rules.parts.board_length`."""
        return f"{self.counters}top:{metric}"

    def window_top(self, window: str, metric: str, label: str) -> str:
        """Sorted set: the subjects with the largest sums in one bucket of a window, more than are shown (see `top`)."""
        return f"{self.counters}top:{window}:{metric}:{label}"

    def limit(self, metric: str, label: str) -> str:
        """Hash: subject -> events in one bucket of a limit, accepted and rejected; without late ones and duplicates."""
        return f"{self.counters}limit:{metric}:{label}"

    def once(self, metric: str, label: str, subject: str) -> str:
        """Hash: actor -> the vote that counts for a subject in the period `label`, `<at>@<place> <amount> <labels>`.

        `rules/records.lua` describes the place: where the vote is in the log. The field with the empty name has the
        stream ID of the subject's last reset, or `0-0`: votes before it have the amount 0.
        """
        return f"{self.counters}once:{metric}:{label}:{subject}"

    def seen(self, metric: str, label: str) -> str:
        """The IDs of the events of a period: a hash, or a Bloom filter if the label ends with `b` (`seen = "bloom"`).

        The hash is: subject, line feed and ID -> the earliest event, `<at> <amount> <labels>`. If the latest event with
        the ID in the period was later, `+<milliseconds>` follows the time.
        """
        return f"{self.counters}seen:{metric}:{label}"

    @cached_property
    def periods(self) -> str:
        """Sorted set: `<end of the period> <key without prefix>` of each key that is removed with its period.

        These are the buckets of windows and the keys `unique`, `seen`, `limit` and `once`, unless they are kept
        forever. The leaderboard of a bucket is no member, although it is removed with the bucket. The score is the time
        until which the key is kept; it and the end are in milliseconds since 1970. The score is a time of the log: a
        period is removed if every entry that is not counted was received later, and the same was true an hour earlier.
        """
        return self.counters + "periods"

    @cached_property
    def forgotten(self) -> str:
        """Hash: kind and metric, such as `limit:view` -> end of the last period that was removed, in milliseconds.

        A closed bucket that an event was left out of counts as removed. A change of the rules sets the same fields,
        such as `hour:view`, as if earlier buckets were removed; it also sets `!rules:<metric>`, `!former:<metric>` and
        other kinds: see `parts.lua`. `!due` and `!until` are about what is removed: see `forget_periods.lua`.
        """
        return self.counters + "forgotten"

    @cached_property
    def resets(self) -> str:
        """Hash: metric, line feed and subject -> stream ID of the subject's last reset."""
        return self.counters + "resets"

    def labels(self, metric: str) -> str:
        """Set: the buckets of a metric's windows, `<window>:<label>`, and its periods of votes, `once:<label>`.

        A removed bucket is not in it; a removed period of votes may be.
        """
        return f"{self.counters}labels:{metric}"

    def unique(self, metric: str, label: str, subject: str) -> str:
        """HyperLogLog: the actors of one subject in one bucket."""
        return f"{self.counters}unique:{metric}:{label}:{subject}"

    def sketch(self, metric: str) -> str:
        """Count-Min Sketch (string): estimated totals of the subjects without a counter key.

        After a change of `exact` or `max_subjects`, a subject may have a part of its total in a key and the rest here.
        """
        return f"{self.counters}sketch:{metric}"


@dataclass(frozen=True)
class Layout:
    """The partitions of a topic, and the generation whose counters are used in each.

    Attributes:
        partitions: The number of partitions, 1 to 1,024.
        namespace: The first part of every key.
        generations: One generation for each partition; empty stands for the first generation in every partition.
        topic: The number of the topic.
        unreachable: The numbers of the partitions that reads leave out, because their node does not answer. Two layouts
            that differ only in this are equal.

    Raises:
        ConfigurationError: `partitions` is not 1 to 1,024.
    """

    partitions: int = DEFAULT_PARTITIONS
    namespace: str = NAMESPACE
    generations: tuple[int, ...] = ()
    topic: int = FIRST_TOPIC
    unreachable: frozenset[int] = field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.partitions <= MAX_PARTITIONS:
            raise ConfigurationError(f"partitions must be 1 to {MAX_PARTITIONS:,}, not {self.partitions:,}")

    @property
    def root(self) -> str:
        """The key of the root hash: it names the live topic, and describes the first topic."""
        return f"{self.namespace}:meta"

    @property
    def meta(self) -> str:
        """The key of the hash that describes this topic; for the first topic, it is the root."""
        return self.root if self.topic == FIRST_TOPIC else self._prefix(0) + "meta"

    @property
    def rule_changes(self) -> str:
        """The key of the stream of changes of this topic's live rules; it is in the slot of `meta`.

        A repartition copies the changes of the topic before to it. Each entry has the whole rules; its ID has the time
        of the change. See `lib/rule_changes.lua`.
        """
        below = f"{self.namespace}:{{{self.root}}}:" if self.topic == FIRST_TOPIC else self._prefix(0)
        return below + "rules"

    @property
    def restore_lock(self) -> str:
        """The key of the lock of the restores of this namespace, in the slot of `root`; a running restore holds it."""
        return f"{self.namespace}:{{{self.root}}}:restore"

    @property
    def confirmed(self) -> tuple[str, ...]:
        """One key in the slot of `root`, and one in the slot of each partition, in this order.

        `DurabilityCheck.confirm` writes them, and asks the servers whether a replica or a disk has these writes. The
        values have no meaning.
        """
        tags = (self.root, *(tag_of(i) for i in range(self.partitions)))
        return tuple(f"{self.namespace}:{{{tag}}}:confirmed" for tag in tags)

    @property
    def files(self) -> str:
        """The key of the hash of ingested files, the same for all topics.

        It maps the identity of a file to the number of bytes that the identity was made from: the first bytes of the
        decompressed file; of a Parquet file, half of them are its last bytes.
        """
        return f"{self.namespace}:{{{tag_of(0)}}}:files"

    @cached_property
    def keys(self) -> tuple[PartitionKeys, ...]:
        """The keys of every partition, by partition number."""
        generations = self.generations or (FIRST,) * self.partitions
        return tuple(PartitionKeys(self._prefix(i), generation) for i, generation in enumerate(generations))

    @cached_property
    def reached(self) -> tuple[PartitionKeys, ...]:
        """The keys of every partition that is not in `unreachable`, by ascending number."""
        return tuple(keys for number, keys in enumerate(self.keys) if number not in self.unreachable)

    @cached_property
    def routes(self) -> range:
        """A number for each partition, in order, unique over all topics: so a buffer cannot confuse two topics."""
        return range(self.topic * MAX_PARTITIONS, self.topic * MAX_PARTITIONS + self.partitions)

    def of(self, generation: int) -> Layout:
        """Return a copy of this layout that uses `generation` in every partition."""
        return replace(self, generations=() if generation == FIRST else (generation,) * self.partitions)

    def _prefix(self, partition: int) -> str:
        below = "" if self.topic == FIRST_TOPIC else f"l{self.topic}:"
        return f"{self.namespace}:{{{tag_of(partition)}}}:{below}"

    def holding(self, subject: str, *, spread: bool) -> Sequence[int]:
        """Return the numbers of the partitions that may have counters of `subject`, also those in `unreachable`.

        These are all partitions if the metric is `spread`, else the one that `partition_of` returns.
        """
        return range(self.partitions) if spread else (partition_of(subject, self.partitions),)

    def reached_among(self, numbers: Sequence[int]) -> Sequence[int]:
        """Return those of the given partitions that are not in `unreachable`."""
        return [number for number in numbers if number not in self.unreachable] if self.unreachable else numbers

    def keys_of(self, subject: str) -> PartitionKeys:
        """Return the keys of the partition that counts `subject` for metrics that are not spread."""
        return self.keys[partition_of(subject, self.partitions)]
