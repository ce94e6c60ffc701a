"""Exact event counters on Redis Streams: the library that applications emit with.

from tallystream import Producer

with Producer("redis://127.0.0.1:6379") as producer:
    producer.emit("view", "article:1")
"""

from tallystream.decide import Outcome
from tallystream.errors import (
    BufferFull,
    CodecError,
    ConfigurationError,
    EventError,
    FlushTimeout,
    GroupLost,
    StreamError,
    TallyError,
    UnknownVersion,
)
from tallystream.event import Event
from tallystream.producer import Producer, ProducerStats

__all__ = [
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
    "StreamError",
    "TallyError",
    "UnknownVersion",
]
