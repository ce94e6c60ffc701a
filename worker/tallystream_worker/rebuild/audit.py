"""Audits the live counters: folds all entries again in a scratch server, and compares every counter with the result.

The audit begins with the base that `baseline` chooses: every entry that was ever appended; or a snapshot, and the
entries after it; or the entries that still exist, which prove the buckets after the last gone entry (see `scope`). The
scratch counters are in a separate embedded server, and are counted by the same fold, outside any consumer group: each
entry by the rules that counted it, or all entries by given rules. For each chunk of counters, the live values are read
together with a checkpoint; the scratch counters are counted up to exactly this checkpoint, and then both must be equal.
So an audit never pauses counting. Live values are read first, into a temporary file. So an audit ends even if entries
arrive faster than they can be folded.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from tallystream.errors import ConfigurationError, StreamError
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.partition_audit import PartitionAudit
from tallystream_worker.rebuild.report import Report, sum_reports
from tallystream_worker.rebuild.scope import Span
from tallystream_worker.server.scratch import scratch_server
from tallystream_worker.snapshot.live_rules import followed_rules

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream_worker.snapshot.live_rules import LiveRules

_AT_ONCE: Final = 4
"""Partitions that are audited at the same time: while one waits for a server, another is folded."""


def audit(
    client: redis.Redis,
    deployment: Deployment,
    rules: Rules,
    *,
    sources: Sources = Sources(),  # noqa: B008  # frozen
    span: Span = Span(),  # noqa: B008
    sample: float = 1.0,
    followed: LiveRules | None = None,
    show: Callable[[str, int, int], Any] = lambda *_: None,
) -> Report:
    """Fold every partition again in a scratch server, compare its live counters with the result, and return the report.

    Events may be appended and counted meanwhile. Nothing on the live server is changed. If an entry is trimmed before
    the audit reads it, its counters may differ. Counters that cannot be proved, because entries are gone, are not
    compared.

    Args:
        client: Client of the server of the live counters.
        deployment: The deployment to audit.
        rules: The rules that the counters should be counted by; they must be the live ones if `followed` is given.
        sources: The archive and the snapshot from which to get what is gone from the streams.
        span: The buckets to compare; if unlimited, all counters.
        sample: The approximate share of the counters' keys that is compared, from 0 to 1, chosen by a hash of their
            names; a key is compared whole. A smaller share does not reduce the entries that are folded.
        followed: The rules of the server, and where its partitions began to follow them: then each entry is counted by
            the rules that counted it (if these are known), and dead letters that were retried are counted. `None` to
            count all entries by `rules`.
        show: Called after each page of entries and each chunk of counters, from several threads, with the name of a
            stream, and the numbers of entries folded and of counters compared for it so far. An error that it raises
            ends the audit of that partition only; `audit` raises it after the partitions with lower numbers and the
            running ones have ended. To end the audit soon, raise it in every later call too.

    Raises:
        ConfigurationError: so many entries are gone that no counter can be compared; the preferred snapshot is
            unusable; this release cannot read the rules of the server or of the snapshot; or the span has a beginning,
            and no rules are published.
        KeyLost: a partition has lost its stream or a sentinel (see `lost_key`).
        ConsumerGroupMissing: a partition has a stream, but its live consumer group is missing.
        StreamError: 20,000 or more entries of a partition stayed pending, its stream was replaced, entries were trimmed
            while the stream was read (`EntriesTrimmed`), a node failed over while the records of dropped dead letters
            were read (`ScanBroken`), or a figure of a live ledger is damaged (`DamagedValue`). With `followed` also:
            dead letters were retried meanwhile; or counters differ, and the live topic, generation or rules changed
            meanwhile.
        ArchiveError, SnapshotError: the archive or the snapshot cannot be read; or the archive is of other data.
        CodecError: a row of the archive, or the record of a dropped dead letter, is damaged.
        EmbeddedServerError: the scratch server cannot be started, or has ended.
        redis.RedisError: one of the two servers does not reply, or rejects a command.
        OSError: a temporary file cannot be written.
    """
    with ExitStack() as stack:
        scratch = stack.enter_context(scratch_server("tally-audit-", "--appendonly", "no", "--save", ""))
        partitions = [
            PartitionAudit(client, scratch, deployment, rules, number, sources, span, sample, followed, show)
            for number in range(deployment.layout.partitions)
        ]
        threads = stack.enter_context(ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tallystream-audit"))
        found = sum_reports(threads.map(PartitionAudit.run, partitions))
    if found.unproved and not found.counters:
        raise ConfigurationError(
            "cannot compare any counter: the entries that the counters were made of are gone from "
            f"{found.scopes[0].stream} and the other streams. Name an archive that has them (--archive URL), or a "
            "snapshot (--snapshot URL)"
        )
    if followed is not None and (found.differences or found.uncertain):
        _ensure_unchanged(client, deployment, followed)
    return found


def _ensure_unchanged(client: redis.Redis, deployment: Deployment, followed: LiveRules) -> None:
    """Raise a `StreamError` if the live topic, generation or rules of a server are not those of `followed` any more.

    Raise it also if the number of the rules in `deployment`, which may be older, is not that of `followed`. The places
    at which the partitions began to follow the rules count too; recorded changes of the rules do not. The errors of
    `followed_rules` are raised too.
    """
    now = followed_rules(client, deployment.layout)
    is_same = now is not None and replace(now, changes=followed.changes) == followed
    if followed.number != deployment.revision or not is_same:
        raise StreamError(
            f"{deployment.layout.meta}: the rules, the topic or the generation changed meanwhile, so counters that "
            "differ may be right: run the command again"
        )
