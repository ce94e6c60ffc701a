"""What is stored here: layout version, partitions, tags, epoch and declared metrics, in the hash `tally:meta`.

Once a rebuild has begun it says more: `generation`, the one that readers begin with, and for each other one that is
there the rules that it counts by, in `rules@<generation>`. Which generation is live in a partition is said by the
partition itself (`PartitionKeys.live`), where the scripts see it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import ConfigurationError
from tallystream.keys import DEFAULT_PARTITIONS, FIRST, LAYOUT, Layout, tag_of
from tallystream.rules import Rules, read
from tallystream.script import Script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import redis

_ESTABLISH: Final = Script("tallystream", "establish")


@dataclass(frozen=True)
class Meta:
    """What the parts agree on.

    Attributes:
        layout: Where everything lies; its keys are those of the live generation.
        epoch: Names this life of the data: it changes when everything was lost and begun anew.
        rules: Those of `generation`; `None` until a worker has published them.
        generation: The one that is read; a partition that is just being switched may be ahead of it.
        others: The rules of the other generations that are there: being built, or kept.
        was_rebuilt: There is, or was, another generation than the first.
        building: The generation that is being built, beside the live one.
    """

    layout: Layout
    epoch: str
    rules: Rules | None
    generation: int = FIRST
    others: Mapping[int, Rules] = field(default_factory=dict)
    was_rebuilt: bool = False
    building: int | None = None

    def rules_of(self, generation: int) -> Rules | None:
        """Return the rules that a generation is counted by."""
        return self.rules if generation == self.generation else self.others.get(generation, self.rules)

    def with_live(self, live: Sequence[bytes | None]) -> Meta:
        """Return the same with the generations that the partitions themselves call live, by partition."""
        return replace(self, layout=replace(self.layout, generations=tuple(int(each or FIRST) for each in live)))


def establish(client: redis.Redis, partitions: int | None = None, namespace: str = "tally") -> Meta:
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
    fields = {
        "layout": LAYOUT,
        "partitions": wanted.partitions,
        "tags": " ".join(tag_of(i) for i in range(wanted.partitions)),
        "epoch": uuid.uuid4().hex,
    }
    flat = [part for field in fields.items() for part in field]
    return _with_live(client, parse(_pairs(_ESTABLISH(client, [wanted.meta], flat)), partitions, namespace))


def stored(client: redis.Redis, namespace: str = "tally") -> Meta | None:
    """Return what is stored here, `None` where nothing is; never write.

    Raises:
        ConfigurationError: it is not of this release's layout.
    """
    fields = client.execute_command("HGETALL", Layout(namespace=namespace).meta)
    return _with_live(client, parse(fields, None, namespace)) if fields else None


def _with_live(client: redis.Redis, meta: Meta) -> Meta:
    if not meta.was_rebuilt:
        return meta
    with client.pipeline(transaction=False) as pipeline:
        for keys in meta.layout.keys:
            pipeline.get(keys.live)
        return meta.with_live(pipeline.execute())


def parse(fields: dict[bytes, bytes], partitions: int | None = None, namespace: str = "tally") -> Meta:
    """Return what the fields of `tally:meta` say; see `establish` for the rest."""
    layout = fields.get(b"layout", b"").decode(errors="replace")
    if layout != str(LAYOUT):
        raise ConfigurationError(
            f"{namespace}:meta holds layout version {layout or 'none'}, this release reads and writes {LAYOUT}"
        )
    found = int(fields[b"partitions"])
    if partitions is not None and partitions != found:
        raise ConfigurationError(
            f"partitions is set to {partitions}, but {namespace}:meta was created with {found}. "
            f"Set partitions = {found}: the number cannot change while counts are stored under it"
        )
    rules = fields.get(b"rules")
    others = {
        int(name.removeprefix(b"rules@")): read(text) for name, text in fields.items() if name.startswith(b"rules@")
    }
    generation = fields.get(b"generation")
    return Meta(
        Layout(found, namespace).of(int(generation or FIRST)),
        fields[b"epoch"].decode(),
        None if rules is None else read(rules),
        int(generation or FIRST),
        others,
        was_rebuilt=generation is not None,
        building=int(fields[b"building"]) if b"building" in fields else None,
    )


def _pairs(reply: Any) -> dict[bytes, bytes]:
    # A script's HGETALL comes as a flat list under RESP2 conversion and as a map under RESP3.
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
