"""Exact event counters on Redis Streams: the library that applications emit with.

from tallystream import Producer

with Producer("redis://127.0.0.1:6379") as producer:
    producer.emit("view", "article:1")
"""

import logging

from tallystream.errors import (
    Backlogged,
    BufferFull,
    CodecError,
    ConfigurationError,
    EventError,
    FlushTimeout,
    GroupLost,
    SpoolError,
    StreamError,
    TallyError,
    Unconfirmed,
    UnknownVersion,
)
from tallystream.producing.decider import Outcome
from tallystream.producing.producer import Producer, ProducerStats
from tallystream.wire.event import Event

logging.getLogger(__name__).addHandler(logging.NullHandler())  # an app decides what is shown

__all__ = [
    "Backlogged",
    "BufferFull",
    "CodecError",
    "ConfigurationError",
    "Event",
    "EventError",
    "FlushTimeout",
    "GroupLost",
    "Outcome",
    "Producer",
    "ProducerStats",
    "SpoolError",
    "StreamError",
    "TallyError",
    "Unconfirmed",
    "UnknownVersion",
]
