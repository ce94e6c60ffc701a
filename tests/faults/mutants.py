"""Mutants: broken variants of the product, each of which the fault suite must catch.

Production code has no switch for a mutant: it is a copy of the packages with a few lines replaced, put first on the
import path. If those lines have changed and a replacement does not apply, that is an error: otherwise the suite would
test an unchanged copy.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCES: Final = (Path("producer/tallystream"), Path("worker/tallystream_worker"))


class MutationError(Exception):
    """A mutant cannot be made, because an edit does not apply to today's code."""


@dataclass(frozen=True)
class Edit:
    """A replacement of text in a file; `old` must be in the file exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A broken variant of the product.

    Attributes:
        name: A name for the defect.
        edits: The replacements that make it.
        rows: The smallest set of rows of the fault table that must catch it.
        checks: The letters of the checks that must fail; any other failure, such as one at start, does not count.
        tests: Tests that must fail, instead of rows, for a defect that a test shows without chance.
    """

    name: str
    edits: tuple[Edit, ...]
    rows: tuple[int, ...] = ()
    checks: str = ""
    tests: tuple[str, ...] = ()

    def changed(self) -> dict[str, str]:
        """Return the files that the edits change, by their path in the packages, with the changed text.

        Raises:
            MutationError: an edit does not apply.
        """
        texts: dict[str, str] = {}
        for edit in self.edits:
            package, _, path = edit.file.partition("/")
            (source,) = (each for each in SOURCES if each.name == package)
            text = texts[edit.file] if edit.file in texts else (source / path).read_text()
            if text.count(edit.old) != 1:
                raise MutationError(
                    f"{self.name}: {edit.file} has {text.count(edit.old)} occurrences, not 1, of:\n{edit.old}\n"
                    "The code has changed: update the edit in tests/faults/mutants.py"
                )
            texts[edit.file] = text.replace(edit.old, edit.new)
        return texts

    def make(self, folder: Path) -> Path:
        """Write the mutant into an emptied folder, and return the folder, which goes first on the import path.

        Raises:
            MutationError: an edit does not apply.
        """
        changed = self.changed()
        shutil.rmtree(folder, ignore_errors=True)
        for source in SOURCES:
            shutil.copytree(source, folder / source.name)  # with the compiled modules, which stay valid
        for file, text in changed.items():
            path = folder / file
            path.write_text(text)
            for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
                compiled.unlink()
        return folder


_OTHER_TYPES: Final = "tests/integration/counting/test_other_types.py"
_LOOP: Final = "tests/integration/counting/test_loop.py"
_FORGOTTEN: Final = "tests/integration/producing/test_forgotten.py"
_RETENTION: Final = "tests/integration/snapshot/test_changed_retention.py"
_SNAPSHOT: Final = "tests/integration/snapshot/test_snapshot.py"
_EXPIRY: Final = "tests/integration/reading/test_expiry.py"
_BROADCASTER: Final = "tests/integration/live/test_broadcaster.py"
_APPENDER: Final = "tests/integration/producing/test_appender.py"
_REPLACED: Final = "tests/integration/repartition/test_replaced.py"
_IN_PART: Final = "tests/cluster/test_reads_in_part.py"
_REPLIES: Final = "tests/integration/storage/test_script_replies.py"
_LOST_PARTITION: Final = "tests/integration/runtime/test_lost_partition.py"
_DURABILITY: Final = "tests/integration/client/test_durability.py"
_BOARDS: Final = "tests/integration/reading/test_leaderboards.py"
_HOLDS: Final = "tests/integration/repartition/test_holds.py"
_LOST_LOG: Final = "tests/integration/snapshot/test_lost_log.py"
_OTHER_TOPICS: Final = "tests/integration/snapshot/test_other_topics.py"
_RESTORED_DEAD: Final = "tests/integration/snapshot/test_dead_letters.py"
_PUBLICATION: Final = "tests/integration/runtime/test_publication.py"
_LOST_CHANGES: Final = "tests/integration/snapshot/test_lost_changes.py"
_KEPT_RULES: Final = "tests/integration/snapshot/test_kept_rules.py"
_RESTORED_PLACES: Final = "tests/integration/snapshot/test_restored_places.py"
_OTHER_FORM: Final = f"{_RESTORED_PLACES}::test_a_restore_reads_the_form_that_the_snapshot_has"
_UNFOLLOWED: Final = "valkey-1 partition-count rules snapshot-archive-emptied"
_UNFOLLOWED_TWICE: Final = "valkey-1 partition-count rules rules snapshot-archive-emptied"
_COUNTED_ONLY: Final = "tests/integration/snapshot/test_counted_only.py"
_TWO_RESTORES: Final = "tests/integration/snapshot/test_two_restores.py"
_ARCHIVE: Final = "tests/integration/archive/test_archive.py"
_INTERRUPTED: Final = "tests/integration/snapshot/test_interrupted_restores.py"
_RETRACT: Final = "tests/integration/rebuild/test_retract.py"
_LOST_ENTRIES: Final = "tests/integration/archive/test_lost_entries.py"
_PARTS: Final = "tallystream/storage/lua/rules/parts.lua"
_CHANGED: Final = "tests/integration/counting/test_changed_rules.py"
_RESET: Final = "tests/integration/rebuild/test_reset.py"
_RESET_EXACT: Final = "tests/integration/rebuild/test_reset_exact.py"
_RESTORED: Final = "tests/integration/verify/test_restored.py"
_BESIDE_ARCHIVE: Final = "tests/integration/verify/test_restored_beside_archive.py"
_LOST_GENERATION: Final = "tests/integration/verify/test_lost_generation.py"
_LOST_END: Final = "tests/integration/verify/test_lost_end.py"
_EARLIER_CLOCK: Final = "tests/integration/snapshot/test_earlier_clock.py"
_VERIFY: Final = "tests/integration/verify/test_verify.py"
_FORMS: Final = "test_a_value_in_a_form_that_no_script_writes_is_never_proved"
_FIRST_SNAPSHOT: Final = "tests/integration/verify/test_first_snapshot.py"
_VERIFY_CHANGED: Final = "tests/integration/verify/test_changed_rules.py"
_EVERY_FIELD: Final = "tests/integration/storage/test_every_field.py"
_MIGRATION: Final = "tests/integration/repartition/test_migration.py"
_REBUILD: Final = "tests/integration/rebuild/test_rebuild.py"
_COMPARE: Final = "tests/integration/rebuild/test_compare.py"
_SENT_AGAIN: Final = "tests/integration/producing/test_producer.py"
_EVERY_KEY: Final = "tests/integration/storage/test_every_key.py"
_LOST: Final = "tests/integration/storage/test_lost_keys.py"
_LOST_READS: Final = "tests/integration/reading/test_lost_keys.py"
_ADOPTED: Final = "tests/integration/producing/test_adopted.py"
_SPOOL: Final = "tallystream/producing/spool"
_FAILED_WRITES: Final = "tests/unit/producing/spool/test_failed_writes.py"
_LOST_SEGMENTS: Final = "tests/integration/ingest/test_lost_segments.py"
_FILES: Final = "tests/integration/snapshot/test_ingested_files.py"
_DESCRIPTION: Final = "tests/integration/storage/test_description.py"
_DESCRIBE: Final = "tests/integration/rebuild/test_describe.py"
_SOURCE: Final = "tests/integration/rebuild/test_source.py"
_REPLIES: Final = "tests/integration/storage/test_script_replies.py"
_CLOCK: Final = "tests/integration/counting/test_server_clock.py"
_ZONES: Final = "tests/unit/rules/test_zones.py"
_LOST_WRITES: Final = "tests/integration/repartition/test_lost_writes.py"
_LAGGING: Final = "tests/cluster/test_lagging_replica.py"
_LOST_SWITCHES: Final = "tests/integration/rebuild/test_lost_switches.py"
_TURNS: Final = "tests/integration/rebuild/test_turns.py"
_AUDIT: Final = "tests/integration/rebuild/test_audit.py"
_APPLY: Final = "tallystream_worker/counting/lua/apply.lua"
_APPEND: Final = "tallystream/storage/lua/append.lua"
_ACKNOWLEDGE: Final = "call('XACK', stream, group, unpack(ids))\n"
_GATE: Final = "if #pending < #ids then"
_NO_GATE: Final = Edit(_APPLY, _GATE, "if false then")
_AGAIN: Final = Edit(_APPEND, "if sequence <= last then", "if false then")

_ROUTER: Final = "tests/unit/client/cluster/test_router.py"
_UNREAD: Final = "tests/integration/client/test_unread_replies.py"
_ALERTS: Final = "tests/integration/alerts/test_alerts.py"
_IDS: Final = "tests/integration/counting/test_ids.py"
_DROPPED: Final = "tests/integration/dead_letters/test_dropped.py"
_VOTE_ORDER: Final = "tests/integration/counting/test_vote_order.py"
_EVENT_IDS: Final = "tallystream/storage/lua/rules/event_ids.lua"
_FORGET: Final = "tallystream/storage/lua/rules/forget_periods.lua"
_MOVED: Final = "tests/cluster/test_moved_snapshot.py"
_KEPT: Final = "tests/integration/counting/test_kept_periods.py"

