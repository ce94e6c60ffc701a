"""What is stored here: layout version, partitions, tags, epoch and declared metrics, in the hash `tally:meta`."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import ConfigurationError
from tallystream.keys import DEFAULT_PARTITIONS, LAYOUT, Layout, tag_of
from tallystream.rules import Rules, read
from tallystream.script import Script

if TYPE_CHECKING:
    import redis

_ESTABLISH: Final = Script("tallystream", "establish")


@dataclass(frozen=True)
class Meta:
    """What the parts agree on.

    `epoch` names this life of the data: it changes when everything was lost and begun anew.
    `rules` is `None` until a worker has published them.
    """

    layout: Layout
    epoch: str
    rules: Rules | None


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
    return parse(_pairs(_ESTABLISH(client, [wanted.meta], flat)), partitions, namespace)


def parse(stored: dict[bytes, bytes], partitions: int | None = None, namespace: str = "tally") -> Meta:
    """Return what the fields of `tally:meta` say; see `establish` for the rest."""
    layout = stored.get(b"layout", b"").decode(errors="replace")
    if layout != str(LAYOUT):
        raise ConfigurationError(
            f"{namespace}:meta holds layout version {layout or 'none'}, this release reads and writes {LAYOUT}"
        )
    found = int(stored[b"partitions"])
    if partitions is not None and partitions != found:
        raise ConfigurationError(
            f"partitions is set to {partitions}, but {namespace}:meta was created with {found}. "
            f"Set partitions = {found}: the number cannot change while counts are stored under it"
        )
    rules = stored.get(b"rules")
    return Meta(Layout(found, namespace), stored[b"epoch"].decode(), None if rules is None else read(rules))


def _pairs(reply: Any) -> dict[bytes, bytes]:
    # A script's HGETALL comes as a flat list under RESP2 conversion and as a map under RESP3.
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
