"""Checks the position of the consumer group and the balance of the ledger, both of one moment, while events arrive.

At a checkpoint, an entry is either waiting (after the position of the group, or pending) or has its outcome. So the
ledger's `entries:settled` is the number of entries that were ever appended less those waiting, and its events balance
with the events that wait.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConsumerGroupMissing
from tallystream.reading.ledger import OUTCOMES
from tallystream.storage.keys import FIRST, STATED
from tallystream.storage.stored_values import stored_number
from tallystream.wire.codec import stated_events, was_decided, was_sequenced
from tallystream.wire.stream_id import id_text, parse_id
from tallystream_worker.counting.entry import Entry
from tallystream_worker.rebuild.checkpoint import Checkpoint, checkpoint
from tallystream_worker.rebuild.source import EntriesTrimmed, stream_entries
from tallystream_worker.verify.pages import pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tallystream.storage.keys import PartitionKeys
    from tallystream_worker.verify.scene import Scene

_TRIES: Final = 5
_WITH_METRIC: Final = ("counted", "rejected", "duplicate", "late")
_OF_THE_TOPIC: Final = ("appended", "plain", "entries:retired", "entries:gated")


@dataclass(frozen=True)
class PartitionAccount:
    """The figures of one partition at a checkpoint.

    Attributes:
        moment: The checkpoint.
        ledger: The ledger of the live generation, by field.
        topic: `appended`, `plain`, `entries:retired` and `entries:gated` of the topic's ledger.
        added: The number of entries that were ever appended to the stream.
        gone: How many of them the stream does not have any more.
        entries: The number of entries that wait for a worker: those after the position of the consumer group, and the
            pending ones that the stream has. Decided ones among them are counted already.
        events: The number of events in waiting entries that are in `appended` and have no outcome.
        is_stated: Whether a waiting entry that a script appended states an earlier time than that of its ID.
        vanished: IDs that are pending, and not in the stream.
    """

    moment: Checkpoint
    ledger: dict[str, int]
    topic: dict[str, int]
    added: int
    gone: int
    entries: int
    events: int
    is_stated: bool
    vanished: list[str]

    @property
    def is_empty(self) -> bool:
        """Whether the ledger has no field, although some entry that was appended does not wait any more."""
        return not self.ledger and self.added > self.entries

    @property
    def unsettled(self) -> int:
        """How many entries neither wait nor are in `entries:settled`; below 0 if some will get a second outcome."""
        return self.added - self.entries - self.ledger.get("entries:settled", 0)

    @property
    def removed(self) -> int:
        """How many entries are gone and are in neither `entries:retired` (retention) nor `entries:removed`.

        Below 0 if these two state more entries than are gone.
        """
        return self.gone - self.topic["entries:retired"] - self.ledger.get("entries:removed", 0)

    @property
    def skipped(self) -> int:
        """The part of `unsettled` that `removed` does not explain; below 0 if some will get a second outcome."""
        return self.unsettled - max(0, min(self.removed, self.unsettled))

    @property
    def plain(self) -> int | None:
        """The number that `entries:plain` must have; `None` if it is not known.

        It is known only if `entries`, `unsettled` and `removed` are 0.
        """
        if self.entries or self.unsettled or self.removed:
            return None
        return self.added - self.topic["entries:gated"]

    def unaccounted(self, generation: int) -> int:
        """Return the number of events that are appended, do not wait, and have no outcome; below 0 if too many have.

        `generation` is the number of the generation whose ledger this is.
        """
        appended = self.ledger.get("appended", 0)
        if generation != FIRST:
            appended += self.topic["appended"] - self.topic["plain"]
        outcomes = Counter[str]()
        for name, events in self.ledger.items():
            if "@" not in name:
                outcomes[name.partition(":")[0]] += events
        return appended - self.events - sum(outcomes[name] for name in OUTCOMES)

    def by_metric(self) -> Iterator[tuple[str, int]]:
        """Yield each outcome in the ledger that always has a metric, and the sum of its events of all metrics.

        An outcome is the name of a field without the metric, such as `counted`, or `rejected:` and the name of a rule.
        They are sorted.
        """
        sums, found = Counter[str](), set[str]()
        for name, events in self.ledger.items():
            outcome, of_metric, _ = name.partition("@")
            if outcome.partition(":")[0] in _WITH_METRIC:
                found.add(outcome)
                sums[outcome] += events if of_metric else 0
        yield from ((outcome, sums[outcome]) for outcome in sorted(found))


def check(scene: Scene) -> None:
    """Report entries that were skipped or will get a second outcome, and ledgers whose events do not balance.

    Also report a consumer group that is missing or ahead of its stream, a lost ledger, an outcome that is not the sum
    of its metrics, a wrong `entries:plain`, a lost mark of entries that state an earlier time, and pending entries that
    are gone from the stream. A partition without a fault is added as proved. Events without an outcome are not reported
    if entries are gone for another reason than retention: the check of the log reports these entries. If entries are
    trimmed faster than they can be read, or were removed before they were counted, the limits of the report state it.
    Partitions without a stream are left out.

    Raises:
        StreamError: 20,000 or more entries stayed pending, or the stream was deleted or replaced meanwhile.
        DamagedValue: a field of a ledger has a form that the server adds nothing to.
        redis.RedisError: the server does not reply, or rejects a command.
    """
    report = scene.report
    for _, keys in scene.streams():
        try:
            account = _settled(scene, keys)
        except ConsumerGroupMissing:
            report.find("group.missing", f"{keys.stream}: {keys.group}")
            continue
        if account is None:
            report.limit("accounts", f"{keys.stream}: entries were trimmed faster than they could be read")
            continue
        _note(scene, keys, account)


def _note(scene: Scene, keys: PartitionKeys, account: PartitionAccount) -> None:
    report, moment = scene.report, account.moment
    faults_before = report.faults
    if moment.delivered > moment.generated:
        report.find("group.ahead", f"{keys.stream}: {id_text(moment.delivered)} is after {id_text(moment.generated)}")
    for id_ in account.vanished:
        report.find("group.pending_gone", f"{keys.stream}: {id_}")
    if account.is_empty:
        report.lose(keys.ledger)
        report.explain("keys.lost")
        return
    if account.skipped:
        what = "were skipped" if account.skipped > 0 else "wait, although they have an outcome"
        report.find(
            "group.moved",
            f"{keys.stream}: {abs(account.skipped):,} entries {what}, by entries:settled in {keys.ledger}",
        )
    unaccounted = account.unaccounted(keys.generation)
    if unaccounted and not (unaccounted > 0 and account.removed > 0):
        report.find("ledger.unbalanced", f"{keys.ledger}: {unaccounted:+,} events")
    for outcome, events in account.by_metric():
        if (stated := account.ledger.get(outcome, 0)) != events:
            report.find(
                "ledger.differs", f"{keys.ledger}: {outcome} is {stated:,}, but its metrics add up to {events:,}"
            )
    stated, plain = account.ledger.get("entries:plain", 0), account.plain
    if plain is not None and stated != plain:
        report.find(
            "ledger.differs",
            f"{keys.ledger}: entries:plain is {stated:,}, but the stream has had {plain:,} such entries",
        )
    if account.is_stated and not scene.client.hexists(keys.sequences, STATED):
        report.lose_field(
            keys.sequences, STATED, f"Set it to the last ID of {keys.stream}, a space, and the earliest field t in it"
        )
    if trimmed := account.ledger.get("trimmed", 0):
        report.limit("accounts", f"{keys.ledger}: {trimmed:,} events that were removed before they were counted")
    counted = account.added - account.entries
    report.prove(
        "accounts",
        f"{keys.stream}: {counted:,} entries have one outcome, {account.entries:,} wait",
        faults_before=faults_before, stream=keys.stream, settled=counted, waiting=account.entries,
    )  # fmt: skip


def _settled(scene: Scene, keys: PartitionKeys) -> PartitionAccount | None:
    """Read the account until it balances, at most five times; return the last complete one, balanced or not.

    An account that does not balance is read again, because retention may have removed entries during the reading. A
    reading is not complete if an entry that waited at the checkpoint was trimmed before it was read. Return `None` if
    none was complete.

    Raises:
        ConsumerGroupMissing: the consumer group is missing.
        StreamError, DamagedValue, redis.RedisError: see `check`.
    """
    account: PartitionAccount | None = None
    for _ in range(_TRIES):
        found = _read(scene, keys)
        if found is None:
            continue
        account = found
        if not account.skipped and not account.vanished and not account.unaccounted(keys.generation):
            break
    return account


def _read(scene: Scene, keys: PartitionKeys) -> PartitionAccount | None:
    client = scene.client
    commands = [
        ("HGETALL", keys.ledger),
        ("HMGET", keys.topic_ledger, *_OF_THE_TOPIC),
        ("XINFO STREAM", keys.stream),
        ("GET", keys.begun),
    ]
    moment, (ledger, topic, about, begun) = checkpoint(client, keys, commands)
    begun_at = parse_id((begun or b"0-0").decode()) if keys.generation != FIRST else (0, 0)
    entries = events = 0
    is_stated = False

    def add(entry: Entry) -> None:
        nonlocal entries, events, is_stated
        entries += 1
        is_appended = was_sequenced(entry.fields) and parse_id(entry.id) > begun_at
        is_stated = is_stated or (was_sequenced(entry.fields) and b"t" in entry.fields)
        if is_appended and not was_decided(entry.fields, keys.generation):
            events += stated_events(entry.fields)

    try:
        for entry in stream_entries(client, keys, id_text(moment.delivered), id_text(moment.generated)):
            add(entry)
    except EntriesTrimmed:
        return None
    vanished: list[str] = []
    for page in pages(moment.pending):
        with client.pipeline(transaction=True) as pipeline:
            for id_ in page:
                pipeline.xrange(keys.stream, id_, id_)
                pipeline.xpending_range(keys.stream, keys.group, id_, id_, 1)
            replies = pipeline.execute()
        for id_, found, pending in zip(page, replies[::2], replies[1::2], strict=True):
            if found:
                add(Entry(id_, found[0][1]))
            elif pending:
                vanished.append(id_)
            else:
                return None
    return PartitionAccount(
        moment,
        {name: stored_number(keys.ledger, value, field=name) for name, value in _named(ledger)},
        {
            name: stored_number(keys.topic_ledger, value, field=name)
            for name, value in zip(_OF_THE_TOPIC, topic, strict=True)
        },
        about["entries-added"],
        about["entries-added"] - about["length"],
        entries,
        events,
        is_stated,
        vanished,
    )


def _named(fields: Mapping[bytes, bytes]) -> Iterator[tuple[str, bytes]]:
    return ((name.decode(errors="replace"), value) for name, value in fields.items())
