"""Validates events before they enter the buffer: their form, and the rules of the deployment.

Subjects and metrics that were checked before are remembered, so that a common event costs its caller two look-ups.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DeploymentChanged, EventError
from tallystream.storage.keys import DEFAULT_PARTITIONS, partition_of
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_metric, check_text

if TYPE_CHECKING:
    import redis

    from tallystream.rules.metrics import Rules

UNROUTED: Final = -1
"""Route of an event while the number of partitions is not known."""

ANYWHERE: Final = -2
"""Route of a spread event: the buffer chooses its partition."""

_KNOWN_SUBJECTS: Final = 100_000
"""Most subjects remembered as checked, with their route; at this number all of them are forgotten."""

_RULES_AGE: Final = 10.0
"""Seconds after which the deployment, and so its rules, is read again."""

_MOST_UNCHECKED: Final = 1000
"""Most names of metrics that are remembered until the rules are known."""

_ALL_KNOW: Final = 3.0
"""Seconds within which every reader has read the deployment again; see `reading.deployment_cache.DEPLOYMENT_AGE`."""


_log: Final = logging.getLogger("tallystream")


class EventValidator:
    """Checks events against the stored rules, and returns their routes; safe across threads.

    `refresh` reads the rules from the server; the other methods do not wait for the server. `subject`, `metric` and
    `admit` check the parts of an event. The caller calls `subject` if `known` does not have the subject, `metric` if
    `metrics` does not have the metric, and `admit` if the value in `metrics` or the result of `metric` is true.

    Args:
        client: Client of the server that the events go to.
        partitions: Expected number of partitions at the first read, and the number of a new deployment; `None` for no
            expectation.
        namespace: First part of every key.

    Attributes:
        deployment: The deployment as it was last read; `None` before the first read.
        known: Checked subjects, in normal form, and the route of each (`Layout.routes`); emptied at 100,000 subjects,
            and when another topic becomes live.
        metrics: Checked metrics, which may be emitted; and for each whether `admit` must check its events one by one,
            because the rules may reject some of them, or spread them. Emptied when the rules change, or become known.
    """

    def __init__(self, client: redis.Redis, partitions: int | None, namespace: str) -> None:
        self._client = client
        self._partitions = partitions
        self._namespace = namespace
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self.deployment: Deployment | None = None
        self.known: dict[str, int] = {}
        self.metrics: dict[str, bool] = {}
        self._unchecked: set[str] = set()
        self._spread_seen: dict[str, float] = {}
        self.spread: frozenset[str] = frozenset()
        """The metrics whose events this producer spreads over the partitions.

        If a metric becomes spread while the producer works, it is added by the first `refresh` that reads the rules 3
        seconds or more after another one has found this.
        """

    def refresh(self) -> Deployment:
        """Return the deployment; read it again if the last read is over 10 seconds ago or `forget` was called.

        If the server has no deployment, store a new one without rules. If it had one, it was emptied: the new one then
        has as many partitions, because the data may be restored while this producer works. During a restore, return
        the deployment that was read before, for the next 10 seconds too. If the rules have changed, forget the checked
        metrics; if another topic is live, forget the checked subjects. If `metric` accepted an undeclared metric before
        the rules were known, log a warning: its events become dead letters.

        Raises:
            ConfigurationError: at the first read, the stored number of partitions is not the expected one, or the
                expected one is not 1 to 1,024; later, the number changed within a topic; or this release cannot read
                the stored deployment.
            DeploymentChanged: a restore has not finished, and this producer has not read the deployment before.
            KeyLost: the deployment was deleted, although workers have counted entries, or a key of it is lost; see
                `Deployment.create_or_load`.
            DamagedValue: the deployment has a stored value that tallystream never writes.
            redis.RedisError: the deployment cannot be read.
        """
        deployment = self.deployment
        if deployment is not None and self.is_fresh:
            return deployment
        # The expected number of partitions is checked once: a running system may be repartitioned.
        expected, known = self._partitions, DEFAULT_PARTITIONS
        if deployment is not None:
            expected, known = None, deployment.layout.partitions
        try:
            found = Deployment.create_or_load(self._client, expected, self._namespace, unless_stored=known)
        except DeploymentChanged:
            if deployment is None:
                raise
            self._read_at = time.monotonic()
            return deployment  # the restored data has as many partitions, and entries are appended during a restore
        with self._lock:
            if self.deployment is not None and found.layout.topic != self.deployment.layout.topic:
                self.known = {}
            elif self.deployment is not None and found.layout.partitions != self.deployment.layout.partitions:
                raise ConfigurationError("the stored number of partitions has changed: restart this producer")
            if self.deployment is None or found.declared != self.deployment.declared:
                self.metrics = {}
            now = self._read_at = time.monotonic()
            # A newly spread metric is spread only after a few seconds: readers may still use rules without it.
            seen = float("-inf") if self.deployment is None or self.deployment.declared is None else now
            spread = found.declared.spread if found.declared is not None else ()
            self._spread_seen = {metric: self._spread_seen.get(metric, seen) for metric in spread}
            self.spread = frozenset(metric for metric, at in self._spread_seen.items() if now - at >= _ALL_KNOW)
            self.deployment = found
            undeclared = self._take_undeclared()
        for metric in undeclared:
            _log.warning(
                "metric.undeclared metric=%s: its events become dead letters. Declare it, restart the worker, and run: "
                "tallystream dead retry --all",
                metric,
            )
        return found

    def _take_undeclared(self) -> list[str]:
        """Return the undeclared ones of the metrics that were accepted unchecked, and forget all of these metrics.

        While the rules are not known, do nothing and return an empty list.
        """
        if self.deployment is None or self.deployment.declared is None:
            return []
        unchecked, self._unchecked = self._unchecked, set()
        return sorted(unchecked - self.deployment.declared.metric.keys())

    @property
    def is_fresh(self) -> bool:
        """Whether `refresh` read the deployment in the last 10 seconds, or found a restore; false after `forget`."""
        read_at = self._read_at
        return read_at is not None and time.monotonic() - read_at <= _RULES_AGE

    def forget(self) -> None:
        """Make the next `refresh` read the deployment, however recent the last read is."""
        self._read_at = None

    def subject(self, subject: str) -> tuple[str, int]:
        """Check a subject that is not in `known`; return its normal form (Unicode NFC) and its route.

        A subject that is given in its normal form is added to `known`. Before the deployment was first read, the route
        is `UNROUTED`, and nothing is added.

        Raises:
            EventError: the subject is invalid.
        """
        given, subject = subject, check_text("subject", subject, MAX_SUBJECT_BYTES)
        while (deployment := self.deployment) is not None:
            layout = deployment.layout
            route = layout.routes[partition_of(subject, layout.partitions)]
            with self._lock:
                if self.deployment is not None and self.deployment.layout.topic != layout.topic:
                    continue  # another topic has become live meanwhile
                # Only the normal form is remembered: another spelling must be normalised each time.
                if given == subject:
                    if len(self.known) >= _KNOWN_SUBJECTS:
                        self.known = {}
                    self.known[subject] = route
                return subject, route
        return subject, UNROUTED

    def metric(self, metric: str) -> bool:
        """Check a metric that is not in `metrics`; return whether `admit` must check its events one by one.

        If the rules are not known, accept any valid name, and return `False`. The metric is added to `metrics`; while
        the rules are not known, only the first 1,000 are.

        Raises:
            EventError: the metric is invalid, or not declared; if not declared, the next `refresh` reads the rules
                again. The caller must arrange that `refresh` is called.
        """
        check_metric(metric)
        while True:
            rules, needs_check = self._rules, False
            if rules is not None:
                try:
                    rules.refuse_undeclared(metric)
                except EventError:
                    self.forget()
                    raise
                rule = rules.metric[metric]
                needs_check = rule.once is not None or rule.limit is not None or not rule.exact or rule.spread
            with self._lock:
                if self._rules != rules:
                    continue  # they were replaced meanwhile, and may not declare the metric
                if rules is None:
                    if len(self._unchecked) >= _MOST_UNCHECKED:
                        return False
                    self._unchecked.add(metric)
                self.metrics[metric] = needs_check
                return needs_check

    def admit(self, metric: str, amount: int, actor: str | None, id_: str | None, home: int) -> int:
        """Check the amount and the actor of an event whose metric needs a check of each event; return its route.

        Earlier events do not matter: an event beyond a limit is no error. While no rules are known, nothing is checked.
        The rules may be later ones than those that `metric` checked.

        Returns:
            `ANYWHERE` if the metric is in `spread` and the event has no id, otherwise `home`, the route of its subject.

        Raises:
            EventError: the rules of the metric do not allow this amount, or need an actor; or they do not declare the
                metric any more.
        """
        rules = self._rules
        if rules is not None:
            rules.refuse_undeclared(metric)
            rules.refuse(metric, amount, actor)
        return ANYWHERE if metric in self.spread and is_spreadable(id_) else home

    @property
    def _rules(self) -> Rules | None:
        return None if self.deployment is None else self.deployment.declared


def is_spreadable(id_: str | None) -> bool:
    """Return whether an event of a spread metric may be counted in any partition: true if `id_` is `None`.

    Events with the same id must be in the same partition, because a partition finds only its own repeated ids.
    """
    return id_ is None
