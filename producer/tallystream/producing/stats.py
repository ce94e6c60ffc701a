"""What became of the events given to a producer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProducerStats:
    """What became of the events given to one producer so far.

    `emitted = appended + buffered`; dropped ones were never taken in.

    Attributes:
        emitted: Events that were taken.
        appended: Events that are in the streams, confirmed.
        buffered: Events that wait to be.
        dropped: Events for which there was no room.
        resent_entries: Entries that came again, and had been let through before.
        rewound_streams: Times that a stream turned out to have forgotten what it had confirmed,
        lost_entries: and how many of the forgotten entries were not held any more, and so could not be sent again.
        backlogged: Times that a stream was found to have as many entries as it may.
        spooled_bytes: Bytes in the spool,
        adopted: and events of dead processes that were sent from there.
        unconfirmed: Bursts that were written and not confirmed in time, to be sent again.
    """

    emitted: int
    appended: int
    buffered: int
    dropped: int
    resent_entries: int
    rewound_streams: int
    lost_entries: int
    backlogged: int
    unconfirmed: int
    spooled_bytes: int
    adopted: int
