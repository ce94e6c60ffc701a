"""The parameter of every check: the server, the deployment, the sources and the report."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.rebuild.baseline import Sources
    from tallystream_worker.verify.report import Verification

_LATEST: Final = 253_402_300_799_000
"""The last millisecond that a date can have."""


@dataclass(frozen=True)
class Scene:
    """The parameter of every check.

    Attributes:
        client: The server; its replies are bytes.
        deployment: The deployment that is verified.
        sources: The archive and the snapshot; each may be missing.
        report: The report that the checks add to.
        sample: The share of the counters to compare with the entries, more than 0 and at most 1.
        show: Called now and then with the current step, from several threads. If it raises `Stopped`, the verification
            ends; a check must not suppress it.
    """

    client: Any
    deployment: Deployment
    sources: Sources
    report: Verification
    sample: float
    show: Callable[[str], Any]

    @property
    def rules(self) -> Rules:
        """The rules of the live generation."""
        return self.deployment.rules

    def streams(self) -> Iterator[tuple[int, PartitionKeys]]:
        """Yield the number and the keys of each partition of the live topic whose stream exists on the server.

        Raises:
            redis.RedisError: while iterating: the server does not reply, or rejects the command.
        """
        for number, keys in enumerate(self.deployment.layout.keys):
            if self.client.exists(keys.stream):
                yield number, keys


def utc(milliseconds: float) -> str:
    """Return a time in milliseconds since 1970 as text, such as `2026-01-31 23:59:59 UTC`.

    The time is rounded down to the second. A time after the year 9999, also infinity, gives the end of that year.
    """
    moment = dt.datetime.fromtimestamp(min(milliseconds, _LATEST) // 1000, dt.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
