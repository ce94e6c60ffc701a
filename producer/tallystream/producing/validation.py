"""Admission: which events may enter, judged by their own form and by what is stored where they go.

What has been checked before is remembered, so that the common event costs its caller three look-ups.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, EventError
from tallystream.storage.keys import partition_of
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_metric, check_text

if TYPE_CHECKING:
    import redis

UNROUTED: Final = -1
"""The route of a subject while the number of partitions is not known."""

ANYWHERE: Final = -2
"""The route of an event that any partition may count: the buffer chooses."""

_KNOWN_SUBJECTS: Final = 100_000
"""Subjects remembered as checked, with their partition; beyond it the memory is begun anew."""

_RULES_AGE: Final = 10.0
"""Seconds after which the published rules are read again."""

_ALL_KNOW: Final = 3.0
"""Seconds within which every reader has read them again: see `totals.DEPLOYMENT_AGE`."""


class EventValidator:
    """Checks events against what is stored; safe across threads.

    `known` maps a subject that is in normal form to its route (`Layout.routes`), `metrics` holds the names that may be
    emitted, and `needs_check` those among them whose events `admit` has to look at: the rules have no place for some,
    or they are spread.

    Args:
        client: Where the events go.
        partitions: How many partitions the caller expects; `None` takes what is stored.
        namespace: The first part of every key.
    """

    def __init__(self, client: redis.Redis, partitions: int | None, namespace: str) -> None:
        self._client = client
        self._partitions = partitions
        self._namespace = namespace
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self.deployment: Deployment | None = None
        self.known: dict[str, int] = {}
        self.metrics: set[str] = set()
        self.needs_check: set[str] = set()
        self._spread_seen: dict[str, float] = {}
        self.spread: frozenset[str] = frozenset()
        """The metrics whose events are spread over the partitions."""

    def refresh(self) -> Deployment:
        """Return what is stored, reading it again where the last look is too old.

        Raises:
            ConfigurationError: it disagrees with what the caller expects, or with what was found before.
            redis.RedisError: it cannot be read.
        """
        deployment = self.deployment
        if deployment is not None and self.is_fresh:
            return deployment
        # What the caller expects is checked once: a live system may be moved to another number of partitions.
        found = Deployment.create_or_load(
            self._client, self._partitions if deployment is None else None, self._namespace
        )
        with self._lock:
            if self.deployment is not None and found.layout.topic != self.deployment.layout.topic:
                self.known = {}
            elif self.deployment is not None and found.layout.partitions != self.deployment.layout.partitions:
                raise ConfigurationError("the number of partitions changed under this producer: start it anew")
            if self.deployment is None or found.declared != self.deployment.declared:
                self.metrics = set()
                self.needs_check = set()
            now = self._read_at = time.monotonic()
            # Where others may still go by rules without it, a metric is spread from a later look on.
            seen = float("-inf") if self.deployment is None or self.deployment.declared is None else now
            spread = found.declared.spread if found.declared is not None else ()
            self._spread_seen = {metric: self._spread_seen.get(metric, seen) for metric in spread}
            self.spread = frozenset(metric for metric, at in self._spread_seen.items() if now - at >= _ALL_KNOW)
            self.deployment = found
        return found

    @property
    def is_fresh(self) -> bool:
        """Whether the last look is recent enough."""
        read_at = self._read_at
        return read_at is not None and time.monotonic() - read_at <= _RULES_AGE

    def forget(self) -> None:
        """Make the next refresh look, however recent the last one is."""
        self._read_at = None

    def subject(self, subject: str) -> tuple[str, int]:
        """Check a subject that is not known; return its normal form and its route, or `UNROUTED`.

        Raises:
            EventError: it breaks a rule.
        """
        given, subject = subject, check_text("subject", subject, MAX_SUBJECT_BYTES)
        deployment = self.deployment
        if deployment is None:
            return subject, UNROUTED
        route = deployment.layout.routes[partition_of(subject, deployment.layout.partitions)]
        # Only the normal form is remembered: a spelling that needs normalising must come here each time.
        if given is subject or given == subject:
            with self._lock:
                if len(self.known) >= _KNOWN_SUBJECTS:
                    self.known = {}
                self.known[subject] = route
        return subject, route

    def metric(self, metric: str) -> None:
        """Check a metric that is not known.

        Raises:
            EventError: it breaks a rule, or is not declared; then the next refresh looks whether it is by now.
        """
        check_metric(metric)
        rules = None if self.deployment is None else self.deployment.declared
        if rules is None:
            return
        try:
            rules.refuse_undeclared(metric)
        except EventError:
            self.forget()
            raise
        rule = rules.metric[metric]
        if rule.once is not None or rule.limit is not None or not rule.exact or rule.spread:
            self.needs_check.add(metric)
        self.metrics.add(metric)

    def admit(self, metric: str, amount: int, actor: str | None, id_: str | None, home: int) -> int:
        """Return the route for an event of a needs_check metric: `home`, its subject's, or `ANYWHERE`.

        Raises:
            EventError: the rules have no place for it; says which field is at fault.
        """
        rules = None if self.deployment is None else self.deployment.declared
        if rules is not None:
            rules.refuse(metric, amount, actor)
        return ANYWHERE if metric in self.spread and is_spreadable(id_) else home


def is_spreadable(id_: str | None) -> bool:
    """Tell whether an event of a spread metric may leave its subject's home: copies of an id must meet there."""
    return id_ is None
