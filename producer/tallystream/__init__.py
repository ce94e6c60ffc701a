"""Exact event counters on Redis Streams: the library that applications emit with.

from tallystream import Producer

with Producer("redis://127.0.0.1:6379") as producer:
    producer.emit("view", "article:1")
"""

import logging

from tallystream.errors import (
    BufferFull,
    CodecError,
    ConfigurationError,
    ConsumerGroupMissing,
    EventError,
    FlushTimeout,
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

logging.getLogger(__name__).addHandler(logging.NullHandler())  # an app decides what is shown

__all__ = [
    "BufferFull",
    "CodecError",
    "ConfigurationError",
    "ConsumerGroupMissing",
    "Decision",
    "Event",
    "EventError",
    "FlushTimeout",
    "Producer",
    "ProducerStats",
    "SpoolError",
    "StreamError",
    "StreamFull",
    "TallyError",
    "Unconfirmed",
    "UnknownVersion",
]
