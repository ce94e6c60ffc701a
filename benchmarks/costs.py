"""Measure the costs of counting and write them as the constants of `tallystream plan`: `python -m benchmarks.costs`.

Each case appends a load to one partition of an embedded server and counts it, several times. It measures bytes, and the
processor time of the server's main thread, as the server reports it, and of this process. Other load on the machine can
only increase processor time, so the least of the rounds is used. The constants are differences between the cases.
"""

import argparse
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import redis

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.rules.parts import board_length
from tallystream_worker.capacity import costs
from tallystream_worker.capacity.costs import Costs
from tallystream_worker.counting.dropped import record_of
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.server.embedded import EmbeddedServer

from . import memory, report

TARGET: Final = Path(costs.__file__).with_name("costs.json")
_ROUNDS: Final = 4
_ENTRY: Final = 1000
_SUBJECTS: Final = 200_000
_HIGH: Final = 200
"""The number of first subjects whose events `measure` gives the amount `high`."""


@dataclass(frozen=True)
class Figures:
    """The costs of an event in a case, in microseconds and bytes.

    `append_` figures are for the append to the stream, `apply_` figures for the counting. `_server`, `_producer` and
    `_worker` are microseconds; `_in`, `_out` and `_log` are the bytes into, out of and into the append-only file of the
    server; `stream` is the bytes in the stream.
    """

    append_server: float
    append_producer: float
    append_in: float
    append_log: float
    apply_server: float
    apply_worker: float
    apply_in: float
    apply_out: float
    apply_log: float
    stream: float


def measure(
    metric: Metric,
    subjects: int,
    *,
    events: int = _SUBJECTS,
    entry: int = _ENTRY,
    actor: bool = False,
    high: int = 1,
) -> Figures:
    """Append and count events of `subjects` in turn, in several rounds; return the least costs of an event.

    Args:
        metric: The rules of the events.
        subjects: The number of subjects.
        events: The number of events in each round.
        entry: The most events in an entry.
        actor: Whether each event has an actor.
        high: The amount of the first `_HIGH` events of a round.
    """
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(server.url)
        client.config_set("auto-aof-rewrite-percentage", 0)
        deployment = Deployment.create_or_load(client, 1)
        rules = Rules({"view": metric})
        client.hset(deployment.layout.meta, "rules", publish(rules))
        keys = deployment.layout.keys[0]
        fetch = Fetch(client, keys, "costs")
        fetch.ensure_group()
        consumer = CountingLoop(client, deployment.layout, 0, fetch, Fold(deployment.layout, 0, rules))
        appended, applied = _Meter(client), _Meter(client)
        for number in range(_ROUNDS):
            with appended, Producer(server.url, entry_events=entry, linger=1.0) as producer:
                for at in range(events):
                    who = f"user:{number}{at % 1000:05}" if actor else None
                    producer.emit("view", f"article:{at % subjects:05}", high if at < _HIGH else 1, actor=who)
                producer.flush(60)
            with applied:
                while consumer.run_once():
                    pass
        stream = int(client.memory_usage(keys.stream, samples=0) or 0)
        client.close()
    return Figures(
        *(appended.server / events, appended.ours / events, appended.into / events, appended.log / events),
        *(applied.server / events, applied.ours / events, applied.into / events, applied.out / events),
        applied.log / events,
        stream / events / _ROUNDS,
    )


