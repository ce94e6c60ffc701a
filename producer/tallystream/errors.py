"""Every error class of tallystream.

TallyError
|- EventError            an event is invalid; the message names the field and the limit
|- BufferFull            the producer's buffer is full, and the event was not added
|- FlushTimeout          emitted events were not confirmed (or not counted) within the timeout
|- StreamFull            a stream has reached its limit of entries, because counting lags
|- Unconfirmed           an event was counted, but no replica or disk confirmed it in time
|- SpoolError            the spool cannot be written or delivered; the message names the folder and the remedy
|- ConfigurationError    a setting is invalid, or contradicts the stored deployment
|- CodecError            the fields of an entry cannot be decoded
|  '- UnknownVersion     the entry has a wire version that this release cannot decode; it is dead-lettered
'- StreamError           a stream, a group, or the data stored with it is missing or inconsistent
   |- ConsumerGroupMissing  the consumer group is missing, but its counters are still there
   |- DeploymentChanged     the data that this process started with was deleted or replaced
   '- GenerationSwitched    another generation of counters is live
"""

from __future__ import annotations


class TallyError(Exception):
    """Base class of every error that tallystream defines."""


class EventError(TallyError, ValueError):
    """An event is invalid; the message is `<field>: <problem>` and states the limit.

    Args:
        field: Name of the invalid field.
        problem: The rule that the field breaks.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class BufferFull(TallyError):
    """The producer's buffer has reached its limit of events or bytes; the event was not added."""


class FlushTimeout(TallyError, TimeoutError):
    """Some events emitted before the call were not confirmed in time; they stay buffered and are still sent."""


class StreamFull(TallyError):
    """The stream has reached its limit of entries; nothing was written. Try again when the workers have caught up."""


class Unconfirmed(TallyError):
    """The write was executed, but its durability was not confirmed in time: a failover now could undo it."""


class SpoolError(TallyError):
    """The spool on disk cannot be written, or its events cannot be delivered to this deployment."""


class ConfigurationError(TallyError):
    """A setting is invalid, or contradicts the deployment that is stored in Redis."""


class CodecError(TallyError, ValueError):
    """The fields of a stream entry cannot be decoded."""


class UnknownVersion(CodecError):
    """The entry has a wire version that this release cannot decode."""


class StreamError(TallyError):
    """A stream, its consumer group, or the data stored with it is missing or inconsistent."""


class ConsumerGroupMissing(StreamError):
    """Entries were counted, but the consumer group, which records which of them are acknowledged, is missing."""


class DeploymentChanged(StreamError):
    """The data that this process started with was deleted or replaced: the process must not write to it any more."""


class GenerationSwitched(StreamError):
    """Another generation of counters is live: load the deployment again, and use its live generation."""
