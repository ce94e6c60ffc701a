"""Audit: folds the log once more, elsewhere, and compares every live counter with what comes of it.

It begins with what `base` finds: all that was ever appended; or a snapshot, and the log behind it; or what is left of
the log, which proves the buckets that lie within it, see `span`. The scratch counters lie in an embedded server of
their own and are made by the same fold and the same rules, past any group. For each piece of the comparison the live
values are read together with what is applied to them; the scratch counters are brought to exactly that, and then the
two must be equal. So the audit holds still nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.connect import connect
from tallystream.errors import ConfigurationError
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.partition_audit import PartitionAudit
from tallystream_worker.rebuild.report import Report, sum_reports
from tallystream_worker.rebuild.scope import Span
from tallystream_worker.server.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules

_AT_ONCE: Final = 4
"""Partitions: while one waits for a server, another is folded."""


def audit(
    client: redis.Redis,
    deployment: Deployment,
    rules: Rules,
    *,
    sources: Sources = Sources(),  # noqa: B008  # frozen
    span: Span = Span(),  # noqa: B008
    sample: float = 1.0,
    show: Callable[[str, int, int], Any] = lambda *_: None,
) -> Report:
    """Audit every partition while events keep arriving.

    Args:
        client: The live server.
        deployment: What is stored there.
        rules: Those that the counters are to be counted by.
        sources: Where to find what the streams no longer hold.
        span: The buckets to compare; all of them and everything else where it has no bounds.
        sample: The share of the counters that is compared; everything is folded all the same.
        show: Is told the stream, the entries folded and the counters compared, now and then.

    Raises:
        ConfigurationError: so much of the log is gone that nothing can be compared, or the snapshot is of no use.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="tally-audit-", ignore_cleanup_errors=True))
        extra = ["--appendonly", "no", "--save", ""]
        server = stack.enter_context(EmbeddedServer(Path(folder), extra=extra))
        scratch = connect(server.url)
        stack.callback(scratch.close)
        partitions = [
            PartitionAudit(client, scratch, deployment, rules, number, sources, span, sample, show)
            for number in range(deployment.layout.partitions)
        ]
        threads = stack.enter_context(ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tallystream-audit"))
        found = sum_reports(threads.map(PartitionAudit.run, partitions))
    if found.unproved and not found.counters:
        raise ConfigurationError(
            f"{found.scopes[0].stream} and the others no longer hold the entries that their counters were made of, so "
            "nothing can be compared. Name an archive that has them (--archive URL), or a snapshot (--snapshot URL)"
        )
    return found
