"""Reads the measured costs of counting, from which `tallystream plan` calculates.

`python -m benchmarks.costs` measures them on one machine and writes `costs.json` next to this module; `make bench` does
so after a full run. Another machine has other figures: give them to `tallystream plan --costs FILE`.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec

from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


class ServerCosts(msgspec.Struct, frozen=True):
    """Microseconds of the server's main thread for each item.

    Attributes:
        append_entry: An entry that a producer appends through the sequence gate.
        append_subject: A subject in an entry that a producer appends.
        entry: An entry that a worker reads, checks for pending and acknowledges.
        subject: A subject in an entry that a worker reads.
        total: A total in a batch.
        window: A subject of a bucket of a window in a batch.
        board: A counter that is compared with the last place of a leaderboard.
        place: A counter that enters a leaderboard, or moves in it, in addition to `board`.
        limit: A subject with a limit in a batch, in addition to its total.
        vote: A vote, in addition to its total.
        unique: An actor that is added to a HyperLogLog, in addition to the total.
    """

    append_entry: float
    append_subject: float
    entry: float
    subject: float
    total: float
    window: float
    board: float
    place: float
    limit: float
    vote: float
    unique: float


class WorkerCosts(msgspec.Struct, frozen=True):
    """Microseconds of a worker's processor time for each item.

    Attributes:
        entry: An entry that is read and folded.
        subject: A subject in an entry that is folded.
        counter: A counter of a batch.
        single: An event with an actor, in addition to its counter.
        fresh: Extra for a counter of a subject that is not in the worker's cache; 0 if `counter` includes it.
    """

    entry: float
    subject: float
    counter: float
    single: float
    fresh: float = 0.0


class ProducerCosts(msgspec.Struct, frozen=True):
    """Microseconds of an application's processor time in the producer.

    Attributes:
        entry: For each entry that is sent, in addition to its events.
        event: For each event.
    """

    entry: float
    event: float


class MemoryCosts(msgspec.Struct, frozen=True):
    """Bytes of server memory for each item, for subjects of 13 bytes.

    Attributes:
        total: A total.
        field: A subject in a bucket of a window or limit.
        votes: A subject that has votes, without the votes and its total.
        vote: A vote.
        id: An id of an event.
        unique: The HyperLogLog of a subject in a bucket, with one actor.
        actor: Each further actor in a HyperLogLog, up to 12 KiB in all.
        member: A place in a leaderboard.
        entry: An entry in a stream, without its events.
        subject: A subject in an entry.
        single: An event with an actor in an entry.
        producer: The record of a producer in a partition, for the sequence gate.
        dropped: The record of a dropped dead letter of one event.
    """

    total: float
    field: float
    votes: float
    vote: float
    id: float
    unique: float
    actor: float
    member: float
    entry: float
    subject: float
    single: float
    producer: float
    dropped: float


class WireCosts(msgspec.Struct, frozen=True):
    """Bytes over the network and in the append-only file for each item; each replica gets as much as the file.

    Attributes:
        append_entry: From producers, an entry without its events.
        append_subject: From producers, a subject in an entry.
        append_single: From producers, an event with an actor.
        read_entry: To workers, an entry without its events; its events have the same bytes as from producers.
        apply_counter: From workers, a counter of a batch.
        apply_single: From workers, a vote or an actor, in addition to its counter.
        log_entry: In the append-only file, an entry without its events: appended, and acknowledged. Its events have the
            same bytes as from producers.
        log_total: In the append-only file, a total.
        log_window: In the append-only file, a subject in a bucket.
        log_single: In the append-only file, a vote or an actor, in addition to its counter.
    """

    append_entry: float
    append_subject: float
    append_single: float
    read_entry: float
    apply_counter: float
    apply_single: float
    log_entry: float
    log_total: float
    log_window: float
    log_single: float


class Costs(msgspec.Struct, frozen=True):
    """All measured costs.

    Attributes:
        machine: Description of the machine on which the costs were measured.
        software: Description of the software that was measured, with versions.
        server: Microseconds of a server's main thread, for each item.
        worker: Microseconds of a worker's processor time, for each item.
        producer: Microseconds of an application's processor time, for each entry and each event.
        memory: Bytes of server memory, for each item.
        wire: Bytes over the network and in the append-only file, for each item.
    """

    machine: str
    software: str
    server: ServerCosts
    worker: WorkerCosts
    producer: ProducerCosts
    memory: MemoryCosts
    wire: WireCosts


def load_costs(file: Path | None = None) -> Costs:
    """Return the measured costs in `file`; if it is `None`, the costs that this release contains.

    Raises:
        ConfigurationError: the file cannot be read, is not JSON of this form, or lacks a cost other than `fresh`.
    """
    source = file or files(__package__) / "costs.json"
    try:
        return msgspec.json.decode(source.read_bytes(), type=Costs)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error.strerror})") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{file}: {error}; write it with: python -m benchmarks.costs --into FILE") from None
