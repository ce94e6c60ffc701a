"""Builds a generation of counters next to the live one, and switches to it when it has caught up.

Each step can be interrupted and repeated: the generation's own consumer group and marks record what is counted.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec.structs import replace
from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.errors import ConfigurationError, KeyLost, StreamError, TallyError
from tallystream.rules.metrics import publish
from tallystream.storage.deployment_hash import parse_live, spread_fields
from tallystream.storage.keys import FIRST, FIRST_TOPIC
from tallystream.storage.scripts import Script
from tallystream.storage.sentinels import begun_of
from tallystream.wire.stream_id import parse_id
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.counting.refreshing_fold import RefreshingFold
from tallystream_worker.dead_letters.store import dropped
from tallystream_worker.process import failpoints
from tallystream_worker.process.barrier import last_step, step
from tallystream_worker.process.description import note
from tallystream_worker.process.publisher import publisher
from tallystream_worker.rebuild.backfill import Backfill
from tallystream_worker.rebuild.describe import counted_generations
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.source import archived_entries, ensure_of_this_data
from tallystream_worker.rebuild.turn import Overtaken, take_turn

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from tallystream.deployment import Deployment
    from tallystream.rules.metrics import Rules
    from tallystream_worker.counting.dropped import DroppedLetter
    from tallystream_worker.counting.outcome import BatchResult
    from tallystream_worker.settings.settings import Settings

_PROPOSE: Final = Script("tallystream_worker.rebuild", "propose")
_BEGIN: Final = Script("tallystream_worker.rebuild", "begin")
_SWITCH: Final = Script("tallystream_worker.rebuild", "switch")
_PROMOTE: Final = Script("tallystream_worker.rebuild", "promote")

_CONSUMER: Final = "rebuild"
_PAGE: Final = 256
_MOST_TRIES: Final = 1_000_000
"""Deliveries after which an entry is dead-lettered. An interrupted rebuild leaves entries pending that it never tried
to count, so deliveries alone must not dead-letter an entry."""

_FOLLOWING: Final = 1.0

CLAIM_IDLE: Final = 1.0
"""Seconds after which an entry that is still pending in the generation's group is claimed. Workers leave such entries
when a generation stops being live; `rebuild --undo` counts them."""

SWITCH_TIMEOUT: Final = 60.0
"""Seconds after which the switch of one partition fails, if the new generation still lacks entries that the live one
has counted."""


def propose(client: redis.Redis, deployment: Deployment, rules: Rules) -> int:
    """Return the number of the generation to build by `rules`; reserve a new one unless one is being built already.

    Retractions in `rules` are replaced by those of the deployment. The number has the durability of the deployment
    when this returns.

    Raises:
        ConfigurationError: a repartition is running, a generation is being built by other rules, an old generation is
            still kept, the removal of the generation that is being built has begun, partitions count a generation of
            which the server has no record, `rules` no longer spread a metric whose events are spread, no rules are
            published, or this release cannot read the stored data.
        DeploymentChanged: the data was deleted or replaced, or a restore has not finished.
        KeyLost: the stored deployment is not complete.
        DamagedValue: a stored value has a form that tallystream never writes.
        Unconfirmed, FailedOver: the number was not confirmed in time, or a node failed over meanwhile. Call again.
        redis.RedisError: the server does not reply, or rejects a command; a number may be reserved. Call again.
    """
    rules = replace(rules, retracted=deployment.rules.retracted)  # is no setting: retracted events stay retracted
    _refuse_unready(client, deployment, rules)
    with step(client, deployment, "the new generation has a number"):  # no key of the generation is written before
        answer, *found = _PROPOSE(client, [deployment.layout.meta], [publish(rules)])
    if answer == b"gone":
        deployment.reload(client)  # states why
        raise KeyLost(deployment.layout.meta)
    (number,) = found
    if answer == b"other":
        raise _is_built_otherwise(int(number))
    if answer == b"dropping":
        raise _being_removed(int(number))
    if answer == b"kept":
        raise _is_kept(int(number))
    return int(number)


def ensure_proposable(client: redis.Redis, deployment: Deployment, rules: Rules) -> None:
    """Raise the error with which `propose` would refuse to reserve a new number for `rules`, if any; change nothing.

    Do not call it to continue a generation that is being built: it raises an error, although `propose` continues it.

    Raises:
        ConfigurationError, DeploymentChanged, KeyLost, DamagedValue, redis.RedisError: see `propose`.
    """
    _refuse_unready(client, deployment, rules)
    if deployment.building is not None:
        raise _is_built_otherwise(deployment.building)
    if deployment.others:
        raise _is_kept(min(deployment.others))


def _refuse_unready(client: redis.Redis, deployment: Deployment, rules: Rules) -> None:
    """Raise an error if no generation can be built by `rules`, whatever other generations are stored.

    The errors are those of `propose`.
    """
    if deployment.moving is not None:
        raise ConfigurationError(
            "cannot build a generation while a repartition is running: let it finish, or give it up with: "
            "tallystream rebuild --drop"
        )
    deployment.refuse_gathering(rules)
    _refuse_unrecorded(client, deployment)


def _is_built_otherwise(generation: int) -> ConfigurationError:
    return ConfigurationError(
        f"generation {generation} is being built by other rules: continue with the configuration that it was begun "
        "with, or give it up with: tallystream rebuild --drop"
    )


def _is_kept(generation: int) -> ConfigurationError:
    return ConfigurationError(
        f"generation {generation} is still kept: switch back to it with tallystream rebuild --undo, or remove it with "
        "tallystream rebuild --drop"
    )


def _being_removed(generation: int) -> ConfigurationError:
    """Return the error that a generation cannot be used any more, because its removal has begun."""
    return ConfigurationError(
        f"generation {generation} is being removed, so parts of it are missing: finish the removal first with "
        "tallystream rebuild --drop"
    )


def _refuse_unrecorded(client: redis.Redis, deployment: Deployment) -> None:
    """Raise a `ConfigurationError` if partitions count a generation whose number the server may reserve again.

    A failover has lost that it was reserved. The new generation would take the counters of the lost one for its own,
    which were counted by other rules. Do nothing if another topic is live. The other errors are those of
    `Deployment.reload`.
    """
    counted = counted_generations(client, deployment.layout)
    now = deployment.reload(client)  # after the groups: a group exists only while the record exists
    if now.layout.meta != deployment.layout.meta:
        return  # another topic is live now
    newest = int(client.hget(now.layout.meta, "newest") or FIRST)
    if unrecorded := {each for each in counted if each > max(newest, now.generation)}:
        raise ConfigurationError(
            f"the partitions count in generation {min(unrecorded)}, of which the server has no record any more: a "
            "failover has lost it. Run tallystream rebuild --drop, then run the command again"
        )


@dataclass(frozen=True)
class RebuildProgress:
    """Progress of a rebuild.

    Attributes:
        entries: Number of entries that this run has counted.
        of: Approximate number of entries that this run had to count when it began. Entries that are lost are included:
            if their loss is accepted, `entries` stays below this number.
    """

    entries: int
    of: int


class Rebuild:
    """Counts a generation that is not live, and switches to it; a context manager that closes its connections.

    It takes a turn when it is entered (see `take_turn`), unless it is given that of its command: from then on, every
    command that changes generations and began earlier is refused. A later one ends this one with `Overtaken`.

    Call `begin`, `catch_up` and `switch`, in this order. After an interruption, make a new object and call all three
    again, `begin` included: it also reads what the others need. Leave out `begin` only for a generation that was live
    before and is kept, as `rebuild --undo` does.

    Args:
        settings: The configuration.
        deployment: The deployment that the generation belongs to.
        generation: The number of the generation: the one that is being built (see `propose`), or one that is kept.
        archive: URL of the archive, `""` for none.
        accept_loss: Whether to continue if some entries are neither in the streams nor in the archive.
        turn: The number that `take_turn` returned for the command; `None` to take one when the object is entered.

    Raises:
        ConfigurationError: the generation has no stored rules, and none are published; or the URL of the server cannot
            be used.

    When it is entered, it also raises the errors of `take_turn`, and a `ConfigurationError` if the removal of the
    generation has begun.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: Deployment,
        generation: int,
        *,
        archive: str = "",
        accept_loss: bool = False,
        turn: int | None = None,
    ) -> None:
        self.turn = turn
        self._deployment = deployment
        self._generation = generation
        self._archive = archive
        self._accept_loss = accept_loss
        self.stopping = threading.Event()
        """Ends `catch_up` early when set; `switch` does not check it."""
        self._counted = [0] * deployment.layout.partitions
        self._partitions = [_Partition(self, settings, number) for number in range(deployment.layout.partitions)]
        self._is_new = False
        """Whether the generation began with this object, and not in an interrupted run."""

    def begin(self) -> None:
        """Create the consumer group of the generation in each partition, unless the generation has begun there before.

        Trimming then spares the entries that the generation has not counted. A group that was deleted after the
        generation began is not created again. After an error other than a `redis.RedisError`, the generation is removed
        if it is the one that is being built and had not begun anywhere before the call; if the removal fails, it stays.

        Raises:
            ConfigurationError: entries are gone from the streams, no archive is named, and no loss is accepted; or the
                URL of the archive cannot be used.
            ArchiveError: entries are gone from the streams, and the archive is of other data or cannot be read.
            ImportError: the archive is needed, and the package pyarrow is not installed.
            KeyLost: a partition has lost a key.
            Overtaken: another command that changes generations, or a restore, has begun since.
            StreamError: a node failed over while the records of dropped dead letters were read.
            CodecError: the record of a dropped dead letter is damaged.
            redis.RedisError: the server does not reply, or rejects a command; call again.
        """
        has_begun = any(partition.has_begun() for partition in self._partitions)
        self._is_new = self._deployment.building == self._generation and not has_begun
        try:
            for partition in self._partitions:
                partition.begin()
            failpoints.reach("rebuild-begun")
            gone = sum(partition.gone for partition in self._partitions)
            if gone and not self._archive and not self._accept_loss:
                raise ConfigurationError(
                    f"{gone:,} entries are no longer in the streams, so the new counters would lack them. Name an "
                    "archive that has them (--archive URL), or count without them (--accept-loss)"
                )
            if gone and self._archive:
                ensure_of_this_data(self._archive, self._deployment)
        except (TallyError, ImportError):
            self._leave_nothing()
            raise

    def catch_up(self, show: Callable[[RebuildProgress], Any] = lambda _: None) -> None:
        """Count every entry that this generation has not counted: those gone from the streams, then those in them.

        Return when all partitions have caught up, or soon after `stopping` is set; a normal return does not tell which.
        The entries that are gone are read from the archive, if there is one. An entry that fails alone stays pending:
        then `switch` fails. Nothing is counted in a partition in which the generation is live already. If one partition
        fails, the error is raised after the others have ended.

        A generation that this object has begun is removed, if that succeeds, in two cases: entries are missing at the
        end, no loss is accepted, and `stopping` was not set; or this raises an `ArchiveError` or `ConfigurationError`
        although an archive is named, before it has counted an entry.

        Args:
            show: Called with the progress every 0.1 seconds, and once at the end, unless a partition has failed. If it
                raises an error before the end, `stopping` is set, and the error is raised when all partitions have
                stopped.

        Raises:
            StreamError: entries that are gone from the streams are not counted at the end (the archive lacks them, or
                `stopping` was set), and no loss is accepted; another rebuild counts archived entries of the same
                generation; (`KeyLost`) a partition has lost a key; or (`DamagedValue`) the live generation of a
                partition has a value that tallystream never writes.
            ArchiveError, CodecError: the archive cannot be read, a file of it is missing, or a row is damaged.
            ConfigurationError: the URL of the archive cannot be used.
            ImportError: archived entries are needed, and the package pyarrow is not installed.
            redis.RedisError: the server does not reply, or rejects a command.

        Entries that were counted before the error stay counted. Any error of `CountingLoop.run_once` is raised too.
        """
        of = sum(partition.waiting() for partition in self._partitions)
        with ThreadPoolExecutor(len(self._partitions), thread_name_prefix="tallystream-rebuild") as threads:
            running = [threads.submit(partition.catch_up) for partition in self._partitions]
            try:
                while not all(each.done() for each in running):
                    show(RebuildProgress(sum(self._counted), of))
                    time.sleep(0.1)
            except BaseException:
                self.stopping.set()
                raise
        try:
            for each in running:
                each.result()
        except TallyError as error:
            if self._is_of_archive(error) and not sum(self._counted):
                self._leave_nothing()
            raise
        show(RebuildProgress(sum(self._counted), of))
        missing = sum(partition.missing() for partition in self._partitions)
        if missing > 0 and not self._accept_loss:
            if not self.stopping.is_set():
                self._leave_nothing()
            raise StreamError(
                f"{missing:,} entries are neither in the streams nor in the archive: the new counters lack them. "
                f"Name another archive, or count without them (--accept-loss){self._set_aside()}"
            )
        failpoints.reach("rebuild-caught-up")

    def follow(self, partition: int) -> None:
        """Count the entries that one partition lacks, after `catch_up`; for about a second if more arrive all the time.

        Return earlier if `stopping` is set. Any error of `CountingLoop.run_once` is raised.
        """
        self._partitions[partition].follow(time.monotonic() + _FOLLOWING)

    def switch(self) -> None:
        """Make the generation the live one: first in each partition, then in the topic's hash, which readers follow.

        Entries that the generation still lacks are counted before its partition switches.

        Raises:
            Overtaken: another command that changes generations has begun since.
            Unconfirmed: the switch was not confirmed in time.
            ConfigurationError: this release cannot read the stored data.
            StreamError: the generation did not catch up with the live one within about 60 seconds in a partition, or a
                third generation is live, or the partition is closed, or a node failed over meanwhile, or (`KeyLost`)
                the partition has lost a key, or (`DamagedValue`) a stored value has a form that tallystream never
                writes, or (`DeploymentChanged`) the data was deleted or replaced.
            redis.RedisError: the server does not reply, or rejects a command, as it does if the generation was removed.

        If the topic's hash cannot be changed because a node fails, this is tried again for 30 seconds.

        Any error of `CountingLoop.run_once` is raised too. After an error, partitions that have switched stay switched,
        even if readers do not follow yet: call it again.
        """
        client = self._partitions[0].client
        with step(client, self._deployment, f"the partitions count in generation {self._generation}"):
            for partition in self._partitions:
                partition.switch()
                failpoints.reach("rebuild-switching")
        # To end in doubt would be wrong: if an operator runs `rebuild --undo` again after it has succeeded, it goes
        # back to the other generation.
        last_step(partial(self._promote, client))
        failpoints.reach("rebuild-switched")

    def _promote(self, client: redis.Redis) -> None:
        """Make the generation live in the topic's hash, if all partitions are in it.

        A repeated call changes nothing more.

        Raises:
            StreamError: a partition is in another generation, or (`Overtaken`) another command has begun since, and
                the hash is unchanged; or see `step` and `Deployment.reload`.
            ConfigurationError: see `Deployment.reload`.
            Unconfirmed, redis.RedisError: see `step`.
        """
        number, layout = self._generation, self._deployment.layout
        check = "check with tallystream verify that all partitions are in this generation"
        with step(client, self._deployment, f"generation {number} is live", check):
            # In the step, which notices a failover after this check.
            found = self._deployment.reload(client)
            if gone_back := [keys.stream for keys in found.layout.keys if keys.generation != number]:
                again = "tallystream rebuild" if found.generation == number else "the command again"
                raise StreamError(
                    f"{gone_back[0]}: a failover has undone the switch to generation {number} in this partition: run "
                    f"{again}, which switches it again"
                )
            note(client, self._deployment, spread_fields(self._deployment.rules_of(number).spread))
            (answer,) = _PROMOTE(client, [layout.meta, layout.rule_changes], [number, publisher(), self.turn])
            if answer == b"overtaken":
                raise Overtaken

    def _set_aside(self) -> str:
        """Return a text on entries in files `*.parquet.lost`, which are not read; `""` if none are known."""
        if not self._archive:
            return ""
        from tallystream_worker.archive.store import Store  # noqa: PLC0415  # pyarrow is an extra

        layout = self._deployment.layout
        with suppress(TallyError):
            store = Store(self._archive, layout.namespace, layout.topic)
            if any(store.set_aside(number) for number in range(layout.partitions)):
                return (
                    ". The archive has entries in files *.parquet.lost, which a rebuild leaves out: tallystream verify "
                    "states whether they count now"
                )
        return ""

    def _is_of_archive(self, error: TallyError) -> bool:
        """Return whether an archive is named, and an error is an `ArchiveError` or a `ConfigurationError`."""
        if not self._archive:
            return False
        from tallystream_worker.archive.store import ArchiveError  # noqa: PLC0415  # pyarrow is an extra

        return isinstance(error, (ArchiveError, ConfigurationError))

    def _leave_nothing(self) -> None:
        """Remove the generation if this object has begun it: a refused rebuild is not an unfinished one.

        If the removal fails, or another command has begun since, no error is raised, and the generation stays.
        """
        if self._is_new:
            client = self._partitions[0].client
            with suppress(TallyError, RedisError):
                drop(client, self._deployment.reload(client), self._generation, self.turn)

    def told(self, partition: int, entries: int) -> None:
        """Add `entries` to the number of entries counted in a partition, for the progress."""
        self._counted[partition] += entries

    def __enter__(self) -> Self:
        try:
            self._take_turn()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _take_turn(self) -> None:
        """Take a turn, unless there is one, and make sure that no removal of the generation began before it."""
        client = self._partitions[0].client
        if self.turn is None:
            self.turn = take_turn(client, self._deployment)
        if self._generation in self._deployment.reload(client).dropping:
            raise _being_removed(self._generation)

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for partition in self._partitions:
            partition.close()

    @property
    def source(self) -> tuple[Deployment, int, str]:
        """The deployment, the number of the generation that is counted, and the URL of the archive (`""` for none)."""
        return self._deployment, self._generation, self._archive


