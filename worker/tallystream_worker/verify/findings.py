"""The findings that a verification can make, each with a stable name, its meaning and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tallystream.errors import COUNT_AGAIN, GROUP_REMEDY

SHOWN: Final = 5
"""The number of details that a finding keeps; the others are only counted."""

REBUILD: Final = COUNT_AGAIN
"""What mends counters. In a remedy, a verification replaces this text by the one command that works, if it finds it."""

SNAPSHOT: Final = "tallystream snapshot --once --whole"
"""What replaces a snapshot by the live values; a verification that finds wrong counters states to mend these first."""

EITHER: Final = f"if the live value is right: {SNAPSHOT}; if that of the snapshot is right: tallystream restore --force"
"""What mends a difference between the snapshot and live values; if an audit proves the live ones, only the first."""

CAUSES: Final = ("keys.lost", "log.missing", "snapshot.ahead", "snapshot.passed_over", "archive.ahead")
"""The findings that can explain other ones, in the order in which they must be mended."""

_BY_RESTORE: Final = (
    "tallystream restore --force, which loses only events that neither the snapshot nor the archive nor a producer has"
)
_BY_REOPENING: Final = "tallystream reopen, which loses the events that were not counted"
_SET_ASIDE: Final = (
    "tallystream archive --once, which moves these entries to files *.parquet.lost; then: tallystream verify, which "
    "names those that do not count"
)
_BRING_BACK: Final = (
    "stop the workers that archive; then: tallystream restore --force, which also counts the archived entries; then "
    "start these workers; then: tallystream verify"
)
_CHAIN: Final = "tallystream audit, to see which counters differ; then " + REBUILD


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        meaning: What is wrong, in one sentence.
        remedy: The command that mends it, or what to do.
        restore: The part of `remedy` for a deployment with a snapshot that can be restored; empty if none is needed.
        without: The part of `remedy` for a deployment without such a snapshot; empty if `restore` is.
    """

    meaning: str
    remedy: str
    restore: str = ""
    without: str = ""


