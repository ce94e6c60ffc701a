"""The statistics of a producer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProducerStats:
    """Counts of the events and entries of one producer so far.

    `emitted = appended + buffered`; dropped events are not in `emitted`, and events of `decide` are in no count. Events
    and entries of dead processes are only in `adopted`, `rewound_streams`, `lost_entries` and `unknown_entries`.

    Attributes:
        emitted: Events that were added to the buffer.
        appended: Events that were confirmed, also those of `lost_entries`, or that were given up (`unknown_entries`).
        buffered: Events that are not confirmed yet; after `close`, those that were not delivered.
        dropped: Events that were not added because the buffer was full, also those for which `emit` raised
            `BufferFull`.
        resent_entries: Entries that were sent again, and that the stream already had; they are in it once.
        rewound_streams: Number of times that a stream had lost confirmed entries, also those of dead processes.
        lost_entries: Confirmed entries, also those of dead processes, that a stream had lost, and that are not sent
            again: the producer no longer kept them, or the server was emptied and a new deployment was created.
        unknown_entries: Entries, also those of dead processes, without a reply, and whose producer has no record on the
            server any more. The server removes a record after 30 days of silence, with a spool after a year; and a
            restore of a snapshot brings no records of topics that a repartition had replaced. The entries may be in the
            stream, so they are not sent again; `appended` includes their events, except those of dead processes.
        backlogged: Number of times that a stream refused entries because it had reached its limit.
        unconfirmed: Number of pipelines with entries whose `durability` the server did not confirm, in time or because
            of an error; these entries are sent again. An attempt to change to the new streams of a repartition also
            counts, if the `durability` of the entries in the old or new streams was not confirmed; it is repeated.
        spooled_bytes: Bytes of this producer in the spool; 0 without a spool, and after `close`, unless the sender
            thread did not end in time. A confirmed event counts until its file, about 4 MiB, is removed.
        adopted: Events of dead processes that were sent from the spool; those of a process are added when all of them
            are confirmed.
    """

    emitted: int
    appended: int
    buffered: int
    dropped: int
    resent_entries: int
    rewound_streams: int
    lost_entries: int
    unknown_entries: int
    backlogged: int
    unconfirmed: int
    spooled_bytes: int
    adopted: int