class _Meter:
    """A context manager that measures its blocks and keeps the least of each figure.

    The figures are the microseconds of the server's main thread and of this process, and the bytes into and out of the
    server and into its append-only file.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._least = [float("inf")] * 5
        self._before = [0.0] * 5

    def __enter__(self) -> None:
        self._before = self._read()

    def __exit__(self, *_: object) -> None:
        spent = (now - then for now, then in zip(self._read(), self._before, strict=True))
        self._least = [min(pair) for pair in zip(self._least, spent, strict=True)]
        self.server, self.ours, self.into, self.out, self.log = self._least

    def _read(self) -> list[float]:
        info = self._client.info("everything")
        main = float(info["used_cpu_user_main_thread"]) + float(info["used_cpu_sys_main_thread"])
        sent = (float(info["total_net_input_bytes"]), float(info["total_net_output_bytes"]))
        log = float(info["aof_current_size"]) + float(info["aof_buffer_length"])
        return [main * 1e6, time.process_time() * 1e6, *sent, log]


def collect(tell: Callable[[str], None] = lambda _: None) -> Costs:
    """Measure all cases and return the constants; `tell` is called with a line of progress before each case."""

    def case(name: str, metric: Metric, subjects: int = _SUBJECTS, **load: int | bool) -> Figures:
        tell(f"costs: {name}")
        return measure(metric, subjects, **load)  # type: ignore[arg-type]  # the names of `load` have the right types

    alone = case("one event an entry", Metric(), 1, events=20_000, entry=1)
    hot = case("one subject", Metric(), 1, events=500_000)
    again = case("subjects that repeat in a batch", Metric(), _ENTRY)
    total = case("totals", Metric())
    known = case("totals of subjects that the worker remembers", Metric(), 40_000)
    hour = case("an hour", Metric(windows=("hour",)))
    day = case("an hour and a day", Metric(windows=("hour", "day")))
    below = case("a leaderboard that no subject enters", Metric(top=100), high=1_000_000)
    ties = case("a leaderboard that every subject enters", Metric(top=100))
    limit = case("a limit", Metric(limit=1000, per="hour"))
    vote = case("votes", Metric(once="forever"), events=_SUBJECTS // 4, actor=True)
    unique = case("unique actors", Metric(unique="day"), events=_SUBJECTS // 4, actor=True)
    tell("costs: memory")
    held = {name: memory.measure(*of) for name, of in memory.CASES.items()}
    actor, member, producer, dropped = _small_parts()

    def at_least_0(value: float) -> float:
        return round(max(0.0, value), 4)  # on a busy machine, a small difference may be negative

    # The four unknowns of an entry, a subject in it, and a counter: alone = entry, again = subject, total = both.
    return Costs(
        machine=f"{report.processor()}, {report.system()}",
        software=_software(),
        server=costs.ServerCosts(
            append_entry=at_least_0(alone.append_server),
            append_subject=at_least_0(total.append_server - alone.append_server / _ENTRY),
            entry=at_least_0(alone.apply_server),
            subject=at_least_0(again.apply_server - alone.apply_server / _ENTRY),
            total=at_least_0(total.apply_server - again.apply_server),
            window=at_least_0((day.apply_server - total.apply_server) / 2),
            board=at_least_0(below.apply_server - total.apply_server),
            place=at_least_0(ties.apply_server - below.apply_server),
            limit=at_least_0(limit.apply_server - total.apply_server),
            vote=at_least_0(vote.apply_server - total.apply_server),
            unique=at_least_0(unique.apply_server - total.apply_server),
        ),
        worker=costs.WorkerCosts(
            entry=at_least_0(alone.apply_worker),
            subject=at_least_0(again.apply_worker - alone.apply_worker / _ENTRY),
            counter=at_least_0(known.apply_worker - again.apply_worker),
            fresh=at_least_0(total.apply_worker - known.apply_worker),
            single=at_least_0(vote.apply_worker - known.apply_worker),
        ),
        producer=costs.ProducerCosts(
            entry=at_least_0(alone.append_producer - hot.append_producer), event=at_least_0(hot.append_producer)
        ),
        memory=costs.MemoryCosts(
            total=round(held["total"], 1),
            field=round((held["total, hour, day"] - held["total"]) / 2, 1),
            votes=round(held["total, vote of 1 actor"] - held["total"] - _vote(held), 1),
            vote=round(_vote(held), 1),
            id=round(held["total, 1 id"] - held["total"], 1),
            unique=round(held["total, 1 unique actor a day"] - held["total"], 1),
            actor=round(actor, 1),
            member=round(member, 1),
            entry=round(alone.stream, 1),
            subject=round(total.stream - alone.stream / _ENTRY, 1),
            single=round(vote.stream, 1),
            producer=round(producer, 1),
            dropped=round(dropped, 1),
        ),
        wire=costs.WireCosts(
            append_entry=round(alone.append_in, 1),
            append_subject=round(total.append_in - alone.append_in / _ENTRY, 1),
            append_single=round(vote.append_in, 1),
            read_entry=round(alone.apply_out, 1),
            apply_counter=round(total.apply_in, 1),
            apply_single=round(vote.apply_in - total.apply_in, 1),
            log_entry=round(alone.append_log + alone.apply_log, 1),
            log_total=round(total.apply_log, 1),
            log_window=round(hour.apply_log - total.apply_log, 1),
            log_single=round(vote.apply_log - total.apply_log, 1),
        ),
    )


def write(measured: Costs, target: Path = TARGET) -> None:
    """Write the constants as JSON to `target`, by default the file that the product reads."""
    target.write_bytes(msgspec.json.format(msgspec.json.encode(measured), indent=2) + b"\n")


def _vote(held: dict[str, float]) -> float:
    return (held["total, votes of 11 actors"] - held["total, vote of 1 actor"]) / 10


def _small_parts() -> tuple[float, float, float, float]:
    """Return the bytes of small parts of large keys.

    They are an actor in a HyperLogLog of 1,000 actors, a place in a leaderboard, the record of a producer, and the
    record of a dropped dead letter of one event.
    """
    id_, records = "1764000000000-0", 10_000
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(server.url)
        client.execute_command("PFADD", "unique", *(f"user:{number:06}" for number in range(1000)))
        client.zadd("board", {f"article:{number:05}": number for number in range(board_length(100))})
        client.hset("sequences", mapping={uuid.uuid4().hex[:16]: f"{number} {id_}" for number in range(records)})
        record = record_of(id_, {b"metric": b"view", b"subject": b"article:00001"}, 1, "view", whole=False)
        client.hset("dropped", mapping={f"tally {number}-0": record for number in range(10**12, 10**12 + records)})
        sizes = [int(client.memory_usage(key, samples=0) or 0) for key in ("unique", "board", "sequences", "dropped")]
        client.close()
    actors, board, sequences, dropped = sizes
    return actors / 1000, board / board_length(100), sequences / records, dropped / records


def _software() -> str:
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(server.url)
        info = client.info("server")
        client.close()
    return report.software(info)


def main() -> None:
    """Measure the constants and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=__doc__.partition("\n")[0])
    parser.add_argument("--into", type=Path, default=TARGET, help="file to write; default: that of the product")
    arguments = parser.parse_args()
    write(collect(print), arguments.into)


if __name__ == "__main__":
    main()