KINDS: Final = {
    "deployment.missing": Kind(
        "The namespace has keys, but the hash that describes them is missing.",
        "tallystream restore --force, with a snapshot; without one: tallystream reopen",
        "tallystream restore --force",
        "tallystream reopen",
    ),
    "deployment.generations_differ": Kind(
        "A partition counts in another generation than the one that readers use, although no rebuild is running.",
        "tallystream rebuild, which switches the partition; to go back everywhere: tallystream rebuild --undo",
    ),
    "deployment.closed": Kind(
        "A partition is closed, so nothing is counted in it, although no repartition is running.",
        "tallystream rebuild --drop, which opens the partitions again",
    ),
    "deployment.tags_differ": Kind(
        "The stored hash tags are not the tags that belong to the number of partitions.",
        "correct the two fields `partitions` and `tags` of the named hash; or run tallystream restore --force",
    ),
    "deployment.numbers_differ": Kind(
        "The number of the live rules, or the highest number given to rules or to generations, is missing or too low.",
        "set the named field of the named hash to the named number",
    ),
    "deployment.spread_missing": Kind(
        "The field that marks a metric as spread is missing, so the rule `spread` could be turned off by mistake.",
        "set the named field of the named hash to 1",
    ),
    "deployment.restore_unfinished": Kind(
        "A restore is running, or was interrupted.", "if it was interrupted: run the same tallystream restore again"
    ),
    "rules.missing": Kind(
        "The snapshot or the archive has a later change of the rules than the server, which has lost it.",
        "if the snapshot has it: tallystream restore --force, which makes the lost changes again; otherwise: "
        "tallystream reopen, which makes those again that the archive has",
        "tallystream restore --force, which makes the lost changes again",
        "tallystream reopen, which makes the lost changes again that the archive has",
    ),
    "keys.lost": Kind(
        "A key was deleted or evicted; other keys show that it existed.",
        "for `seq`, `live`, `dropped` and the `ledger` of the topic: tallystream restore --force; only if there is no "
        "snapshot: tallystream reopen (for `seq` and `ledger`: tallystream reopen --force); for `files`: tallystream "
        "restore --force; without a snapshot, the next tallystream ingest creates it; for `rules`, the record of the "
        "changes of the rules: tallystream reopen; for `copied`: tallystream rebuild --drop; for `alerts`: nothing, "
        "because the next notification creates it; for every other key: " + REBUILD,
    ),
    "fields.lost": Kind(
        "A field of a hash was deleted; other keys or fields show that it existed.",
        "for a field of `forgotten`: " + REBUILD + "; for `rules@N` and `revision@N`: tallystream rebuild --drop; for "
        "`layout`, `partitions`, `epoch`, `rules` and `log`: delete the whole hash, then: tallystream restore --force, "
        "with a snapshot; without one: tallystream reopen; for every other field: set it to the named value",
    ),
    "keys.mistyped": Kind(
        "A key has another type than the one that is needed: another client has replaced it.",
        REBUILD + "; for a key that a rebuild does not replace: delete it, then mend it as a lost key (`keys.lost`)",
    ),
    "keys.expiring": Kind(
        "A key has a time to live, so the server will remove it: another client has set this time.",
        "redis-cli PERSIST KEY, for each named key; if the server has removed it already, mend it as a lost key "
        "(`keys.lost`)",
    ),
    "fields.changed": Kind(
        "The rules by which a partition counted a metric last are stored there, and are none that were published: "
        "another client has changed the field.",
        REBUILD,
    ),
    "log.missing": Kind(
        "A stream was deleted, although events were appended to it.",
        f"{_BY_RESTORE}; only if there is no snapshot: {_BY_REOPENING}",
        _BY_RESTORE,
        _BY_REOPENING,
    ),
    "log.deleted": Kind("Another client deleted an entry from the middle of a stream.", _CHAIN),
    "log.removed": Kind(
        "More entries are gone from a stream than workers have removed.", "find the client that runs XDEL or XTRIM"
    ),
    "log.gap": Kind("An entry is missing between two other entries of the same producer.", _CHAIN),
    "log.repeated": Kind(
        "An entry of a producer is in the stream twice, so its events count twice, also in a rebuild.",
        "delete the later entry (redis-cli XDEL), then: tallystream rebuild --accept-loss. If workers have removed "
        "entries from the stream: tallystream rebuild --archive URL --accept-loss; without an archive that has these "
        "entries, a rebuild would lose them, so leave the later entry",
    ),
    "log.differs": Kind("A stream has more or fewer entries or events than the ledger states.", _CHAIN),
    "sequences.missing": Kind(
        "The record of a producer is missing, so an entry that the producer sends again would be appended twice.",
        "restart the named producers; each then begins with a new name",
    ),
    "sequences.differ": Kind(
        "The record of a producer does not name the last entry of this producer in the stream.",
        "restart the named producers; each then begins with a new name",
    ),
    "group.missing": Kind(
        "The consumer group of the workers is missing, so it is not known which entries are counted.",
        GROUP_REMEDY,
    ),
    "group.ahead": Kind(
        "The position of the consumer group is after the end of the stream, so new entries are skipped.", REBUILD
    ),
    "group.moved": Kind(
        "The position of the consumer group does not agree with the ledger: entries were skipped, or will be counted "
        "again.",
        REBUILD,
    ),
    "group.pending_gone": Kind(
        "A pending entry is gone from the stream.",
        "without an archive: start a worker, which gives the events the outcome `trimmed` (removed before they were "
        "counted); with an archive: tallystream rebuild --archive URL",
    ),
    "ledger.unbalanced": Kind(
        "The number of appended events is not the number of events that have an outcome or wait.", _CHAIN
    ),
    "ledger.differs": Kind("A figure of the ledger is not the one that the entries give.", REBUILD),
    "counters.differ": Kind("A total is not the one that the entries give.", REBUILD),
    "buckets.differ": Kind("A sum in a bucket of a window is not the one that the entries give.", REBUILD),
    "limits.differ": Kind("The use of a limit is not the one that the entries give.", REBUILD),
    "votes.differ": Kind("A vote is not the one that the entries give.", REBUILD),
    "ids.differ": Kind("A record of an event's id is not the one that the entries give.", REBUILD),
    "uniques.differ": Kind("An estimate of the number of actors is not the one that the entries give.", REBUILD),
    "leaderboards.differ": Kind("A subject has another value on a leaderboard than in its counter.", REBUILD),
    "leaderboards.incomplete": Kind("A subject that belongs on a leaderboard is not listed there.", REBUILD),
    "sketches.differ": Kind("A sketch does not agree with the entries, or with its sum in the ledger.", REBUILD),
    "dead.differ": Kind("The dead letters have more or fewer events than the ledger states.", REBUILD),
    "periods.missing": Kind("A key of a period is not registered for removal, so it is never removed.", REBUILD),
    "archive.missing": Kind(
        "The archive has no file, although entries of the stream are marked as archived.",
        "correct [archive] url, or restore the files from a copy; without a copy, only later entries are archived, and "
        "a fault is reported until retention has removed the earlier ones from the stream",
    ),
    "archive.ahead": Kind(
        "The server has lost entries that the archive contains, for example because older data was put back.",
        f"with a snapshot from before the loss: {_BRING_BACK}; without one, or if all these entries were sent again: "
        f"{_SET_ASIDE}",
        _BRING_BACK,
        _SET_ASIDE,
    ),
    "archive.set_aside": Kind(
        "The archiver has set entries aside that the server had lost (files *.parquet.lost), and they do not count.",
        "follow the steps in docs/archive.md, Count lost entries; to accept the loss, only move the folder lost out of "
        "the archive",
    ),
    "archive.gap": Kind(
        "Entries are missing in the archive: between two files, before the first file or after the last file.",
        "restore the missing file from a copy",
    ),
    "archive.overlap": Kind(
        "Two files of the archive have entries of the same range.",
        "compare the two named files, and remove one of them",
    ),
    "archive.repeated": Kind(
        "An entry of a producer is in the archive twice, so a rebuild would count its events twice: a server lost the "
        "entry after it was archived, and the producer sent the entry again.",
        "do not rebuild from this archive before the repeated entry is removed from its file",
    ),
    "archive.skips": Kind(
        "In the archive, an entry is missing between two other entries of the same producer.",
        "restore the file from a copy",
    ),
    "archive.unknown": Kind(
        "The archive has an entry that is not in the stream, although retention did not remove it.",
        "tallystream audit; do not rebuild from this archive before it is clear whether the stream lost the entry, or "
        "the archive has an entry too many",
    ),
    "archive.unreadable": Kind(
        "A file of the archive cannot be read, or is damaged. The check continues with the other files.",
        "restore the named file from a copy",
    ),
    "archive.lacks": Kind(
        "An entry of the stream is marked as archived, but is not in the archive.",
        "restore the files from a copy before retention removes the entry from the stream",
    ),
    "archive.differs": Kind(
        "An archived entry differs from the same entry of the stream.", "restore the files from a copy"
    ),
    "snapshot.missing": Kind("A snapshot database is configured, but has no complete snapshot.", SNAPSHOT),
    "snapshot.other": Kind(
        "The snapshot is of other data.",
        "if the server has lost the data of the snapshot: tallystream restore --force; otherwise: name another "
        "database in [snapshot] url, and run tallystream snapshot --once",
    ),
    "snapshot.outdated": Kind("The snapshot is too old, and of an earlier topic or generation.", SNAPSHOT),
    "snapshot.old": Kind("The last snapshot is older than it may be.", "the worker's log has the reason; " + SNAPSHOT),
    "snapshot.ahead": Kind(
        "The server has lost entries that the snapshot contains, for example because older data was put back.",
        "stop the workers that archive, then: tallystream restore --force; or, to accept the loss: "
        "tallystream snapshot --once --accept-loss",
    ),
    "snapshot.passed_over": Kind(
        "Another snapshot was restored after this one was taken, and the server lacks entries of this one. This one is "
        "not replaced until one of the two commands runs.",
        "to keep the present counters: tallystream snapshot --once --accept-loss; or, to go back to this snapshot: "
        "stop the workers that archive, then: tallystream restore --force",
    ),
    "snapshot.behind": Kind(
        "Entries after the snapshot are gone from the stream, so a restore would lack them.",
        "if an archive has these entries, nothing needs mending: name it with tallystream verify --archive URL; "
        "otherwise: " + SNAPSHOT,
    ),
    "snapshot.damaged": Kind(
        "Another program has changed, removed or added rows of the snapshot after it was taken.", SNAPSHOT
    ),
    "snapshot.differs": Kind("After a restore of the snapshot, a value differs from the live value.", EITHER),
}  # fmt: skip
"""All kinds of findings, by name."""


@dataclass
class Finding:
    """The faults of one kind that a verification found.

    Attributes:
        name: The name of its kind, which is stable: see `KINDS`.
        count: How often it was found.
        details: Where, and what: at most the first five; one detail may stand for several times.
    """

    name: str
    count: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """The meaning of the finding, and the command that mends it; `KeyError` if `name` is not in `KINDS`."""
        return KINDS[self.name]
