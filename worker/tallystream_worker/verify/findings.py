"""The findings that a verification can make, each with a stable name, its meaning and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

SHOWN: Final = 5
"""The number of details that a finding keeps; the others are only counted."""

_REBUILD: Final = "tallystream rebuild (with --archive URL if entries are gone from the streams)"
_SNAPSHOT: Final = "tallystream snapshot --once --whole"
_LOST: Final = (
    "tallystream restore --force, if a snapshot or the archive has the events; producers send again what they keep"
)
_CHAIN: Final = "tallystream audit, to see which counters it concerns; then " + _REBUILD


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        meaning: What is wrong, in one sentence.
        remedy: The command that mends it, or what to do.
    """

    meaning: str
    remedy: str


KINDS: Final = {
    "deployment.missing": Kind(
        "The namespace has keys, but no hash that describes them.",
        "tallystream restore --force, with a snapshot; do not start a worker before, because it would begin new data",
    ),
    "deployment.generations_differ": Kind(
        "A partition counts another generation than the one that readers begin with, and no rebuild is running.",
        "tallystream rebuild --undo, or run the rebuild again",
    ),
    "deployment.closed": Kind(
        "A partition of the live topic is closed, and no repartition is running, so nothing is counted in it.",
        "tallystream rebuild --drop, which opens the partitions again",
    ),
    "deployment.tags_differ": Kind(
        "The hash tags that are stored for the partitions are not those of their number.",
        "correct the fields partitions and tags of the hash that is named, or tallystream restore --force",
    ),
    "deployment.restore_unfinished": Kind(
        "A restore runs, or was interrupted.", "run the same tallystream restore again"
    ),
    "keys.lost": Kind(
        "A key was deleted or evicted; other keys show that it existed.", "the command in the detail, if there is one"
    ),
    "log.missing": Kind("A stream does not exist, although events were appended to it.", _LOST),
    "log.deleted": Kind("Another client deleted an entry among those that the stream keeps.", _CHAIN),
    "log.removed": Kind(
        "Entries are gone from a stream, and retention did not remove them.", "find the client that runs XDEL or XTRIM"
    ),
    "log.gap": Kind("A producer's entry is missing between two others.", _CHAIN),
    "log.repeated": Kind("An entry of a producer is in the stream twice, so its events count twice.", _CHAIN),
    "log.differs": Kind("The stream has other entries or events than the ledger states.", _CHAIN),
    "sequences.missing": Kind(
        "The record of a producer is missing, so an entry that is sent again would be appended again.",
        "restart the producers that are named; each then begins with a new name",
    ),
    "sequences.differ": Kind(
        "The record of a producer is not its last entry in the stream.",
        "restart the producers that are named; each then begins with a new name",
    ),
    "group.missing": Kind(
        "A partition has no consumer group that counts, so its counted entries are unknown.",
        "tallystream worker, which creates the group if nothing was counted; otherwise " + _REBUILD,
    ),
    "group.ahead": Kind("The consumer group is after the end of the stream, so new entries are skipped.", _REBUILD),
    "group.moved": Kind(
        "The position of the consumer group does not agree with the entries that have an outcome: entries were "
        "skipped, or will be counted again.",
        _REBUILD,
    ),
    "group.pending_gone": Kind(
        "An entry that waits to be acknowledged is gone from the stream.",
        "tallystream worker, which enters its events as trimmed; with an archive, " + _REBUILD,
    ),
    "ledger.missing": Kind("A partition has counted entries, and has no ledger.", "tallystream restore --force"),
    "ledger.unbalanced": Kind("Appended events are not equal to the events with an outcome and those waiting.", _CHAIN),
    "ledger.differs": Kind("A figure of the ledger is not the one that the entries give.", _REBUILD),
    "counters.differ": Kind("A total is not the one that the entries give.", _REBUILD),
    "buckets.differ": Kind("A sum in a bucket of a window is not the one that the entries give.", _REBUILD),
    "limits.differ": Kind("The use of a limit is not the one that the entries give.", _REBUILD),
    "votes.differ": Kind("A vote is not the one that the entries give.", _REBUILD),
    "ids.differ": Kind("A record of an event's id is not the one that the entries give.", _REBUILD),
    "uniques.differ": Kind("An estimate of actors is not the one that the entries give.", _REBUILD),
    "leaderboards.differ": Kind("A place of a leaderboard has another value than its counter.", _REBUILD),
    "leaderboards.incomplete": Kind("A subject that belongs on a leaderboard is not listed there.", _REBUILD),
    "sketches.differ": Kind("A sketch is not the one that the entries or its sum in the ledger give.", _REBUILD),
    "dead.differ": Kind("The dead letters have other events than the ledger states.", "tallystream rebuild"),
    "periods.missing": Kind("A key of a period is not registered, so it is never removed.", _REBUILD),
    "archive.missing": Kind(
        "The archive has no file, although the archive group has passed entries of the stream.",
        "restore the files from a copy; or name an empty folder in [archive] url",
    ),
    "archive.gap": Kind(
        "Entries are missing between two files of the archive, or after the last one.",
        "restore the missing file from a copy",
    ),
    "archive.overlap": Kind(
        "Two files of the archive have entries of the same range.", "remove the file that is named, after a comparison"
    ),
    "archive.repeated": Kind(
        "An entry of a producer is in the archive twice, so a rebuild would count its events twice: a server lost it "
        "after it was archived, and the producer sent it again.",
        "keep the archive from rebuilds until the repeated entry is removed from its file",
    ),
    "archive.skips": Kind("A producer's entry is missing in the archive between two others.", "restore the file"),
    "archive.unknown": Kind(
        "The archive has an entry that the stream should still have, and has not.",
        "tallystream audit; do not rebuild from this archive before it is clear which of both lost or gained the entry",
    ),
    "archive.lacks": Kind(
        "The archive group has passed an entry of the stream, and the archive does not have it.",
        "restore the files from a copy before retention removes the entry from the stream",
    ),
    "archive.differs": Kind(
        "An archived entry differs from the same entry of the stream.", "restore the files from a copy"
    ),
    "snapshot.missing": Kind("A snapshot database is configured, and has no complete snapshot.", _SNAPSHOT),
    "snapshot.other": Kind("The snapshot is one of other data, or of another topic or generation.", _SNAPSHOT),
    "snapshot.old": Kind("The last snapshot is older than it may be.", "the worker's log has the reason; " + _SNAPSHOT),
    "snapshot.ahead": Kind("The snapshot has entries that the stream never had.", _SNAPSHOT),
    "snapshot.behind": Kind(
        "Entries after the snapshot are gone from the stream, so a restore would lack them.",
        "tallystream verify --archive URL, if an archive has them; else " + _SNAPSHOT,
    ),
    "snapshot.differs": Kind("A value differs after a restore of the snapshot.", _SNAPSHOT),
}  # fmt: skip
"""All kinds of findings, by name."""


@dataclass
class Finding:
    """A fault that a verification found.

    Attributes:
        name: The name of its kind, which is stable: see `KINDS`.
        count: How often it was found.
        details: The first five times: where, and what.
    """

    name: str
    count: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """The meaning of the finding, and the command that mends it."""
        return KINDS[self.name]
