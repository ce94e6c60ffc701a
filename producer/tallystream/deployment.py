"""Creates or reads the deployment of a namespace: its partitions, rules, live topic and generation, and epoch.

See `tallystream.storage.deployment_hash` for the hash that they are read from.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, Self

from redis.exceptions import RedisError

from tallystream.client.error_text import text_of
from tallystream.client.replies import is_unreachable
from tallystream.errors import (
    BRING_BACK,
    ConfigurationError,
    DamagedValue,
    DeploymentChanged,
    KeyLost,
    NothingDeclared,
)
from tallystream.rules.metrics import Rules, read
from tallystream.storage.deployment_hash import (
    DURABILITY,
    RESTORING,
    by_number,
    fields_of,
    live_topic,
    lost_field,
    lost_field_of_root,
    number,
    parse_live,
    spread_metrics,
    whole_number,
)
from tallystream.storage.keys import DEFAULT_PARTITIONS, FIRST, FIRST_TOPIC, LAYOUT, Layout
from tallystream.storage.scripts import Script
from tallystream.storage.sentinels import open_partitions, was_counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import redis

    from tallystream.client.durability import Durability

_INIT: Final = Script("tallystream.storage", "init_deployment")


@dataclass(frozen=True)
class Deployment:
    """The state of one namespace at the time when it was read; it never changes: `reload` returns a new object.

    `load` and `find` read it, and `create_or_load` also stores a new deployment if none is stored.
    A producer or a reader may start before the first worker. If the rules are not stored yet, `declared` is `None`; if
    nothing is stored yet, `epoch` is empty, too, and `layout` has 4 partitions, or as many as a reader expects.

    Attributes:
        layout: The keys of the live topic and its live generation; never missing.
        epoch: Name of the data. A new deployment gets a new one; a rebuild or a repartition does not change it. A
            restore sets that of the snapshot, and `reopen` may set a new one. Empty if no deployment is stored yet.
        declared: The rules of `generation`; `None` until a worker has published them. See `rules`.
        revision: The number of `declared`: different rules never have the same number. 0 until they are published.
        generation: The live generation of the topic; during a switch, also by `rebuild --undo`, some partitions may
            already use another generation (`layout.generations`).
        others: By generation, the rules of each other generation that is stored: one that is being built, or is kept.
        revisions: By generation, the number of the rules in `others`.
        was_rebuilt: Whether a rebuild has ever begun in this topic.
        building: The generation that a rebuild is building now; `None` if none is.
        dropping: The generations whose removal has begun, and not ended: they are incomplete.
        earlier: By number of each earlier topic, its number of partitions.
        kept: The number of the earlier topic whose streams and counters are still stored; `None` if there is none.
        moving: The number of the topic that a repartition is filling now, to replace the live topic; `None` if none is.
        spread: The metrics whose events may be in any partition.
        clock_ahead: By how many seconds the server's clock was ahead of this host's monotonic clock when a reader read
            the deployment; `None` if no reader has read it. Reads of ranges use the server's clock.
        removed: By kind and metric (`hour:view`, `unique:view`, `limit:call`), the end in seconds of the last period
            that workers removed; empty until a reader reads it. Reads state buckets up to it as missing, also those
            that are open again, because the server's clock was ahead or `retention` was raised. Also has the marks of
            changed rules (see `tallystream.rules.parts`).
        unreachable: By number of each partition that could not be read, because its node does not answer, the error.
            If it did not answer when the deployment was read, its generation in `layout` is `generation`, and `removed`
            lacks its periods.
        durability: The place that writes must have reached before a `tallystream` command takes its next step, or a
            worker its next batch: the memory of the server (`memory`), a `replica`, or the server's disk (`fsync`).
    """

    layout: Layout
    epoch: str = ""
    declared: Rules | None = None
    revision: int = 0
    generation: int = FIRST
    others: Mapping[int, Rules] = field(default_factory=dict)
    revisions: Mapping[int, int] = field(default_factory=dict)
    was_rebuilt: bool = False
    building: int | None = None
    dropping: frozenset[int] = frozenset()
    earlier: Mapping[int, int] = field(default_factory=dict)
    kept: int | None = None
    moving: int | None = None
    spread: frozenset[str] = frozenset()
    clock_ahead: float | None = None
    removed: Mapping[str, int] = field(default_factory=dict)
    unreachable: Mapping[int, str] = field(default_factory=dict)
    durability: Durability = "memory"

    @classmethod
    def create_or_load(
        cls,
        client: redis.Redis,
        partitions: int | None = None,
        namespace: str = "tally",
        *,
        unless_stored: int = DEFAULT_PARTITIONS,
    ) -> Self:
        """Return the stored deployment; if none is stored, store a new one, whose rules are not published yet.

        The partitions of a new deployment are opened before it is stored (see `lua/lib/sentinels.lua`). So if a
        partition of a stored deployment has no keys, it has lost them. If two processes create deployments with
        different numbers of partitions at the same time, one is stored. The other process gets the stored one, or an
        error if it stated `partitions`; the partitions that only this process has opened stay unused.

        Args:
            client: Client of the server.
            partitions: Expected number of partitions, and the number of a new deployment; `None` accepts the stored
                number.
            namespace: First part of every key.
            unless_stored: The number of partitions of a new deployment if `partitions` is `None`.

        Raises:
            KeyLost: no deployment is stored, but the partitions that a new one would have show that one was (entries
                were counted, a partition is closed, a later generation is live, or a key is lost); or the hash of the
                live topic is lost, or a field without which the deployment cannot be read.
            ConfigurationError: the stored number of partitions is not `partitions`, `partitions` (if it is `None`:
                `unless_stored`) is not 1 to 1,024, or this release cannot read the stored layout version or rules.
            DeploymentChanged: a restore has not finished.
            DamagedValue: a field, or the live generation of a partition, has a value that tallystream never writes.
            redis.RedisError: the server does not answer, or refuses a command; some partitions may be open.
        """
        wanted = Layout(unless_stored if partitions is None else partitions, namespace)
        if stored := client.execute_command("HGETALL", wanted.root):  # it may be lost from now on: do not create it
            return cls._of_root(client, stored, partitions, namespace)
        if any(was_counted(client, keys) for keys in wanted.keys):
            raise KeyLost(wanted.root)
        open_partitions(client, wanted)
        flat = [part for field in fields_of(wanted, uuid.uuid4().hex).items() for part in field]
        answer, *present = _INIT(client, [wanted.root], flat)
        if answer == b"created":
            # The server may have been emptied since the partitions were opened; nothing was counted since then.
            open_partitions(client, wanted)
        return cls._of_root(client, dict(zip(present[::2], present[1::2], strict=True)), partitions, namespace)

    @classmethod
    def load(cls, client: redis.Redis, namespace: str = "tally") -> Self:
        """Return the stored deployment, with its rules; write nothing.

        Raises:
            ConfigurationError: no deployment is stored, no worker has published its rules yet, or this release cannot
                read the stored layout version or rules.
            KeyLost: the hash of the live topic is lost, or a field without which the deployment cannot be read.
            DeploymentChanged: a restore has not finished.
            DamagedValue: a field, or the live generation of a partition, has a value that tallystream never writes.
            redis.RedisError: the server does not answer, or refuses a command.
        """
        found = cls.find(client, namespace)
        found.ensure_declared()
        return found

    @classmethod
    def find(cls, client: redis.Redis, namespace: str = "tally", *, in_part: bool = False) -> Self:
        """Return the stored deployment; if none is stored, one with 4 partitions and `is_stored` false. Write nothing.

        Args:
            client: The server.
            namespace: First part of every key.
            in_part: Whether to let the deployment have `unreachable` partitions if nodes of a cluster do not answer.
                Partitions are read only if there was a rebuild in the live topic; otherwise none is `unreachable`.

        Raises:
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost: the hash of the live topic is lost, or a field without which the deployment cannot be read.
            DeploymentChanged: a restore has not finished.
            DamagedValue: a field, or the live generation of a partition, has a value that tallystream never writes.
            redis.RedisError: the server does not answer, or refuses a command. With `in_part`, only if the node of a
                hash that describes the deployment does not answer, or a node refuses a command.
        """
        nothing = cls(Layout(namespace=namespace))
        root = client.execute_command("HGETALL", nothing.layout.root)
        return cls._of_root(client, root, None, namespace, in_part=in_part) if root else nothing

    @classmethod
    def _of_root(
        cls,
        client: redis.Redis,
        root: Mapping[bytes, bytes],
        partitions: int | None,
        namespace: str,
        *,
        in_part: bool = False,
    ) -> Self:
        live = live_topic(root, namespace)
        fields = root if live.topic == FIRST_TOPIC else client.execute_command("HGETALL", live.meta)
        found = cls.parse(fields, partitions, namespace, root)
        if not found.was_rebuilt:
            return found
        with client.pipeline(transaction=False) as pipeline:
            for keys in found.layout.keys:
                pipeline.get(keys.live)
            replies = pipeline.execute(raise_on_error=not in_part)
        unreachable = {number: text_of(reply) for number, reply in enumerate(replies) if is_unreachable(reply)}
        for reply in replies:
            if isinstance(reply, RedisError) and not is_unreachable(reply):
                raise reply
        values = [None if number in unreachable else reply for number, reply in enumerate(replies)]
        return found.with_live(values).lacking(unreachable)

    @classmethod
    def parse(
        cls,
        fields: Mapping[bytes, bytes],
        partitions: int | None = None,
        namespace: str = "tally",
        root: Mapping[bytes, bytes] | None = None,
    ) -> Self:
        """Return the deployment that the hashes of the live and of the first topic describe; send nothing.

        Its layout uses `generation` in every partition; `with_live` sets the live generation of each.

        Args:
            fields: The fields of the hash of the live topic.
            partitions: Expected number of partitions; `None` does not check it.
            namespace: First part of every key.
            root: The fields of the hash of the first topic; `None` if the first topic is live.

        Raises:
            ConfigurationError: the stored number of partitions is not `partitions`, or this release cannot read the
                stored layout version or rules.
            KeyLost: the hash of the live topic is lost, or a field without which the deployment cannot be read.
            DeploymentChanged: a restore has not finished.
            DamagedValue: a field has a value that tallystream never writes.
        """
        root = fields if root is None else root
        live = live_topic(root, namespace)
        if RESTORING.encode() in root:
            raise DeploymentChanged(
                f"{live.root}: a restore is replacing the counters, and has not finished: try again when it has. If it "
                "was interrupted, run it again: tallystream restore"
            )
        if not fields:
            raise KeyLost(live.meta)
        if (lost := lost_field(fields)) is not None:
            raise KeyLost(live.meta, field=lost)
        if (lost := lost_field_of_root(root)) is not None:
            raise KeyLost(live.root, field=lost)
        layout = fields[b"layout"].decode(errors="replace")
        if layout != str(LAYOUT):
            raise ConfigurationError(
                f"{live.meta} has layout version {layout}, but this release reads and writes {LAYOUT}: "
                f"{_remedy(layout)}"
            )
        found = whole_number(fields[b"partitions"], "partitions")
        if partitions is not None and partitions != found:
            since = "was created with" if live.topic == FIRST_TOPIC else "was repartitioned to"
            raise ConfigurationError(
                f"partitions is set to {partitions}, but {live.root} {since} {found}. "
                f"Set partitions = {found}, or remove the setting. To change the stored number, start a worker, and "
                f"run: tallystream rebuild --partitions {partitions}"
            )
        rules, generation, spread = fields.get(b"rules"), number(fields, b"generation"), spread_metrics(fields)
        return cls(
            Layout(found, namespace, topic=live.topic).of(generation or FIRST),
            _text_of(fields[b"epoch"], "epoch", live.meta),
            None if rules is None else read(rules).spreading(spread),
            number(fields, b"revision") or 0,
            generation or FIRST,
            {other: read(text).spreading(spread) for other, text in by_number(fields, b"rules@").items()},
            {other: whole_number(text, f"revision@{other}") for other, text in by_number(fields, b"revision@").items()},
            was_rebuilt=generation is not None,
            building=number(fields, b"building"),
            dropping=frozenset(by_number(fields, b"dropping@")),
            earlier={
                topic: whole_number(count, f"partitions@{topic}")
                for topic, count in by_number(root, b"partitions@").items()
            },
            kept=number(root, b"kept"),
            moving=number(root, b"moving"),
            spread=spread,
            durability=durability_of(root),
        )

    def lacking(self, unreachable: Mapping[int, str]) -> Self:
        """Return a copy with further `unreachable` partitions; the object itself if it has all of them already.

        `unreachable` is, as in the attribute, the error by number of the partition.
        """
        if unreachable.keys() <= self.unreachable.keys():
            return self
        return replace(self, unreachable={**self.unreachable, **unreachable})

    @cached_property
    def in_reach(self) -> Self:
        """A copy of this object, with a layout by which queries leave out the partitions of `unreachable`."""
        return replace(self, layout=replace(self.layout, unreachable=frozenset(self.unreachable)))

    @property
    def is_stored(self) -> bool:
        """Whether the deployment was stored in the server when it was read."""
        return bool(self.epoch)

    @property
    def rules(self) -> Rules:
        """`declared`, the rules of the live generation, but never `None`.

        Raises:
            NothingDeclared: no worker has published them yet.
        """
        if self.declared is None:
            self.ensure_stored()
            raise NothingDeclared(
                "no metrics are declared here yet: start a worker (tallystream worker), which publishes the rules. If "
                f"the server has lost its data, {BRING_BACK}"
            )
        return self.declared

    def rules_of(self, generation: int) -> Rules:
        """Return the rules by which the events of a generation are counted.

        A generation without stored rules has those of the live generation, `rules`.

        Raises:
            ConfigurationError: the generation has no stored rules, and no worker has published `rules` yet.
        """
        return self.rules if generation == self.generation else self.others.get(generation) or self.rules

    def revision_of(self, generation: int) -> int:
        """Return the number of the rules that `rules_of` returns for a generation; 0 if they have none."""
        return self.revisions.get(generation, 0) if generation in self.others else self.revision

    def numbered_rules_of(self, generation: int) -> tuple[Rules, int]:
        """Return the rules by which the events of a generation are counted, and their number (0 if they have none).

        Raises:
            ConfigurationError: the generation has no stored rules, and no worker has published `rules` yet.
        """
        return self.rules_of(generation), self.revision_of(generation)

    def ensure_declared(self) -> None:
        """Raise `NothingDeclared` if no worker has published the rules yet."""
        _ = self.rules

    def ensure_stored(self) -> None:
        """Raise `NothingDeclared` if the deployment was not stored in the server when it was read."""
        if not self.is_stored:
            raise NothingDeclared(
                f"no deployment is stored: {self.layout.root} does not exist. If it never did, start a worker "
                f"(tallystream worker). If the server has lost its data, {BRING_BACK}"
            )

    def reload(self, client: redis.Redis, *, in_part: bool = False) -> Self:
        """Read the deployment again and return a new object: only its namespace and epoch are surely the same.

        Its `clock_ahead` is `None`, and its `removed` is empty. With `in_part`, it may have `unreachable` partitions:
        see `find`.

        Raises:
            DeploymentChanged: the data was deleted or replaced (the stored epoch is missing or differs), a restore has
                not finished, or this deployment was not stored and one is stored now.
            ConfigurationError: this release cannot read the stored layout version or rules.
            KeyLost: the hash of the live topic is lost, or a field without which the deployment cannot be read.
            DamagedValue: a field, or the live generation of a partition, has a value that tallystream never writes.
            redis.RedisError: the server does not answer, or refuses a command.
        """
        found = self.find(client, self.layout.namespace, in_part=in_part)
        if found.epoch != self.epoch:
            raise self._changed(found.epoch)
        return found

    def ensure_same(self, client: redis.Redis) -> None:
        """Check with one command that the stored hash of this topic still has this deployment's epoch.

        It does not check whether this topic is still the live one.

        Raises:
            DeploymentChanged: the data was deleted or replaced, this topic was removed, or `is_stored` is false. For
                the first topic, also if a restore has not finished: the message then states that the hash was deleted.
            redis.RedisError: the server does not answer, or refuses the command.
        """
        epoch: bytes | None = client.execute_command("HGET", self.layout.meta, "epoch")
        if epoch != self.epoch.encode():
            raise self._changed((epoch or b"").decode())

    def _changed(self, epoch: str) -> DeploymentChanged:
        return DeploymentChanged(
            f"{self.layout.meta} was {'replaced' if epoch else 'deleted'}: this is not the data that this process "
            "started with. To use the data that is stored now, restart the process. To continue with the earlier data, "
            f"{BRING_BACK}"
        )

    def refuse_gathering(self, rules: Rules) -> None:
        """Raise an error if new rules turn `spread` off for a metric whose events may be in any partition.

        A metric that the rules do not declare is no error.

        Args:
            rules: The rules that are to be published.

        Raises:
            ConfigurationError: the rules declare such a metric without `spread = true`.
        """
        if gathered := sorted((self.spread & rules.metric.keys()) - rules.spread):
            name = gathered[0]
            raise ConfigurationError(
                f"[metric.{name}] spread: events of {name} are in every partition of this topic, so a total cannot be "
                f"read from one partition. Keep spread = true in [metric.{name}], or move the events to a new topic "
                "with this configuration: tallystream rebuild"
            )

    @property
    def is_half_switched(self) -> bool:
        """Whether a partition counts in another generation than `generation`, and no generation is being built.

        A failover of its node has undone the switch there, or a switch to a kept generation is under way or was
        interrupted.
        """
        return self.building is None and any(keys.generation != self.generation for keys in self.layout.keys)

    @property
    def now(self) -> float:
        """The present by the server's clock, in seconds since 1970; by this host's clock if `clock_ahead` is `None`."""
        return time.time() if self.clock_ahead is None else time.monotonic() + self.clock_ahead

    def with_live(self, live: Sequence[bytes | None]) -> Self:
        """Return a copy of this deployment whose layout has the live generation of each partition.

        Args:
            live: For each partition, in order, the value of its key `PartitionKeys.live`: only the generation in it is
                used, also if the partition is closed. `None` if the partition has lost the key, or was not read: then
                the layout has `generation`. Scripts and reads raise `KeyLost` if the key is lost.

        Raises:
            DamagedValue: a value does not begin with a whole number.
        """
        generations = tuple(
            self.generation if each is None else parse_live(each, keys.live)[0]
            for keys, each in zip(self.layout.keys, live, strict=True)
        )
        return replace(self, layout=replace(self.layout, generations=generations))

    @property
    def earlier_layouts(self) -> list[Layout]:
        """The layouts of all earlier topics, oldest first, also removed ones; with the keys of the first generation."""
        namespace = self.layout.namespace
        return [Layout(partitions, namespace, topic=topic) for topic, partitions in sorted(self.earlier.items())]

    @property
    def kept_layout(self) -> Layout | None:
        """The layout of the kept earlier topic, with the keys of its first generation; `None` if no topic is kept."""
        return None if self.kept is None else self.layout_of(self.kept)

    def layout_of(self, topic: int) -> Layout | None:
        """Return the layout of an earlier topic, with the keys of its first generation.

        Args:
            topic: Number of the topic.

        Returns:
            The layout, also of a topic that was removed; `None` if no earlier topic has this number.
        """
        partitions = self.earlier.get(topic)
        return None if partitions is None else Layout(partitions, self.layout.namespace, topic=topic)


def durability_of(root: Mapping[bytes, bytes]) -> Durability:
    """Return the durability that the fields of a root hash state; `memory` if they state none that is known."""
    stored = root.get(DURABILITY.encode())
    return "replica" if stored == b"replica" else "fsync" if stored == b"fsync" else "memory"


def _text_of(value: bytes, field: str, key: str) -> str:
    """Return the value of a field as text; raise `DamagedValue` if it is not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise DamagedValue(key, value, field=field) from None


def _remedy(layout: str) -> str:
    """Return what to do about data of another layout version than `LAYOUT`."""
    if layout.isdecimal() and int(layout) > LAYOUT:
        return "update tallystream to the release that wrote it"
    return (
        "use the release that wrote it, or count the events again: write them to a file with that release (tallystream "
        "replay -o FILE), and read the file into an empty server with this one (tallystream ingest FILE)"
    )