MUTANTS: Final = (
    Mutant(
        "count-before-check",
        (
            Edit(
                _APPLY,
                "local pending = {}",
                "local early = plan(batch, KEYS[3])\nif #early.rejected == 0 then write(early) end\nlocal pending = {}",
            ),
            Edit(_APPLY, "write(planned)\nif forgetting", "if forgetting"),
        ),
        (25, 26),
        "BPLM",
    ),
    Mutant(
        "acknowledge-first",
        (
            _NO_GATE,
            Edit(
                "tallystream_worker/counting/apply.py",
                "    (answer, *details), unconfirmed =",
                "    client.xack(keys.stream, keys.group, *batch.ids)\n    (answer, *details), unconfirmed =",
            ),
        ),
        (2, 15),
        "B",
    ),
    Mutant(
        "gate-on-the-total-of-xack",
        (Edit(_APPLY, _GATE, f"if {_ACKNOWLEDGE.strip()} == 0 then"),),
        (25, 26),
        "BPLM",
    ),
    Mutant(
        "subscriber-judged-as-poison",
        (
            Edit(
                "tallystream_worker/counting/loop.py",
                "                return self._publish(batch, seconds)\n",
                "                try:\n"
                "                    return self._publish(batch, seconds)\n"
                "                except Exception as error:\n"
                "                    return self._count(self._quarantine.bisect(batch.entries, error))\n",
            ),
            Edit("tallystream_worker/counting/outcome.py", "            on_error(error)\n", "            raise\n"),
        ),
        (34,),
        "X",
    ),
    Mutant(
        "subscriber-stops-the-pass",
        (Edit("tallystream_worker/counting/outcome.py", "            on_error(error)\n", "            raise\n"),),
        (34,),
        "BDX",
    ),
    Mutant(
        "trim-by-maxlen",
        (
            Edit(
                "tallystream_worker/maintenance/lua/trim.lua",
                "removed = call('XTRIM', stream, 'MINID', '~', by_age, 'LIMIT', step)",
                "removed = call('XTRIM', stream, 'MAXLEN', 8)",
            ),
        ),
        (30,),
        "B",
    ),
    Mutant(
        "group-recreated-at-0",
        (
            Edit(
                "tallystream_worker/counting/lua/ensure_group.lua",
                "elseif tonumber(settled or '0') > 0 then",
                "elseif false then",
            ),
        ),
        (23,),
        "BLMX",
    ),
    Mutant(
        "retry-of-a-bare-write",
        (
            _AGAIN,
            Edit(_APPEND, "if sequence > last + 1 and", "if false and"),
            Edit(
                "tallystream/client/connect.py",
                '"retry": Retry(NoBackoff(), 0),',
                '"retry": Retry(NoBackoff(), 3),',
            ),
        ),
        (14,),
        "B",
    ),
    Mutant(
        "last-arrival-wins",
        (
            Edit(
                "tallystream/storage/lua/rules/votes.lua",
                "replaces = at > old_at or (at == old_at and is_later(vote[i], old_place))",
                "replaces = true",
            ),
        ),
        (20,),
        "R",
    ),
    Mutant(
        "clamp-on-write",
        (
            Edit(
                "tallystream/storage/lua/rules/totals.lua",
                "      sum = sum + delta\n",
                "      sum = sum + delta\n      new = math.max(new, 0)\n",
            ),
        ),
        (20,),
        "R",
    ),
    Mutant(
        "ledger-forgets",
        (Edit("tallystream/storage/lua/rules/write.lua", "    if events ~= 0 then", "    if events % 7 ~= 0 then"),),
        (20,),
        "DL",
    ),
    Mutant(
        "scripts-on-half-a-slot",
        (
            Edit(
                "tallystream/client/cluster/slots.py", 'if command[0] != "EVALSHA" or not int(command[2]):', "if True:"
            ),
        ),
        tests=("tests/unit/client/cluster/test_slots.py::test_a_script_call_declares_a_key_that_never_exists",),
    ),
    Mutant(
        "snapshot-in-two-transactions",
        (
            Edit(
                "tallystream_worker/snapshot/database.py",
                "            position = taken.position\n",
                '            failpoints.reach("before-commit")\n'
                "        with self._transaction() as connection:\n"
                "            position = taken.position\n",
            ),
        ),
        (33,),
        "X",
    ),
    Mutant(
        "snapshot-that-holds-no-log",
        (
            Edit(
                "tallystream_worker/snapshot/snapshotter.py",
                "            self._client.hsetnx(keys.retention_holds, HOLDER, _ALL)\n",
                "",
            ),
            Edit(
                "tallystream_worker/snapshot/snapshotter.py",
                "            self._client.hset(keys.retention_holds, HOLDER, taken.position.floor)\n",
                "",
            ),
        ),
        (33,),
        "X",
    ),
    Mutant(
        "stale-batch-keeps-its-exclusions",
        (
            Edit(
                "tallystream_worker/counting/loop.py",
                "self._quarantine.batches(entries, conflicts=batch.conflicts + 1)",
                "self._quarantine.batches(entries, batch.excluded, batch.conflicts + 1)",
            ),
        ),
        tests=(f"{_LOOP}::test_a_stale_batch_is_tried_as_if_for_the_first_time",),
    ),
    Mutant(
        "poison-before-the-others",
        (
            Edit(
                "tallystream_worker/counting/quarantine.py",
                "entries = sorted(entries, key=lambda entry: entry.id in self._suspects)",
                "entries = list(entries)",
            ),
        ),
        tests=(f"{_LOOP}::test_a_run_of_poison_entries_dead_letters_none_of_the_good_ones",),
    ),
    Mutant(
        "recovery-from-the-beginning",
        (Edit("tallystream_worker/counting/fetch.py", "            self._recovered = found[-1].id\n", ""),),
        tests=(f"{_LOOP}::test_a_poison_entry_does_not_hold_up_what_comes_after_an_outage",),
    ),
    Mutant(
        "switch-taken-for-done",
        (
            Edit(
                "tallystream_worker/runtime/partition_follower.py",
                "        pool = self._make(found)",
                "        self._deployment = found\n        pool = self._make(found)",
            ),
        ),
        tests=("tests/integration/runtime/test_supervisor.py::test_a_switch_that_fails_is_tried_again",),
    ),
    Mutant(
        "gate-takes-a-forgotten-producer-for-a-new-one",
        (Edit(_APPEND, "if producers.may_be_removed(sequences, producer, ARGV[6]) then", "if false then"),),
        tests=(
            f"{_FORGOTTEN}::test_the_gate_refuses_a_first_entry_that_may_be_a_repetition",
            f"{_FORGOTTEN}::test_an_entry_without_a_reply_is_not_sent_again_after_a_long_silence",
        ),
    ),
    Mutant(
        "producer-takes-a-removed-record-for-a-loss",
        (
            Edit(
                "tallystream/producing/gate.py",
                "return GateRecord(int(last), last_id, parse_id(horizon), newest)",
                "return GateRecord(int(last), last_id, parse_id(START), newest)",
            ),
        ),
        tests=(f"{_FORGOTTEN}::test_a_producer_that_was_silent_for_long_sends_nothing_again",),
    ),
    Mutant(
        "silence-by-the-clock",
        (
            Edit(
                "tallystream_worker/maintenance/lua/reap_producers.lua",
                "math.min(now - (seen or now), tonumber(ARGV[3]))",
                "now - (seen or now)",
            ),
        ),
        tests=("tests/integration/maintenance/test_reaper.py::test_a_clock_that_jumps_removes_no_record",),
    ),
    Mutant(
        "spool-forgotten-like-others",
        (Edit("tallystream/producing/gate.py", 'SPOOL: Final = "spool:"', 'SPOOL: Final = ""'),),
        tests=(f"{_FORGOTTEN}::test_a_dead_spool_that_is_delivered_late",),
    ),
    Mutant(
        "snapshot-without-horizons",
        (
            Edit(
                "tallystream_worker/snapshot/snapshotter.py",
                "        producers |= self._horizons(keys)\n",
                "",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_restore_keeps_what_was_forgotten",),
    ),
    Mutant(
        "late-by-stream-id",
        (
            Edit(
                "tallystream/wire/codec.py",
                "return id_time if stated is None else min(stated, id_time)",
                "return id_time",
            ),
        ),
        tests=(f"{_CLOCK}::test_a_jump_of_the_clock_sets_nothing_aside_after_it",),
    ),
    Mutant(
        "unstated-clock",
        (
            Edit(
                "tallystream/storage/lua/lib/appending.lua",
                "call('XADD', stream, '*', 't', time, ...)",
                "call('XADD', stream, '*', ...)",
            ),
        ),
        tests=(f"{_CLOCK}::test_a_jump_of_the_clock_sets_nothing_aside_after_it",),
    ),
    Mutant(
        "late-by-the-caller",
        (
            Edit(
                "tallystream/storage/lua/decide.lua", "if may_be_late and now - at > may_be_late then", "if false then"
            ),
        ),
        tests=(f"{_CLOCK}::test_a_jump_of_the_clock_sets_nothing_aside_after_it",),
    ),
    Mutant(
        "copy-without-the-clock",
        (
            Edit(
                "tallystream_worker/repartition/copy.py",
                'fields = {b"v": VERSION} | time_fields(entry.fields) | {b"p"',
                'fields = {b"v": VERSION} | {b"p"',
            ),
        ),
        tests=(f"{_CLOCK}::test_lateness_is_measured_by_the_clock_in_every_fold",),
    ),
    Mutant(
        "generation-of-a-decision-compared",
        (
            Edit(
                "tallystream_worker/verify/archived_rows.py",
                "return table if at < 0 else table.set_column",
                "return table if True else table.set_column",
            ),
        ),
        tests=("tests/unit/verify/test_archived_rows.py",),
    ),
    Mutant(
        "archive-without-the-clock",
        (
            Edit(
                "tallystream_worker/archive/rows.py",
                'if (stated := runs["stated"][row]) is not None:',
                "if stated := None:",
            ),
        ),
        tests=(f"{_CLOCK}::test_lateness_is_measured_by_the_clock_in_every_fold",),
    ),
    Mutant(
        "dead-letter-without-the-clock",
        (Edit("tallystream_worker/counting/fold_payload.py", " | time_fields(entry.fields)", ""),),
        tests=(f"{_CLOCK}::test_a_retry_keeps_the_clock_of_its_entry",),
    ),
    Mutant(
        "trim-by-a-clock-that-jumped",
        (Edit("tallystream_worker/maintenance/lua/trim.lua", "if is_steady(now) and tonumber", "if tonumber"),),
        tests=("tests/integration/maintenance/test_clocks.py::test_a_clock_that_is_ahead_for_a_moment_trims_nothing",),
    ),
    Mutant(
        "hours-in-two-days",
        (
            Edit(
                "tallystream/rules/metrics.py",
                "        for window in self.windows:\n            self._check_nesting(self.per, window, zone)\n",
                "",
            ),
        ),
        tests=(f"{_ZONES}::test_a_limit_per_hour_with_days_that_begin_within_an_hour",),
    ),
    Mutant(
        "days-that-overlap",
        (Edit("tallystream/rules/windows.py", "    if at >= end:\n", "    if at > at:\n"),),
        tests=(f"{_ZONES}::test_days_and_months_follow_one_another_in_every_zone",),
    ),
    Mutant(
        "zone-of-the-host",
        (Edit("tallystream/rules/windows.py", "if name not in zone_names():", "if not name:"),),
        tests=(f"{_ZONES}::test_zones_that_differ_between_hosts",),
    ),
    Mutant(
        "list-with-doubles",
        (Edit("tallystream/rules/metrics.py", "        if each in known:\n            return each\n", ""),),
        tests=("tests/unit/settings/test_lists.py",),
    ),
    Mutant(
        "uniques-without-an-end",
        (
            Edit(
                "tallystream/rules/batch.py",
                "kept | self.closes | {prefix: until for _, prefix, until, *_ in self._uniques}",
                "kept | self.closes",
            ),
        ),
        tests=(f"{_AUDIT}::test_a_bucket_that_expires_while_it_is_read_is_no_difference",),
    ),
    Mutant(
        "places-of-a-sketch-compared",
        (Edit("tallystream_worker/rebuild/values.py", "is not None and not rule.exact:", "is not None and not rule:"),),
        tests=(f"{_AUDIT}::test_the_leaderboard_of_a_sketch_is_no_difference",),
    ),
    Mutant(
        "dropped-comes-back",
        (
            Edit(
                "tallystream_worker/counting/fold.py",
                "letters = self._dropped.get(entry.id, ())",
                "letters: Sequence[DroppedLetter] = ()",
            ),
        ),
        tests=(
            "tests/integration/dead_letters/test_dropped.py::test_an_undeclared_metric_that_was_dropped_does_not_return",
            "tests/integration/dead_letters/test_dropped.py::test_an_entry_that_was_given_up_and_dropped",
        ),
    ),
    Mutant(
        "given-up-read-once",
        (
            Edit(
                "tallystream_worker/rebuild/partition_audit.py",
                "        self._learn()  # after the checkpoint",
                "        # after the checkpoint",
            ),
        ),
        tests=(
            "tests/integration/dead_letters/test_dropped.py::test_an_audit_learns_of_entries_that_are_given_up_meanwhile",
        ),
    ),
    Mutant(
        "late-event-in-a-closed-bucket",
        (Edit("tallystream/rules/batch.py", "        if received < place.closes_first:\n", "        if True:\n"),),
        tests=(f"{_EXPIRY}::test_a_late_event_does_not_bring_a_bucket_back",),
    ),
    Mutant(
        "late-decision-in-a-closed-bucket",
        (Edit("tallystream/storage/lua/decide.lua", "plan(batch, KEYS[3], now)", "plan(batch, KEYS[3])"),),
        tests=(f"{_EXPIRY}::test_a_late_event_does_not_bring_a_bucket_back",),
    ),
    Mutant(
        "expired-bucket-made-again",
        (
            Edit(
                "tallystream/storage/lua/lib/buckets.lua",
                "if closes == 0 or closes + HOUR > planned.now then",
                "if true then",
            ),
        ),
        tests=(f"{_EXPIRY}::test_an_entry_that_waited_does_not_bring_a_bucket_back",),
    ),
    Mutant(
        "closed-by-a-clock-that-is-ahead",
        (
            Edit(
                "tallystream/storage/lua/lib/buckets.lua",
                "clock.is_steady(sequences_of(planned.ledger_key), planned.now) == true",
                "true",
            ),
        ),
        tests=(f"{_EXPIRY}::test_a_clock_that_is_ahead_for_a_moment_loses_no_bucket",),
    ),
    Mutant(
        "keys-expire-by-the-clock",
        (
            Edit(
                _FORGET,
                "          added[n + 1], added[n + 2] = kept,",
                "          call('PEXPIREAT', period[i], format('%.0f', period[3] + 3600000))\n"
                "          added[n + 1], added[n + 2] = kept,",
            ),
        ),
        tests=(f"{_EXPIRY}::test_a_clock_that_is_ahead_for_a_moment_loses_no_bucket",),
    ),
    Mutant(
        "restore-before-the-archive-is-read",
        (
            Edit(
                "tallystream_worker/snapshot/restore.py",
                "    _check_archive(partitions, archived if force else None)\n",
                "",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_an_archive_that_cannot_be_read_costs_no_counter",),
    ),
    Mutant(
        "scan-continued-by-another-node",
        (Edit("tallystream_worker/process/scan.py", "if server != (first := first or server):", "if False:"),),
        tests=(f"{_MOVED}::test_a_moved_partition_is_read_again",),
    ),
    Mutant(
        "scan-of-half-a-slot",
        (
            Edit(
                "tallystream/client/cluster/slots.py", 'if command[0] != "EVALSHA" or not int(command[2]):', "if True:"
            ),
        ),
        tests=(f"{_MOVED}::test_keys_on_two_nodes_are_not_left_out",),
    ),
    Mutant(
        "snapshot-beside-its-file",
        (Edit("tallystream_worker/snapshot/snapshotter.py", "        self._database.settle()\n", ""),),
        tests=(f"{_SNAPSHOT}::test_a_copy_of_the_file_is_a_whole_snapshot",),
    ),
    Mutant(
        "archive-of-a-new-stream-not-restored",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "        yield from archived(self._partition, position.floor,",
                "        if first and position.is_reached(self._client, self._keys):\n"
                "            return\n"
                "        yield from archived(self._partition, position.floor,",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_the_archive_is_used_if_producers_have_appended_before_a_restore",),
    ),
    Mutant(
        "archive-after-a-lost-end-not-restored",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "        if first:\n            yield from archived(",
                "        if first and not first:\n            yield from archived(",
            ),
        ),
        tests=("tests/integration/snapshot/test_lost_log.py::test_archived_entries_after_a_lost_end_count",),
    ),
    Mutant(
        "appended-before-archived-entries",
        (
            Edit(
                "tallystream_worker/snapshot/lua/close_partition.lua",
                "  streams.skip(KEYS[1], ARGV[4])\n",
                "",
            ),
        ),
        tests=("tests/integration/snapshot/test_lost_log.py::test_archived_entries_after_a_lost_end_count",),
    ),
    Mutant(
        "any-number-of-python-is-a-stored-number",
        (
            Edit(
                "tallystream/storage/stored_values.py",
                "    if not _SIGNED.fullmatch(value):",
                "    if not _SIGNED.search(value):",
            ),
        ),
        tests=(
            "tests/integration/verify/test_verify.py::test_a_number_that_no_script_can_add_to_is_never_proved",
            "tests/integration/verify/test_verify.py::test_a_total_that_no_script_can_add_to_is_never_proved",
        ),
    ),
    *(
        Mutant(name, (edit,), tests=(f"{_VERIFY}::{test}",))
        for name, test, edit in (
            (
                "any-mark-that-begins-with-a-number-is-live",
                _FORMS,
                Edit("tallystream/storage/deployment_hash.py", "_LIVE.fullmatch(value)", "_LIVE.match(value)"),
            ),
            (
                "any-digits-are-a-number-of-rules",
                _FORMS,
                Edit("tallystream/storage/deployment_hash.py", "not NUMBER.fullmatch(value)", "not value.isdigit()"),
            ),
            (
                "verify-reads-any-record-of-a-producer",
                _FORMS,
                Edit("tallystream_worker/verify/log.py", "RECORD.fullmatch(value)", "RECORD.match(value)"),
            ),
            (
                "verify-trusts-the-forms-of-values",
                _FORMS,
                Edit("tallystream_worker/verify/checks.py", '    Check("forms", forms.check),\n', ""),
            ),
            (
                "verify-compares-the-whole-part-of-a-score",
                _FORMS,
                Edit("tallystream_worker/verify/leaderboards.py", "elif score != value:", "elif int(score) != value:"),
            ),
            (
                "audit-compares-the-whole-part-of-a-score",
                "test_an_audit_names_a_place_on_a_leaderboard_that_is_no_whole_number",
                Edit("tallystream_worker/rebuild/values.py", "if score.is_integer() else score", "if True else score"),
            ),
        )
    ),
    Mutant(
        "decisions-taken-for-a-lost-group",
        (
            Edit(
                "tallystream_worker/counting/lua/ensure_group.lua",
                "if KEYS[2] ~= KEYS[3] then",
                "if KEYS[2] then",
            ),
        ),
        tests=("tests/integration/counting/test_fetch.py::test_a_decision_before_the_first_worker_is_no_lost_group",),
    ),
    Mutant(
        "archive-of-other-data-replayed-with-the-streams",
        (
            Edit(
                "tallystream_worker/cli/commands/replay.py",
                "        if not Store(archive, namespace,",
                "        if not archive and Store(archive, namespace,",
            ),
        ),
        tests=("tests/integration/rebuild/test_replay.py::test_the_archive_of_an_emptied_server_is_replayed_alone",),
    ),
    Mutant(
        "restored-snapshot-is-behind",
        (
            Edit(
                "tallystream_worker/snapshot/point_in_time.py",
                "        if restored is None:\n            return False\n",
                "        return False\n",
            ),
        ),
        tests=(f"{_RESTORED}::test_nothing_is_found_after_a_restore_without_an_archive",),
    ),
    *(
        Mutant(
            f"{name}-of-0-again",
            (Edit(f"tallystream/reading/{file}", old, new),),
            tests=(f"{_BOARDS}::test_a_value_that_is_0_again_is_not_listed",),
        )
        for name, file, old, new in (
            ("place", "leaderboards.py", "[place for place in board if place[1]]", "board"),
            (
                "place-in-a-range",
                "leaderboards.py",
                "(place for place in totals.items() if place[1])",
                "totals.items()",
            ),
            ("place-of-a-spread-metric", "merge.py", "(place for place in sums.items() if place[1])", "sums.items()"),
            ("found-subject", "search.py", "if not stored:", "if False:"),
        )
    ),
    Mutant(
        "verify-without-the-mark-of-the-snapshot",
        (
            Edit(
                "tallystream_worker/snapshot/lost_log.py",
                "if put_mark(client, keys, position.mark):",
                "if put_mark(client, keys, ''):",
            ),
        ),
        tests=("tests/integration/verify/test_remedies.py::test_the_finding_that_explains_the_others_comes_first",),
    ),
    Mutant(
        "verify-demands-the-first-snapshot-at-once",
        (Edit("tallystream_worker/verify/snapshots.py", "is_due = _is_first_due(scene)", "is_due = False"),),
        tests=(f"{_FIRST_SNAPSHOT}::test_a_first_snapshot_that_is_due_is_no_fault",),
    ),
    Mutant(
        "verify-waits-for-the-first-snapshot-of-old-entries",
        (
            Edit(
                "tallystream_worker/verify/snapshots.py", "for found in (changes, *entries)", "for found in (changes,)"
            ),
        ),
        tests=(f"{_FIRST_SNAPSHOT}::test_a_snapshot_that_was_never_taken_is_a_fault",),
    ),
    Mutant(
        "verify-waits-for-the-first-snapshot-forever",
        (Edit("tallystream_worker/verify/snapshots.py", "oldest) / 1000 <= most", "oldest) / 1000 >= 0"),),
        tests=(f"{_FIRST_SNAPSHOT}::test_a_snapshot_that_was_never_taken_is_a_fault",),
    ),
    Mutant(
        "verify-waits-for-a-snapshot-that-is-gone",
        (
            Edit(
                "tallystream_worker/verify/snapshots.py",
                "if any(client.hexists(meta, SNAPSHOT_AT) for meta in {layout.root, layout.meta}):",
                "if False:",
            ),
        ),
        tests=(f"{_FIRST_SNAPSHOT}::test_a_snapshot_that_is_gone_is_a_fault_at_once",),
    ),
    Mutant(
        "verify-judges-a-snapshot-by-its-generation",
        (
            Edit(
                "tallystream_worker/verify/snapshots.py",
                "elif _state_of(scene, keys, number, database, found[0]) == _LOST:",
                "elif False:",
            ),
        ),
        tests=(f"{_LOST_GENERATION}::test_older_data_of_another_generation_is_found",),
    ),
    Mutant(
        "verify-judges-a-snapshot-by-its-topic",
        (Edit("tallystream_worker/verify/snapshots.py", "    if is_lost:\n        return True\n", ""),),
        tests=(f"{_LOST_GENERATION}::test_older_data_of_another_generation_is_found",),
    ),
    Mutant(
        "snapshot-of-another-topic-replaced-unchecked",
        (
            Edit(
                "tallystream_worker/snapshot/snapshotter.py",
                "        elif self._moved:\n            if not accept_loss:\n",
                "        elif self._moved:\n            if False:\n",
            ),
        ),
        tests=(f"{_LOST_GENERATION}::test_older_data_of_another_generation_is_found",),
    ),
    Mutant(
        "snapshot-of-a-later-topic-replaced-after-a-restore",
        (
            Edit(
                "tallystream_worker/snapshot/lost_log.py",
                "if keys.topic > live.topic and (passed",
                "if False and (passed",
            ),
        ),
        tests=(f"{_LOST_GENERATION}::test_a_snapshot_of_a_later_topic_that_a_restore_has_passed_over_is_kept",),
    ),
    Mutant(
        "restore-does-not-state-its-time",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "            RESTORED_AT: str(server_time(client)),\n",
                "",
            ),
        ),
        tests=(f"{_LOST_LOG}::test_a_snapshot_that_a_restore_has_passed_over_is_named",),
    ),
    Mutant(
        "loss-after-a-restore-is-called-a-choice",
        (
            Edit(
                "tallystream_worker/snapshot/point_in_time.py",
                "return moment if is_other and moment > self.taken else 0",
                "return moment if is_other else 0",
            ),
        ),
        tests=(f"{_LOST_LOG}::test_a_loss_after_a_restore_is_not_called_a_choice",),
    ),
    Mutant(
        "status-takes-a-passed-over-snapshot-for-a-loss",
        (
            Edit(
                "tallystream_worker/cli/later_backup.py",
                "snapshot.passed_over(position.sequences, restored, at) if snapshot is not None and is_unmarked else 0",
                "0",
            ),
        ),
        tests=("tests/integration/cli/test_lost_data.py::test_each_command_names_a_restore_of_another_file",),
    ),
    Mutant(
        "worker-does-not-find-the-snapshot-of-up",
        (
            Edit(
                "tallystream_worker/runtime/backups.py",
                "settings.snapshot.url or snapshot_of(settings.redis.url)",
                "settings.snapshot.url",
            ),
        ),
        tests=("tests/integration/cli/test_lost_data.py::test_an_emptied_server_of_up_names_its_snapshot",),
    ),
    Mutant(
        "restored-snapshot-is-never-behind",
        (
            Edit(
                "tallystream_worker/snapshot/point_in_time.py",
                "return gone == then and (mark",
                "return gone >= then and (mark",
            ),
        ),
        tests=(f"{_RESTORED}::test_a_snapshot_is_behind_if_entries_are_removed_after_its_restore",),
    ),
    Mutant(
        "rebuilt-from-the-archive-at-position-0",
        (
            Edit(
                "tallystream_worker/rebuild/lua/begin.lua", "if info.length == 0 then --", "if info.length < 0 then --"
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_rebuild_after_a_restore_is_restored_exactly",),
    ),
    Mutant(
        "steady-after-a-step-back",
        (
            Edit(
                "tallystream_worker/maintenance/lua/trim.lua",
                "if not last or now < last or now - last > LEAP then",
                "if last and now - last > LEAP then",
            ),
            Edit(
                "tallystream_worker/maintenance/lua/trim.lua",
                "local last, leap = clock.last_pass(sequences)",
                "local last, leap = clock.last_pass(sequences)\n  leap = leap or 0",
            ),
        ),
        tests=("tests/integration/maintenance/test_trim.py::test_a_clock_that_has_just_stepped_removes_nothing",),
    ),
    Mutant(
        "buckets-of-earlier-rules-stay",
        (
            Edit(
                "tallystream_worker/snapshot/names.py",
                "    return None if period is None else (period.end * 1000, (period.end + _LEFTOVER) * 1000)",
                "    return None",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_keys_of_earlier_rules_are_removed_after_a_restore",),
    ),
    Mutant(
        "left-out-in-silence",
        (Edit("tallystream/storage/lua/lib/buckets.lua", "  planned.left_out[name] = planned.is_steady\n", ""),),
        tests=(f"{_EXPIRY}::test_reads_state_what_a_clock_that_was_ahead_for_hours_has_left_out",),
    ),
    Mutant(
        "audit-of-missing-buckets",
        (
            Edit(
                "tallystream_worker/rebuild/partition_audit.py",
                "        if not (self._removed.is_declared(name) and self._removed.can_compare(name)):\n"
                "            return False\n",
                "",
            ),
        ),
        tests=(f"{_EXPIRY}::test_reads_state_what_arrived_while_a_clock_was_ahead",),
    ),
    Mutant(
        "rules-of-a-folder-without-a-configuration",
        (
            Edit(
                "tallystream_worker/settings/settings.py",
                "        if not self.states_rules:\n            return stored\n",
                "",
            ),
        ),
        tests=("tests/integration/rebuild/test_rebuild.py::test_without_a_configuration_the_stored_rules_stay",),
    ),
    Mutant(
        "labels-by-position",
        (
            Edit(
                "tallystream/storage/lua/rules/records.lua",
                "by_length[length] or ''",
                "string.match(text, string.rep('[^ ]+ ', nth) .. '([^ ]+)') or ''",
            ),
        ),
        tests=("tests/integration/counting/test_changed_windows.py::test_records_of_other_windows",),
    ),
    Mutant(
        "evicting-servers-are-accepted",
        (
            Edit(
                "tallystream_worker/maintenance/eviction.py",
                'policy not in (b"", b"noeviction") and int(limit) > 0',
                "False",
            ),
        ),
        tests=("tests/integration/maintenance/test_eviction.py::test_a_worker_does_not_start_on_a_server_that_evicts",),
    ),
    Mutant(
        "late-for-buckets-in-silence",
        (
            Edit(
                _FORGET,
                "  for kind, finish in pairs(planned.batch.left_out) do\n    forget(planned, kind, finish)\n  end\n",
                "",
            ),
        ),
        tests=(
            f"{_EXPIRY}::test_reads_state_what_arrived_too_late_before_retention_was_raised",
            f"{_EXPIRY}::test_reads_state_what_arrived_while_a_clock_was_ahead",
        ),
    ),
    Mutant(
        "reads-of-removed-buckets",
        (
            Edit(
                "tallystream/reading/series.py",
                "since[window] = max(since.get(window, begin), begin)",
                "since.setdefault(window, begin)",
            ),
        ),
        tests=(f"{_EXPIRY}::test_reads_state_what_a_clock_that_was_ahead_for_hours_has_removed",),
    ),
    Mutant(
        "reads-of-expired-buckets",
        (
            Edit(
                "tallystream/rules/metrics.py",
                "            if length is not None\n        }\n",
                "            if length is not None and length < 0\n        }\n",
            ),
        ),
        tests=(
            f"{_EXPIRY}::test_every_read_equals_the_oracle_at_every_time",
            "tests/integration/reading/test_one_face.py::test_what_has_expired_is_said_alike",
        ),
    ),
    Mutant(
        "alert-over-expired-buckets",
        (Edit("tallystream_worker/alerts/evaluator.py", "return covered if complete else None", "return covered"),),
        tests=(f"{_EXPIRY}::test_every_read_equals_the_oracle_at_every_time",),
    ),
    Mutant(
        "received-times-rise-with-ids",
        (
            Edit(
                "tallystream/storage/lua/rules/forget_periods.lua",
                "if last and not streams.is_before(last, id) then",
                "if false then",
            ),
        ),
        tests=(
            "tests/integration/counting/test_kept_periods.py::test_an_entry_received_before_the_one_in_front_of_it",
        ),
    ),
    Mutant(
        "periods-due-after-a-leap",
        (Edit("tallystream/storage/lua/rules/forget_periods.lua", " or clock.is_steady(sequences, now) == false", ""),),
        tests=("tests/integration/counting/test_kept_periods.py::test_two_jumps_of_the_clock_remove_nothing",),
    ),
    Mutant(
        "ranges-by-the-clock-of-the-reader",
        (Edit("tallystream/deployment.py", "time.monotonic() + self.clock_ahead", "time.time()"),),
        tests=(f"{_EXPIRY}::test_a_reader_with_a_wrong_clock_reads_the_same",),
    ),
    Mutant(
        "retry-loses-retracted",
        (
            Edit(
                "tallystream_worker/dead_letters/retry.py",
                " + result.retracted.total()",
                "",
            ),
        ),
        tests=("tests/integration/dead_letters/test_store.py::test_a_retry_leaves_out_retracted_events",),
    ),
    Mutant(
        "waits-for-the-earlier-topic",
        (Edit("tallystream_worker/cli/commands/ingest.py", "if layout.topic != topic:", "if False:"),),
        tests=("tests/integration/repartition/test_migration.py::test_an_ingest_waits_across_a_move",),
    ),
    Mutant(
        "results-left-in-the-queue",
        (
            Edit(
                "tallystream_worker/ingest/pool.py",
                "            while left:",
                "            while left and any(process.is_alive() for process in workers):",
            ),
        ),
        tests=("tests/process/test_ingest_process.py::test_results_of_processes_that_have_exited_are_read",),
    ),
    Mutant(
        "ids-of-one-period",
        (Edit(_EVENT_IDS, "local reach = earlier and records.latest(earlier) + apart or -1", "local reach = -1"),),
        tests=(f"{_IDS}::test_a_copy_over_midnight_is_a_copy",),
    ),
    Mutant(
        "later-copy-stays-counted",
        (Edit(_EVENT_IDS, "  if later and last > last_before then", "  if false then"),),
        tests=(f"{_IDS}::test_copies_equal_the_oracle_in_any_order",),
    ),
    Mutant(
        "late-ids-count",
        (
            Edit(
                "tallystream_worker/counting/lateness.py",
                "by_id = has_id and rule.keeps_ids",
                "by_id = False",
            ),
        ),
        tests=(f"{_IDS}::test_an_id_counts_once_while_it_is_accepted",),
    ),
    Mutant(
        "ids-forgotten-by-the-clock",
        (
            Edit(_FORGET, "oldest >= streams.parse_id(ids[1])", "false"),
            Edit(_FORGET, "math.min(now, received_since(stream, group, sequences))", "now"),
        ),
        tests=(f"{_IDS}::test_ids_of_a_backlog_are_kept", f"{_KEPT}::test_workers_may_be_away_for_days"),
    ),
    Mutant(
        "ids-forgotten-at-once",
        (
            Edit(
                _FORGET,
                "must_wait = since and (since > now - AGAIN or clock.is_steady(sequences, now) == false)",
                "must_wait = false",
            ),
            Edit(_FORGET, "bound = since and math.min(bound, left)", "bound = left"),
        ),
        tests=(
            f"{_IDS}::test_forgotten_ids_are_never_counted_as_new",
            f"{_KEPT}::test_a_clock_that_is_ahead_for_a_minute_removes_nothing",
        ),
    ),
    Mutant(
        "due-since-a-wrong-clock",
        (Edit(_FORGET, "if since and since > now then", "if false then"),),
        tests=(f"{_KEPT}::test_a_clock_that_is_ahead_for_a_minute_removes_nothing",),
    ),
    Mutant(
        "votes-never-removed",
        (Edit(_FORGET, "most = most + #period - 3", "most = STEP"),),
        tests=(f"{_KEPT}::test_removal_keeps_up_with_batches_that_add_votes",),
    ),
    Mutant(
        "limits-begin-again",
        (Edit("tallystream/storage/lua/rules/limits.lua", "if self.gone[key] then", "if false then"),),
        tests=(f"{_KEPT}::test_events_of_a_removed_period_are_late",),
    ),
    Mutant(
        "votes-begin-again",
        (Edit("tallystream/storage/lua/rules/votes.lua", "if self.gone[key] then", "if false then"),),
        tests=(f"{_KEPT}::test_events_of_a_removed_period_are_late",),
    ),
    Mutant(
        "state-expires-by-the-clock",
        (
            Edit(
                _FORGET,
                "added[n + 1], added[n + 2] = kept,",
                "call('PEXPIREAT', period[i], format('%.0f', math.max(clock.milliseconds() + 86400000, period[3])))\n"
                "        added[n + 1], added[n + 2] = kept,",
            ),
        ),
        tests=(f"{_KEPT}::test_workers_may_be_away_for_days",),
    ),
    Mutant(
        "forgotten-ids-count-as-new",
        (Edit(_EVENT_IDS, "if seen[5] <= (self.forgotten_ends['seen:' .. rule.metric] or -1) then", "if false then"),),
        tests=(f"{_IDS}::test_forgotten_ids_are_never_counted_as_new",),
    ),
    Mutant(
        "largest-vote-of-equal-times",
        (
            Edit(
                "tallystream/storage/lua/rules/votes.lua",
                "(at == old_at and is_later(vote[i], old_place))",
                "(at == old_at and amount > old_amount)",
            ),
        ),
        tests=(f"{_VOTE_ORDER}::test_the_later_place_counts",),
    ),
    Mutant(
        "no-total-after-0",
        (
            Edit(
                "tallystream/producing/decider.py",
                "int(total) if total else 0 if rule.max_subjects is None else None",
                "int(total) if total else None",
            ),
        ),
        tests=(f"{_VOTE_ORDER}::test_the_total_after_a_first_amount_of_0",),
    ),
    Mutant(
        "votes-out-of-order-in-the-entry",
        (
            Edit(
                "tallystream/wire/packer.py",
                " and id_ is None and metric not in self.ordered:",
                " and id_ is None:",
            ),
        ),
        tests=(f"{_VOTE_ORDER}::test_the_later_place_counts",),
    ),
    Mutant(
        "dead-votes-without-places",
        (Edit("tallystream_worker/counting/fold_payload.py", "        if earlier:\n", "        if False:\n"),),
        tests=(f"{_VOTE_ORDER}::test_dead_letters_keep_their_places",),
    ),
    Mutant(
        "dropped-votes-without-places",
        (Edit("tallystream_worker/counting/fold.py", "return left, whole.singles", "return left, left.singles"),),
        tests=(f"{_DROPPED}::test_a_vote_keeps_its_place_after_another_is_dropped",),
    ),
    Mutant(
        "dropped-votes-by-content",
        (
            Edit(
                "tallystream_worker/counting/dropped.py",
                "from zip(payload.singles, places(payload.singles, first), strict=True)",
                "from ((single, 0) for single in payload.singles)",
            ),
        ),
        tests=(f"{_DROPPED}::test_a_vote_keeps_its_place_after_another_is_dropped",),
    ),
    Mutant(
        "watched-by-the-clock",
        (Edit("tallystream/storage/lua/rules/alerts.lua", "math.max(now, tonumber(highest) + 1) or now", "now"),),
        tests=(f"{_ALERTS}::test_a_sum_fires_after_the_clock_jumped",),
    ),
    Mutant(
        "alerts-of-ended-buckets-by-decision",
        (Edit("tallystream/storage/lua/rules/closed_buckets.lua", "  drop_watched(rule, now)\n", ""),),
        tests=(f"{_ALERTS}::test_a_decision_of_a_host_with_another_time",),
    ),
    Mutant(
        "alerts-by-the-clock-of-a-decider",
        (
            Edit(
                "tallystream/producing/decider.py",
                "        batch.add(place, ",
                "        batch.received = int(now * 1000)\n        batch.add(place, ",
            ),
        ),
        tests=(f"{_ALERTS}::test_a_decision_of_a_host_with_another_time",),
    ),
    Mutant(
        "ingest-out-of-order",
        (
            Edit(
                "tallystream_worker/ingest/pool.py",
                "        for number in numbers:\n            if",
                "        for number in reversed(numbers):\n            if",
            ),
        ),
        tests=(f"{_VOTE_ORDER}::test_ties_keep_their_order",),
    ),
    Mutant(
        "commands-by-the-clock-of-the-host",
        (
            Edit(
                "tallystream/client/server_time.py",
                "    return parse_time(client",
                "    import time\n\n    return int(time.time() * 1000)\n    return parse_time(client",
            ),
        ),
        tests=(
            "tests/integration/rebuild/test_reset.py::test_the_clock_of_the_host_decides_nothing",
            "tests/integration/repartition/test_migration.py::test_the_clock_of_the_host_decides_nothing_in_a_move",
            f"{_SNAPSHOT}::test_a_restore_on_a_host_with_another_time",
        ),
    ),
    Mutant(
        "actors-of-late-events",
        (Edit("tallystream/storage/lua/rules/uniques.lua", "was_removed(self, states) or ", ""),),
        tests=(f"{_IDS}::test_a_late_event_of_a_removed_period_adds_no_actor",),
    ),
    Mutant(
        "live-updates-after-a-lost-entry",
        (Edit("tallystream_worker/live/changes.py", "is_unbroken and _begins_at", "is_unbroken or _begins_at"),),
        tests=("tests/integration/live/test_live.py::test_a_reader_of_entries_that_the_server_lost_is_reset",),
    ),
    Mutant(
        "changes-of-a-failed-read-are-not-sent",
        (
            Edit(
                "tallystream_worker/live/broadcaster.py",
                "            self._data, self._positions, self._at = before  # the next pass finds the same changes, "
                "and reads them again\n",
                "",
            ),
        ),
        tests=(f"{_BROADCASTER}::test_a_change_is_sent_although_its_first_read_failed",),
    ),
    Mutant(
        "dropped-logs-look-new",
        (Edit("tallystream_worker/repartition/topic.py", 'b"seq", b"live", b"files"', 'b"seq", b"files"'),),
        tests=(f"{_REPLACED}::test_a_decision_after_the_drop_is_made_in_the_live_log",),
    ),
    Mutant(
        "lost-live-generation-taken-for-the-first",
        (
            Edit(
                "tallystream/storage/lua/lib/generations.lua",
                "redis.call('GET', key) or ''",
                "redis.call('GET', key) or '1'",
            ),
        ),
        tests=(f"{_LOST}::test_nothing_is_counted_without_a_sentinel",),
    ),
    Mutant(
        "later-logs-append-without-a-begin",
        (
            Edit("tallystream/storage/lua/lib/appending.lua", "return lost and { 'damaged', lost }", "return nil"),
            Edit("tallystream/storage/lua/append.lua", "  if not begun then", "  if false then"),
        ),
        tests=(f"{_REPLACED}::test_an_emptied_server_does_not_count_in_a_later_log",),
    ),
    Mutant(
        "copies-into-a-replaced-log",
        (
            Edit(
                "tallystream_worker/repartition/lua/copy.lua",
                "if not generations.is_open(",
                "if false and generations.is_open(",
            ),
        ),
        tests=(f"{_REPLACED}::test_every_script_refuses_a_replaced_log_for_ever",),
    ),
    Mutant(
        "restore-leaves-the-later-log-open",
        (
            Edit(
                "tallystream_worker/snapshot/restore.py",
                "for topic in (counting.keys() | earlier.keys()) - {layout.topic}:",
                "for topic in ():",
            ),
        ),
        tests=(
            f"{_REPLACED}::test_a_restore_of_an_earlier_log_closes_the_later_one",
            f"{_REPLACED}::test_a_restore_of_a_later_log_closes_the_first_one",
        ),
    ),
    Mutant(
        "snapshot-without-retries",
        (Edit("tallystream_worker/snapshot/snapshotter.py", "_retried(cut) != known", "False"),),
        tests=(f"{_SNAPSHOT}::test_a_retried_dead_letter_is_in_the_next_snapshot",),
    ),
    Mutant(
        "restore-without-the-live-rules",
        (Edit("tallystream_worker/snapshot/live_rules.py", "return None if gathered else live", "return None"),),
        tests=(f"{_KEPT_RULES}::test_a_metric_that_was_declared_after_the_snapshot_stays",),
    ),
    Mutant(
        "restore-that-turns-spread-off",
        (Edit("tallystream_worker/snapshot/live_rules.py", "return None if gathered else live", "return live"),),
        tests=(f"{_KEPT_RULES}::test_rules_that_turn_spread_off_do_not_stay",),
    ),
    Mutant(
        "decisions-follow-the-waiting-entries",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "        if was_decided(entry.fields):",
                "        if False:",
            ),
        ),
        tests=(f"{_KEPT_RULES}::test_decided_events_keep_their_outcome",),
    ),
    Mutant(
        "first-rules-of-a-partition-forgotten",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "        elif parse_id(position.generated) == (0, 0):",
                "        elif False:",
            ),
        ),
        tests=(f"{_KEPT_RULES}::test_a_partition_that_had_counted_nothing_follows_each_change",),
    ),
    Mutant(
        "published-rules-taken-for-followed-ones",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "        if first is not None and first <= self._first and first in self._by_number:",
                "        if False:",
            ),
            Edit(
                "tallystream_worker/snapshot/live_rules.py", "        if self._first in recorded:", "        if False:"
            ),
        ),
        tests=(f"{_KEPT_RULES}::test_rules_that_were_published_but_not_followed_at_the_snapshot",),
    ),
    Mutant(
        "snapshot-without-the-place-of-rules-that-count-nothing-yet",
        (Edit("tallystream_worker/snapshot/rule_records.py", "    if 0 < followed < latest:", "    if False:"),),
        tests=(f"{_RESTORED_PLACES}::test_a_restore_leaves_the_counters_proved[{_UNFOLLOWED}]",),
    ),
    Mutant(
        "snapshot-keeps-fields-that-the-ledger-lost",
        (
            Edit(
                "tallystream_worker/snapshot/write.py",
                "        self._empty(schema.ledger)  # it is read as a whole each time\n",
                "",
            ),
        ),
        tests=(f"{_RESTORED_PLACES}::test_a_later_snapshot_does_not_keep_that_a_place_was_uncertain",),
    ),
    Mutant(
        "snapshot-without-a-place-of-rules-that-lost-theirs",
        (
            Edit(
                "tallystream_worker/snapshot/rule_records.py",
                "    if followed < counting and counting in numbers:",
                "    if False:",
            ),
        ),
        tests=(f"{_RESTORED_PLACES}::test_a_restore_counts_by_the_rules_whose_place_was_lost",),
    ),
    Mutant(
        "snapshot-without-the-number-of-the-first-rules",
        (
            Edit(
                "tallystream_worker/snapshot/rule_records.py",
                "ledger = {FIRST_RULES: first} if first else {}",
                "ledger: dict[str, int] = {}",
            ),
        ),
        tests=(f"{_RESTORED_PLACES}::test_a_restore_leaves_the_counters_proved[{_UNFOLLOWED_TWICE}]",),
    ),
    Mutant(
        "restore-loads-by-rules-that-counted-nothing",
        (
            Edit(
                "tallystream_worker/snapshot/load.py",
                "            return counted_board_length(parts)\n",
                "            pass\n",
            ),
            Edit(
                "tallystream_worker/snapshot/load.py",
                "rule = self._rules.followed.metric.get(metric)",
                "rule = self._rules.written.metric.get(metric)",
            ),
        ),
        tests=(f"{_OTHER_FORM}[valkey-top and window added-count rules snapshot-emptied]",),
    ),
    Mutant(
        "restore-builds-no-leaderboard-of-rules-that-overtook-an-entry",
        (
            Edit(
                "tallystream_worker/snapshot/load.py",
                "            return counted_board_length(parts)\n",
                "            pass\n",
            ),
        ),
        tests=(f"{_OTHER_FORM}[valkey-top and window added-count stall rules count snapshot claim-emptied]",),
    ),
    Mutant(
        "snapshot-without-the-sketch-of-earlier-rules",
        (
            Edit(
                "tallystream_worker/snapshot/snapshotter.py",
                "{name for name, parts in counted.items() if counts_in_sketch(parts)}",
                "set()",
            ),
            Edit("tallystream_worker/snapshot/snapshotter.py", "strict=True) if found]", "strict=True) if False]"),
        ),
        tests=(
            f"{_OTHER_FORM}[valkey-exact=false removed-count rules snapshot-emptied]",
            f"{_OTHER_FORM}[valkey-exact=false removed-count rules one snapshot-emptied]",
        ),
    ),
    Mutant(
        "restored-buckets-are-removed-by-rules-that-did-not-count-them",
        (
            Edit(
                "tallystream_worker/snapshot/load_rules.py",
                "for rules in (self.followed, self.written)",
                "for rules in (self.followed,)",
            ),
            Edit(
                "tallystream_worker/snapshot/load_rules.py",
                "return removal_of(bucket, self.written)",
                "return removal_of(bucket, self.followed)",
            ),
        ),
        tests=(f"{_OTHER_FORM}[valkey-metric added-count stall rules count snapshot claim-emptied]",),
    ),
    Mutant(
        "regained-rules-are-of-the-generation-that-published-them",
        (Edit("tallystream_worker/snapshot/lost_changes.py", "max(self._of_snapshot, int(", "max(0, int("),),
        tests=(f"{_RESTORED_PLACES}::test_older_data_of_an_earlier_generation_leaves_the_counters_proved",),
    ),
    Mutant(
        "restore-counts-by-the-first-rules-of-an-older-generation",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "        if begun:\n            return max(begun)\n",
                "",
            ),
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "            later = {each: place for each, place in places.items() if _is_after(place, position)}\n",
                "            later = dict(places)\n",
            ),
        ),
        tests=(f"{_RESTORED_PLACES}::test_older_data_of_an_earlier_generation_leaves_the_counters_proved",),
    ),
    Mutant(
        "restore-with-rules-that-the-server-went-back-to",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                ' or live.newest < int(facts["revision"])',
                "",
            ),
        ),
        tests=(f"{_LOST_CHANGES}::test_a_server_without_a_record_of_its_changes_gets_the_later_rules",),
    ),
    Mutant(
        "restore-leaves-lost-rules-lost",
        (Edit("tallystream_worker/snapshot/lost_changes.py", "    if not lost:\n", "    if True:\n"),),
        tests=(
            f"{_LOST_CHANGES}::test_lost_changes_are_made_again",
            f"{_LOST_CHANGES}::test_a_change_that_only_the_archive_has_is_made_again",
        ),
    ),
    Mutant(
        "lost-rules-replace-later-ones",
        (Edit("tallystream_worker/snapshot/lost_changes.py", "rules = merged(", "rules = self._last_lost or merged("),),
        tests=(f"{_LOST_CHANGES}::test_what_was_changed_after_the_loss_stays",),
    ),
    Mutant(
        "entries-after-a-loss-follow-the-lost-rules",
        (
            Edit(
                "tallystream_worker/snapshot/lost_changes.py",
                "resumed = self._resumed() if is_same else {}",
                "resumed: dict[int, str] = {}",
            ),
        ),
        tests=(f"{_LOST_CHANGES}::test_the_same_configuration_after_the_loss_needs_no_new_change",),
    ),
    Mutant(
        "noted-retraction-lost-with-regained-rules",
        (Edit("tallystream_worker/snapshot/lost_changes.py", "if not is_ours and (added", "if False and (added"),),
        tests=(f"{_LOST_CHANGES}::test_a_noted_retraction_stays_with_a_change_that_is_made_again",),
    ),
    Mutant(
        "places-of-a-partition-that-lost-nothing-moved",
        (
            Edit(
                "tallystream_worker/snapshot/lost_changes.py",
                "if self._lost_numbers & self._server.places.get(partition, {}).keys():",
                "if False:",
            ),
        ),
        tests=(f"{_LOST_CHANGES}::test_a_partition_that_has_lost_nothing_keeps_its_places",),
    ),
    Mutant(
        "rules-before-a-loss-that-come-next",
        (
            Edit(
                "tallystream_worker/snapshot/lost_changes.py",
                "if number != before or _first(place) < last}",
                "if number != before or True}",
            ),
        ),
        tests=(f"{_LOST_CHANGES}::test_a_partition_that_has_lost_nothing_keeps_its_places",),
    ),
    Mutant(
        "lost-rules-published-without-a-look-at-others",
        (
            Edit(
                "tallystream_worker/runtime/publication.py",
                'if _run(_REGAIN, client, deployment, arguments) != b"moved":',
                'if _run(_REGAIN, client, deployment, arguments) != b"":',
            ),
        ),
        tests=(f"{_PUBLICATION}::test_lost_rules_are_brought_back_although_others_are_published",),
    ),
    Mutant(
        "lost-rules-known-by-their-number-alone",
        (
            Edit(
                "tallystream_worker/snapshot/lost_changes.py",
                "return number > highest or (bool(shared) and parse_id(name) > max(shared))",
                "return number > highest",
            ),
        ),
        tests=(f"{_PUBLICATION}::test_lost_rules_are_brought_back_although_others_are_published",),
    ),
    Mutant(
        "number-of-lost-rules-used-again",
        (
            Edit(
                "tallystream_worker/snapshot/lost_changes.py",
                "if numbers and (always or",
                "if False and (always or",
            ),
        ),
        tests=(f"{_LOST_CHANGES}::test_what_was_changed_after_the_loss_stays",),
    ),
    Mutant(
        "accepted-loss-of-rules-undone",
        (Edit("tallystream_worker/snapshot/lost_changes.py", " and parse_id(name)[0] > taken", ""),),
        tests=(f"{_LOST_CHANGES}::test_a_loss_that_was_accepted_is_not_undone",),
    ),
    Mutant(
        "restore-counts-all-by-the-live-rules",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "return bisect_right(self._firsts, parse_id(entry.id))",
                "return len(self._firsts)",
            ),
        ),
        tests=(f"{_KEPT_RULES}::test_events_are_counted_by_the_rules_that_counted_them",),
    ),
    Mutant(
        "restored-rules-without-a-place",
        (Edit("tallystream_worker/snapshot/partition_restore.py", "if self._places:", "if False:"),),
        tests=(f"{_KEPT_RULES}::test_a_metric_that_was_declared_after_the_snapshot_stays",),
    ),
    Mutant(
        "interrupted-restore-forgets-the-rules",
        (
            Edit(
                "tallystream_worker/snapshot/restore.py",
                "{} if live is None else {LIVE_RULES",
                "{} if True else {LIVE_RULES",
            ),
        ),
        tests=(f"{_KEPT_RULES}::test_a_repeated_restore_keeps_the_rules",),
    ),
    Mutant(
        "restore-without-dead-letters",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "        self._restore_dead(load, position)\n",
                "",
            ),
        ),
        tests=(f"{_RESTORED_DEAD}::test_dead_letters_come_back",),
    ),
    Mutant(
        "restore-that-takes-drops-back",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "if field not in load.dropped]",
                "if not field]",
            ),
        ),
        tests=(
            f"{_RESTORED_DEAD}::test_what_was_dropped_stays_dropped",
            f"{_RESTORED_DEAD}::test_a_rebuild_after_a_restore_leaves_out_what_was_dropped",
        ),
    ),
    Mutant(
        "snapshot-without-dead-letters-that-are-removed-meanwhile",
        (
            Edit(
                "tallystream_worker/dead_letters/lua/remove.lua", "local found = ttl > 0 and", "local found = false and"
            ),
        ),
        tests=(f"{_RESTORED_DEAD}::test_the_dead_letters_are_of_one_moment",),
    ),
    Mutant(
        "snapshot-with-later-drops",
        (Edit("tallystream_worker/snapshot/dead_letters.py", "if field not in since}", "}"),),
        tests=(f"{_RESTORED_DEAD}::test_the_dead_letters_are_of_one_moment",),
    ),
    Mutant(
        "snapshot-keeps-removed-dead-letters",
        (
            Edit(
                "tallystream_worker/snapshot/dead_letters.py",
                "before.added - before.length\n",
                "self.added - self.length\n",
            ),
        ),
        tests=(f"{_RESTORED_DEAD}::test_only_new_dead_letters_are_read",),
    ),
    Mutant(
        "restored-dead-letters-in-another-state",
        (
            Edit(
                "tallystream_worker/snapshot/dead_letters.py",
                '    fence("XSETID", keys.dead, was.last, "ENTRIESADDED", was.added)\n',
                "",
            ),
        ),
        tests=(f"{_RESTORED_DEAD}::test_the_next_snapshot_after_a_restore_has_the_dead_letters",),
    ),
    Mutant(
        "drops-during-a-restore",
        (
            Edit(
                "tallystream_worker/dead_letters/lua/drop.lua",
                "if not generations.is_open(KEYS[6]) then",
                "if false then",
            ),
        ),
        tests=(f"{_RESTORED_DEAD}::test_nothing_is_dropped_while_a_restore_runs",),
    ),
    Mutant(
        "restore-that-forgets-retractions",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "else kept.rules, retracted=retracted)",
                "else kept.rules, retracted=old.retracted)",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_restore_keeps_later_retractions",),
    ),
    Mutant(
        "retraction-that-no-backup-knows",
        (
            Edit(
                "tallystream_worker/cli/generation.py",
                "retracted = deployment.rules_of(generation).retracted",
                "retracted = deployment.rules.retracted",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_restore_keeps_later_retractions",),
    ),
    Mutant(
        "a-snapshot-creates-a-part-of-the-description",
        (Edit("tallystream_worker/process/lua/note.lua", "~= ARGV[1] then", "== 0 then"),),
        tests=(f"{_DESCRIPTION}::test_a_deleted_description_is_not_created_again",),
    ),
    Mutant(
        "a-topic-given-up-keeps-its-holds",
        (
            Edit(
                "tallystream_worker/repartition/topic.py",
                "lost = error  # remove the rest before this is raised",
                "raise",
            ),
        ),
        tests=(f"{_MIGRATION}::test_a_move_is_given_up_although_a_partition_has_lost_its_keys",),
    ),
    Mutant(
        "a-lost-partition-taken-for-a-topic-given-up",
        (Edit("tallystream_worker/repartition/copy.py", "and not self._is_in_use()", "and True"),),
        tests=(f"{_MIGRATION}::test_a_copy_names_a_lost_partition",),
    ),
    Mutant(
        "a-server-emptied-during-creation",
        (Edit("tallystream/deployment.py", 'if answer == b"created":', "if False:"),),
        tests=("tests/integration/test_deployment.py::test_a_server_that_is_emptied_during_creation_loses_nothing",),
    ),
    Mutant(
        "snapshot-forgets-lost-identities",
        (
            Edit(
                "tallystream_worker/snapshot/ingested_files.py",
                "msgspec.json.decode(known, ",
                "msgspec.json.decode('{}', ",
            ),
        ),
        tests=(f"{_FILES}::test_a_snapshot_keeps_identities_that_the_server_has_lost",),
    ),
    Mutant(
        "a-reopening-in-two-steps",
        (
            Edit(
                "tallystream_worker/rebuild/reopen.py",
                "        names = [keys.stream, keys.begun,",
                "        open_partition(client, keys, mark)\n        names = [keys.stream, keys.begun,",
            ),
        ),
        tests=(f"{_LOST}::test_an_interrupted_reopening_is_continued",),
    ),
    Mutant(
        "a-reopening-that-ends-after-the-first-key",
        (
            Edit(
                "tallystream_worker/rebuild/lua/reopen.lua",
                "  mended[1] = live\n",
                "  if true then return { 'mended', live } end\n",
            ),
        ),
        tests=(f"{_LOST}::test_keys_that_are_lost_together_are_mended_by_one_call",),
    ),
    Mutant(
        "a-mended-stream-forgets-what-it-had",
        (
            Edit(
                "tallystream_worker/rebuild/lua/reopen.lua",
                "call('XSETID', stream, last, 'ENTRIESADDED', string.format('%.0f', added))",
                "call('XSETID', stream, last, 'ENTRIESADDED', info.length)",
            ),
        ),
        tests=(f"{_LOST}::test_a_lost_stream_is_mended",),
    ),
    Mutant(
        "a-forced-reopening-keeps-old-counters",
        (
            Edit(
                "tallystream_worker/rebuild/reopen.py",
                "if is_lost and _has_remains(client, keys) else",
                "if False else",
            ),
        ),
        tests=(f"{_LOST}::test_a_partition_that_cannot_be_mended_begins_again",),
    ),
    Mutant(
        "a-description-with-another-epoch",
        (
            Edit(
                "tallystream_worker/rebuild/describe.py",
                "name = known.decode() if known else",
                "name =",
            ),
        ),
        tests=(f"{_DESCRIBE}::test_the_last_change_of_the_rules_describes_a_deployment",),
    ),
    Mutant(
        "a-description-of-the-first-topic",
        (
            Edit(
                "tallystream_worker/rebuild/describe.py",
                "while (following := chain[-1].following) is not None and",
                "while (following := None) is not None and",
            ),
        ),
        tests=(f"{_DESCRIBE}::test_a_deployment_is_described_again_after_repartitions",),
    ),
    Mutant(
        "a-deleted-stream-that-ends",
        (
            Edit(
                "tallystream_worker/rebuild/source.py",
                "            if following is not None:\n",
                "            if False:\n",
            ),
        ),
        tests=(f"{_SOURCE}::test_a_stream_that_is_deleted_while_it_is_read_is_an_error",),
    ),
    Mutant(
        "a-replaced-stream-that-ends",
        (Edit("tallystream_worker/rebuild/source.py", "if added < known[0] or gone < known[1]:", "if False:"),),
        tests=(f"{_SOURCE}::test_a_stream_that_is_replaced_while_it_is_read_is_an_error",),
    ),
    Mutant(
        "entries-between-two-pages-that-are-missed",
        (
            Edit(
                "tallystream_worker/rebuild/source.py",
                "if following is not None and _is_past(held, following):",
                "if position is not None and gone > position and following is not None:",
            ),
        ),
        tests=(f"{_SOURCE}::test_entries_that_are_trimmed_while_a_stream_is_read_are_an_error",),
    ),
    Mutant(
        "entries-that-were-read-are-missed",
        (
            Edit(
                "tallystream_worker/rebuild/source.py", "_is_past(held, following):", "_is_past(held, after or '0-0'):"
            ),
        ),
        tests=(f"{_SOURCE}::test_entries_that_are_trimmed_while_a_stream_is_read_are_an_error",),
    ),
    Mutant(
        "a-description-without-the-topics-between",
        (
            Edit(
                "tallystream_worker/rebuild/describe.py",
                "(n in in_chain or _precedes(topic, live))",
                "n in in_chain",
            ),
        ),
        tests=(f"{_DESCRIBE}::test_a_restore_before_the_loss_hides_no_earlier_topic",),
    ),
    Mutant(
        "a-description-that-gives-up-a-live-topic",
        (
            Edit(
                "tallystream_worker/rebuild/describe.py",
                "return any(_has_own_entry(client, keys.stream) for keys in layout.keys)",
                "return False",
            ),
        ),
        tests=(f"{_DESCRIBE}::test_a_topic_that_only_took_an_event_is_live",),
    ),
    Mutant(
        "a-description-that-ends-a-repartition",
        (
            Edit(
                "tallystream_worker/rebuild/describe.py",
                "if chain[-1].is_kept and not _was_live(client, namespace, topic):",
                "if False:",
            ),
        ),
        tests=(f"{_DESCRIBE}::test_an_unfinished_repartition_is_described_as_unfinished",),
    ),
    Mutant(
        "an-archive-creates-a-part-of-the-description",
        (Edit("tallystream_worker/process/lua/add.lua", "~= ARGV[1] then", "== 0 then"),),
        tests=(f"{_DESCRIPTION}::test_a_deleted_description_is_not_created_again",),
    ),
    Mutant(
        "a-flush-without-a-reason",
        (Edit("tallystream/producing/counted.py", "late + _reason(client, keys)", "late"),),
        tests=("tests/integration/producing/test_producer.py::test_a_flush_that_times_out_names_a_lost_key",),
    ),
    Mutant(
        "leaderboard-without-the-bound",
        (Edit("tallystream/storage/lua/rules/leaderboards.lua", "if not board.is_bounded then", "if false then"),),
        tests=(f"{_BOARDS}::test_the_error_covers_subjects_that_were_cut_off",),
    ),
    Mutant(
        "snapshot-of-a-server-that-lost-its-log",
        (Edit("tallystream_worker/snapshot/lua/mark.lua", "= {}, {}, known == ''", "= {}, {}, true"),),
        tests=(f"{_LOST_LOG}::test_a_snapshot_that_has_more_than_the_server_is_kept",),
    ),
    Mutant(
        "snapshot-after-a-loss-reads-only-changes",
        (
            Edit(
                "tallystream_worker/snapshot/lost_log.py",
                "        raise\n    return False\n",
                '        raise\n    put_mark(client, keys, "", position.mark)\n    return True\n',
            ),
        ),
        tests=(
            f"{_LOST_LOG}::test_nothing_stops_if_everything_was_sent_again",
            f"{_LOST_LOG}::test_counts_that_were_lost_without_entries",
        ),
    ),
    Mutant(
        "plain-entries-are-sent-again",
        (Edit("tallystream_worker/snapshot/changed_keys.py", "if not is_of_producer:", "if False:"),),
        tests=(f"{_LOST_LOG}::test_entries_that_nobody_sends_again_stop_it",),
    ),
    Mutant(
        "restore-counts-what-was-sent-again",
        (
            Edit(
                "tallystream_worker/snapshot/restored_log.py",
                "is_copy = id_ > self._generated and self._is_copy(sent)",
                "is_copy = False",
            ),
        ),
        tests=(f"{_LOST_LOG}::test_what_the_log_has_after_a_snapshot_is_added_to_it",),
    ),
    Mutant(
        "retract-reads-before-a-refusal",
        (
            Edit(
                "tallystream_worker/cli/commands/retract.py",
                "if not dry_run and continued is None and not is_repetition(deployment, retraction):",
                "if False:",
            ),
        ),
        tests=(f"{_RETRACT}::test_a_retraction_that_is_refused_shows_no_events",),
    ),
    Mutant(
        "retract-refuses-its-repetition",
        (
            Edit(
                "tallystream_worker/cli/commands/retract.py",
                " and not is_repetition(deployment, retraction):",
                ":",
            ),
        ),
        tests=(f"{_RETRACT}::test_the_command",),
    ),
    Mutant(
        "retract-hides-its-end",
        (
            Edit(
                "tallystream_worker/cli/commands/retract.py",
                "taken back up to {_last_moment(retraction)};",
                "taken back;",
            ),
        ),
        tests=(f"{_RETRACT}::test_the_command_states_up_to_which_moment_events_are_taken_back",),
    ),
    Mutant(
        "moves-lose-retracted-events",
        (
            Edit(
                "tallystream_worker/repartition/copy.py",
                "        for home, part in split(payload,",
                "        for each in retractions.values():\n"
                "            payload = each.without(payload)\n"
                "        for home, part in split(payload,",
            ),
        ),
        tests=(f"{_RETRACT}::test_a_move_marks_only_copies_of_retracted_events",),
    ),
    Mutant(
        "moves-forget-marks",
        (Edit("tallystream/rules/retraction.py", "if place in marks or each", "if each"),),
        tests=(
            f"{_RETRACT}::test_a_move_marks_only_copies_of_retracted_events",
            f"{_RETRACT}::test_a_retraction_after_a_move_is_undone_alone",
        ),
    ),
    Mutant(
        "dead-letters-forget-marks",
        (
            Edit(
                "tallystream_worker/repartition/copy.py",
                "                fields |= retraction_field(retractions)\n",
                "",
            ),
        ),
        tests=(f"{_RETRACT}::test_a_dead_letter_of_retracted_events_stays_retracted_after_a_move",),
    ),
    Mutant(
        "archive-forgets-marks",
        (Edit("tallystream_worker/archive/rows.py", 'fields[b"r"] = retracted.encode()', "pass"),),
        tests=("tests/unit/archive/test_rows.py",),
    ),
    Mutant(
        "restore-that-closes-nothing",
        (Edit("tallystream_worker/snapshot/restore.py", "        each.close()\n", "        pass\n"),),
        tests=(f"{_SNAPSHOT}::test_nobody_counts_or_reads_while_it_is_restored",),
    ),
    Mutant(
        "restore-that-readers-do-not-see",
        (Edit("tallystream/deployment.py", "if RESTORING.encode() in root:", "if False:"),),
        tests=(f"{_SNAPSHOT}::test_a_killed_restore",),
    ),
    Mutant(
        "scratch-server-that-stays",
        (
            Edit(
                "tallystream_worker/server/embedded.py", "            if self._is_scratch:\n", "            if False:\n"
            ),
        ),
        tests=("tests/integration/server/test_embedded.py::test_a_scratch_server_ends_with_its_process",),
    ),
    Mutant(
        "archive-pass-without-an-end",
        (
            Edit(
                "tallystream_worker/archive/service.py",
                "bounds = [archivist.latest() for archivist",
                'bounds = ["+" for archivist',
            ),
        ),
        tests=("tests/integration/archive/test_archive.py::test_a_pass_ends_although_entries_arrive_all_the_time",),
    ),
    Mutant(
        "archive-of-a-lost-log-continued",
        (
            Edit(
                "tallystream_worker/archive/archiver.py",
                "        if is_apart:\n            places",
                "        if False:\n            places",
            ),
        ),
        tests=(f"{_LOST_ENTRIES}::test_entries_that_were_sent_again_are_archived_once",),
    ),
    Mutant(
        "loss-is-found-only-at-the-start",
        (Edit("tallystream_worker/archive/archiver.py", "if self._continue_after(position):", "if False:"),),
        tests=(f"{_LOST_ENTRIES}::test_a_running_archiver_notices",),
    ),
    Mutant(
        "second-archiver-sets-new-files-aside",
        (
            Edit(
                "tallystream_worker/archive/archiver.py",
                "            return (self._position(), self._claim()) == (position, claim)",
                "            self._position()\n            return True",
            ),
            Edit(
                "tallystream_worker/archive/lua/continue_after.lua", "~= ARGV[2] then\n  return", "== '' then\n  return"
            ),
        ),
        tests=(f"{_LOST_ENTRIES}::test_two_archivers_find_the_same_loss",),
    ),
    Mutant(
        "changed-rules-without-a-mark",
        (Edit(_PARTS, "marks[kind] = mark", "marks[kind] = nil"),),
        tests=(f"{_CHANGED}::test_buckets_of_an_added_window_are_missing",),
    ),
    Mutant(
        "mark-without-events-ahead",
        (Edit(_PARTS, "local AHEAD = 3600000", "local AHEAD = 0"),),
        tests=(f"{_CHANGED}::test_buckets_of_an_added_window_are_missing",),
    ),
    Mutant(
        "place-of-the-first-change",
        (Edit(_PARTS, "math.max(known, latest))", "known)"),),
        tests=(f"{_CHANGED}::test_an_old_worker_that_counts_after_the_change_moves_the_place",),
    ),
    Mutant(
        "added-leaderboard-without-an-error",
        (Edit(_PARTS, "    call('HSET', ledger_key, field, format('%.0f', MAX))\n", ""),),
        tests=(f"{_CHANGED}::test_a_leaderboard_that_is_added_states_that_it_lacks_subjects",),
    ),
    Mutant(
        "raised-leaderboard-without-a-bound",
        (Edit(_PARTS, "elseif new > old and", "elseif false and"),),
        tests=(f"{_CHANGED}::test_the_error_of_a_raised_leaderboard_covers_what_was_cut_off",),
    ),
    Mutant(
        "total-of-its-key-alone",
        (Edit(_PARTS, "marks.sketches = mark", "marks.sketches = nil"),),
        tests=(
            f"{_CHANGED}::test_a_total_is_the_sum_of_its_key_and_its_estimate",
            f"{_CHANGED}::test_a_decision_does_not_state_a_part_of_a_total",
        ),
    ),
    Mutant(
        "added-votes-without-a-mark",
        (Edit(_PARTS, "marks.votes = mark", "marks.votes = nil"),),
        tests=(f"{_CHANGED}::test_votes_that_are_added_state_that_the_score_has_older_events",),
    ),
    Mutant(
        "deleted-description-reads-0",
        (
            Edit(
                "tallystream/reading/deployment_cache.py",
                "if has_stream or fields > 1:",
                "if False:",
            ),
        ),
        tests=("tests/integration/test_deployment.py::test_a_deleted_description_is_no_empty_system",),
    ),
    Mutant(
        "snapshot-of-an-earlier-release-stays",
        (Edit("tallystream_worker/snapshot/snapshotter.py", 'if differing == ["format"] and', "if False and"),),
        tests=(f"{_SNAPSHOT}::test_the_snapshot_of_an_earlier_release_is_replaced",),
    ),
    Mutant(
        "reads-of-a-dropped-log",
        (Edit("tallystream/reading/replaced.py", "return parse_live(live,", "return True or parse_live(live,"),),
        tests=("tests/integration/reading/test_replaced.py::test_every_read_follows_what_replaced_its_log",),
    ),
    Mutant(
        "reads-checked-too-early",
        (Edit("tallystream/reading/coalescing.py", "if command[0] in CHECKS:", "if False:"),),
        tests=("tests/integration/reading/test_replaced.py::test_the_check_follows_every_value",),
    ),
    Mutant(
        "drill-that-compares-what-was-restored",
        (Edit("tallystream_worker/snapshot/drill.py", "for taken in (live, restored):", "for taken in (restored,):"),),
        tests=(f"{_SNAPSHOT}::test_a_drill_finds_what_is_missing",),
    ),
    Mutant(
        "copies-of-two-snapshots-have-one-name",
        (
            Edit(
                "tallystream_worker/snapshot/lua/open.lua",
                "':copy:' .. ARGV[2] .. ':' .. ARGV[i]",
                "':copy:' .. ARGV[i]",
            ),
            Edit(
                "tallystream_worker/snapshot/point_in_time.py",
                "{self.key}:copy:{self.token}:{key}",
                "{self.key}:copy:{key}",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_snapshot_leaves_the_copies_of_the_next_one",),
    ),
    Mutant(
        "retry-enters-a-plain-entry-again",
        (
            Edit(
                "tallystream_worker/dead_letters/retry.py",
                '("appended", "plain", "entries:")',
                '("appended", "entries:")',
            ),
        ),
        tests=(
            "tests/integration/dead_letters/test_store.py::test_a_retry_during_a_rebuild_leaves_both_ledgers_balanced",
        ),
    ),
    Mutant(
        "a-file-removes-metrics",
        (
            Edit(
                "tallystream_worker/settings/settings.py",
                "if name not in own and name not in removing}",
                "if False}",
            ),
        ),
        tests=("tests/integration/runtime/test_publication.py::test_a_metric_that_the_configuration_lacks_stays",),
    ),
    Mutant(
        "rules-from-an-old-read",
        (Edit("tallystream/storage/lua/lib/rule_changes.lua", "(number or '0') ~= expected", "false"),),
        tests=("tests/integration/runtime/test_publication.py::test_starts_at_the_same_time_keep_the_metrics_of_all",),
    ),
    Mutant(
        "children-publish-rules",
        (Edit("tallystream_worker/runtime/app.py", "        if publishing:\n", "        if True:\n"),),
        tests=("tests/integration/runtime/test_publication.py::test_a_restarted_process_brings_nothing_back",),
    ),
    Mutant(
        "changes-without-a-record",
        (
            Edit(
                "tallystream/storage/lua/lib/rule_changes.lua",
                "  record(meta, changes, number, by, generation, rules)\n",
                "",
            ),
        ),
        tests=("tests/integration/runtime/test_publication.py::test_each_change_is_recorded_once",),
    ),
    Mutant(
        "older-rules-count",
        (Edit("tallystream/storage/lua/lib/revisions.lua", "return { 'outdated', counting }", "return nil"),),
        tests=("tests/integration/counting/test_followed_rules.py::test_an_older_worker_counts_by_the_new_rules",),
    ),
    Mutant(
        "place-of-a-change-without-pending-entries",
        (Edit("tallystream/storage/lua/lib/revisions.lua", "found.pending > 0", "false"),),
        tests=("tests/integration/counting/test_followed_rules.py::test_the_place_of_the_change_is_recorded",),
    ),
    Mutant(
        "undeclared-by-older-rules",
        (
            Edit(
                "tallystream_worker/counting/fold_payload.py",
                "        self._subjects.may_be_outdated |= metric not in self._rules.metric\n",
                "",
            ),
        ),
        tests=("tests/integration/counting/test_followed_rules.py::test_a_metric_that_was_just_declared_is_counted",),
    ),
    Mutant(
        "running-workers-do-not-follow",
        (
            Edit(
                "tallystream_worker/runtime/partition_follower.py",
                "            self.pool.notice(found)\n",
                "            pass\n",
            ),
        ),
        tests=("tests/integration/counting/test_followed_rules.py::test_a_running_worker_follows_without_new_entries",),
    ),
    Mutant(
        "lost-rules-stop-counting",
        (
            Edit(
                "tallystream_worker/runtime/partition_worker.py",
                "if found.revision_of(generation) < revision and",
                "if False and",
            ),
            Edit(  # which notices the same every second
                "tallystream_worker/runtime/partition_follower.py",
                "if lost <= found.revision or",
                "if True or",
            ),
        ),
        tests=("tests/integration/counting/test_followed_rules.py::test_a_worker_mends_rules_that_a_failover_lost",),
    ),
    Mutant(
        "restore-without-the-record",
        (
            Edit(
                "tallystream_worker/snapshot/rule_records.py",
                "    records.run(written)\n",
                "",
            ),
        ),
        tests=("tests/integration/snapshot/test_rule_records.py::test_a_restore_brings_the_record_back",),
    ),
    Mutant(
        "repartition-without-the-record",
        (Edit("tallystream_worker/repartition/topic.py", "    write_changes(client, layout, records)\n", ""),),
        tests=("tests/integration/snapshot/test_rule_records.py::test_a_repartition_keeps_the_record",),
    ),
    Mutant(
        "removal-without-a-question",
        (
            Edit(
                "tallystream_worker/cli/replace_rules.py",
                "        if not sys.stdin.isatty():",
                "        if self.yes is None:",
            ),
        ),
        tests=("tests/integration/cli/test_rules.py::test_nothing_is_removed_without_a_confirmation",),
    ),
    Mutant(
        "restores-use-numbers-again",
        (
            Edit(
                "tallystream_worker/snapshot/restore.py",
                "newest = max(newest, *(each.newest for each in partitions))",
                "newest = 1",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_rebuild_after_a_restore_counts_what_was_decided",),
    ),
    Mutant(
        "second-restore-forgets-the-first",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "generation = FIRST  # the stream was restored from this snapshot before: see RestoredLog.add",
                "pass",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_repeated_restore_counts_decisions_once",),
    ),
    Mutant(
        "reads-of-a-partition-without-keys",
        (
            Edit(
                "tallystream/reading/replaced.py",
                "    if live is None or not has_sentinels(keys, found):\n        return False\n",
                "    if live is None:\n        return True\n",
            ),
        ),
        tests=(f"{_LOST_READS}::test_no_read_states_a_figure_of_a_partition_without_its_keys",),
    ),
    Mutant(
        "figures-of-a-partition-without-keys",
        (Edit("tallystream/reading/replaced.py", "        if lacking:\n", "        if False:\n"),),
        tests=(
            f"{_LOST_READS}::test_the_read_service_names_a_lost_key",
            f"{_LOST_READS}::test_live_updates_pause_while_a_key_is_lost",
        ),
    ),
    Mutant(
        "layout-of-generation-one-without-the-live-key",
        (Edit("tallystream/deployment.py", "self.generation if each is None else", "FIRST if each is None else"),),
        tests=(f"{_LOST_READS}::test_a_lost_live_generation_is_not_taken_for_the_first",),
    ),
    Mutant(
        "alerts-of-a-partition-without-keys",
        (Edit("tallystream_worker/alerts/lua/change_alerts.lua", "if lost then", "if false then"),),
        tests=(f"{_ALERTS}::test_an_alert_is_silent_in_a_partition_that_has_lost_its_keys",),
    ),
    Mutant(
        "verification-takes-a-lost-generation-for-the-first",
        (
            Edit(
                "tallystream_worker/verify/deployment.py",
                "        if raw is None:\n            continue",
                "        if raw is None:\n            raw = b'1'",
            ),
        ),
        tests=(f"{_LOST}::test_counting_continues_without_a_partition_that_has_lost_all_keys",),
    ),
    Mutant(
        "numbered-rules-look-replaced",
        (
            Edit(
                "tallystream/reading/replaced.py",
                "parse_live(live, keys.live) == (keys.generation, True)",
                'live == b"%d" % keys.generation',
            ),
        ),
        tests=("tests/integration/reading/test_replaced.py::test_a_read_of_the_live_log_reads_no_description",),
    ),
    Mutant(
        "reset-without-waiting",
        (
            Edit(
                "tallystream_worker/rebuild/lua/reset.lua",
                "local waiting = uncounted(group)\n",
                "local waiting = nil and uncounted(group)\n",
            ),
        ),
        tests=(
            f"{_RESET}::test_an_entry_that_is_not_counted_delays_a_reset",
            f"{_RESET}::test_two_resets_at_once_take_everything_once",
        ),
    ),
    Mutant(
        "reset-without-a-hold",
        (Edit("tallystream/storage/lua/lib/appending.lua", "if held and is_held(held) then", "if false then"),),
        tests=(f"{_RESET}::test_producers_keep_their_events_while_a_reset_waits",),
    ),
    Mutant(
        "hold-without-an-end",
        (Edit("tallystream/storage/lua/lib/appending.lua", "left > 0 and left <= HOLD", "left <= HOLD or left > 0"),),
        tests=(f"{_RESET}::test_a_hold_of_a_crashed_reset_ends",),
    ),
    Mutant(
        "votes-survive-a-reset",
        (Edit("tallystream/storage/lua/rules/resets.lua", "{ '', place }", "{ '', '0-0' }"),),
        tests=(f"{_RESET}::test_a_voter_votes_again_after_a_reset",),
    ),
    Mutant(
        "new-buckets-without-a-label",
        (Edit("tallystream/storage/lua/rules/windows.lua", "if not is_known then", "if false then"),),
        tests=(f"{_RESET}::test_buckets_that_have_not_begun_are_reset_too",),
    ),
    Mutant(
        "reset-in-a-batch-with-events",
        (Edit("tallystream_worker/counting/fold.py", "if is_place and end > 1:", "if is_place and end < 0:"),),
        tests=(f"{_RESET_EXACT}::test_a_reset_takes_away_what_was_before_it",),
    ),
    Mutant(
        "reset-before-pending-entries",
        (Edit("tallystream_worker/counting/lua/apply.lua", "  if found then\n", "  if false then\n"),),
        tests=(f"{_RESET_EXACT}::test_a_reset_waits_for_pending_entries_of_other_consumers",),
    ),
    Mutant(
        "copied-without-resets",
        (
            Edit(
                "tallystream_worker/repartition/copy.py",
                "if not events and not part.resets:",
                "if not events:",
            ),
        ),
        tests=(f"{_RESET}::test_a_spread_subject_is_reset_in_every_partition",),
    ),
    Mutant(
        "dead-letters-from-before-a-reset",
        (
            Edit(
                "tallystream/storage/lua/rules/resets.lua",
                "      taken[fields[i]] = true\n",
                "      taken[fields[i]] = nil\n",
            ),
        ),
        tests=(f"{_RESET}::test_a_dead_letter_from_before_a_reset_adds_nothing",),
    ),
    Mutant(
        "verify-accepts-a-repeated-entry",
        (
            Edit(
                "tallystream_worker/verify/sequence_walk.py",
                "        if link.sequence <= before[0]:\n",
                "        if link.sequence < 0:\n",
            ),
        ),
        tests=(f"{_VERIFY}::test_each_fault_is_found_by_its_name[valkey-an entry is there twice]",),
    ),
    Mutant(
        "verify-forgets-producers-without-a-record",
        (Edit("tallystream_worker/verify/log.py", "        self._compare_missing()\n", ""),),
        tests=(f"{_VERIFY}::test_each_fault_is_found_by_its_name[valkey-one record is deleted]",),
    ),
    Mutant(
        "a-removed-generation-is-a-lost-one",
        (
            Edit(
                "tallystream_worker/runtime/partition_worker.py",
                "        except (KeyLost, DeploymentChanged):  # as if",
                "        except ():  # as if",
            ),
        ),
        tests=("tests/integration/runtime/test_supervisor.py::test_the_keys_of_a_removed_generation_are_not_lost",),
    ),
    Mutant(
        "an-archived-stream-is-created-again",
        (Edit("tallystream_worker/archive/lua/begin.lua", "ARGV[3] == '1' or ", ""),),
        tests=("tests/integration/archive/test_stream_deleted_twice.py",),
    ),
    Mutant(
        "two-snapshots-are-written-at-once",
        (Edit("tallystream_worker/snapshot/database.py", "            _lock(connection, partition)\n", ""),),
        tests=("tests/integration/snapshot/test_two_writers.py",),
    ),
    Mutant(
        "verify-compares-across-a-failover",
        (Edit("tallystream_worker/verify/verify.py", "    _refuse_a_failover(scene, failovers)\n", ""),),
        tests=("tests/integration/verify/test_failover.py",),
    ),
    Mutant(
        "verify-trusts-the-position-of-the-group",
        (Edit("tallystream_worker/verify/accounts.py", "    if account.skipped:\n", "    if False:\n"),),
        tests=(f"{_VERIFY}::test_each_fault_is_found_by_its_name[valkey-the group is moved back]",),
    ),
    Mutant(
        "verify-trusts-the-last-file-of-the-archive",
        (
            Edit(
                "tallystream_worker/verify/archived.py",
                "if self._position is not None and self._position > end:",
                "if False:",
            ),
        ),
        tests=(f"{_VERIFY}::test_each_fault_is_found_by_its_name[valkey-the last file is removed]",),
    ),
    Mutant(
        "verify-compares-no-archived-events",
        (
            Edit(
                "tallystream_worker/verify/log.py",
                "            self._comparison.add(new.content, old.content)\n",
                "            pass\n",
            ),
        ),
        tests=(f"{_VERIFY}::test_each_fault_is_found_by_its_name[redis-the actor of an archived event is changed]",),
    ),
    Mutant(
        "archive-without-checksums",
        (Edit("tallystream_worker/archive/store.py", '"write_page_checksum": True', '"write_page_checksum": False'),),
        tests=("tests/integration/archive/test_archive.py::test_a_damaged_file_is_no_other_file",),
    ),
    Mutant(
        "verify-reads-no-rows-of-a-snapshot",
        (Edit("tallystream_worker/verify/snapshots.py", "in database.damaged(number):", "in []:"),),
        tests=(f"{_VERIFY}::test_each_fault_is_found_by_its_name[valkey-a row of the snapshot's ledger is changed]",),
    ),
    Mutant(
        "snapshot-digests-keep-replaced-rows",
        (
            Edit(
                "tallystream_worker/snapshot/write.py",
                "            self._digests.remove_stored(table, rows)\n        upsert",
                "            pass\n        upsert",
            ),
        ),
        tests=("tests/integration/snapshot/test_snapshot.py::test_an_incremental_snapshot_does_not_hide_changed_rows",),
    ),
    Mutant(
        "verify-proves-too-few-counters",
        (
            Edit(
                "tallystream_worker/verify/counters.py",
                "counters=found.counters - found.wrong",
                "counters=found.counters - len(found.differences)",
            ),
        ),
        tests=(f"{_VERIFY}::test_exactly_the_counters_that_agree_are_proved",),
    ),
    Mutant(
        "archiver-forgets-a-loss-before-it-counted-it",
        (
            Edit(
                "tallystream_worker/archive/service.py",
                "                archivist.ensure_group()\n            self._note_missing()\n",
                "                archivist.ensure_group()\n            self._store._missing.clear()\n",
            ),
            Edit(
                "tallystream_worker/archive/service.py",
                "            self._note_missing()\n        except",
                "        except",
            ),
        ),
        tests=("tests/integration/archive/test_lost_entries.py::test_a_kill_while_entries_are_set_aside",),
    ),
    Mutant(
        "audit-names-changes-that-nothing-was-counted-by",
        (Edit("tallystream/rules/changes.py", "        if change.number not in counted:", "        if False:"),),
        tests=("tests/unit/rules/test_changes.py",),
    ),
    Mutant(
        "verify-trusts-the-numbers-of-rules",
        (Edit("tallystream_worker/verify/deployment.py", "    _check_numbers(scene, counting)\n", ""),),
        tests=(f"{_VERIFY}::test_each_fault_is_found_by_its_name",),
    ),
    Mutant(
        "verify-takes-events-in-flight-for-lost",
        (
            Edit(
                "tallystream_worker/verify/accounts.py",
                "return appended - self.events - sum(",
                "return appended - sum(",
            ),
        ),
        tests=(f"{_VERIFY}::test_entries_in_hand_are_no_fault[valkey]",),
    ),
    Mutant(
        "verify-compares-leaderboards-with-wrong-totals",
        (Edit("tallystream_worker/verify/leaderboards.py", "in scene.report.differing:", "in ():"),),
        tests=(f"{_VERIFY}::test_a_wrong_total_on_a_leaderboard_is_one_finding",),
    ),
    Mutant(
        "verify-takes-the-sum-in-the-ledger-as-right",
        (Edit("tallystream_worker/verify/sums.py", "if found == before:", "if found:"),),
        tests=(f"{_VERIFY}::test_the_sum_of_a_metric_is_that_of_its_counters",),
    ),
    Mutant(
        "old-values-of-a-removed-leaderboard",
        (Edit(_PARTS, "    call('UNLINK', key)\n", ""),),
        tests=(f"{_CHANGED}::test_a_leaderboard_that_is_removed_and_added_again_has_no_old_values",),
    ),
    Mutant(
        "ids-of-one-form",
        (Edit(_EVENT_IDS, "former and former.finder(self, rule, seen)", "nil"),),
        tests=(f"{_CHANGED}::test_ids_of_another_form_are_still_known",),
    ),
    Mutant(
        "removed-ids-of-another-form",
        (Edit(_FORGET, "ends[removed] = nil", "ends[removed] = ends[removed]"),),
        tests=(f"{_CHANGED}::test_ids_of_another_form_are_still_known",),
    ),
    Mutant(
        "range-from-a-time-within-a-bucket",
        (Edit("tallystream/reading/series.py", "begin = end if first.start == end else first.end", "begin = end"),),
        tests=(f"{_CHANGED}::test_a_range_begins_with_the_first_bucket_after_the_change",),
    ),
    Mutant(
        "continued-rebuild-reads-trimmed-entries-twice",
        (
            Edit(
                "tallystream_worker/rebuild/lua/begin.lua",
                "return { 'begun', call('GET', begun), call('GET', outlived) }",
                "local now, oldest = streams.info(stream), call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]\n"
                "local gone = now['entries-added'] - now.length\n"
                "return { 'begun', call('GET', begun), format('%.0f ', gone) .. (oldest and oldest[1] or '') }",
            ),
        ),
        tests=(f"{_REBUILD}::test_a_continued_rebuild_counts_nothing_twice",),
    ),
    Mutant(
        "continued-rebuild-counts-for-the-workers",
        (Edit("tallystream_worker/rebuild/rebuild.py", "        if self._is_live():\n", "        if False:\n"),),
        tests=(f"{_REBUILD}::test_a_continued_rebuild_leaves_live_partitions_to_the_workers",),
    ),
    Mutant(
        "moving-counters-are-called-different",
        (
            Edit(
                "tallystream_worker/rebuild/compare.py",
                "                    if found.has(",
                "                    if False and found.has(",
            ),
        ),
        tests=(f"{_COMPARE}::test_no_counter_that_an_entry_may_still_change_is_a_difference",),
    ),
    Mutant(
        "uncounted-votes-and-ids-take-nothing-back",
        (
            Edit(
                "tallystream_worker/rebuild/moving.py",
                "        return not periods or any(",
                "        return False and any(",
            ),
        ),
        tests=(f"{_COMPARE}::test_an_entry_may_change_counters_of_earlier_events",),
    ),
    Mutant(
        "uncounted-entries-remove-no-place",
        (Edit("tallystream_worker/rebuild/moving.py", "        if not is_listed and (", "        if False and ("),),
        tests=(f"{_COMPARE}::test_an_entry_may_change_counters_of_earlier_events",),
    ),
    Mutant(
        "uncounted-resets-change-no-counter",
        (Edit("tallystream_worker/rebuild/moving.py", "any(_is_of(key, item, subject)", "any(False"),),
        tests=(f"{_COMPARE}::test_a_reset_may_change_every_counter_of_its_subject",),
    ),
    Mutant(
        "pending-entries-are-compared-as-counted",
        (
            Edit(
                "tallystream_worker/rebuild/compare.py",
                "                for id_ in position.pending[at : at + _PAGE]:",
                "                for id_ in ():",
            ),
        ),
        tests=(f"{_COMPARE}::test_pending_entries_are_not_counted_yet",),
    ),
    Mutant(
        "trimmed-entries-are-compared-as-counted",
        (
            Edit(
                "tallystream_worker/rebuild/compare.py",
                " if position.may_lack(self._first()) else moving",
                " if False else moving",
            ),
        ),
        tests=(f"{_COMPARE}::test_entries_that_were_trimmed_make_no_difference",),
    ),
    Mutant(
        "a-comparison-does-not-follow",
        (Edit("tallystream_worker/rebuild/compare.py", "                follow(number)\n", ""),),
        tests=(f"{_COMPARE}::test_an_entry_may_change_counters_of_earlier_events",),
    ),
    Mutant(
        "small-differences-come-first",
        (
            Edit(
                "tallystream_worker/rebuild/values.py",
                "        return -abs(each.difference) if",
                "        return abs(each.difference) if",
            ),
        ),
        tests=(f"{_COMPARE}::test_the_largest_differences_come_first",),
    ),
    Mutant(
        "killed-snapshot-holds-up-the-next",
        (Edit("tallystream_worker/snapshot/lua/open.lua", "if left > ARGV[3] - ARGV[4] then", "if left >= 0 then"),),
        tests=(f"{_SNAPSHOT}::test_the_next_snapshot_replaces_a_killed_one",),
    ),
    Mutant(
        "slow-snapshot-takes-the-values-of-the-next",
        (
            Edit(
                "tallystream_worker/snapshot/lua/take.lua",
                "if call('GET', KEYS[1]) ~= ARGV[1] then",
                "if call('EXISTS', KEYS[1]) == 0 then",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_the_next_snapshot_replaces_a_killed_one",),
    ),
    Mutant(
        "retractions-of-another-topic-reach-nothing",
        (
            Edit(
                "tallystream_worker/snapshot/retractions.py",
                "each = msgspec.structs.replace(each, until=until)",
                "each = msgspec.structs.replace(each, until=each.until or until)",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_restore_of_an_earlier_topic_keeps_retractions",),
    ),
    Mutant(
        "restored-stream-without-a-comparison",
        (
            Edit(
                "tallystream_worker/archive/archiver.py",
                "if restored is None or newest.last <= restored:",
                "if True:",
            ),
        ),
        tests=(
            (
                "tests/integration/archive/test_lost_entries.py"
                "::test_a_restore_of_an_emptied_server_sets_aside_what_is_sent_again"
            ),
        ),
    ),
    Mutant(
        "audit-without-trimmed-resets",
        (Edit("tallystream_worker/rebuild/partition_audit.py", "        self._load_resets(after)\n", ""),),
        tests=("tests/integration/rebuild/test_audit.py::test_a_trimmed_reset_is_no_difference",),
    ),
    Mutant(
        "paused-repartition-reopens-the-topic",
        (
            Edit(
                "tallystream_worker/repartition/lua/reopen.lua",
                "if tonumber(call('HGET', KEYS[1], '!closing') or '0') > tonumber(ARGV[1]) then",
                "if false then",
            ),
        ),
        tests=(f"{_MIGRATION}::test_a_paused_run_does_not_reopen_what_another_has_closed",),
    ),
    Mutant(
        "paused-repartition-activates-its-topic",
        (
            Edit(
                "tallystream_worker/repartition/lua/activate.lua", "elseif closing ~= ARGV[4] then", "elseif false then"
            ),
        ),
        tests=(f"{_MIGRATION}::test_a_paused_run_does_not_activate_what_another_has_reopened",),
    ),
    Mutant(
        "repartition-closes-a-topic-although-a-copy-cannot-be-counted",
        (
            Edit(
                "tallystream_worker/repartition/migration.py",
                "                _count_all(counting)  # an entry",
                "                pass  # an entry",
            ),
        ),
        tests=(f"{_MIGRATION}::test_a_move_does_not_wait_forever_for_an_entry",),
    ),
    Mutant(
        "archive-forgets-what-files-were-identified-by",
        (Edit("tallystream_worker/archive/service.py", "            self._add_files()\n", ""),),
        tests=(f"{_FILES}::test_a_file_is_known_that_was_ingested_after_the_snapshot",),
    ),
    Mutant(
        "trimmed-entries-are-missing-silently",
        (Edit("tallystream_worker/rebuild/source.py", "is not None and _is_past(held", "is True and _is_past(held"),),
        tests=("tests/integration/rebuild/test_source.py",),
    ),
    Mutant(
        "refused-batch-changes-the-rules-of-a-partition",
        (
            Edit(
                "tallystream/storage/lua/lib/generations.lua",
                "    return require('tallystream.storage.lua.lib.revisions').check(key, stream, present, wanted)\n",
                "    local r = require('tallystream.storage.lua.lib.revisions')\n"
                "    local refused, change = r.check(key, stream, present, wanted)\n"
                "    if change then r.write(change) end\n"
                "    return refused\n",
            ),
        ),
        tests=(f"{_REPLIES}::test_a_refused_batch_does_not_change_the_rules_of_a_partition",),
    ),
    Mutant(
        "resets-are-looked-for-in-one-page",
        (Edit("tallystream/storage/lua/rules/resets.lua", "elseif #page < PAGE then", "else"),),
        tests=(f"{_REPLIES}::test_a_reset_is_found_behind_any_number_of_pending_entries",),
    ),
    Mutant(
        "interrupted-giving-up-leaves-partitions-closed",
        (Edit("tallystream_worker/cli/repartition.py", "    topic.settle(client, deployment)\n", ""),),
        tests=(f"{_MIGRATION}::test_a_killed_giving_up_can_be_repeated",),
    ),
    Mutant(
        "interrupted-giving-up-forgets-the-topic",
        (
            Edit(
                "tallystream_worker/repartition/lua/give_up.lua",
                "call('HSET', KEYS[1], 'left', left and left ~= '' and left .. ' ' .. added or added)\n",
                "",
            ),
        ),
        tests=(f"{_MIGRATION}::test_a_killed_giving_up_can_be_repeated",),
    ),
    Mutant(
        "restore-that-forgets-the-gate",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "sentinels = (keys.sequences, keys.topic_ledger, keys.live)",
                "sentinels = (keys.topic_ledger, keys.live)",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_restore_keeps_the_sequence_gate",),
    ),
    Mutant(
        "restore-leaves-out-what-the-snapshot-lacks",
        (
            Edit(
                "tallystream_worker/snapshot/restored_log.py",
                "if is_copy and sent not in self._uncounted:",
                "if is_copy:",
            ),
        ),
        tests=(f"{_LOST_LOG}::test_what_a_snapshot_lacks_is_counted_if_it_is_sent_again",),
    ),
    Mutant(
        "producer-pauses-between-bursts-of-lost-entries",
        (
            Edit(
                "tallystream/producing/send_queue.py",
                "return appender.answered > before or",
                "return bool(confirmed) or",
            ),
        ),
        tests=(f"{_SENT_AGAIN}::test_a_long_lost_end_of_the_log_is_sent_again_without_pauses[valkey]",),
    ),
    Mutant(
        "archiver-removes-the-file-that-another-one-writes",
        (
            Edit(
                "tallystream_worker/archive/store.py",
                "    path.parent.mkdir(parents=True, exist_ok=True)\n",
                "    path.parent.mkdir(parents=True, exist_ok=True)\n"
                '    for leftover in path.parent.glob(f".{path.name}.*.part"):\n'
                "        leftover.unlink(missing_ok=True)\n",
            ),
        ),
        tests=("tests/integration/archive/test_archive.py::test_a_file_that_several_archivers_write_at_once",),
    ),
    Mutant(
        "restore-drops-the-entries-before-the-snapshot",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "if self._has_lost_nothing(position) and self._has_room():",
                "if False:",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_what_is_left_of_the_stream_is_enough[valkey-sqlite]",),
    ),
    Mutant(
        "snapshot-that-does-not-wait",
        (
            Edit(
                "tallystream_worker/snapshot/point_in_time.py",
                'if answer != b"busy" or time.monotonic() > deadline:',
                "if answer or time.monotonic() > deadline:",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_snapshot_waits_for_another",),
    ),
    Mutant(
        "verify-takes-kept-periods-for-faults",
        (
            Edit(
                "tallystream_worker/verify/keys.py",
                "                if any(_is_kept_forever(name, rules) for rules in former):",
                "                if False:",
            ),
        ),
        tests=(f"{_VERIFY}::test_periods_that_were_kept_forever_are_no_fault",),
    ),
    Mutant(
        "verify-takes-periods-of-an-earlier-zone-for-faults",
        (Edit("tallystream_worker/verify/keys.py", " for zone in zones)", " for zone in ())"),),
        tests=(f"{_VERIFY_CHANGED}::test_a_change_of_the_zone_is_no_fault",),
    ),
    Mutant(
        "restored-rules-without-a-number",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "live_mark(FIRST, revision)",
                "live_mark(FIRST, 0)",
            ),
        ),
        tests=("tests/integration/snapshot/test_rule_records.py::test_the_next_change_has_a_place",),
    ),
    Mutant(
        "lost-sequences-taken-for-none",
        (
            Edit(
                "tallystream/storage/lua/lib/sentinels.lua",
                "  if begun and gated and call('EXISTS', prefix .. 'live') == 1 then",
                "  if true then",
            ),
        ),
        tests=(
            f"{_LOST}::test_nothing_is_appended_without_a_sentinel",
            f"{_LOST}::test_nothing_is_counted_without_a_sentinel",
            f"{_LOST}::test_all_sentinels_at_once_are_not_taken_for_a_new_partition",
        ),
    ),
    Mutant(
        "partition-without-keys-taken-for-a-new-one",
        (
            Edit(
                "tallystream/storage/lua/lib/sentinels.lua",
                "local function lost(key)\n  local prefix = prefix_of(key)\n",
                "local function lost(key)\n  local prefix = prefix_of(key)\n"
                "  if call('EXISTS', prefix .. 'seq', prefix .. 'ledger', prefix .. 'live') == 0 then return nil end\n",
            ),
        ),
        tests=(f"{_LOST}::test_keys_that_are_lost_together_are_not_taken_for_a_new_partition",),
    ),
    Mutant(
        "rebuild-of-a-deleted-stream",
        (
            Edit(
                "tallystream_worker/rebuild/lua/begin.lua",
                "if sentinels.is_stream_lost(",
                "if false and sentinels.is_stream_lost(",
            ),
        ),
        tests=(f"{_LOST}::test_keys_that_are_lost_together_are_not_taken_for_a_new_partition",),
    ),
    Mutant(
        "gap-before-damage",
        (Edit("tallystream/storage/lua/append.lua", "  if not begun then", "  if false then"),),
        tests=(f"{_LOST}::test_nothing_is_appended_without_a_sentinel",),
    ),
    Mutant(
        "lost-sequences-taken-for-lost-entries",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "            if partition in self.damaged:",
                "            if False:",
            ),
        ),
        tests=(f"{_LOST}::test_an_idle_producer_does_not_take_lost_sequences_for_lost_entries",),
    ),
    Mutant(
        "lost-ids-and-limits-begin-again",
        (
            Edit(
                "tallystream/storage/lua/rules/forget_periods.lua",
                "  return call('EXISTS', key) == 0 and call(",
                "  return false and call(",
            ),
        ),
        tests=(f"{_LOST}::test_nothing_is_counted_without_the_state_of_a_period",),
    ),
    Mutant(
        "deployment-created-over-data",
        (Edit("tallystream/deployment.py", "if any(was_counted", "if False and any(was_counted"),),
        tests=(f"{_LOST}::test_a_deployment_is_not_created_over_the_data_of_another",),
    ),
    Mutant(
        "counting-while-the-server-may-evict",
        (
            Edit(
                "tallystream_worker/runtime/partition_worker.py",
                "if policy := self._evicting.get(stream):",
                "if (policy := self._evicting.get(stream)) and False:",
            ),
        ),
        tests=("tests/integration/maintenance/test_eviction.py::test_counting_pauses_while_the_server_may_evict",),
    ),
    Mutant(
        "lost-marks-of-removed-periods",
        (Edit(_PARTS, "if call('EXISTS', forgotten) == 0 and", "if false and"),),
        tests=(f"{_EVERY_KEY}::test_a_deleted_key_is_never_silent",),
    ),
    Mutant(
        "copies-again-without-marks",
        (Edit("tallystream_worker/repartition/lua/copy.lua", "if call('EXISTS', copied) == 0 and", "if false and"),),
        tests=("tests/integration/storage/test_script_replies.py::test_a_reply_has_its_shape",),
    ),
    Mutant(
        "lost-keys-that-no-check-names",
        (Edit("tallystream_worker/verify/checks.py", '    Check("lost", lost_keys.check),\n', ""),),
        tests=(f"{_EVERY_KEY}::test_a_deleted_key_is_never_silent",),
    ),
    Mutant(
        "deleted-stream-taken-for-a-new-one",
        (
            Edit(
                "tallystream_worker/counting/lua/ensure_group.lua",
                "if sentinels.is_stream_lost(",
                "if false and sentinels.is_stream_lost(",
            ),
        ),
        tests=(f"{_LOST}::test_a_deleted_stream_is_not_taken_for_a_new_one",),
    ),
    Mutant(
        "snapshot-over-its-own-repair",
        (
            Edit(
                "tallystream_worker/snapshot/lua/open.lua",
                "local lost = sentinels.lost(stream)",
                "local lost = false and sentinels.lost(stream)",
            ),
        ),
        tests=("tests/integration/storage/test_script_replies.py::test_a_reply_has_its_shape",),
    ),
    Mutant(
        "lost-rules-wait-for-an-event",
        (
            Edit(
                "tallystream_worker/runtime/partition_follower.py",
                "else max(counting, followed)",
                "else followed",
            ),
        ),
        tests=("tests/integration/runtime/test_publication.py::test_a_worker_publishes_again_after_a_loss",),
    ),
    Mutant(
        "number-of-lost-rules-is-used-again",
        (
            Edit(
                "tallystream_worker/runtime/publication.py",
                "counting if counting > deployment.revision else 0",
                "0",
            ),
        ),
        tests=("tests/integration/runtime/test_publication.py::test_a_lost_number_is_not_used_again",),
    ),
    Mutant(
        "verify-counts-all-entries-by-the-present-rules",
        (Edit("tallystream_worker/verify/counters.py", "            followed=followed,\n", ""),),
        tests=(f"{_VERIFY_CHANGED}::test_a_change_of_rules_is_no_fault",),
    ),
    Mutant(
        "drill-counts-by-the-rules-of-the-snapshot",
        (
            Edit(
                "tallystream_worker/snapshot/drill.py",
                "result = restore(other, database, source, followed=followed)",
                "result = restore(other, database, source)",
            ),
        ),
        tests=(f"{_VERIFY_CHANGED}::test_a_change_of_rules_is_no_fault",),
    ),
    Mutant(
        "drill-forgets-retries",
        (Edit("tallystream_worker/snapshot/drill.py", "for letter in found.letters:", "for letter in ():"),),
        tests=(f"{_VERIFY_CHANGED}::test_retried_dead_letters_are_no_fault",),
    ),
    Mutant(
        "audit-forgets-retries",
        (Edit("tallystream_worker/rebuild/partition_audit.py", "for letter in found.letters:", "for letter in ():"),),
        tests=(f"{_VERIFY_CHANGED}::test_retried_dead_letters_are_no_fault",),
    ),
    Mutant(
        "doubt-about-one-metric-hides-all",
        (
            Edit(
                "tallystream_worker/rebuild/partition_audit.py",
                'return (field.partition(" ")[0] if key == "resets" else metric_of(key)) in self._doubts',
                "return bool(self._doubts)",
            ),
        ),
        tests=(f"{_VERIFY_CHANGED}::test_what_cannot_be_judged_is_stated_as_not_checked",),
    ),
    Mutant(
        "place-does-not-state-entries-that-overtook",
        (Edit("tallystream/storage/lua/lib/revisions.lua", "if change.unordered then", "if false then"),),
        tests=(f"{_VERIFY_CHANGED}::test_what_cannot_be_judged_is_stated_as_not_checked",),
    ),
    Mutant(
        "first-rules-are-not-recorded",
        (
            Edit(
                "tallystream/storage/lua/lib/revisions.lua",
                "call('HSET', change.ledger, 'entries:first', change.before)",
                "",
            ),
        ),
        tests=(f"{_VERIFY_CHANGED}::test_a_fault_after_a_change_of_rules_is_found",),
    ),
    Mutant(
        "wrong-leaderboard-is-proved",
        (Edit("tallystream_worker/verify/leaderboards.py", "faults_before and not is_wrong", "faults_before"),),
        tests=(f"{_VERIFY_CHANGED}::test_a_leaderboard_is_not_both_right_and_wrong",),
    ),
    Mutant(
        "quota-begins-again-without-its-number",
        (
            Edit(
                "tallystream/storage/lua/rules/totals.lua",
                "if not known and redis.call('EXISTS', rule.sketch) == 1 then",
                "if false then",
            ),
        ),
        tests=("tests/integration/reading/test_sketches.py::test_a_lost_number_of_subjects_makes_no_total_wrong",),
    ),
    Mutant(
        "estimate-trusts-a-lost-sum",
        (
            Edit(
                "tallystream/reading/sketches.py",
                "abs(estimated) if was_reset or estimated > sketched else 0",
                "abs(estimated) if was_reset else 0",
            ),
        ),
        tests=("tests/integration/reading/test_sketches.py::test_a_lost_sum_of_a_sketch_is_stated",),
    ),
    Mutant(
        "reset-forgets-the-sketch",
        (
            Edit(
                "tallystream/reading/sketches.py",
                "if was_reset or estimated > sketched",
                "if estimated > sketched",
            ),
        ),
        tests=(f"{_RESET}::test_a_reset_of_a_subject_in_the_sketch_states_an_error",),
    ),
    Mutant(
        "restore-leaves-a-hole-in-the-stream",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "if self._has_lost_nothing(position) and self._has_room():",
                "if self._has_room():",
            ),
        ),
        tests=("tests/integration/snapshot/test_lost_log.py::test_a_restored_stream_has_no_hole[valkey]",),
    ),
    Mutant(
        "restore-needs-the-memory-twice",
        (Edit("tallystream_worker/snapshot/partition_restore.py", " and self._has_room():", ":"),),
        tests=(f"{_SNAPSHOT}::test_a_restore_does_not_need_the_memory_of_the_stream_twice",),
    ),
    Mutant(
        "producer-forgets-during-a-restore",
        (Edit("tallystream/producing/rollback_watch.py", "if restoring is not None:", "if restoring == 0:"),),
        tests=(f"{_SENT_AGAIN}::test_lost_entries_are_sent_again_after_a_restore",),
    ),
    Mutant(
        "snapshot-of-a-partition-without-forgotten",
        (Edit("tallystream_worker/snapshot/lua/open.lua", " or parts.find_lost(KEYS[3])", ""),),
        tests=("tests/integration/storage/test_script_replies.py::test_a_reply_has_its_shape",),
    ),
    Mutant(
        "bucket-removed-while-it-is-read",
        (
            Edit(
                "tallystream_worker/snapshot/snapshotter.py",
                "found = self._client.hgetall(keys.forgotten)",
                "found = {}",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_bucket_that_is_removed_while_it_is_read_is_missing_after_a_restore",),
    ),
    Mutant(
        "snapshot-drops-buckets-that-the-server-keeps",
        (Edit("tallystream_worker/snapshot/write.py", " if was_removed(row.name)", ""),),
        tests=(f"{_RETENTION}::test_a_snapshot_keeps_a_bucket_that_was_not_removed[valkey]",),
    ),
    Mutant(
        "audit-follows-the-stream",
        (
            Edit(
                "tallystream_worker/rebuild/partition_audit.py",
                "pickle.dump(LiveChunk(",
                "self._bring_to(moment); pickle.dump(LiveChunk(",
            ),
        ),
        tests=(f"{_AUDIT}::test_an_audit_ends_although_entries_arrive_faster_than_it_folds[valkey]",),
    ),
    Mutant(
        "idle-producer-reports-a-repaired-partition",
        (Edit("tallystream/producing/appender.py", "        self._check_idle(now)\n", ""),),
        tests=(f"{_LOST}::test_an_idle_producer_notices_that_a_partition_is_repaired[valkey]",),
    ),
    Mutant(
        "restore-forgets-ingested-files",
        (
            Edit(
                "tallystream_worker/snapshot/restore.py",
                "    restore_ingested_files(fences[0], layout, facts, files)\n",
                "",
            ),
        ),
        tests=("tests/integration/snapshot/test_ingested_files.py::test_a_file_is_known_after_a_restore",),
    ),
    Mutant(
        "ingest-forgets-the-number-of-partitions",
        (Edit("tallystream_worker/ingest/job.py", ", unless_stored=known", ""),),
        tests=("tests/integration/ingest/test_ingest_once.py::test_an_emptied_server_keeps_its_number_of_partitions",),
    ),
    Mutant(
        "no-deployment-taken-for-another-one",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "        if epoch and self.epoch not in (None, epoch):\n"
                "            self._adopt(epoch, layout, queues)\n"
                "            if",
                "        if self.epoch not in (None, epoch):\n"
                "            self._adopt(epoch, layout, queues)\n"
                "            if",
            ),
        ),
        tests=(f"{_APPENDER}::test_entries_are_kept_while_no_deployment_is_stored",),
    ),
    Mutant(
        "rolls-back-without-a-deployment",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "if not epoch and self.epoch is not None:",
                "if False:",
            ),
        ),
        tests=(f"{_APPENDER}::test_entries_are_kept_while_no_deployment_is_stored",),
    ),
    Mutant(
        "repaired-partition-is-not-compared",
        (
            Edit(
                "tallystream/producing/appender.py",
                "                    self._rollbacks.suspect(partition)  # the",
                "                    # the",
            ),
        ),
        tests=(f"{_APPENDER}::test_entries_are_kept_while_no_deployment_is_stored",),
    ),
    Mutant(
        "entries-of-the-present-data-taken-for-earlier-ones",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "if record.last == 0 and queue.confirmed > 0:",
                "if queue.confirmed > 0:",
            ),
        ),
        tests=(f"{_APPENDER}::test_entries_of_the_present_data_are_kept_when_the_epoch_changes",),
    ),
    Mutant(
        "producer-keeps-the-earlier-epoch",
        (Edit("tallystream/producing/sender.py", "appender.follow()  # before", "pass  # before"),),
        tests=(f"{_SENT_AGAIN}::test_a_producer_follows_a_new_deployment_before_anything_is_lost",),
    ),
    Mutant(
        "range-of-a-lost-group-continued",
        (Edit("tallystream_worker/archive/lua/begin.lua", "call('DEL', KEYS[2])\n", ""),),
        tests=("tests/integration/archive/test_archive.py::test_a_range_of_a_lost_group_is_forgotten",),
    ),
    Mutant(
        "kept-entries-sent-again-under-another-name",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "        if last > record.last:  # the",
                "        if queue.confirmed > record.last:  # the",
            ),
        ),
        tests=("tests/integration/producing/test_forgotten.py::test_any_history",),
    ),
    Mutant(
        "closing-without-a-pause",
        (
            Edit(
                "tallystream/producing/sender.py",
                "led_on = self._checked.is_set() or sum(appender.answered for appender in checking) > answered",
                "pass",
            ),
        ),
        tests=(f"{_SENT_AGAIN}::test_closing_with_lost_sequences_does_not_load_the_server",),
    ),
    Mutant(
        "closing-producer-does-not-look-for-lost-entries",
        (Edit("tallystream/producing/producer.py", "            self._sender.check(deadline)\n", ""),),
        tests=(f"{_SENT_AGAIN}::test_a_closing_producer_sends_lost_entries_again",),
    ),
    Mutant(
        "closing-producer-lingers",
        (Edit("tallystream/producing/sender.py", "        self._buffer.hasten()", "        self._buffer.wake.set()"),),
        tests=(f"{_SENT_AGAIN}::test_a_lingering_producer_sends_lost_entries_again_when_it_is_closed",),
    ),
    Mutant(
        "closing-producer-gives-up-at-a-broken-connection",
        (Edit("tallystream/producing/sender.py", " and not any(appender.is_unsure for appender in checking)", ""),),
        tests=(f"{_SENT_AGAIN}::test_a_closing_producer_sends_lost_entries_again",),
    ),
    Mutant(
        "topic-that-never-was-taken-for-a-lost-one",
        (Edit("tallystream/producing/appender.py", "and (is_known or not is_new(self._client, keys))", ""),),
        tests=(f"{_REPLACED}::test_a_producer_of_a_later_topic_continues_after_a_restore_of_an_earlier_one",),
    ),
    Mutant(
        "lost-sequences-ignored-in-a-move",
        (
            Edit(
                "tallystream/producing/appender.py",
                "max(queue.confirmed, queue.sent) > 0\n",
                "self.epoch == deployment.epoch\n",
            ),
        ),
        tests=(f"{_APPENDER}::test_a_move_finds_lost_sequences_whatever_the_epoch",),
    ),
    Mutant(
        "restore-leaves-earlier-topics-open",
        (
            Edit(
                "tallystream_worker/snapshot/restore.py",
                "for topic in (counting.keys() | earlier.keys()) -",
                "for topic in counting.keys() -",
            ),
        ),
        tests=(f"{_REPLACED}::test_a_producer_of_an_earlier_topic_sends_nothing_again_after_a_restore",),
    ),
    Mutant(
        "restore-forgets-that-an-earlier-topic-had-entries",
        (
            Edit(
                "tallystream_worker/snapshot/restore.py",
                'fields |= dict.fromkeys(HORIZONS, f"{_LARGEST_ID} {_LARGEST_ID}")',
                "pass",
            ),
        ),
        tests=(f"{_REPLACED}::test_a_producer_of_an_earlier_topic_sends_nothing_again_after_a_restore",),
    ),
    Mutant(
        "restore-trusts-the-sequences-of-other-data",
        (Edit("tallystream_worker/snapshot/restore.py", "(is_of_other_data or not client", "(not client"),),
        tests=(f"{_REPLACED}::test_a_producer_of_an_earlier_topic_sends_nothing_again_after_a_restore",),
    ),
    Mutant(
        "restore-replaces-a-later-topic-in-silence",
        (Edit("tallystream_worker/snapshot/other_topics.py", "if is_later or events:", "if False:"),),
        tests=(f"{_OTHER_TOPICS}::test_a_later_topic_is_not_replaced_in_silence",),
    ),
    Mutant(
        "restore-does-not-ask-the-archive-for-later-topics",
        (
            Edit("tallystream_worker/snapshot/other_topics.py", "if unknown :=", "if False and (unknown :="),
            Edit("tallystream_worker/snapshot/other_topics.py", "if later > known}:", "if later > known}):"),
        ),
        tests=(f"{_OTHER_TOPICS}::test_the_archive_shows_a_later_topic_of_a_lost_server",),
    ),
    Mutant(
        "archive-begins-in-a-range-that-only-counters-have",
        (
            Edit(
                "tallystream_worker/archive/archiver.py",
                "return restored if last is None else last",
                "return restored if last is not None else last",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_each_event_counts_once",),
    ),
    Mutant(
        "archive-states-no-range-before-files-that-stay",
        (
            Edit(
                "tallystream_worker/archive/archiver.py",
                "if unknown is not None and unknown[0] < parse_id(common):",
                "if False:",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_each_event_counts_once",),
    ),
    Mutant(
        "what-a-snapshot-counted-is-set-aside-as-lost",
        (
            Edit(
                "tallystream_worker/archive/archiver.py",
                "left_out = None if unknown is None else",
                "left_out = None and",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_each_event_counts_once",),
    ),
    Mutant(
        "restored-entries-are-set-aside",
        (
            Edit(
                "tallystream_worker/archive/lost.py",
                "            lost = _lacking(client, keys.stream, part)\n            known",
                "            lost = list(part)\n            known",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_a_stream_that_came_back_is_archived_whole",),
    ),
    Mutant(
        "archive-continues-after-entries-that-it-lacks",
        (
            Edit(
                "tallystream_worker/archive/lost.py",
                "            if lost := _lacking(client, keys.stream, rest):",
                "            if not (lost := _lacking(client, keys.stream, rest)):\n"
                "                common, is_apart = part[-1].id, False\n"
                "            else:",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_a_stream_that_came_back_is_archived_whole",),
    ),
    Mutant(
        "archive-lacks-entries-that-the-server-got-back",
        (Edit("tallystream_worker/archive/archiver.py", "        if end is None:\n", "        if True:\n"),),
        tests=(f"{_LOST_ENTRIES}::test_entries_that_the_server_got_back_are_archived_again",),
    ),
    Mutant(
        "archive-of-a-quiet-stream-is-not-checked",
        (
            Edit(
                "tallystream_worker/archive/archiver.py",
                "if position == self._checked or not self._go_back(position):",
                "if True:",
            ),
        ),
        tests=(f"{_LOST_ENTRIES}::test_entries_that_the_server_got_back_are_archived_again",),
    ),
    Mutant(
        "archive-hides-that-entries-were-trimmed",
        (
            Edit(
                "tallystream_worker/archive/archiver.py", "id_text(end if is_whole else before(first))", "id_text(end)"
            ),
        ),
        tests=(f"{_LOST_ENTRIES}::test_trimmed_entries_that_the_server_got_back_stay_a_gap",),
    ),
    Mutant(
        "archive-hides-that-entries-were-trimmed-meanwhile",
        (Edit("tallystream_worker/archive/lua/go_back.lua", " or first[1] ~= ARGV[3]", ""),),
        tests=(f"{_LOST_ENTRIES}::test_trimmed_entries_that_the_server_got_back_stay_a_gap",),
    ),
    Mutant(
        "archive-uses-an-old-list-of-files",
        (Edit("tallystream_worker/archive/store.py", "handler.fs.invalidate_cache()", "pass"),),
        tests=("tests/unit/archive/test_store.py::test_files_of_other_archivers_are_found_again",),
    ),
    Mutant(
        "verify-takes-entries-that-came-back-as-sent-again",
        (
            Edit(
                "tallystream_worker/verify/set_aside.py",
                "(self._back if lost.id == link.id else self._sent_again)",
                "self._sent_again",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_entries_that_the_server_got_back_are_named_until_they_are_archived",),
    ),
    Mutant(
        "verify-takes-entries-of-other-clients-that-came-back-as-lost",
        (Edit("tallystream_worker/verify/set_aside.py", "if self._nameless.get(link.id) == link:", "if False:"),),
        tests=(f"{_BESIDE_ARCHIVE}::test_entries_that_the_server_got_back_are_named_until_they_are_archived",),
    ),
    Mutant(
        "verify-takes-entries-in-a-gap-as-lost",
        (
            Edit(
                "tallystream_worker/verify/set_aside.py",
                "if any(after < link.id <= until for after, until in gaps):",
                "if False:",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_set_aside_entries_in_a_gap_may_count",),
    ),
    Mutant(
        "verify-takes-entries-that-a-rebuild-left-out-as-counted",
        (Edit("tallystream_worker/verify/log.py", "if self._keys.generation == FIRST:", "if True:"),),
        tests=(
            "tests/integration/snapshot/test_counted_only.py::test_entries_that_a_rebuild_left_out_are_no_counters",
        ),
    ),
    Mutant(
        "verify-forgets-what-a-snapshot-counted",
        (Edit("tallystream_worker/verify/set_aside.py", "for file in store.counted(number):", "for file in ():"),),
        tests=(f"{_BESIDE_ARCHIVE}::test_entries_that_were_lost_twice_count_once",),
    ),
    Mutant(
        "verify-takes-what-a-replaced-snapshot-counted-as-counted",
        (Edit("tallystream_worker/verify/set_aside.py", "left_out.mark == store.snapshot_of(file)", "True"),),
        tests=(f"{_BESIDE_ARCHIVE}::test_entries_of_replaced_counters_are_not_taken_as_counted",),
    ),
    Mutant(
        "verify-takes-what-a-snapshot-counted-as-rebuilt",
        (Edit("tallystream_worker/verify/set_aside.py", "self._restored is not None and left_out", "left_out"),),
        tests=(f"{_BESIDE_ARCHIVE}::test_entries_of_replaced_counters_are_not_taken_as_counted",),
    ),
    Mutant(
        "entries-given-up-after-a-restore-are-set-aside-as-counted",
        (
            Edit(
                "tallystream_worker/archive/lost.py",
                "left_out is not None and id_ <= left_out.until",
                "left_out is not None",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_entries_that_were_lost_after_the_restore_are_no_counted_ones",),
    ),
    Mutant(
        "verify-takes-entries-given-up-after-a-restore-as-left-out",
        (
            Edit(
                "tallystream_worker/verify/archived.py",
                "self._left_out is None or parse_id(ahead.until) > self._left_out.until",
                "self._left_out is None",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_entries_that_were_lost_after_the_restore_are_no_counted_ones",),
    ),
    Mutant(
        "restore-without-an-archive-states-that-it-read-one",
        (Edit("tallystream_worker/snapshot/partition_restore.py", "        if has_archive:\n", "        if True:\n"),),
        tests=(f"{_BESIDE_ARCHIVE}::test_without_the_archive_no_entry_is_taken_as_counted",),
    ),
    Mutant(
        "slow-archiver-takes-out-a-file-that-another-wrote-again",
        (Edit("tallystream_worker/archive/lost.py", "if not is_current():", "if False:"),),
        tests=(f"{_LOST_ENTRIES}::test_a_slow_archiver_keeps_a_file_that_another_has_written_again",),
    ),
    Mutant(
        "archiver-deletes-entries-that-it-will-archive-again",
        (
            Edit(
                "tallystream_worker/archive/lost.py",
                "            return False\n        store.retire(file)",
                "            return False\n        store.remove(file)",
            ),
        ),
        tests=(f"{_LOST_ENTRIES}::test_no_archived_entry_is_deleted",),
    ),
    Mutant(
        "audit-waits-for-the-archive-to-state-a-range",
        (
            Edit(
                "tallystream_worker/rebuild/baseline.py",
                "return begins if unstated is None else max(begins, unstated[1])",
                "return begins",
            ),
        ),
        tests=(f"{_BESIDE_ARCHIVE}::test_each_event_counts_once",),
    ),
    Mutant(
        "archive-hides-entries-that-only-counters-have",
        (Edit("tallystream_worker/archive/archiver.py", "table(), lost=lost)", 'table(), lost="")'),),
        tests=(f"{_COUNTED_ONLY}::test_entries_that_exist_only_as_counters_are_no_difference",),
    ),
    Mutant(
        "restore-without-a-fence",
        (
            Edit(
                "tallystream_worker/snapshot/lua/fenced.lua",
                "if redis.call('GET', KEYS[1]) ~= ARGV[1] then",
                "if false then",
            ),
        ),
        tests=(f"{_TWO_RESTORES}::test_no_write_of_a_restore_is_made_after_a_takeover",),
    ),
    Mutant(
        "restore-without-a-lock",
        (
            Edit("tallystream_worker/snapshot/restore_lock.py", "elif left > seen:", "elif False:"),
            Edit("tallystream_worker/snapshot/restore_lock.py", "nx=True, px=", "px="),
        ),
        tests=(f"{_TWO_RESTORES}::test_a_running_restore_is_named",),
    ),
    Mutant(
        "a-key-of-another-type-stops-its-neighbours",
        (
            Edit(
                "tallystream/storage/lua/rules/plan.lua",
                "    require('tallystream.storage.lua.rules.mistyped').find(planned, failure)",
                "    error(failure, 0)",
            ),
        ),
        tests=(f"{_OTHER_TYPES}::test_a_key_of_another_type_makes_dead_letters_of_its_events_only",),
    ),
    Mutant(
        "reopen-forgets-retractions-in-silence",
        (Edit("tallystream_worker/rebuild/describe.py", "if not records and not force and", "if False and"),),
        tests=(f"{_DESCRIBE}::test_retractions_that_are_not_known_are_not_forgotten_in_silence",),
    ),
    Mutant(
        "verify-trusts-the-types-of-keys",
        (Edit("tallystream_worker/verify/keys.py", 'elif type_ not in ("none", *_types_of(name)):', "elif False:"),),
        tests=(f"{_VERIFY}::test_a_key_of_another_type_is_named_and_mended_by_a_rebuild",),
    ),
    Mutant(
        "rebuild-stops-at-a-key-of-another-type",
        (Edit("tallystream_worker/rebuild/values.py", "        if not is_wrong_type(error):", "        if True:"),),
        tests=(f"{_VERIFY}::test_a_key_of_another_type_is_named_and_mended_by_a_rebuild",),
    ),
    Mutant(
        "old-values-are-saved-without-a-check",
        (Edit("tallystream/storage/lua/rules/plan.lua", "    redis.call('LLEN', cut .. ':before')\n", ""),),
        tests=(f"{_OTHER_TYPES}::test_the_keys_of_a_snapshot_have_another_type",),
    ),
    Mutant(
        "restore-forgets-the-topic-of-an-interrupted-one",
        (
            Edit(
                "tallystream_worker/snapshot/other_topics.py",
                "return topic, partitions\n",
                "return FIRST_TOPIC, None\n",
            ),
        ),
        tests=(f"{_INTERRUPTED}::test_the_topic_of_an_interrupted_restore_is_closed_by_that_of_another_topic",),
    ),
    Mutant(
        "two-restores-with-the-same-fence",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                'f"{FIRST} restoring {self._lock.closing} {self._lock.token}"',
                'f"{FIRST} restoring {self._lock.closing}"',
            ),
        ),
        tests=(f"{_INTERRUPTED}::test_a_restore_writes_nothing_after_the_server_was_emptied_and_restored",),
    ),
    Mutant(
        "restore-numbers-its-closing-by-the-root-alone",
        (
            Edit(
                "tallystream_worker/snapshot/lua/begin_restore.lua",
                "tonumber(ARGV[2]))",
                "0)",
            ),
        ),
        tests=(f"{_INTERRUPTED}::test_a_deployment_without_its_root_hash_is_restored_at_once",),
    ),
    Mutant(
        "slow-snapshot-replaces-the-restored-one",
        (Edit("tallystream_worker/snapshot/lua/mark.lua", "if is_replaced() then", "if false then"),),
        tests=(f"{_INTERRUPTED}::test_a_slow_snapshot_does_not_replace_the_one_that_was_restored",),
    ),
    Mutant(
        "late-copies-hide-a-later-topic",
        (Edit("tallystream_worker/archive/later_topics.py", "if not own and events:", "if not own:"),),
        tests=(f"{_OTHER_TOPICS}::test_late_copies_do_not_hide_the_events_of_a_later_topic",),
    ),
    Mutant(
        "slow-archiver-leaves-a-file-that-overlaps",
        (Edit("tallystream_worker/archive/archiver.py", "        self._store.remove(own)\n", ""),),
        tests=(f"{_ARCHIVE}::test_an_archiver_whose_group_was_lost_leaves_no_file_that_overlaps",),
    ),
    Mutant(
        "restore-counts-after-a-takeover",
        (
            Edit(
                "tallystream_worker/snapshot/lua/close_partition.lua",
                "call('SET', KEYS[2], ARGV[3])",
                "call('SET', KEYS[2], '1 restoring 1')",
            ),
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                'f"{FIRST} restoring {self._lock.closing} {self._lock.token}"',
                'f"{FIRST} restoring 1"',
            ),
        ),
        tests=(f"{_TWO_RESTORES}::test_no_write_of_a_restore_is_made_after_a_takeover",),
    ),
    Mutant(
        "finished-segments-are-not-checked",
        (Edit("tallystream_worker/ingest/sent.py", "if offset_of(mark) < offset", "if False"),),
        tests=(f"{_LOST_SEGMENTS}::test_finished_segments_are_read_again",),
    ),
    Mutant(
        "known-events-are-not-checked",
        (
            Edit("tallystream_worker/ingest/offsets.py", "self.ends = [offset_of", "found = [offset_of"),
            Edit("tallystream_worker/ingest/offsets.py", "return list(self.ends)", "return found"),
        ),
        tests=(f"{_LOST_SEGMENTS}::test_a_run_of_known_events_is_checked_too",),
    ),
    Mutant(
        "lost-identities-stay-lost",
        (Edit("tallystream_worker/ingest/sent.py", "if size is None}", "if False}"),),
        tests=(f"{_LOST_SEGMENTS}::test_a_lost_identity_is_stored_again",),
    ),
    Mutant(
        "waits-for-what-is-lost",
        (Edit("tallystream_worker/cli/commands/ingest.py", "if lost():", "if False:"),),
        tests=("tests/process/test_ingest_process.py::test_a_server_goes_back_while_the_command_waits",),
    ),
    Mutant(
        "no-check-after-the-wait",
        (Edit("tallystream_worker/cli/commands/ingest.py", "if not run.run_lost():", "if True:"),),
        tests=("tests/process/test_ingest_process.py::test_a_server_goes_back_while_the_command_waits",),
    ),
    Mutant(
        "earlier-topics-are-not-checked",
        (Edit("tallystream_worker/ingest/segment.py", "marks = self._earlier | {", "marks = {"),),
        tests=(f"{_MIGRATION}::test_an_ingest_is_checked_across_a_move",),
    ),
    Mutant(
        "delivered-spools-are-not-watched",
        (
            Edit(
                "tallystream/producing/sender.py",
                "        self._delivered[send_queue] = kept\n",
                "        self._delivered[send_queue] = kept\n        self._forget(send_queue)\n",
            ),
        ),
        tests=(f"{_ADOPTED}::test_delivered_events_come_back",),
    ),
    Mutant(
        "close-forgets-delivered-spools",
        (
            Edit(
                "tallystream/producing/sender.py",
                "for send_queue in (*own, *again, *self._delivered)]",
                "for send_queue in own]",
            ),
        ),
        tests=(f"{_ADOPTED}::test_delivered_events_come_back",),
    ),
    Mutant(
        "losses-of-dead-processes-are-not-reported",
        (
            Edit("tallystream/producing/sender.py", "        self._lost_entries += send_queue.appender.lost\n", ""),
            Edit(
                "tallystream/producing/sender.py",
                "self._lost_entries + sum(send_queue.appender.lost for send_queue in self._outboxes())",
                "0 if self.appender is None else self.appender.lost",
            ),
        ),
        tests=(f"{_ADOPTED}::test_what_is_no_longer_kept_is_reported",),
    ),
    Mutant(
        "delivered-spools-fill-the-memory",
        (
            Edit(
                "tallystream/producing/sender.py",
                "while len(self._delivered) > _MOST_WATCHED or sum(self._delivered.values()) > _MOST_WATCHED_BYTES:",
                "while False:",
            ),
        ),
        tests=(f"{_ADOPTED}::test_memory_is_bounded",),
    ),
    Mutant(
        "an-unreadable-spool-stays-locked",
        (
            Edit(
                "tallystream/producing/sender.py",
                "            except (SpoolError, OSError) as error:",
                "            except SpoolError as error:",
            ),
        ),
        tests=(f"{_ADOPTED}::test_a_spool_that_cannot_be_read_is_left_alone",),
    ),
    Mutant(
        "a-rollback-of-rules-is-silent",
        (
            Edit(
                "tallystream_worker/runtime/partition_follower.py",
                "        followed = self._found.revision\n",
                "        followed = found.revision\n",
            ),
        ),
        tests=("tests/integration/runtime/test_publication.py::test_a_worker_reports_rules_that_a_rollback_lost",),
    ),
    Mutant(
        "lost-horizons-begin-again",
        (
            Edit(
                "tallystream_worker/maintenance/lua/reap_producers.lua",
                "producers.parse_horizon(first and first .. ' ' .. first or stored)",
                "producers.parse_horizon(stored)",
            ),
        ),
        tests=("tests/integration/maintenance/test_reaper.py::test_a_deleted_horizon_is_written_again",),
    ),
    Mutant(
        "half-a-claim-is-a-claim",
        (
            Edit(
                "tallystream_worker/archive/lua/claim.lua",
                "if not (first and last and entries) then",
                "if not first then",
            ),
        ),
        tests=("tests/integration/archive/test_archive.py::test_a_claim_without_a_field_is_claimed_again",),
    ),
    Mutant(
        "a-lost-live-topic-is-the-first",
        (Edit("tallystream/storage/deployment_hash.py", '        return "log"\n', "        return None\n"),),
        tests=(f"{_EVERY_FIELD}::test_a_deleted_field_is_never_silent[valkey-root log-moved]",),
    ),
    Mutant(
        "lost-parts-of-rules-are-not-found",
        (
            Edit(
                "tallystream_worker/verify/lost_fields.py",
                "    wanted = {PARTS + metric for metric in counted}\n",
                "    wanted = set[str]()\n",
            ),
        ),
        tests=(f"{_EVERY_FIELD}::test_lost_parts_of_rules_are_found_without_a_snapshot",),
    ),
    Mutant(
        "a-switch-is-an-error",
        (Edit("tallystream_worker/runtime/partition_worker.py", "if self._open() is loop:", "if True:"),),
        tests=("tests/integration/runtime/test_supervisor.py::test_a_switch_is_no_problem",),
    ),
    Mutant(
        "an-unreadable-file-hides-a-gap",
        (
            Edit(
                "tallystream_worker/verify/archived.py",
                "                if held is None or file.first < held:\n                    interrupt()\n",
                "",
            ),
        ),
        tests=("tests/integration/verify/test_verify.py::test_a_file_that_cannot_be_read_is_one_finding",),
    ),
    Mutant(
        "an-unread-reply-answers-the-next-command",
        (Edit("tallystream/client/connections.py", "        if self._unread:", "        if False:"),),
        tests=(f"{_UNREAD}::test_an_interrupted_pipeline_answers_no_later_command",),
    ),
    Mutant(
        "an-interrupted-handshake-is-taken-for-a-whole-one",
        (Edit("tallystream/client/connections.py", "except BaseException:", "except redis.RedisError:"),),
        tests=(f"{_UNREAD}::test_an_interrupted_handshake_leaves_no_connection_to_another_database",),
    ),
    Mutant(
        "an-unknown-cluster-has-no-keys",
        (
            Edit(
                "tallystream/client/cluster/client.py",
                "        for node in self._router.all_primaries():",
                "        self._router.refresh()\n        for node in self._router.topology.primaries:",
            ),
            Edit("tallystream/client/cluster/router.py", "        self.topology.ensure_map()\n", ""),
        ),
        tests=(f"{_ROUTER}::test_no_question_to_an_unknown_cluster_has_an_empty_answer",),
    ),
    Mutant(
        "a-part-of-the-primaries-is-taken-for-all",
        (Edit("tallystream/client/cluster/topology.py", "        if None in self._owners:", "        if False:"),),
        tests=(f"{_ROUTER}::test_a_part_of_the_primaries_is_not_taken_for_all",),
    ),
    Mutant(
        "spread-board-without-the-sketch",
        (
            Edit(
                "tallystream/reading/leaderboards.py",
                "hidden = max(hidden, int(sketched or 0))",
                "hidden = max(hidden, 0)",
            ),
        ),
        tests=(f"{_BOARDS}::test_amounts_in_a_sketch_are_in_the_error",),
    ),
    Mutant(
        "split-totals-only-in-the-error-of-all-time",
        (
            Edit(
                "tallystream/reading/leaderboards.py",
                'is_split = f"{SKETCHES}:{metric}" in removed',
                "is_split = False",
            ),
        ),
        tests=(f"{_BOARDS}::test_amounts_in_a_sketch_are_in_the_error",),
    ),
    Mutant(
        "a-dropped-part-is-given-up-too",
        (
            Edit(
                "tallystream_worker/counting/fold.py",
                "may_give_up = not letters or is_whole(letters)",
                "may_give_up = True",
            ),
        ),
        tests=("tests/unit/counting/test_fold.py::test_an_entry_with_a_dropped_part_is_not_given_up",),
    ),
    Mutant(
        "any-bucket-of-the-limit-is-stated",
        (
            Edit(
                "tallystream/storage/lua/decide.lua",
                "changes.used[batch.rules[1].limits .. batch.labels[1][1]]",
                "select(2, next(changes.used))",
            ),
        ),
        tests=("tests/integration/counting/test_ids.py::test_a_decision_states_the_limit_of_its_own_bucket",),
    ),
    Mutant(
        "place-of-a-snapshot-chosen-from-the-last-one",
        (
            Edit(
                "tallystream_worker/snapshot/database.py",
                "engine = create_engine(engine.url.set(database=self._place))",
                "engine = self._at_url = create_engine(engine.url.set(database=self._place))",
            ),
        ),
        tests=("tests/unit/snapshot/test_database_place.py",),
    ),
    Mutant(
        "search-shows-sums-of-places",
        (
            Edit(
                "tallystream/reading/search.py",
                "return read_whole(values, read, wanted) if wanted else found",
                "return found",
            ),
        ),
        tests=(f"{_BOARDS}::test_a_search_shows_whole_totals",),
    ),
    Mutant(
        "the-error-of-one-partition",
        (
            Edit(
                "tallystream/reading/counters.py",
                "reading.errors[counter] = reading.errors.get(counter, 0) + error",
                "reading.errors[counter] = error",
            ),
        ),
        tests=(
            "tests/integration/reading/test_sketches.py::test_the_error_of_a_spread_metric_is_that_of_all_its_sketches",
        ),
    ),
    Mutant(
        "given-up-entries-are-returned-once",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "        self.damaged = set()\n        if self._suspects:",
                "        self.damaged = set()\n        self._given_up = []\n        if self._suspects:",
            ),
        ),
        tests=(f"{_FORGOTTEN}::test_given_up_entries_are_reported_although_another_queue_fails",),
    ),
    Mutant(
        "rollback-before-its-new-name",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "            name = self._new_name(partition, queue, record, queue.confirmed_after(last))\n"
                "            rollback = queue.roll_back(last)\n",
                "            rollback = queue.roll_back(last)\n"
                "            name = self._new_name(partition, queue, record, queue.confirmed)\n",
            ),
        ),
        tests=(f"{_FORGOTTEN}::test_a_rollback_whose_new_name_cannot_be_recorded",),
    ),
    Mutant(
        "plan-before-its-record",
        (
            Edit(
                f"{_SPOOL}/buffer.py",
                "                plan = msgspec.structs.replace(plan, turn=turn, spread=sorted(self.spread))\n",
                "                plan.turn, plan.spread = turn, sorted(self.spread)\n",
            ),
        ),
        tests=(f"{_FAILED_WRITES}::test_a_plan_is_sealed_again_after_a_refused_write",),
    ),
    Mutant(
        "queues-before-their-names",
        (
            Edit(
                f"{_SPOOL}/buffer.py",
                "                    self._write(self._segments, records.STATE, state)\n",
                "                    self._queues.restore(state)\n"
                "                    self._write(self._segments, records.STATE, state)\n",
            ),
        ),
        tests=(f"{_FAILED_WRITES}::test_queues_begin_only_when_their_names_are_written",),
    ),
    Mutant(
        "file-before-its-state",
        (
            Edit(
                f"{_SPOOL}/segments.py",
                "                os.ftruncate(out, 0)",
                "                self._out, self._files[self.end] = os.dup(out), path\n"
                "                os.ftruncate(out, 0)",
            ),
        ),
        tests=(f"{_FAILED_WRITES}::test_every_file_begins_with_the_names",),
    ),
    Mutant(
        "plans-without-names",
        (Edit(f"{_SPOOL}/recovery.py", "and not queues.names:\n            raise", "and False:\n            raise"),),
        tests=(f"{_FAILED_WRITES}::test_plans_without_the_names_of_their_queues",),
    ),
    Mutant(
        "a-part-of-a-record-hides-the-others",
        (
            Edit(
                f"{_SPOOL}/segments.py",
                "                os.close(self._out)\n                self._out = None\n            raise",
                "                pass\n            raise",
            ),
        ),
        tests=(f"{_FAILED_WRITES}::test_a_part_of_a_record_that_cannot_be_cut_off",),
    ),
    Mutant(
        "damaged-events-are-left-out",
        (Edit(f"{_SPOOL}/packing.py", "        if at < plan.end and (", "        if False and ("),),
        tests=(f"{_FAILED_WRITES}::test_events_that_are_damaged_meanwhile",),
    ),
    Mutant(
        "what-cannot-be-read-is-0",
        (Edit("tallystream/reading/counters.py", "        if len(reached) < len(holding):\n", "        if False:\n"),),
        tests=(f"{_IN_PART}::test_many_totals_are_read_in_part",),
    ),
    Mutant(
        "one-silent-node-stops-every-read",
        (
            Edit(
                "tallystream/reading/deployment_cache.py",
                "enumerate(replies) if is_unreachable(reply)}",
                "enumerate(replies) if False}",
            ),
        ),
        tests=(f"{_IN_PART}::test_a_total_on_another_node_is_exact",),
    ),
    Mutant(
        "sums-without-a-partition-are-exported",
        (
            Edit(
                "tallystream_worker/service/routes/metrics.py",
                "whole = self._ledger is None or not self._ledger.unreachable",
                "whole = True",
            ),
        ),
        tests=(f"{_IN_PART}::test_the_exporter_names_what_is_missing",),
    ),
    Mutant(
        "live-readers-forget-a-node-that-returns",
        (Edit("tallystream_worker/live/broadcaster.py", "elif end != before or returned:", "elif end != before:"),),
        tests=(f"{_IN_PART}::test_a_node_that_returns_is_read_again",),
    ),
    Mutant(
        "counted-before-a-replica-has-it",
        (
            Edit(
                "tallystream/producing/counted.py",
                "if durability.is_needed else",
                "if False else",
            ),
        ),
        tests=(f"{_DURABILITY}::test_a_flush_waits_until_a_replica_has_the_counting",),
    ),
    Mutant(
        "confirmation-without-a-write",
        (
            Edit(
                "tallystream/storage/lua/touch.lua",
                "redis.call('HSET', KEYS[1], '!begun', redis.call('HGET', KEYS[1], '!begun'))",
                "redis.call('HGET', KEYS[1], '!begun')",
            ),
        ),
        tests=(f"{_DURABILITY}::test_a_flush_waits_until_a_replica_has_the_counting",),
    ),
    Mutant(
        "read-before-a-replica-has-it",
        (Edit("tallystream/reading/replicas.py", 'int(each["offset"]) >= wanted', "True"),),
        tests=(f"{_DURABILITY}::test_a_read_waits_until_a_replica_has_the_counting",),
    ),
    Mutant(
        "limited-workers-serve-the-same-partitions",
        (
            Edit(
                "tallystream_worker/runtime/share.py",
                "first = int(number[1]) * most if number else zlib.crc32(consumer.encode())",
                "first = 0",
            ),
        ),
        tests=("tests/unit/runtime/test_share.py",),
    ),
    Mutant(
        "a-lost-connection-cuts-those-of-all-partitions",
        (
            Edit(
                "tallystream_worker/process/periodic.py",
                "disconnect(inuse_connections=False)",
                "disconnect(inuse_connections=True)",
            ),
        ),
        tests=("tests/unit/process/test_periodic.py",),
    ),
    Mutant(
        "repartition-copies-what-comes-back",
        (
            Edit(
                "tallystream_worker/repartition/lua/mark_read.lua",
                "if streams.is_before(read, ARGV[2]) then",
                "if false then",
            ),
        ),
        tests=(f"{_LOST_WRITES}::test_entries_that_the_old_topic_loses_are_not_copied_twice",),
    ),
    Mutant(
        "repartition-misses-a-failover",
        (
            Edit(
                "tallystream_worker/repartition/migration.py",
                "        self._failovers.ensure_none(written)\n",
                "",
            ),
        ),
        tests=("tests/cluster/test_lagging_replica.py::test_a_failover_while_a_repartition_waits_is_noticed",),
    ),
    Mutant(
        "repartition-continues-with-other-partitions",
        (
            Edit(
                "tallystream_worker/repartition/topic.py",
                '    if int(stored[b"partitions"]) != layout.partitions:',
                "    if False:",
            ),
        ),
        tests=(f"{_LOST_WRITES}::test_a_number_that_a_failover_has_lost_is_not_used_for_other_partitions",),
    ),
    Mutant(
        "repartition-copies-without-a-hold",
        (
            Edit(
                "tallystream_worker/repartition/lua/mark_read.lua",
                "if call('HEXISTS', KEYS[3], ARGV[3]) == 0 then",
                "if false then",
            ),
        ),
        tests=(f"{_HOLDS}::test_a_hold_that_a_failover_has_lost_is_noticed",),
    ),
    Mutant(
        "a-paused-repartition-places-holds",
        (Edit("tallystream_worker/repartition/lua/hold.lua", "if topic ~= ARGV[1] or ", "if "),),
        tests=(f"{_HOLDS}::test_a_repartition_that_was_given_up_does_not_move_the_hold_of_a_later_one",),
    ),
    Mutant(
        "a-dropped-topic-gets-holds",
        (Edit("tallystream_worker/repartition/lua/hold.lua", " or call('EXISTS', KEYS[1]) == 0", ""),),
        tests=(f"{_HOLDS}::test_a_topic_that_was_dropped_gets_no_hold",),
    ),
    Mutant(
        "a-repartition-that-is-given-up-places-holds",
        (
            Edit(
                "tallystream_worker/repartition/migration.py",
                "            topic.remove_holds(self._client, self._old)\n",
                "            pass\n",
            ),
        ),
        tests=(f"{_HOLDS}::test_a_repartition_that_was_given_up_places_no_hold",),
    ),
    Mutant(
        "a-continued-repartition-trusts-every-partition",
        (
            Edit(
                "tallystream_worker/repartition/migration.py",
                '                if self._copying.mark(source) == "0-0":\n',
                '                if all(self._copying.mark(n) == "0-0" for n in range(self._old.layout.partitions)):\n',
            ),
        ),
        tests=(f"{_HOLDS}::test_entries_that_were_trimmed_while_a_hold_was_lost_are_noticed",),
    ),
    Mutant(
        "repartition-trusts-what-it-has-read",
        (
            Edit(
                "tallystream_worker/repartition/copy.py",
                "            self._reading.ensure(self._ends)\n",
                "            pass\n",
            ),
        ),
        tests=(f"{_LOST_WRITES}::test_entries_that_the_old_topic_loses_in_a_pass_are_noticed_in_it",),
    ),
    Mutant(
        "stragglers-trust-marks-in-memory",
        (Edit("tallystream_worker/repartition/stragglers.py", "        self._copying.look()\n", ""),),
        tests=(f"{_LOST_WRITES}::test_copies_that_the_live_topic_loses_are_copied_again",),
    ),
    Mutant(
        "repartition-trusts-marks-in-memory",
        (
            Edit(
                "tallystream_worker/repartition/migration.py",
                "        self._copying.look()  # a failover may have taken copies back, and their marks with them\n",
                "",
            ),
        ),
        tests=(f"{_LOST_WRITES}::test_what_the_last_copy_pass_finds_missing_is_copied_before_the_switch",),
    ),
    Mutant(
        "drop-copies-nothing",
        (
            Edit(
                "tallystream_worker/repartition/topic.py",
                "        StragglerCopier(client).copy_all(deployment)\n",
                "        pass\n",
            ),
        ),
        tests=(f"{_LOST_WRITES}::test_copies_that_the_live_topic_loses_are_copied_again",),
    ),
    Mutant(
        "commands-wait-for-nothing",
        (Edit("tallystream_worker/process/barrier.py", "    if not check.is_needed:\n", "    if True:\n"),),
        tests=(f"{_LOST_WRITES}::test_nothing_is_switched_or_dropped_before_a_replica_has_it",),
    ),
    Mutant(
        "failovers-are-not-noticed",
        (Edit("tallystream_worker/process/failover_watch.py", "if before != now:", "if False:"),),
        tests=("tests/cluster/test_failover_watch.py::test_a_failover_between_two_steps_is_noticed",),
    ),
    Mutant(
        "closed-topics-confirm-at-once",
        (
            Edit(
                "tallystream/producing/appender.py",
                "if reason := self._durability.confirm(self._client, both):",
                'if reason := "":',
            ),
        ),
        tests=("tests/integration/client/test_durability.py::test_a_repartition_confirms_nothing_that_no_replica_has",),
    ),
    Mutant(
        "a-deleted-stream-is-created-again",
        (
            Edit(
                "tallystream/storage/lua/lib/appending.lua",
                "return gated ~= '0' and call('EXISTS', stream) == 0",
                "return false",
            ),
        ),
        tests=(
            "tests/integration/snapshot/test_lost_log.py::test_a_stream_that_was_deleted_beside_a_producer_is_restored_whole",
        ),
    ),
    Mutant(
        "a-lost-reply-ends-a-switch",
        (
            Edit(
                "tallystream_worker/process/barrier.py",
                "            if time.monotonic() > until:\n                raise\n",
                "            raise\n",
            ),
        ),
        tests=(f"{_LOST_SWITCHES}::test_a_switch_whose_last_reply_is_lost_is_finished",),
    ),
    Mutant(
        "a-switch-is-finished-without-a-partition",
        (
            Edit(
                "tallystream_worker/rebuild/rebuild.py",
                "for keys in found.layout.keys if keys.generation != number]",
                "for keys in found.layout.keys if False]",
            ),
        ),
        tests=(f"{_LOST_SWITCHES}::test_a_switch_that_a_failover_has_undone_in_a_partition_is_not_finished",),
    ),
    Mutant(
        "workers-begin-a-generation",
        (
            Edit(
                "tallystream_worker/counting/lua/ensure_group.lua",
                "if string.find(KEYS[2], 'g%d+:ledger$') and",
                "if false and",
            ),
        ),
        tests=(f"{_LOST_SWITCHES}::test_a_worker_creates_no_group_of_a_generation_that_a_failover_has_taken_back",),
    ),
    Mutant(
        "half-switches-stay",
        (
            Edit(
                "tallystream_worker/cli/generation.py",
                "    if not deployment.is_half_switched:\n        return deployment\n    with",
                "    if True:\n        return deployment\n    with",
            ),
        ),
        tests=(f"{_LOST_SWITCHES}::test_retracted_events_that_a_failover_brings_back_are_taken_back_again",),
    ),
    Mutant(
        "generations-are-dropped-as-they-were-read",
        (
            Edit(
                "tallystream_worker/rebuild/drop.py",
                "            if keys.generation == generation:\n",
                "            if False:\n",
            ),
        ),
        tests=(f"{_LOST_SWITCHES}::test_retracted_events_that_a_failover_brings_back_are_taken_back_again",),
    ),
    Mutant(
        "files-are-identified-unconfirmed",
        (
            Edit(
                "tallystream_worker/ingest/job.py",
                '    with step(client, deployment, f"{job.path} is identified"):\n',
                "    if True:\n",
            ),
        ),
        tests=("tests/integration/ingest/test_confirmed.py",),
    ),
    Mutant(
        "reaper-creates-lost-sequences",
        (Edit("tallystream_worker/maintenance/lua/reap_producers.lua", "if lost then\n", "if false then\n"),),
        tests=(
            "tests/integration/maintenance/test_reaper.py::test_a_partition_that_has_lost_its_keys_stays_without_keys",
        ),
    ),
    Mutant(
        "archive-creates-a-lost-stream",
        (Edit("tallystream_worker/archive/lua/begin.lua", "if lost then\n", "if false then\n"),),
        tests=(f"{_REPLIES}::test_a_partition_without_keys_stays_without_keys",),
    ),
    Mutant(
        "marks-in-a-lost-partition",
        (Edit("tallystream_worker/snapshot/lua/mark.lua", "  if lost then\n", "  if false then\n"),),
        tests=(f"{_REPLIES}::test_a_partition_without_keys_stays_without_keys",),
    ),
    Mutant(
        "rules-of-a-damaged-partition-change",
        (Edit("tallystream/storage/lua/rules/plan.lua", "lost_ledger(planned.ledger_key) or parts", "parts"),),
        tests=(f"{_REPLIES}::test_a_damaged_partition_does_not_change",),
    ),
    Mutant(
        "commands-create-keys-of-a-lost-partition",
        (Edit("tallystream_worker/process/lua/unless_lost.lua", "if lost then\n", "if false then\n"),),
        tests=(
            f"{_LOST_PARTITION}::test_no_service_writes_to_a_partition_without_keys",
            "tests/integration/alerts/test_alerts.py::test_delivery_leaves_a_partition_alone_that_has_lost_its_keys",
        ),
    ),
    Mutant(
        "a-description-lost-meanwhile-is-created",
        (
            Edit(
                "tallystream/deployment.py",
                "            return cls._of_root(client, stored, partitions, namespace)\n        if any(",
                "            pass\n        elif any(",
            ),
        ),
        tests=(f"{_LOST_PARTITION}::test_a_description_that_is_lost_while_it_is_read_is_not_created_again",),
    ),
    Mutant(
        "service-appends-to-memory-only",
        (
            Edit(
                "tallystream_worker/service/app.py",
                "Writer(store, settings.worker.durability)",
                'Writer(store, "memory")',
            ),
        ),
        tests=(f"{_DURABILITY}::test_the_service_confirms_writes_as_its_workers_do",),
    ),
    Mutant(
        "cluster-pipeline-takes-an-error-for-a-reply",
        (Edit("tallystream/client/cluster/pipeline.py", "            raise error  #", "            pass  #"),),
        tests=(f"{_IN_PART}::test_a_pipeline_raises_the_error_of_a_node_that_is_down",),
    ),
    Mutant(
        "one-node-stops-the-alerts-of-all",
        (Edit("tallystream_worker/process/in_reach.py", "problem = text_of(error)", "raise"),),
        tests=("tests/cluster/test_alerts_in_part.py",),
    ),
    Mutant(
        "one-node-stops-the-follower",
        (
            Edit(
                "tallystream_worker/runtime/partition_follower.py",
                "found = self._deployment.reload(self._client, in_part=True)",
                "found = self._deployment.reload(self._client)",
            ),
        ),
        tests=("tests/cluster/test_follow_in_part.py",),
    ),
    Mutant(
        "one-node-stops-the-workers-of-all",
        (
            Edit(
                "tallystream_worker/runtime/partition_worker.py",
                "        found = self._deployment.reload(self._applying, in_part=True)\n        if found.layout.topic",
                "        found = self._deployment.reload(self._applying)\n        if found.layout.topic",
            ),
        ),
        tests=("tests/cluster/test_follow_in_part.py",),
    ),
    Mutant(
        "reads-wait-for-a-frozen-node",
        (Edit("tallystream/client/connect.py", "SILENCE if url.startswith(_CLUSTER) else TIMEOUT", "TIMEOUT"),),
        tests=("tests/cluster/test_frozen_node.py",),
    ),
    Mutant(
        "step-confirms-nothing",
        (
            Edit(
                "tallystream_worker/process/barrier.py",
                "    yield\n    confirm(client, deployment, written, remedy, also=also)\n",
                "    yield\n",
            ),
        ),
        tests=("tests/cluster/test_lagging_replica.py",),
    ),
    Mutant(
        "step-ignores-a-failover",
        (Edit("tallystream_worker/process/barrier.py", "    failovers.ensure_none(written, remedy)\n", ""),),
        tests=("tests/cluster/test_failover_watch.py::test_a_step_with_a_failover_fails",),
    ),
    Mutant(
        "unknown-positions-count-as-rewound",
        (Edit("tallystream_worker/live/broadcaster.py", "given if keys.stream in away else known", "known"),),
        tests=(f"{_IN_PART}::test_a_reader_resumes_at_a_service_that_has_not_read_the_node",),
    ),
    Mutant(
        "scheduled-audit-by-the-present-rules",
        (
            Edit(
                "tallystream_worker/rebuild/schedule.py",
                "followed=followed_rules(self._client, deployment.layout, sources.changes),",
                "followed=None,",
            ),
        ),
        tests=(f"{_AUDIT}::test_a_change_of_the_rules_is_no_difference",),
    ),
    Mutant(
        "audit-reports-counters-of-rules-that-change",
        (
            Edit(
                "tallystream_worker/rebuild/audit.py",
                "        _ensure_unchanged(client, deployment, followed)\n",
                "        pass\n",
            ),
        ),
        tests=(f"{_AUDIT}::test_a_change_of_the_rules_during_an_audit_is_no_difference",),
    ),
    Mutant(
        "reset-loses-in-silence",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "        self.count(rollback)\n        if is_unsure:\n",
                "        self.rewound += 1\n        if is_unsure:\n",
            ),
        ),
        tests=(f"{_APPENDER}::test_another_life_does_not_get_what_was_confirmed_in_the_last",),
    ),
    Mutant(
        "entry-without-a-reply-gets-a-new-name",
        (
            Edit(
                "tallystream/producing/rollback_watch.py",
                "is_unsure, last = queue.sent > queue.confirmed, queue.confirmed",
                "is_unsure, last = False, queue.confirmed",
            ),
        ),
        tests=(f"{_APPENDER}::test_an_entry_without_a_reply_is_not_in_the_restored_data_twice",),
    ),
    Mutant(
        "worker-counts-anew-on-an-emptied-server",
        (
            Edit(
                "tallystream_worker/runtime/app.py",
                "        refuse_lost_data(client, settings, creating=publishing)\n",
                "",
            ),
        ),
        tests=("tests/integration/runtime/test_app.py::test_a_worker_does_not_count_anew_while_a_backup_has_the_data",),
    ),
    Mutant(
        "unreadable-backup-taken-for-none",
        (
            Edit(
                "tallystream_worker/runtime/lost_data.py",
                "found = backup_of(settings, is_strict=True)",
                "found = backup_of(settings)",
            ),
        ),
        tests=(
            "tests/integration/runtime/test_app.py::test_a_worker_does_not_count_anew_while_it_cannot_read_the_backup",
        ),
    ),
    Mutant(
        "worker-counts-anew-while-the-url-of-a-backup-is-wrong",
        (
            Edit(
                "tallystream_worker/runtime/lost_data.py",
                "= () if is_strict else (ImportError, TallyError)",
                "= (ConfigurationError,) if is_strict else (ImportError, TallyError)",
            ),
        ),
        tests=("tests/integration/runtime/test_app.py::test_a_worker_creates_nothing_while_a_url_cannot_be_used",),
    ),
    Mutant(
        "worker-counts-anew-without-the-package-of-its-archive",
        (
            Edit(
                "tallystream_worker/runtime/lost_data.py",
                "= () if is_strict else (ImportError, TallyError)",
                "= (ImportError,) if is_strict else (ImportError, TallyError)",
            ),
        ),
        tests=(
            "tests/integration/runtime/test_app.py::test_a_worker_creates_nothing_without_the_package_of_its_archive",
        ),
    ),
    Mutant(
        "copy-ends-with-an-error-of-the-driver",
        (
            Edit(
                "tallystream_worker/snapshot/copy.py",
                "raise DBAPIError(None, None, error) from error",
                "raise",
            ),
        ),
        tests=(f"{_SNAPSHOT}::test_a_value_that_postgresql_refuses_is_an_error_of_the_snapshot",),
    ),
    Mutant(
        "restore-that-has-ended-is-an-error",
        (
            Edit(
                "tallystream_worker/snapshot/restore.py",
                "    with suppress(ConfigurationError):\n        return None if live",
                "    with suppress(SnapshotError):\n        return None if live",
            ),
        ),
        tests=(
            "tests/integration/snapshot/test_kept_rules.py::test_rules_of_other_data_that_are_unknown_end_no_restore",
        ),
    ),
    Mutant(
        "restore-of-changed-rows-has-no-reason",
        (Edit("tallystream_worker/snapshot/damage.py", "        if not changed:\n", "        if True:\n"),),
        tests=(f"{_SNAPSHOT}::test_a_snapshot_whose_changed_rows_cannot_be_read_is_refused",),
    ),
    Mutant(
        "lost-rules-that-are-not-live-count-as-live",
        (
            Edit(
                "tallystream_worker/snapshot/lost_changes.py",
                "self.is_live = rules is not None or not self._since",
                "self.is_live = True",
            ),
        ),
        tests=(f"{_LOST_CHANGES}::test_a_restore_states_that_a_lost_change_is_not_live",),
    ),
    Mutant(
        "scratch-server-that-ends-ends-a-verification",
        (Edit("tallystream_worker/server/scratch.py", "            server.ensure_running()\n", ""),),
        tests=("tests/integration/verify/test_verify.py::test_a_scratch_server_that_ends_ends_no_other_check",),
    ),
    Mutant(
        "worker-ends-instead-of-waiting",
        (
            Edit(
                "tallystream_worker/runtime/lost_data.py",
                "while lacking and not stop.is_set():",
                "while False:",
            ),
        ),
        tests=("tests/process/test_worker_health.py::test_a_worker_waits_for_the_data_of_an_emptied_server",),
    ),
    Mutant(
        "record-takes-changes-that-the-server-lost",
        (
            Edit(
                "tallystream_worker/rebuild/rule_record.py",
                'if of_number.setdefault(number, fields["rules"]) == fields["rules"]:',
                "if True:",
            ),
        ),
        tests=("tests/integration/rebuild/test_rule_record.py::test_changes_that_the_server_has_lost_are_left_out",),
    ),
    Mutant(
        "a-refused-rebuild-stays-unfinished",
        (Edit("tallystream_worker/rebuild/rebuild.py", "        if self._is_new:\n", "        if False:\n"),),
        tests=("tests/integration/rebuild/test_rebuild.py::test_a_refused_rebuild_leaves_nothing",),
    ),
    Mutant(
        "rules-that-the-server-forgot-are-not-read",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "for name, fields in archived().items()",
                "for name, fields in ()",
            ),
        ),
        tests=(f"{_AUDIT}::test_an_audit_finds_old_rules_in_the_archive",),
    ),
    Mutant(
        "a-node-that-is-down-keeps-a-topic-closed",
        (
            Edit(
                "tallystream_worker/repartition/topic.py",
                "        except RedisError as error:\n            failed.append(error)\n",
                "        except RedisError as error:\n            raise\n",
            ),
        ),
        tests=("tests/cluster/test_reopen_in_part.py",),
    ),
    Mutant(
        "a-topic-that-is-not-live-stated-as-live",
        (
            Edit(
                "tallystream_worker/repartition/migration.py",
                "        last_step(partial(self._activate, closing))\n",
                "        topic.activate(self._client, self._old, self.new.layout, closing)\n",
            ),
        ),
        tests=(f"{_LAGGING}::test_a_new_topic_that_a_failover_takes_back_becomes_live_again",),
    ),
    Mutant(
        "a-topic-becomes-live-while-the-old-one-is-open",
        (
            Edit(
                "tallystream_worker/repartition/topic.py",
                "        if not closed or number != str(closing).encode():\n",
                "        if False:\n",
            ),
        ),
        tests=(f"{_LOST_WRITES}::test_no_topic_becomes_live_while_the_old_one_is_open",),
    ),
    Mutant(
        "a-lost-generation-is-continued",
        (Edit("tallystream_worker/rebuild/rebuild.py", "    _refuse_unrecorded(client, deployment)\n", ""),),
        tests=(f"{_LOST_SWITCHES}::test_a_generation_that_a_failover_has_lost_is_not_continued_by_other_rules",),
    ),
    Mutant(
        "the-last-step-ends-without-a-primary",
        (
            Edit(
                "tallystream_worker/process/barrier.py",
                "(*BROKEN, *NOT_EXECUTED, ReadOnlyError, FailedOver)",
                "(*BROKEN, FailedOver)",
            ),
        ),
        tests=(f"{_LOST_SWITCHES}::test_the_last_step_is_repeated_after_each_error_of_a_failover",),
    ),
    Mutant(
        "an-overtaken-run-removes-the-hold-of-the-kept-topic",
        (
            Edit(
                "tallystream_worker/repartition/migration.py",
                "if now.moving is None and now.layout.topic == self._old.layout.topic:",
                "if now.moving is None:",
            ),
        ),
        tests=(f"{_HOLDS}::test_a_run_that_another_one_has_overtaken_keeps_the_hold_of_the_kept_topic",),
    ),
    Mutant(
        "a-paused-removal-forgets-what-is-later",
        (Edit("tallystream_worker/process/lua/forget.lua", "if found and found ~= ARGV[2] then", "if false then"),),
        tests=(f"{_LOST_WRITES}::test_a_removal_that_was_paused_does_not_forget_a_later_topic",),
    ),
    Mutant(
        "a-removal-ends-the-rebuild-of-another-generation",
        (
            Edit(
                "tallystream_worker/rebuild/lua/end_drop.lua",
                "if call('HGET', KEYS[1], 'building') == generation then",
                "if true then",
            ),
        ),
        tests=(f"{_LOST_SWITCHES}::test_the_end_of_a_removal_concerns_only_its_own_generation",),
    ),
    Mutant(
        "a-paused-command-switches-partitions",
        (
            Edit(
                "tallystream_worker/rebuild/lua/switch.lua",
                "if call('HGET', KEYS[3], '!turn') ~= ARGV[6] then",
                "if false then",
            ),
        ),
        tests=(
            f"{_TURNS}::test_a_paused_switch_does_not_undo_an_undo",
            f"{_TURNS}::test_a_switch_that_was_paused_does_not_reach_a_generation_that_is_being_removed",
        ),
    ),
    Mutant(
        "a-paused-command-makes-a-generation-live",
        (Edit("tallystream_worker/rebuild/lua/promote.lua", "if turn ~= ARGV[3] then", "if false then"),),
        tests=(f"{_TURNS}::test_a_paused_switch_makes_nothing_live_after_an_undo",),
    ),
    Mutant(
        "a-paused-removal-begins",
        (
            Edit(
                "tallystream_worker/rebuild/lua/begin_drop.lua",
                "if redis.call('HGET', KEYS[1], 'turn') ~= ARGV[2] then",
                "if false then",
            ),
        ),
        tests=(f"{_TURNS}::test_a_paused_removal_removes_nothing_that_was_made_live",),
    ),
    Mutant(
        "a-paused-removal-goes-on",
        (
            Edit(
                "tallystream_worker/rebuild/lua/remove.lua",
                "if call('EXISTS', KEYS[1]) == 1 and call('HGET', KEYS[1], '!turn') ~= ARGV[1] then",
                "if false then",
            ),
        ),
        tests=(f"{_TURNS}::test_a_paused_removal_removes_no_restored_counters",),
    ),
    Mutant(
        "a-restore-takes-no-turn-in-partitions",
        (
            Edit(
                "tallystream_worker/snapshot/lua/close_partition.lua",
                "string.format('%.0f', turn + 1)",
                "string.format('%.0f', turn)",
            ),
        ),
        tests=(f"{_TURNS}::test_a_paused_removal_removes_nothing_while_a_restore_runs",),
    ),
    Mutant(
        "a-paused-removal-ends",
        (
            Edit(
                "tallystream_worker/rebuild/lua/end_drop.lua",
                "if call('HGET', KEYS[1], 'turn') ~= ARGV[2] then",
                "if false then",
            ),
        ),
        tests=(f"{_TURNS}::test_a_paused_end_of_a_removal_leaves_what_is_stated_after_a_restore",),
    ),
    Mutant(
        "a-paused-rebuild-begins",
        (Edit("tallystream_worker/rebuild/lua/begin.lua", "if ARGV[2] ~= '0' and", "if false and"),),
        tests=(f"{_TURNS}::test_a_paused_begin_begins_nothing_that_a_later_command_removed",),
    ),
    Mutant(
        "turns-fall",
        (
            Edit(
                "tallystream_worker/rebuild/lua/take_turn.lua",
                "if tonumber(call('HGET', KEYS[1], '!turn') or '0') > tonumber(ARGV[1]) then",
                "if false then",
            ),
        ),
        tests=(f"{_TURNS}::test_a_turn_that_was_taken_late_is_refused",),
    ),
    Mutant(
        "turns-begin-again",
        (
            Edit(
                "tallystream_worker/rebuild/lua/claim_turn.lua",
                "math.max(tonumber(call('HGET', KEYS[1], 'turn') or '0'), tonumber(ARGV[2])) + 1)",
                "tonumber(call('HGET', KEYS[1], 'turn') or '0') + 1)",
            ),
        ),
        tests=(f"{_TURNS}::test_turns_rise_above_those_of_the_partitions",),
    ),
    Mutant(
        "a-refused-rebuild-takes-another-turn",
        (
            Edit(
                "tallystream_worker/rebuild/rebuild.py",
                "drop(client, self._deployment.reload(client), self._generation, self.turn)",
                "drop(client, self._deployment.reload(client), self._generation)",
            ),
        ),
        tests=(f"{_TURNS}::test_a_refused_rebuild_leaves_what_a_later_command_builds",),
    ),
    Mutant(
        "a-removed-build-is-continued",
        (
            Edit(
                "tallystream_worker/rebuild/lua/propose.lua",
                "if building and call('HEXISTS', KEYS[1], 'dropping@' .. building) == 1 then",
                "if false then",
            ),
        ),
        tests=(f"{_TURNS}::test_a_build_that_is_removed_in_part_is_not_continued",),
    ),
    Mutant(
        "a-removed-generation-is-used",
        (
            Edit(
                "tallystream_worker/rebuild/rebuild.py",
                "if self._generation in self._deployment.reload(client).dropping:",
                "if False:",
            ),
        ),
        tests=(f"{_TURNS}::test_an_interrupted_removal_is_only_finished",),
    ),
    Mutant(
        "an-incomplete-switch-is-not-read-again",
        (
            Edit(
                "tallystream_worker/cli/generation.py",
                "        if not deployment.is_half_switched:\n            return deployment\n",
                "",
            ),
        ),
        tests=(f"{_TURNS}::test_an_incomplete_switch_that_another_command_finished_is_left_alone",),
    ),
    Mutant(
        "verify-takes-entries-of-a-lost-log-for-present-ones",
        (
            Edit(
                "tallystream_worker/verify/archived.py",
                "self._ahead = _ahead(client, store, keys, number)",
                "self._ahead = None",
            ),
        ),
        tests=(f"{_LOST_END}::test_the_loss_is_the_only_finding",),
    ),
    Mutant(
        "restore-moves-the-place-of-the-rules-of-a-snapshot",
        (
            Edit(
                "tallystream_worker/snapshot/live_rules.py",
                "or not (number in begun or number == first):",
                "or True:",
            ),
        ),
        tests=(f"{_VERIFY_CHANGED}::test_a_restore_of_an_older_generation_keeps_the_place_of_its_rules",),
    ),
    Mutant(
        "verify-guesses-the-first-rules-of-a-generation",
        (Edit("tallystream_worker/verify/counters.py", ", followed.firsts.get(number)):", "):"),),
        tests=(f"{_VERIFY_CHANGED}::test_a_restore_of_an_older_generation_states_no_rules_that_counted_nothing_in_it",),
    ),
    Mutant(
        "verify-forgets-entries-that-were-set-aside",
        (Edit("tallystream_worker/verify/set_aside.py", "if missing.entries:", "if False:"),),
        tests=(f"{_LOST_END}::test_entries_that_no_snapshot_brings_back_are_named_until_they_count",),
    ),
    Mutant(
        "verify-takes-entries-that-were-sent-again-for-lost-ones",
        (Edit("tallystream_worker/verify/log.py", "            self._set_aside.see(link)\n", "            pass\n"),),
        tests=(f"{_LOST_END}::test_entries_that_were_sent_again_are_set_aside_and_count",),
    ),
    Mutant(
        "verify-names-one-case-of-an-unreadable-snapshot",
        (Edit("tallystream_worker/verify/report.py", "if has_snapshot is None:", "if False:"),),
        tests=("tests/unit/verify/test_report.py::test_an_unreadable_snapshot_leaves_both_cases_in_the_remedies",),
    ),
    Mutant(
        "verify-takes-a-part-of-the-entries-for-all",
        (
            Edit(
                "tallystream_worker/verify/sequence_walk.py",
                "return (0, 0) if self._is_whole else self.first or (2**64, 0)",
                "return (0, 0)",
            ),
        ),
        tests=("tests/unit/verify/test_sequence_walk.py::test_a_walk_states_from_where_it_is_complete",),
    ),
    Mutant(
        "verify-takes-no-snapshot-for-one",
        (Edit("tallystream_worker/verify/mends.py", "is_own and is_whole and len(partitions) > 0", "True"),),
        tests=(
            "tests/integration/verify/test_remedies.py::test_only_a_whole_snapshot_of_the_same_data_can_be_restored",
        ),
    ),
    Mutant(
        "verify-compares-the-archive-of-other-data",
        (
            Edit(
                "tallystream_worker/verify/verify.py", "    return replace(found, archive=None)\n", "    return found\n"
            ),
        ),
        tests=(f"{_LOST_END}::test_an_archive_of_other_data_is_not_compared",),
    ),
    Mutant(
        "rebuild-counts-the-archive-of-other-data",
        (
            Edit(
                "tallystream_worker/archive/store.py",
                "if not self.is_of(epoch):",
                "if False:",
            ),
        ),
        tests=(f"{_LOST_END}::test_no_command_counts_the_archive_of_other_data",),
    ),
    Mutant(
        "any-error-of-a-namespace-is-lost-data",
        (
            Edit(
                "tallystream_worker/runtime/lost_data.py",
                "            waiting = [settings for settings, _ in lacking]\n",
                "            waiting = list(tenants)\n",
            ),
        ),
        tests=("tests/integration/runtime/test_app.py::test_a_wait_ends_although_another_namespace_cannot_start",),
    ),
    Mutant(
        "restore-does-not-notice-an-earlier-clock",
        (
            Edit(
                "tallystream_worker/snapshot/restored_log.py",
                "    return next((entry.id for entry in stream if _is_later(entry, producers, sent_before)), None)\n",
                "    return None\n",
            ),
        ),
        tests=(f"{_EARLIER_CLOCK}::test_entries_with_earlier_ids_count_once",),
    ),
    Mutant(
        "restore-overlooks-entries-that-were-sent-again",
        (Edit("tallystream_worker/snapshot/restored_log.py", "    if sent in lost:\n", "    if False:\n"),),
        tests=(f"{_EARLIER_CLOCK}::test_events_that_were_only_sent_again_count_once_beside_a_pending_entry",),
    ),
    Mutant(
        "restore-keeps-earlier-ids-too",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "if not begins <= parse_id(entry.id) <= end",
                "if True",
            ),
        ),
        tests=(f"{_EARLIER_CLOCK}::test_an_entry_that_was_pending_at_the_snapshot_counts_once",),
    ),
    Mutant(
        "restore-leaves-no-ids-for-later-entries",
        (
            Edit(
                "tallystream_worker/snapshot/partition_restore.py",
                "end = parse_id(found[0].generated)[0] + 1, 0  # see `_moved`",
                "end = 0, 0",
            ),
        ),
        tests=(f"{_EARLIER_CLOCK}::test_entries_that_are_appended_during_a_restore_get_later_ids",),
    ),
)