class _Partition:
    def __init__(self, rebuild: Rebuild, settings: Settings, number: int) -> None:
        deployment, generation, self._archive = rebuild.source
        self._deployment = deployment
        self._rebuild = rebuild
        self._number = number
        self._max_keys = settings.worker.max_keys
        self._layout = deployment.layout.of(generation)
        self._present = deployment.layout.keys[number]
        self._keys = self._layout.keys[number]
        self._rules = deployment.rules_of(generation)
        self._dropped: dict[str, list[DroppedLetter]] = {}
        self._reading, self.client = connect(settings.redis.url), connect(settings.redis.url)
        self._consumer: CountingLoop | None = None
        self.gone = 0
        self._first: str | None = None

    def close(self) -> None:
        self._reading.close()
        self.client.close()

    def has_begun(self) -> bool:
        return bool(self.client.exists(self._keys.begun))

    def begin(self) -> None:
        names = [self._keys.stream, self._keys.begun, self._keys.ledger, self._keys.topic_ledger, self._keys.gone]
        answer, *places = _BEGIN(self.client, names, [self._keys.group, self._rebuild.turn])
        if answer == b"overtaken":
            raise Overtaken
        begun, outlived = places
        gone, _, first = outlived.decode().partition(" ")
        self.gone = int(gone)
        # An empty stream has lost every entry up to `begun`; the group of the generation gets those after it.
        self._first = first or _after(begun.decode())
        # Nothing is dropped while a second generation exists: see drop.lua.
        self._dropped = dropped(self.client, self._keys)

    def waiting(self) -> int:
        groups = self.client.xinfo_groups(self._keys.stream)
        lags = (int(group["lag"] or 0) for group in groups if group["name"].decode() == self._keys.group)
        return sum(lags) + max(0, self.missing())

    def missing(self) -> int:
        """Return how many entries were gone from the stream when the generation began, and are not counted in it.

        Return 0 before `begin`, and for a generation with a lower number than the live one: it counted them before they
        were trimmed. A result below 0 means that none is missing.
        """
        if self._keys.generation < self._present.generation or not self.gone:
            return 0
        return self.gone - int(self.client.hget(self._keys.ledger, "entries:backfilled") or 0)

    def catch_up(self) -> None:
        if self._is_live():
            return  # an earlier run has switched; the workers count here, and only they evaluate alerts
        if self._archive and self.missing() > 0:
            self._backfill()
        failpoints.reach("rebuild-filled")
        while not self._rebuild.stopping.is_set() and self._step():
            pass

    def follow(self, deadline: float) -> None:
        if not self._is_live():
            while not self._rebuild.stopping.is_set() and time.monotonic() < deadline and self._step():
                pass

    def _is_live(self) -> bool:
        live: bytes | None = self.client.execute_command("GET", self._keys.live)
        if live is None:
            return self._keys.topic == FIRST_TOPIC and self._keys.generation == FIRST
        return parse_live(live, self._keys.live)[0] == self._keys.generation

    def _backfill(self) -> None:
        begun = begun_of(self.client, self._keys)
        fold = Fold(
            self._layout,
            self._number,
            self._rules,
            max_keys=self._max_keys,
            begun=begun,
            watching=False,
            dropped=self._dropped,
        )
        backfill = Backfill(self.client, self._keys, fold)
        mark = backfill.mark
        page = []
        # Entries from `_first` on are counted from the stream, even if the archive has them too.
        for entry in archived_entries(self._archive, self._keys, self._number, mark, self._first):
            page.append(entry)
            if len(page) == _PAGE:
                mark = self._count(backfill, page, mark)
                page = []
            if self._rebuild.stopping.is_set():
                return
        self._count(backfill, page, mark)

    def _count(self, backfill: Backfill, page: list[Any], mark: str) -> str:
        return backfill(
            page, mark, lambda entry: entry.id, lambda folded: self._rebuild.told(self._number, len(folded.ids))
        )

    def _step(self) -> int:
        if self._consumer is None:
            begun = begun_of(self.client, self._keys)
            fold = partial(
                Fold,
                self._layout,
                self._number,
                max_keys=self._max_keys,
                max_deliveries=_MOST_TRIES,
                begun=begun,
                watching=False,
                dropped=self._dropped,
            )
            self._consumer = CountingLoop(
                self.client,
                self._layout,
                self._number,
                Fetch(self._reading, self._keys, _CONSUMER, claim_idle=CLAIM_IDLE),
                RefreshingFold(
                    self._rules,
                    fold,
                    lambda _: self._deployment.reload(self.client).numbered_rules_of(self._keys.generation),
                ),
                [self._tell],
                live_only=False,
            )
        return self._consumer.run_once()

    def _tell(self, outcome: BatchResult) -> None:
        self._rebuild.told(self._number, outcome.entries)

    def switch(self) -> None:
        deadline = time.monotonic() + SWITCH_TIMEOUT
        present, keys = self._present, self._keys
        revision = self._deployment.revision_of(keys.generation)
        arguments = [present.generation, present.group, keys.generation, keys.group, revision]
        while True:
            (answer,) = _SWITCH(self.client, [keys.stream, keys.live, keys.sequences], [*arguments, self._rebuild.turn])
            if answer == b"switched":
                return
            if answer == b"overtaken":
                raise Overtaken
            if answer == b"other":
                raise StreamError(f"{keys.stream}: cannot switch, because another rebuild made a third generation live")
            if time.monotonic() > deadline:
                raise StreamError(
                    f"{keys.stream}: the new counters did not catch up with the live ones within {SWITCH_TIMEOUT:g} "
                    "seconds; try again when fewer events arrive"
                )
            self._step()


def _after(stream_id: str) -> str:
    milliseconds, number = parse_id(stream_id)
    return f"{milliseconds}-{number + 1}"
