"""The findings that a verification can make, each with a stable name, its meaning and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tallystream.errors import COUNT_AGAIN, GROUP_REMEDY

if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN: Final = 5
"""The number of details that a finding keeps; the others are only counted."""

REBUILD: Final = COUNT_AGAIN
"""What mends counters. In a remedy, a verification replaces this text by the one command that works, if it finds it."""

SNAPSHOT: Final = "tallystream snapshot --once --whole"
"""What replaces a snapshot by the live values; a verification that finds wrong counters states to mend these first."""

EITHER: Final = f"if the live value is right: {SNAPSHOT}. If that of the snapshot is right: tallystream restore --force"
"""What mends a difference between the snapshot and live values; if an audit proves the live ones, only the first."""

CAUSES: Final = ("keys.lost", "log.missing", "snapshot.ahead", "snapshot.passed_over", "archive.ahead")
"""The findings that can explain other ones, in the order in which they must be mended."""

LOST_KEYS: Final = (
    (
        "`seq`, if the partition has no other keys",
        "tallystream restore --force (only without a snapshot: tallystream reopen)",
    ),
    (
        "`seq`, if the partition has other keys",
        "tallystream restore --force (only without a snapshot: tallystream reopen --force)",
    ),
    (
        "`ledger`, if its name has no generation such as `g2`",
        "tallystream restore --force (only without a snapshot: tallystream reopen --force)",
    ),
    ("`live` or `dropped`", "tallystream restore --force (only without a snapshot: tallystream reopen)"),
    ("`files`", "tallystream restore --force (only without a snapshot: nothing, because the next ingest creates it)"),
    ("`rules`, the record of the changes of the rules", "tallystream reopen"),
    ("`copied`", "tallystream rebuild --drop"),
    ("`alerts`", "nothing, because the next notification creates it"),
    ("every other key", REBUILD),
)
"""What brings lost keys back: pairs of a kind of keys and the remedy."""

LOST_FIELDS: Final = (
    ("a field of `forgotten`", REBUILD),
    (
        "`rules@N` or `revision@N`",
        "tallystream rebuild --drop, which removes the generation N. This is never the live one",
    ),
    (
        "`layout`, `partitions`, `epoch`, `rules` or `log`",
        "delete the whole hash, then: tallystream restore --force (only without a snapshot: tallystream reopen)",
    ),
    ("every other field", "set it to the named value"),
)
"""What brings lost fields of hashes back: pairs of a kind of fields and the remedy."""

_BY_RESTORE: Final = (
    "tallystream restore --force, which loses only events that neither the snapshot nor the archive nor a producer has"
)
_BY_REOPENING: Final = "tallystream reopen, which loses the events that were not counted"
_SET_ASIDE: Final = (
    "tallystream archive --once, which moves these entries to files `*.parquet.lost`; then: tallystream verify, which "
    "names those that do not count"
)
_ARCHIVE_AGAIN: Final = (
    "tallystream archive --once, which archives entries after the last file again if the stream still has them; then: "
    "tallystream verify. If it finds the fault again"
)
_BRING_BACK: Final = (
    "stop the workers that archive; then: tallystream restore --force, which also counts the archived entries; then "
    "start these workers; then: tallystream verify"
)
_CHAIN: Final = "tallystream audit, to see which counters differ; then " + REBUILD


def by_case(cases: Sequence[tuple[str, str]]) -> str:
    """Return a remedy for several cases, from pairs of a case and what to do: `for CASE: REMEDY. For CASE: REMEDY`."""
    return ". ".join(
        f"{'for' if number == 0 else 'For'} {case}: {remedy}" for number, (case, remedy) in enumerate(cases)
    )


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        meaning: What is wrong, in whole sentences.
        remedy: The command that mends it, or what to do; without a capital at its beginning and a full stop at its end.
        restore: What to do if there is a snapshot whose restore mends it; empty if `remedy` is the same in all cases.
        without: What to do if there is no such snapshot; empty if `restore` is.
    """

    meaning: str
    remedy: str
    restore: str = ""
    without: str = ""


