"""Moves a live system's events to another number of partitions: into a new log, which then holds in place of the old.

While the old one takes events and counts them, they are copied and counted in the new one. When little is left, the
old one is closed: producers hold what comes, totals stand still. What is left is copied and counted, and `tally:meta`
points to the new log; a moment later everybody goes on there. Each step may be cut short and made again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.client.connect import connect
from tallystream.errors import ConfigurationError, StreamError
from tallystream_worker.ingest.offsets import keep_offsets
from tallystream_worker.process import failpoints
from tallystream_worker.repartition import alerts, topic
from tallystream_worker.repartition.catch_up import CatchUpCounter
from tallystream_worker.repartition.copy import HOLDER, StreamCopier

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.settings.settings import Settings

_NEAR: Final = 1000
"""Entries that may be left when the old log is closed: copied and counted in a fraction of a second."""

_PAGES: Final = 20
"""Pages that are copied between two countings."""


@dataclass(frozen=True)
class RepartitionProgress:
    """How far it is: `entries` of about `of` copied, and what is being done."""

    entries: int
    of: int
    stage: str = "copying"


class Repartition:
    """One repartition, into a log that is begun.

    Args:
        settings: What was configured.
        client: Where everything is.
        deployment: What is stored of the old log.
        layout: Where the new one lies.
        archive: URL of the old log's archive, `""` for none.
        rules: Those to count by; the live ones where none are given.
        accept_loss: Repartition although a part of the log is gone.
        show: Told of the progress, now and then.
    """

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        deployment: Deployment,
        layout: Layout,
        *,
        rules: Rules | None = None,
        archive: str = "",
        accept_loss: bool = False,
        show: Callable[[RepartitionProgress], Any] = lambda _: None,
    ) -> None:
        self._settings, self._client = settings, client
        self._old = deployment
        self.new = topic.begin(client, deployment, layout, rules or deployment.rules)
        """What is stored of the new log,"""
        self.rules = self.new.rules
        """and what it counts by."""
        self._accepts_loss = accept_loss
        self._has_archive = bool(archive)
        self._show = show
        self._copying = StreamCopier(
            client,
            deployment.layout,
            layout,
            deployment.rules.retracted,
            archive,
            spread=deployment.rules.spread,
            accept_loss=accept_loss,
        )
        self._of = 0

    def begin(self) -> None:
        """Keep the old log from being trimmed, and see that all of it is known.

        Raises:
            ConfigurationError: a part of it is gone, and no archive is named.
        """
        gone = 0
        for keys in self._old.layout.keys:
            self._client.hsetnx(keys.retention_holds, HOLDER, "0-0")
            if self._client.exists(keys.stream):
                about: dict[str, Any] = self._client.xinfo_stream(keys.stream)
                gone += int(about["entries-added"]) - int(about["length"])
                self._of += int(about["entries-added"])
        failpoints.reach("move-begun")
        self._copying.look()
        begun = any(self._copying.mark(source) != "0-0" for source in range(self._old.layout.partitions))
        if gone and not begun and not self._has_archive and not self._accepts_loss:
            raise ConfigurationError(
                f"{gone:,} entries are no longer in the streams, so the counters of other partitions would lack them. "
                "Name an archive that has them (--archive URL), or repartition without them (--accept-loss)"
            )

    def catch_up(self, counting: CatchUpCounter) -> None:
        """Copy and count until little is left."""
        while True:
            before = self._copying.entries
            self._copy(counting)
            counting()
            if self._copying.entries - before < _NEAR:
                failpoints.reach("move-caught-up")
                return

    def switch(self, counting: CatchUpCounter) -> None:
        """Close the old log, copy and count the rest of it, and let the new one hold.

        Raises:
            StreamError: the repartition was given up, or the rules changed since it began; the old log holds as before.
        """
        self._look()
        try:
            topic.close(self._client, self._old, self.new.layout)
            self._drain(counting)
        except BaseException:
            topic.reopen(self._client, self._old)  # nothing points to the new log yet: what is refused here is held
            raise
        # From here on it is for the next run to find out what holds, should this one be cut short.
        if not topic.activate(self._client, self._old, self.new.layout):
            topic.reopen(self._client, self._old)
            raise self._given_up()
        failpoints.reach("move-pointed")
        self._told("moved")

    def _drain(self, counting: CatchUpCounter) -> None:
        """Copy and count the closed log to its end."""
        failpoints.reach("move-closed")
        self._told("switching")
        self._copying()
        keep_offsets(self._client, self._old.layout, self.new.layout)
        alerts.carry(self._client, self.rules, self._old.layout, self.new.layout)
        failpoints.reach("move-copied")
        while counting.waiting:
            counting()
        failpoints.reach("move-counted")
        self._look()

    def _copy(self, counting: CatchUpCounter) -> None:
        pages = 0

        def show() -> None:
            nonlocal pages
            pages += 1
            self._told("copying")
            if pages % _PAGES == 0:
                failpoints.reach("move-copying")
                counting()
                self._copying.hold()

        self._copying(show)

    def _look(self) -> None:
        """See that the repartition is still wanted, and by these rules."""
        now = self._old.reload(self._client)
        if now.moving != self.new.layout.topic:
            raise self._given_up()
        if topic.without_retracted(now.rules) != topic.without_retracted(self._old.rules):
            raise StreamError(
                "the rules have changed since the repartition began, and what was counted by others would differ: "
                "give it up with tallystream rebuild --drop, then begin anew"
            )

    def _given_up(self) -> StreamError:
        return StreamError(f"the repartition to {self.new.layout.partitions} partitions was given up meanwhile")

    def _told(self, stage: str) -> None:
        self._show(RepartitionProgress(self._copying.entries, max(self._of, self._copying.entries), stage))


def repartition(
    settings: Settings,
    deployment: Deployment,
    partitions: int,
    *,
    rules: Rules | None = None,
    archive: str = "",
    accept_loss: bool = False,
    show: Callable[[RepartitionProgress], Any] = lambda _: None,
) -> Layout:
    """Move everything to another number of partitions; return where it lies then. See `Repartition` for the rest.

    Raises:
        ConfigurationError: the repartition cannot be begun; says why, and what to do.
        StreamError: it was given up, or must be.
        redis.RedisError: the server does not answer; begin again, and the repartition goes on where it was.
    """
    client = connect(settings.redis.url)
    try:
        layout = topic.propose(client, deployment, partitions)
        run = Repartition(
            settings, client, deployment, layout, rules=rules, archive=archive, accept_loss=accept_loss, show=show
        )
        run.begin()
        with CatchUpCounter(settings, run.new, run.rules) as counting:
            run.catch_up(counting)
            run.switch(counting)
    finally:
        client.close()
    return layout
