"""What is stored here: layout version, partitions, tags, epoch and declared metrics, in the hash `tally:meta`.

Once a rebuild has begun it says more: `generation`, the one that readers begin with, and for each other one that is
there the rules that it counts by, in `rules@<generation>`. Which generation is live in a partition is said by the
partition itself (`PartitionKeys.live`), where the scripts see it.

Once the events were moved to another number of partitions, `log` names the log that holds; what is stored there is said
by a hash of its own (`Layout.meta`), with the same fields. `partitions@<log>` says how many partitions an earlier log
had, `kept` which of them is still there, and `moving` the log that is being filled.

`spread@<metric>` says that events of a metric may lie in any partition of this log. It is a fact of the log, not of a
generation, so it stays, and every generation's rules are read in its light.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Rules, read
from tallystream.storage.keys import DEFAULT_PARTITIONS, FIRST, FIRST_LOG, LAYOUT, Layout, tag_of
from tallystream.storage.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import redis

SNAPSHOT_AT: Final = "snapshot"
SNAPSHOT_EVERY: Final = "snapshot-every"
"""Fields for whoever watches: the second of the latest snapshot, and how many seconds lie between two, while a worker
takes them by itself."""
_SPREAD: Final = b"spread@"

_INIT: Final = Script("tallystream.storage", "init_deployment")


@dataclass(frozen=True)
class Deployment:
    """What the parts agree on.

    Attributes:
        layout: Where everything lies; its keys are those of the live generation.
        epoch: Names this life of the data: it changes when everything was lost and begun anew.
        rules: Those of `generation`; `None` until a worker has published them.
        generation: The one that is read; a partition that is just being switched may be ahead of it.
        others: The rules of the other generations that are there: being built, or kept.
        was_rebuilt: There is, or was, another generation than the first.
        building: The generation that is being built, beside the live one.
        earlier: By log, how many partitions those before this one had.
        kept: The earlier log whose entries and counters are still there.
        moving: The log that is being filled, to hold in place of this one.
        spread: The metrics whose events may lie in any partition.
    """

    layout: Layout
    epoch: str
    rules: Rules | None
    generation: int = FIRST
    others: Mapping[int, Rules] = field(default_factory=dict)
    was_rebuilt: bool = False
    building: int | None = None
    earlier: Mapping[int, int] = field(default_factory=dict)
    kept: int | None = None
    moving: int | None = None
    spread: frozenset[str] = frozenset()

    def rules_of(self, generation: int) -> Rules | None:
        """Return the rules that a generation is counted by."""
        return self.rules if generation == self.generation else self.others.get(generation, self.rules)

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

    def with_live(self, live: Sequence[bytes | None]) -> Deployment:
        """Return the same with the generations that the partitions themselves call live, by partition.

        Behind the number stands `closed` where nothing is counted any more, since the log goes on in another one.
        """
        generations = tuple(int((each or b"%d" % FIRST).split()[0]) for each in live)
        return replace(self, layout=replace(self.layout, generations=generations))

    @property
    def earlier_layouts(self) -> list[Layout]:
        """Where the logs before this one lie, or lay."""
        namespace = self.layout.namespace
        return [Layout(partitions, namespace, log=log) for log, partitions in sorted(self.earlier.items())]

    def layout_of(self, log: int) -> Layout | None:
        """Return where an earlier log lies, its first generation; `None` where there was none of that number."""
        partitions = self.earlier.get(log)
        return None if partitions is None else Layout(partitions, self.layout.namespace, log=log)


def create_or_load(client: redis.Redis, partitions: int | None = None, namespace: str = "tally") -> Deployment:
    """Read what is stored here, or store it where nothing is yet.

    Args:
        client: Where.
        partitions: How many partitions the caller was told to expect; `None` takes what is stored,
            or 4 where nothing is.
        namespace: The first part of every key.

    Raises:
        ConfigurationError: what is stored disagrees with `partitions` or with this release's layout.
    """
    wanted = Layout(partitions or DEFAULT_PARTITIONS, namespace)
    flat = [part for field in fields_of(wanted, uuid.uuid4().hex).items() for part in field]
    _, *present = _INIT(client, [wanted.root], flat)
    return _followed(client, dict(zip(present[::2], present[1::2], strict=True)), partitions, namespace)


def load(client: redis.Redis, namespace: str = "tally") -> Deployment | None:
    """Return what is stored here, `None` where nothing is; never write.

    Raises:
        ConfigurationError: it is not of this release's layout.
    """
    fields = client.execute_command("HGETALL", Layout(namespace=namespace).root)
    return _followed(client, fields, None, namespace) if fields else None


def fields_of(layout: Layout, epoch: str) -> dict[str, Any]:
    """Return what the hash of a new log says."""
    tags = " ".join(tag_of(i) for i in range(layout.partitions))
    return {"layout": LAYOUT, "partitions": layout.partitions, "tags": tags, "epoch": epoch}


def pointed(root: Mapping[bytes, bytes], namespace: str) -> Layout:
    """Return the log that holds, by the fields of the root's hash: where its own hash lies, and nothing else of it."""
    return Layout(namespace=namespace, log=int(root.get(b"log", FIRST_LOG)))


