"""Everything that tallystream raises on purpose.

TallyError
|- EventError            an event breaks a rule; says which field and which limit
|- BufferFull            the producer's buffer is full and its policy is to say so
|- FlushTimeout          what was emitted is not confirmed (or not counted) within the time given
|- StreamFull            a stream has as many entries as it may: counting is behind
|- Unconfirmed           it was written, and no replica or disk has said so in time
|- SpoolError            the spool cannot be written or read; says where, and what to do
|- ConfigurationError    a setting, or a setting against what is stored in Redis
|- CodecError            bytes that are not an entry of ours
|  '- UnknownVersion     an entry that a newer producer wrote: kept, never guessed at
'- StreamError           the stream is not what the books say
   |- ConsumerGroupMissing  the consumer group is gone while its counts are still there
   |- DeploymentChanged     the data that this process began with is gone, or other data is in its place
   '- GenerationSwitched    another generation of counters is live by now
"""

from __future__ import annotations


class TallyError(Exception):
    """The root: catch this to catch everything that the library raises on purpose."""


class EventError(TallyError, ValueError):
    """An event was refused; `field` names the part at fault and the message states the limit."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class BufferFull(TallyError):
    """The producer holds as many unsent events or bytes as it may; the event was not taken."""


class FlushTimeout(TallyError, TimeoutError):
    """Not everything emitted before the call was confirmed in time; it stays buffered and is still sent."""


class StreamFull(TallyError):
    """The stream has as many entries as it may have; nothing was written. Ask again once workers have caught up."""


class Unconfirmed(TallyError):
    """It was written and has its effect, but was not confirmed in time: a failover now might undo it."""


class SpoolError(TallyError):
    """The spool on disk cannot be written, or what is in it cannot be delivered here."""


class ConfigurationError(TallyError):
    """A setting is wrong, or disagrees with what is stored in Redis."""


class CodecError(TallyError, ValueError):
    """The fields of a stream entry are not an entry that this version can read."""


class UnknownVersion(CodecError):
    """The entry states a wire version that this release does not know."""


class StreamError(TallyError):
    """The stream and the books beside it do not fit together."""


class ConsumerGroupMissing(StreamError):
    """The consumer group is missing although entries were counted through it."""


class DeploymentChanged(StreamError):
    """The data that this process began with is gone, or other data is in its place: nothing more is done with it."""


class GenerationSwitched(StreamError):
    """A rebuild has made another generation of counters the live one: look which, and go on with that."""
