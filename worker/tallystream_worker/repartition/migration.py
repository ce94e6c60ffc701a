"""Repartitions a live deployment: copies its events into a new topic with another number of partitions, and switches.

The old topic takes and counts events while they are copied into the new one and counted there. When few are left, the
old topic is closed: producers buffer their events, and totals do not change. The rest is copied and counted, then
`tally:meta` points to the new topic, and a moment later all processes continue there. Each step can be interrupted and
repeated.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.errors import ConfigurationError, KeyLost, StreamError, TallyError
from tallystream.rules.metrics import publish
from tallystream_worker.ingest.offsets import keep_offsets
from tallystream_worker.process import failpoints
from tallystream_worker.process.barrier import confirm, last_step, step
from tallystream_worker.process.failover_watch import FailoverWatch
from tallystream_worker.rebuild.source import ensure_of_this_data
from tallystream_worker.repartition import alerts, topic
from tallystream_worker.repartition.catch_up import CatchUpCounter
from tallystream_worker.repartition.copy import CopiedElsewhere, StreamCopier
from tallystream_worker.repartition.reading_marks import HOLDER, ReadingMarks

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout
    from tallystream_worker.settings.settings import Settings

_NEAR: Final = 1000
"""Number of copied entries of one pass below which the old topic is closed; so few are left that it takes a moment."""

_PAGES: Final = 20
"""Pages that are copied before the copies are counted."""

_PATIENCE: Final = 20.0
"""Seconds in which at least one of the waiting copies must be counted."""

_AGAIN: Final = 0.1
"""Seconds between two attempts to count the waiting copies, if none was counted."""


@dataclass(frozen=True)
class RepartitionProgress:
    """Progress of a repartition.

    Attributes:
        entries: Number of entries that this run has copied.
        of: Approximate number of entries to copy in all, those of earlier runs included.
        stage: The current step: `copying`, `switching` or `moved`.
    """

    entries: int
    of: int
    stage: str = "copying"


class Repartition:
    """One repartition, into the new topic whose layout `topic.propose` returned: call `begin`, `catch_up`, `switch`.

    The constructor stores the new topic, unless an interrupted run has stored it. After an interruption, make a new
    object with the same layout, and call all three again.

    Args:
        settings: The configuration.
        client: The server of both topics.
        deployment: The deployment of the old topic.
        layout: The layout of the new topic.
        archive: URL of the old topic's archive, `""` for none.
        rules: The rules to count by; `None` for the live ones.
        accept_loss: Whether to repartition even if some entries are gone.
        show: Called with the progress after each full page of entries that `catch_up` copies; then once with the stage
            `switching`, and once with `moved`.

    Raises:
        ConfigurationError: the repartition was begun with other rules, keys of an earlier one with another number of
            partitions are left in the new topic, or no rules are published.
        KeyLost: a partition of the new topic, or its hash, has lost a key or a field.
        DamagedValue: a field of the hash of the new topic has a value that tallystream never writes.
        Unconfirmed, FailedOver: the new topic is not confirmed in time, or a node failed over.
        redis.RedisError: the server does not reply, or rejects a command.
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
        # A barrier alone shows no failover: the new primary confirms what it has. So each step of the repartition also
        # checks that no node has failed over since the begin, before what was written is relied on.
        self._failovers = FailoverWatch(client, deployment.layout, layout)
        self.new = topic.begin(client, deployment, layout, rules or deployment.rules)
        """The deployment of the new topic."""
        self._confirm("the new topic is begun")
        self.rules = self.new.rules
        """The rules that the new topic is counted by."""
        self._accepts_loss = accept_loss
        self._archive = archive
        self._show = show
        self._copying = StreamCopier(
            client,
            deployment.layout,
            layout,
            deployment.rules.retracted,
            archive,
            spread=deployment.rules.spread,
            accept_loss=accept_loss,
            reading=ReadingMarks(client, deployment.layout, layout.topic, self._confirm),
            confirm=self._confirm,
        )
        self._of = 0

    def begin(self) -> None:
        """Place a retention hold on each stream of the old topic, so that no entry is trimmed before it is copied.

        Raises:
            ConfigurationError: entries of a partition of which nothing was copied before are gone, no archive is named,
                and no loss is accepted; the URL of the archive cannot be used; or this release cannot read the stored
                data. The holds stay.
            ArchiveError: such entries are gone, and the archive is of other data or cannot be read. The holds stay.
            ImportError: such entries are gone, an archive is named, and the package pyarrow is not installed. The holds
                stay.
            CodecError: the record of a dropped dead letter is damaged. The holds stay.
            StreamError: the repartition was given up, and the holds are removed again, unless another one has begun;
                a node failed over while the dropped dead letters were read (`ScanBroken`); or see `ensure_current`. The
                holds stay after any other error.
            redis.RedisError: the server does not reply, or rejects a command; some holds may be placed.
        """
        for keys in self._old.layout.keys:
            # Also if there is a hold: one that an earlier repartition has left protects only entries after its mark.
            self._client.hset(keys.retention_holds, HOLDER, "0-0")
        now = self._old.reload(self._client)
        # Holds that nothing removes would stop all trimming. If another run has made the new topic live, the holds
        # stay, because workers still copy from the old one.
        if now.moving is None and now.layout.topic == self._old.layout.topic:
            topic.remove_holds(self._client, self._old)
        self.ensure_current()
        failpoints.reach("move-begun")
        self._copying.look()
        gone = 0
        for source, keys in enumerate(self._old.layout.keys):
            if self._client.exists(keys.stream):
                about: dict[str, Any] = self._client.xinfo_stream(keys.stream)
                if self._copying.mark(source) == "0-0":
                    gone += int(about["entries-added"]) - int(about["length"])
                self._of += int(about["entries-added"])
        if gone and not self._archive and not self._accepts_loss:
            raise ConfigurationError(
                f"{gone:,} entries are no longer in the streams, so the new counters would lack them. "
                "Name an archive that has them (--archive URL), or repartition without them (--accept-loss)"
            )
        if gone and self._archive:
            ensure_of_this_data(self._archive, self._old)

    def catch_up(self, counting: CatchUpCounter) -> None:
        """Copy and count until one pass over the streams copies fewer than 1,000 entries, and every copy is counted.

        Args:
            counting: Counts the new topic.

        Raises:
            StreamError: entries wait, and none was counted for 20 seconds; or see `StreamCopier` and `CatchUpCounter`.
            Unconfirmed, ArchiveError, CodecError, ConfigurationError, ImportError, redis.RedisError: see `StreamCopier`
                and `CatchUpCounter`.

        Any other error of `CountingLoop.run_once` is raised too. Entries that were copied stay copied.
        """
        while True:
            before = self._copying.entries
            self._copy(counting)
            counting()
            if self._copying.entries - before < _NEAR:
                _count_all(counting)  # an entry that cannot be counted must not keep the old topic closed
                failpoints.reach("move-caught-up")
                return

    def switch(self, counting: CatchUpCounter) -> None:
        """Close the old topic, copy and count the rest of its entries, and make the new topic live.

        This waits until every copy is counted. If closing, copying or counting fails, the old topic is opened again,
        unless another run has closed it. If a server does not answer or rejects a command, partitions of the old topic
        may stay closed until the next run; if a partition has lost a key, until it is repaired.

        If a node fails while the new topic becomes live, this is tried again for 30 seconds.

        Args:
            counting: Counts the new topic.

        Raises:
            Unconfirmed: the copies, or the switch, were not confirmed in time; the old topic is live, or the new one.
            StreamError: the repartition was given up, another run continued it, the rules changed since it began, a
                node failed over meanwhile, entries are missing, copies wait and none was counted for 20 seconds,
                (`KeyLost`) a partition has lost a key, (`DamagedValue`) a stored value has a form that tallystream
                never writes, or (`DeploymentChanged`) the data was deleted or replaced.
            ArchiveError, CodecError: an archive cannot be read or written, or a row of it is damaged; the old topic is
                live.
            ConfigurationError: this release cannot read the stored data, or the URL of an archive cannot be used; the
                old topic is live.
            redis.RedisError: the server did not answer, or rejected a command; the new topic may be live or not.

        Any other error of `CountingLoop.run_once` is raised too; then the old topic is live.
        """
        self.ensure_current()
        closing = topic.next_closing(self._client, self._old)
        try:
            drained = "the events are copied and counted, and the old topic is live"
            with step(self._client, self._old, drained, also=self.new.layout):
                topic.close(self._client, self._old, self.new.layout, closing)
                self._drain(counting)
            self.ensure_current()
        except BaseException as cause:
            # The old topic is still live, and producers kept what it refused; or another run has closed it.
            try:
                topic.reopen(self._client, self._old, closing)
            except (TallyError, RedisError) as error:
                raise error from cause
            raise
        # If this run is interrupted from here on, the next run finds out which topic is live.
        last_step(partial(self._activate, closing))
        self._told("moved")

    def _activate(self, closing: int) -> None:
        """Make the new topic live, if the old one is still closed by `closing`; a repeated call changes nothing more.

        If the rules have changed, a partition of the old topic is open, or the repartition was given up, open the old
        topic again. After any other error, it is not opened here.

        Raises:
            StreamError: the repartition was given up, another run continued it, the rules changed, or a failover has
                opened a partition of the old topic, which is live.
            FailedOver, Unconfirmed: the new topic is live, but a node may lose that, or has lost it.
            DeploymentChanged, KeyLost, DamagedValue, ConfigurationError: see `ensure_current`.
            redis.RedisError: a server does not reply, or rejects a command; the new topic may be live or not.
        """
        with step(self._client, self._old, "the new topic is live", also=self.new.layout):
            now = self._old.reload(self._client)
            if now.layout.topic != self.new.layout.topic:
                try:
                    self._ensure_same_rules(now)
                    topic.ensure_closed(self._client, self._old, closing)
                except StreamError:
                    topic.reopen(self._client, self._old, closing)
                    raise
            if not topic.activate(self._client, self._old, self.new.layout, closing):
                topic.reopen(self._client, self._old, closing)
                raise self._given_up()
            failpoints.reach("move-pointed")

    def _drain(self, counting: CatchUpCounter) -> None:
        """Copy all that is left in the closed topic, also ingest offsets and alert states, and count it.

        Call `show` with the stage `switching` first. Whether the repartition is still current is not checked: the
        caller must call `ensure_current` afterwards. The errors are those of `switch`.
        """
        failpoints.reach("move-closed")
        self._told("switching")
        self._copying.look()  # a failover may have taken copies back, and their marks with them
        self._copying()
        keep_offsets(self._client, self._old.layout, self.new.layout)
        alerts.carry(self._client, self.rules, self._old.layout, self.new.layout)
        failpoints.reach("move-copied")
        _count_all(counting)
        failpoints.reach("move-counted")

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

    def _confirm(self, written: str) -> None:
        """Wait until all that was written has the durability of the deployment; make sure that no node failed over.

        Raises:
            Unconfirmed, FailedOver, redis.RedisError: see `confirm` and `FailoverWatch.ensure_none`.
        """
        confirm(self._client, self._old, written, also=self.new.layout)
        self._failovers.ensure_none(written)

    def ensure_current(self) -> None:
        """Raise a `StreamError` if the repartition was given up, or the live rules have changed.

        The rules are compared with those of the deployment that this object was made with. Also raise the error if the
        repartition has ended (the new topic is live), with the same text as if it was given up.

        Raises:
            FailedOver: a node failed over since this object was made, and may have lost a part of what was copied or
                recorded.
            StreamError: one of these, or (`DeploymentChanged`) the data was deleted or replaced, (`KeyLost`) the hash
                of the live topic is lost, or (`DamagedValue`) a stored value has a form that tallystream never writes.
            ConfigurationError: this release cannot read the stored data.
            redis.RedisError: the server does not reply, or rejects a command.
        """
        self._failovers.ensure_none("entries are copied")
        now = self._old.reload(self._client)
        if now.moving != self.new.layout.topic:
            raise self._given_up()
        self._ensure_same_rules(now)

    def _ensure_same_rules(self, now: Deployment) -> None:
        if publish(now.rules) != publish(self._old.rules):
            raise StreamError(
                "cannot finish the repartition, because the rules have changed since it began: give it up with "
                "tallystream rebuild --drop, then repartition again"
            )

    @property
    def has_copied(self) -> bool:
        """Whether this run has copied entries."""
        return bool(self._copying.entries)

    def _given_up(self) -> StreamError:
        return StreamError(f"the repartition to {self.new.layout.partitions} partitions was given up meanwhile")

    def _told(self, stage: str) -> None:
        self._show(RepartitionProgress(self._copying.entries, max(self._of, self._copying.entries), stage))