KINDS: Final = {
    "deployment.missing": Kind(
        "The namespace has keys, but the hash that describes them is missing.",
        "if you have a snapshot: tallystream restore --force. If you have none: tallystream reopen",
        "tallystream restore --force",
        "tallystream reopen",
    ),
    "deployment.generations_differ": Kind(
        "A partition counts in another generation than the live one, although no rebuild is running.",
        "to make all partitions count in the live generation: tallystream rebuild. To make all of them count in the "
        "previous generation: tallystream rebuild --undo",
    ),
    "deployment.closed": Kind(
        "A partition is closed, so nothing is counted in it, although no repartition is running.",
        "tallystream rebuild --drop, which opens the partitions again",
    ),
    "deployment.tags_differ": Kind(
        "The stored hash tags are not the tags that belong to the number of partitions.",
        "correct the fields `partitions` and `tags` of the named hash, or: tallystream restore --force",
    ),
    "deployment.numbers_differ": Kind(
        "A stored number, which identifies rules or a generation, is missing or too low.",
        "in the named hash, set the named field to the named number",
    ),
    "deployment.spread_missing": Kind(
        "The field that marks a metric as spread is missing, so a worker would wrongly accept rules without `spread` "
        "for this metric.",
        "in the named hash, set the named field to 1",
    ),
    "deployment.restore_unfinished": Kind(
        "A restore is running, or was interrupted.", "if it was interrupted: run the same tallystream restore again"
    ),
    "keys.lost": Kind("A key was deleted or evicted. Other keys show that it existed.", by_case(LOST_KEYS)),
    "keys.mistyped": Kind(
        "A key has another type than the one that is needed: another client has replaced it.",
        'if the detail states "Delete it": delete the key, then: tallystream verify, which prints the command that '
        f"brings the key back, if one is needed. Otherwise: {REBUILD}",
    ),
    "keys.expiring": Kind(
        "A key has a time to live, so the server will remove it: another client has set this time.",
        "for each named key: redis-cli PERSIST KEY. If the server has already removed the key: mend it as a lost key "
        "(`keys.lost`)",
    ),
    "periods.missing": Kind("A key of a period is not registered for removal, so it is never removed.", REBUILD),
    "fields.lost": Kind(
        "A field of a hash was deleted. Other keys or fields show that it existed.", by_case(LOST_FIELDS)
    ),
    "fields.changed": Kind(
        "Another client has changed the rules of a metric in a partition: no worker has published these rules.",
        REBUILD,
    ),
    "rules.missing": Kind(
        "The server has lost a change of the rules, which the snapshot or the archive still has.",
        "if the snapshot has the change: tallystream restore --force, which makes the lost changes again. If only the "
        "archive has it: tallystream reopen, which also makes them again",
        "tallystream restore --force, which makes the lost changes again",
        "tallystream reopen, which makes the lost changes again that the archive has",
    ),
    "log.missing": Kind(
        "A stream was deleted, although events were appended to it.",
        f"if you have a snapshot: {_BY_RESTORE}. Only if you have none: {_BY_REOPENING}",
        _BY_RESTORE,
        _BY_REOPENING,
    ),
    "log.deleted": Kind("Another client deleted an entry from the middle of a stream.", _CHAIN),
    "log.removed": Kind(
        "More entries are gone from a stream than workers have removed.", "find the client that runs XDEL or XTRIM"
    ),
    "log.gap": Kind("An entry is missing between two other entries of the same producer.", _CHAIN),
    "log.repeated": Kind(
        "An entry of a producer is in the stream twice. Its events count twice, and a rebuild counts them twice too.",
        "if all entries are in the stream: delete the later one of the two (redis-cli XDEL), then: tallystream rebuild "
        "--accept-loss (accept the loss of the deleted entry). If entries are gone from the stream, and an archive has "
        "them: delete the later one of the two, then: tallystream rebuild --archive URL --accept-loss. If no archive "
        "has them: do nothing, because a rebuild would lose their events",
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
        "The position of the consumer group does not agree with the ledger. Entries were skipped, or will be counted "
        "again.",
        REBUILD,
    ),
    "group.pending_gone": Kind(
        "A pending entry is gone from the stream.",
        "if an archive has the entry: tallystream rebuild --archive URL. If none has it: start a worker, which gives "
        "its events the outcome `trimmed` (removed before they were counted)",
    ),
    "ledger.unbalanced": Kind(
        "The number of appended events is not the number of events that have an outcome or wait to be counted.", _CHAIN
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
    "sketches.differ": Kind(
        "A sketch does not agree with the entries, or with the sum of its amounts in the ledger.", REBUILD
    ),
    "dead.differ": Kind("The dead letters have more or fewer events than the ledger states.", REBUILD),
    "archive.missing": Kind(
        "The archive has no file, although entries of the stream are marked as archived.",
        "if `[archive] url` is wrong: correct it. If the files were deleted: restore them from a copy. "
        "If there is no copy: do nothing. New entries are still archived. Until workers have trimmed the entries of "
        "the deleted files, verify reports `archive.missing`, or `archive.gap` after new files were written",
    ),
    "archive.ahead": Kind(
        "The server has lost entries that the archive contains, for example because older data was put back.",
        "if the detail states that all these entries were sent again, or if you have no snapshot from before the loss: "
        f"{_SET_ASIDE}. Otherwise: {_BRING_BACK}",
        _BRING_BACK,
        _SET_ASIDE,
    ),
    "archive.set_aside": Kind(
        "The server lost archived entries, and producers did not send them again. The archiver has moved them to files "
        "`*.parquet.lost`. Their events do not count.",
        "to count them: follow the steps in docs/archive.md, Count lost entries. To accept the loss: move the folder "
        "`lost` out of the archive",
    ),
    "archive.gap": Kind(
        "Entries are missing in the archive: between two files, before the first file or after the last file.",
        f"{_ARCHIVE_AGAIN}: restore the missing file from a copy",
    ),
    "archive.overlap": Kind(
        "Two files of the archive have entries of the same range.",
        "compare the two named files, and remove one of them",
    ),
    "archive.repeated": Kind(
        "An entry of a producer is in the archive twice, so a rebuild would count its events twice. The server had "
        "lost the archived entry, and the producer sent it again.",
        "do not rebuild from this archive before the repeated entry is removed from its file",
    ),
    "archive.skips": Kind(
        "In the archive, an entry is missing between two other entries of the same producer.",
        "restore the file from a copy",
    ),
    "archive.unknown": Kind(
        "The archive has an entry that is not in the stream, although no worker has trimmed it.",
        "tallystream audit, to see which counters differ. Find out whether the stream has lost the entry, or the "
        "archive has an entry too many. Until then, do not rebuild from this archive",
    ),
    "archive.unreadable": Kind(
        "A file of the archive cannot be read, or is damaged. The check continues with the other files.",
        "restore the named file from a copy",
    ),
    "archive.lacks": Kind(
        "An entry of the stream is marked as archived, but is not in the archive.",
        f"before workers trim the entry: {_ARCHIVE_AGAIN}: restore the files from a copy. If there is no copy: move "
        "the files with later entries of this stream out of the archive, then: tallystream archive --once",
    ),
    "archive.differs": Kind(
        "An archived entry differs from the same entry of the stream.", "restore the files from a copy"
    ),
    "snapshot.missing": Kind(
        "A snapshot database is configured, but has no complete snapshot: it is gone, or the first one is overdue.",
        SNAPSHOT,
    ),
    "snapshot.other": Kind(
        "The snapshot is of other data.",
        "if the server has lost the data of the snapshot: tallystream restore --force. Otherwise: name another "
        "database in `[snapshot] url`, then: tallystream snapshot --once",
    ),
    "snapshot.outdated": Kind(
        "The snapshot is of an earlier topic or generation, and is also too old (see `snapshot.old`).", SNAPSHOT
    ),
    "snapshot.old": Kind(
        "The last snapshot is older than twice `[snapshot] every` plus five minutes. If no worker takes snapshots, the "
        "limit is 26 hours.",
        "find the reason in the worker's log; then: " + SNAPSHOT,
    ),
    "snapshot.ahead": Kind(
        "The server has lost entries that the snapshot contains, for example because older data was put back.",
        "to get the lost entries back: stop the workers that archive; then: tallystream restore --force. To accept the "
        "loss: tallystream snapshot --once --accept-loss",
    ),
    "snapshot.passed_over": Kind(
        "After this snapshot was taken, another snapshot was restored, and the server lacks entries of this snapshot. "
        "Until you decide, no new snapshot replaces it.",
        "to keep the present counters: tallystream snapshot --once --accept-loss. To go back to this snapshot: stop "
        "the workers that archive; then: tallystream restore --force",
    ),
    "snapshot.behind": Kind(
        "Entries after the snapshot are gone from the stream, so a restore would lack them.",
        "if an archive has these entries, nothing is wrong: name it with tallystream verify --archive URL. Otherwise: "
        + SNAPSHOT,
    ),
    "snapshot.damaged": Kind(
        "Another program has changed, removed or added rows of the snapshot after it was taken.", SNAPSHOT
    ),
    "snapshot.differs": Kind(
        "A restore of the snapshot would give a value that differs from the live value.", EITHER
    ),
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
