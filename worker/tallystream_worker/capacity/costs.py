"""What counting costs, as measured: the constants from which a plan is made.

`python -m benchmarks.costs` measures them on one machine and writes `costs.json` beside this module; `make bench` does
so after a full run. Another machine has other figures, and `tallystream plan --costs FILE` takes them.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec

from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


class ServerCosts(msgspec.Struct, frozen=True):
    """Microseconds of the server's main thread.

    Attributes:
        append_entry: An entry that a producer appends through the gate.
        append_subject: Each subject in it.
        entry: An entry that a worker reads, gates and acknowledges.
        subject: Each subject in it.
        total: An all-time counter in a batch.
        window: A bucket's field in a batch.
        board: A counter that is looked at for a leaderboard.
        place: A counter that enters one, or moves in it.
        limit: A limited subject in a batch.
        vote: A vote.
        unique: An actor that is added to a HyperLogLog.
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
    """Microseconds of a worker's processor time.

    Attributes:
        entry: An entry that is read and folded.
        subject: Each subject in it.
        counter: A counter of a batch.
        single: An event with an actor.
        fresh: More for one that is of a subject which the worker does not remember; 0 where `counter` has it in it.
    """

    entry: float
    subject: float
    counter: float
    single: float
    fresh: float = 0.0


class ProducerCosts(msgspec.Struct, frozen=True):
    """Microseconds of an app's processor time: an entry that is flushed, and each event."""

    entry: float
    event: float


class MemoryCosts(msgspec.Struct, frozen=True):
    """Bytes of server memory, for subjects of 13 bytes.

    Attributes:
        total: An all-time counter.
        field: A subject in a bucket of a window or limit.
        votes: A subject that has votes, before the first.
        vote: Each vote.
        unique: The sketch of a subject in a bucket, with one actor; each further one `actor`, up to 12 KiB.
        actor: See there.
        member: A place in a leaderboard.
        entry: An entry of the log; each subject in it `subject`, each event with an actor `single`.
        subject: See there.
        single: See there.
    """

    total: float
    field: float
    votes: float
    vote: float
    unique: float
    actor: float
    member: float
    entry: float
    subject: float
    single: float


class WireCosts(msgspec.Struct, frozen=True):
    """Bytes over the network, and of the append-only file, which is also what each replica is sent.

    Attributes:
        append_entry: From producers, an entry without its events.
        append_subject: Each subject in it.
        append_single: Each event with an actor.
        read_entry: To workers, an entry without its events; these go out as they came in.
        apply_counter: From workers, a counter of a batch.
        apply_single: From workers, a vote or an actor.
        log_entry: Of the append-only file, an entry without its events: appended, and acknowledged.
        log_total: Of the append-only file, a counter.
        log_window: Of the append-only file, a bucket's field.
        log_single: Of the append-only file, a vote or an actor beside its counter.
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
    """All of it, and the machine and server it was measured on."""

    machine: str
    software: str
    server: ServerCosts
    worker: WorkerCosts
    producer: ProducerCosts
    memory: MemoryCosts
    wire: WireCosts


def load_costs(file: Path | None = None) -> Costs:
    """Read measured costs: those that came with this release, or those in `file`.

    Raises:
        ConfigurationError: the file cannot be read, or does not hold what is needed.
    """
    source = file or files(__package__) / "costs.json"
    try:
        return msgspec.json.decode(source.read_bytes(), type=Costs)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read ({error.strerror})") from None
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{file}: {error}; write it with: python -m benchmarks.costs --into FILE") from None