def _count_all(counting: CatchUpCounter) -> None:
    """Count until no copy waits.

    Raises:
        StreamError: copies wait, and none was counted for 20 seconds; or see `CatchUpCounter`.
        ArchiveError, CodecError, ConfigurationError, redis.RedisError: see `CatchUpCounter`.

    Any other error of `CountingLoop.run_once` is raised too.
    """
    until = time.monotonic() + _PATIENCE
    while waiting := counting.waiting:
        if counting():
            until = time.monotonic() + _PATIENCE
        elif time.monotonic() > until:
            raise StreamError(
                f"cannot finish the repartition: {counting.obstacle()}. In {_PATIENCE:g} seconds, none of the copies "
                f"that wait was counted; their number is {waiting:,}. The old streams stay live. Remove the cause, and "
                "run the command again; or give the repartition up: tallystream rebuild --drop"
            )
        else:
            time.sleep(_AGAIN)


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
    """Copy all events into a new topic with `partitions` partitions, make it live, and return its layout.

    The old topic is kept until `topic.drop` removes it. `partitions` must be 1 to 1,024: any other number begins a
    repartition that can only be given up (see `topic.propose`). See `Repartition` for the other arguments. A call after
    an interruption continues the same repartition. If a call that begins a repartition is refused before it copies
    entries, because the configuration or an archive cannot be used, the repartition is given up, if that succeeds.
    After any other error, it may be unfinished, or finished (see below). If it is unfinished, call again, or give it up
    with `topic.give_up`. If giving up was interrupted, the old topic is reopened first.

    Raises:
        ConfigurationError: the repartition cannot begin, the URL of an archive cannot be used, or this release cannot
            read the stored data; the message states the remedy.
        StreamError: the repartition was given up, the rules changed, entries are missing, copies wait and none was
            counted for 20 seconds, another process copies the same entries, a node failed over meanwhile, a key is lost
            (`KeyLost`), a stored value has a form that tallystream never writes (`DamagedValue`), or the data was
            replaced (`DeploymentChanged`). After `KeyLost`, a partition of the old topic may stay closed.
        Unconfirmed: a step was not confirmed in time. If the new topic is not live yet, call again to continue.
        ArchiveError, CodecError: an archive cannot be read or written, or a row of it or the record of a dropped dead
            letter is damaged; call again to continue.
        ImportError: an archive is named or configured, and the package pyarrow is not installed.
        redis.RedisError: the server did not answer, and the old topic may stay closed. If the new topic is not live
            yet, call again to continue.

    After `Unconfirmed`, a failover or a `redis.RedisError`, the new topic may be live already: read the deployment
    again. If it is, only its confirmation may be missing (see `confirm`), and another call raises a
    `ConfigurationError`, because the old topic is kept.

    Any other error of `CountingLoop.run_once` is raised too.
    """
    client = connect(settings.redis.url)
    try:
        topic.reopen_if_settled(client, deployment)
        with step(client, deployment, "the new topic has a number"):  # no key of the topic is written before
            layout = topic.propose(client, deployment, partitions)
        run: Repartition | None = None
        try:
            run = Repartition(
                settings, client, deployment, layout, rules=rules, archive=archive, accept_loss=accept_loss, show=show
            )
            run.begin()
            with CatchUpCounter(settings, run.new, run.rules) as counting:
                run.catch_up(counting)
                run.switch(counting)
        except (KeyLost, CopiedElsewhere):
            if run is not None:
                run.ensure_current()  # the keys of a topic that was given up are removed
            raise
        except (TallyError, ImportError) as error:
            has_copied = run is not None and run.has_copied
            if deployment.moving is None and not has_copied and _is_refusal(error):
                with suppress(TallyError, RedisError):  # a refused repartition is not an unfinished one
                    topic.give_up(client, deployment.reload(client))
            raise
    finally:
        client.close()
    return layout


def _is_refusal(error: Exception) -> bool:
    """Return whether an error is a `ConfigurationError`, `ImportError` or `ArchiveError`."""
    if isinstance(error, (ConfigurationError, ImportError)):
        return True
    try:
        from tallystream_worker.archive.store import ArchiveError  # noqa: PLC0415  # pyarrow is an extra
    except ImportError:
        return False
    return isinstance(error, ArchiveError)
