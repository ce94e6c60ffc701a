"""Public API of tallystream, exact event counters on Redis Streams: emit events and read totals.

from tallystream import Producer, Totals

with Producer("redis://127.0.0.1:6379") as producer:
    producer.emit("view", "article:1")
    producer.flush(wait="counted")
with Totals("redis://127.0.0.1:6379") as totals:
    print(totals.get("article:1", "view").value)

`tallystream.aio` has the same two classes for asyncio; their methods that wait are coroutines.
"""

import logging
from typing import TYPE_CHECKING, Any

from tallystream.errors import (
    BufferFull,
    CodecError,
    ConfigurationError,
    ConsumerGroupMissing,
    DamagedValue,
    DeploymentChanged,
    DeploymentDeleted,
    EventError,
    FlushTimeout,
    GenerationSwitched,
    KeyLost,
    NodeUnreachable,
    NothingDeclared,
    SpoolError,
    StreamError,
    StreamFull,
    TallyError,
    Unconfirmed,
    UnknownVersion,
)
from tallystream.producing.decider import Decision
from tallystream.producing.producer import Producer
from tallystream.producing.stats import ProducerStats
from tallystream.wire.event import Event

if TYPE_CHECKING:
    from tallystream.reading.totals import Totals

    __version__: str
    """Version of the installed distribution."""

logging.getLogger(__name__).addHandler(logging.NullHandler())  # the application chooses which log lines are shown

__all__ = [
    "BufferFull",
    "CodecError",
    "ConfigurationError",
    "ConsumerGroupMissing",
    "DamagedValue",
    "Decision",
    "DeploymentChanged",
    "DeploymentDeleted",
    "Event",
    "EventError",
    "FlushTimeout",
    "GenerationSwitched",
    "KeyLost",
    "NodeUnreachable",
    "NothingDeclared",
    "Producer",
    "ProducerStats",
    "SpoolError",
    "StreamError",
    "StreamFull",
    "TallyError",
    "Totals",
    "Unconfirmed",
    "UnknownVersion",
    "__version__",
]


if not TYPE_CHECKING:  # with a module `__getattr__`, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        """Return the class `Totals`, or for `__version__` the version of the installed distribution.

        They are looked up on use, so that an application that only emits imports no readers.

        Raises:
            AttributeError: `name` is any other name.
            importlib.metadata.PackageNotFoundError: `name` is `__version__`, and no distribution is installed.
        """
        if name == "Totals":
            from tallystream.reading.totals import Totals  # noqa: PLC0415

            return Totals
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415

            return version(__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