def _followed(client: redis.Redis, root: dict[bytes, bytes], partitions: int | None, namespace: str) -> Deployment:
    there = pointed(root, namespace)
    fields = root if there.log == FIRST_LOG else client.execute_command("HGETALL", there.meta)
    deployment = parse(fields, partitions, namespace, root)
    if not deployment.was_rebuilt:
        return deployment
    with client.pipeline(transaction=False) as pipeline:
        for keys in deployment.layout.keys:
            pipeline.get(keys.live)
        return deployment.with_live(pipeline.execute())


def parse(
    fields: Mapping[bytes, bytes],
    partitions: int | None = None,
    namespace: str = "tally",
    root: Mapping[bytes, bytes] | None = None,
) -> Deployment:
    """Return what the fields of a log's hash say, and those of the root's; see `create_or_load` for the rest."""
    root = fields if root is None else root
    there = pointed(root, namespace)
    layout = fields.get(b"layout", b"").decode(errors="replace")
    if layout != str(LAYOUT):
        raise ConfigurationError(
            f"{there.meta} holds layout version {layout or 'none'}, this release reads and writes {LAYOUT}"
        )
    found = int(fields[b"partitions"])
    if partitions is not None and partitions != found:
        since = "was created with" if there.log == FIRST_LOG else "says that the events were moved to"
        raise ConfigurationError(
            f"partitions is set to {partitions}, but {there.root} {since} {found}. "
            f"Set partitions = {found}, or leave the setting out; another number is made by: "
            f"tallystream rebuild --partitions {partitions}"
        )
    rules = fields.get(b"rules")
    others = {int(number): read(text) for number, text in _numbered(fields, b"rules@")}
    generation = fields.get(b"generation")
    spread = frozenset(name.removeprefix(_SPREAD).decode() for name in fields if name.startswith(_SPREAD))
    return Deployment(
        Layout(found, namespace, log=there.log).of(int(generation or FIRST)),
        fields[b"epoch"].decode(),
        None if rules is None else read(rules).spreading(spread),
        int(generation or FIRST),
        {number: its.spreading(spread) for number, its in others.items()},
        was_rebuilt=generation is not None,
        building=_number(fields, b"building"),
        earlier={int(log): int(count) for log, count in _numbered(root, b"partitions@")},
        kept=_number(root, b"kept"),
        moving=_number(root, b"moving"),
        spread=spread,
    )


def _numbered(fields: Mapping[bytes, bytes], prefix: bytes) -> list[tuple[bytes, bytes]]:
    return [(name.removeprefix(prefix), value) for name, value in fields.items() if name.startswith(prefix)]


def _number(fields: Mapping[bytes, bytes], name: bytes) -> int | None:
    return int(fields[name]) if name in fields else None


def spread_fields(metrics: Iterable[str]) -> dict[Any, Any]:
    """Return the fields by which `tally:meta` says that events of metrics may lie in any partition."""
    return {f"{_SPREAD.decode()}{metric}": 1 for metric in sorted(metrics)}
