"""What is stored in this Redis: where it lies, what is declared of it, and whether it is still the same data.

See `tallystream.storage.deployment_hash` for the hash that it is read from.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from tallystream.errors import ConfigurationError, DeploymentChanged
from tallystream.rules.metrics import Rules, read
from tallystream.storage.deployment_hash import by_number, fields_of, live_topic, number, spread_metrics
from tallystream.storage.keys import DEFAULT_PARTITIONS, FIRST, FIRST_TOPIC, LAYOUT, Layout
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import redis

_INIT: Final = Script("tallystream.storage", "init_deployment")


@dataclass(frozen=True)
class Deployment:
    """What the parts agree on, as it was read: `reload` reads it again.

    A producer or a reader may come before the first worker: then nothing is declared yet, or even stored.

    Attributes:
        layout: Where everything lies; its keys are those of the live generation.
        epoch: Names this life of the data: it changes when everything was lost and begun anew. Empty before anything is
            stored.
        declared: The rules of `generation`; `None` until a worker has published them. See `rules`.
        generation: The one that is read; a partition that is just being switched may be ahead of it.
        others: The rules of the other generations that are there: being built, or kept.
        was_rebuilt: There is, or was, another generation than the first.
        building: The generation that is being built, beside the live one.
        earlier: By log, how many partitions those before this one had.
        kept: The earlier log whose entries and counters are still there.
        moving: The log that is being filled, to be live in place of this one.
        spread: The metrics whose events may lie in any partition.
    """

    layout: Layout
    epoch: str = ""
    declared: Rules | None = None
    generation: int = FIRST
    others: Mapping[int, Rules] = field(default_factory=dict)
    was_rebuilt: bool = False
    building: int | None = None
    earlier: Mapping[int, int] = field(default_factory=dict)
    kept: int | None = None
    moving: int | None = None
    spread: frozenset[str] = frozenset()

    @classmethod
    def create_or_load(cls, client: redis.Redis, partitions: int | None = None, namespace: str = "tally") -> Self:
        """Read what is stored, or store it if nothing is yet; perhaps nothing is declared.

        Args:
            client: Where.
            partitions: How many partitions the caller was told to expect; `None` takes what is stored,
                or 4 if nothing is.
            namespace: The first part of every key.

        Raises:
            ConfigurationError: what is stored disagrees with `partitions` or with this release's layout.
        """
        wanted = Layout(partitions or DEFAULT_PARTITIONS, namespace)
        flat = [part for field in fields_of(wanted, uuid.uuid4().hex).items() for part in field]
        _, *present = _INIT(client, [wanted.root], flat)
        return cls._of_root(client, dict(zip(present[::2], present[1::2], strict=True)), partitions, namespace)

    @classmethod
    def load(cls, client: redis.Redis, namespace: str = "tally") -> Self:
        """Read what is stored, with its rules; never write.

        Raises:
            ConfigurationError: no worker has published the rules, or what is stored is not of this release's layout.
        """
        found = cls.find(client, namespace)
        found.ensure_declared()
        return found

    @classmethod
    def find(cls, client: redis.Redis, namespace: str = "tally") -> Self:
        """Read what is stored, if anything is (`is_stored`); never write.

        Raises:
            ConfigurationError: what is stored is not of this release's layout.
        """
        nothing = cls(Layout(namespace=namespace))
        root = client.execute_command("HGETALL", nothing.layout.root)
        return cls._of_root(client, root, None, namespace) if root else nothing

    @classmethod
    def _of_root(cls, client: redis.Redis, root: Mapping[bytes, bytes], partitions: int | None, namespace: str) -> Self:
        live = live_topic(root, namespace)
        fields = root if live.topic == FIRST_TOPIC else client.execute_command("HGETALL", live.meta)
        found = cls.parse(fields, partitions, namespace, root)
        if not found.was_rebuilt:
            return found
        with client.pipeline(transaction=False) as pipeline:
            for keys in found.layout.keys:
                pipeline.get(keys.live)
            return found.with_live(pipeline.execute())

    @classmethod
    def parse(
        cls,
        fields: Mapping[bytes, bytes],
        partitions: int | None = None,
        namespace: str = "tally",
        root: Mapping[bytes, bytes] | None = None,
    ) -> Self:
        """Return what the fields of a log's hash say, and those of the root's; see `create_or_load` for the rest."""
        root = fields if root is None else root
        live = live_topic(root, namespace)
        layout = fields.get(b"layout", b"").decode(errors="replace")
        if layout != str(LAYOUT):
            raise ConfigurationError(
                f"{live.meta} holds layout version {layout or 'none'}, this release reads and writes {LAYOUT}"
            )
        found = int(fields[b"partitions"])
        if partitions is not None and partitions != found:
            since = "was created with" if live.topic == FIRST_TOPIC else "says that the events were moved to"
            raise ConfigurationError(
                f"partitions is set to {partitions}, but {live.root} {since} {found}. "
                f"Set partitions = {found}, or leave the setting out; another number is made by: "
                f"tallystream rebuild --partitions {partitions}"
            )
        rules, generation, spread = fields.get(b"rules"), number(fields, b"generation"), spread_metrics(fields)
        return cls(
            Layout(found, namespace, topic=live.topic).of(generation or FIRST),
            fields[b"epoch"].decode(),
            None if rules is None else read(rules).spreading(spread),
            generation or FIRST,
            {other: read(text).spreading(spread) for other, text in by_number(fields, b"rules@").items()},
            was_rebuilt=generation is not None,
            building=number(fields, b"building"),
            earlier={log: int(count) for log, count in by_number(root, b"partitions@").items()},
            kept=number(root, b"kept"),
            moving=number(root, b"moving"),
            spread=spread,
        )

    @property
    def is_stored(self) -> bool:
        """Whether anything is stored yet."""
        return bool(self.epoch)

    @property
    def rules(self) -> Rules:
        """The rules of `generation`.

        Raises:
            ConfigurationError: no worker has published them yet.
        """
        if self.declared is None:
            raise ConfigurationError(
                "no metrics are declared here yet: start a worker (tallystream worker) once, which publishes the rules"
            )
        return self.declared

    def rules_of(self, generation: int) -> Rules:
        """Return the rules that a generation is counted by.

        Raises:
            ConfigurationError: no worker has published them yet.
        """
        return self.rules if generation == self.generation else self.others.get(generation) or self.rules

    def ensure_declared(self) -> None:
        """Raise a `ConfigurationError` if no worker has published the rules yet."""
        _ = self.rules

    def ensure_stored(self) -> None:
        """Raise a `ConfigurationError` if nothing is stored yet."""
        if not self.is_stored:
            raise ConfigurationError(f"{self.layout.meta} does not exist: no worker or producer has started here yet")

    def reload(self, client: redis.Redis) -> Self:
        """Return what is stored by now of the same data: perhaps by other rules, in another generation or log.

        Raises:
            DeploymentChanged: the data is gone, or other data is in its place.
            redis.RedisError: the server does not answer, or refuses.
        """
        found = self.find(client, self.layout.namespace)
        if found.epoch != self.epoch:
            raise self._changed(found.epoch)
        return found

    def ensure_same(self, client: redis.Redis) -> None:
        """Check, in one command, that the hash of this log is still that of the same data.

        Raises:
            DeploymentChanged: the data is gone, or other data is in its place, or this log was removed.
        """
        epoch: bytes | None = client.execute_command("HGET", self.layout.meta, "epoch")
        if epoch != self.epoch.encode():
            raise self._changed((epoch or b"").decode())

    def _changed(self, epoch: str) -> DeploymentChanged:
        return DeploymentChanged(
            f"{self.layout.meta} is {'another' if epoch else 'gone'}: this is not the data that this process began "
            "with. Bring it back (tallystream restore), or restart the process to begin anew with what is here"
        )

    def refuse_gathering(self, rules: Rules) -> None:
        """Refuse rules that would read at home what lies in every partition.

        Raises:
            ConfigurationError: a metric is not spread any more.
        """
        if gathered := sorted((self.spread & rules.metric.keys()) - rules.spread):
            name = gathered[0]
            raise ConfigurationError(
                f"[metric.{name}] spread: events of {name} lie in every partition of this log, so its counters cannot "
                f"be read from one of them. Keep spread = true in [metric.{name}], or gather them in a new log by "
                "this configuration: tallystream rebuild"
            )

    def with_live(self, live: Sequence[bytes | None]) -> Self:
        """Return the same with the generations that the partitions themselves call live, by partition.

        Behind the number stands `closed` if nothing is counted any more, since the log goes on in another one.
        """
        generations = tuple(int((each or b"%d" % FIRST).split()[0]) for each in live)
        return replace(self, layout=replace(self.layout, generations=generations))

    @property
    def earlier_layouts(self) -> list[Layout]:
        """Where the logs before this one lie, or lay."""
        namespace = self.layout.namespace
        return [Layout(partitions, namespace, topic=log) for log, partitions in sorted(self.earlier.items())]

    @property
    def kept_layout(self) -> Layout | None:
        """Where the log before this one lies, while it is kept; its first generation."""
        return None if self.kept is None else self.layout_of(self.kept)

    def layout_of(self, log: int) -> Layout | None:
        """Return where an earlier log lies, its first generation; `None` if there was none of that number."""
        partitions = self.earlier.get(log)
        return None if partitions is None else Layout(partitions, self.layout.namespace, topic=log)
