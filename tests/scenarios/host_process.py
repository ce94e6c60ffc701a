"""The process of a host: runs the commands that it reads from standard input, one JSON line each.

Each command is a public function of this module. Its answer is one line: `{"result": ...}` or `{"raised": ...}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import json
import os
import random
import select
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import redis
import structlog

from tallystream import Producer, aio
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import KeyLost, TallyError
from tallystream.reading.deployment_cache import DEPLOYMENT_AGE
from tallystream.reading.totals import Totals
from tallystream.storage.sentinels import begun_of, refuse_lost
from tallystream_worker.cli.main import main as command_line
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.counting.refreshing_fold import RefreshingFold
from tallystream_worker.maintenance.losses import losses_service
from tallystream_worker.maintenance.reaper import reap_consumers, reap_producers, reaper_service
from tallystream_worker.maintenance.rules import RulesAdopter
from tallystream_worker.maintenance.trim import trim_service
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.service.server import serving
from tallystream_worker.settings.load import load

if TYPE_CHECKING:
    from collections.abc import Callable

# libfaketime computes a wrong end for `clock_nanosleep` to a time of the monotonic clock, which `time.sleep` uses.
time.sleep = lambda seconds: select.select([], [], [], seconds) and None

_CLAIM_AT_ONCE = 0.0
_MAX_DELIVERIES = 1_000_000

_SLOW = {
    "archive": ["archive.archiver", "archive.store"],
    "snapshot": ["snapshot.service", "snapshot.snapshotter"],
    "restore": ["snapshot.restore", "archive.store"],
}

_open = contextlib.ExitStack()
_producers: dict[str, Producer] = {}
_services: dict[str, str] = {}
_answered: dict[str, float] = {}  # by configuration, the monotonic second of a service's last answer
_loop = asyncio.new_event_loop()


def now() -> float:
    """Return the second since 1970 that this host's clock shows."""
    return time.time()


def forget() -> None:
    """Close every producer and service."""
    for producer in _producers.values():
        with contextlib.suppress(TallyError, redis.RedisError):
            producer.close(0.2)
    _producers.clear()
    _services.clear()
    _open.close()


def configure(config: str) -> None:
    """Publish the rules of a configuration file, and record since when they count, as a worker does at its start."""
    settings = load(Path(config), {})
    open_deployment(settings, structlog.get_logger())
    with contextlib.closing(connect(settings.redis.url)) as client:
        RulesAdopter(client, Deployment.load(client)).run_once()


def emit(url: str, producer: str, events: list[dict[str, Any]], spool: str | None = None) -> list[str | None]:
    """Emit events with the producer of this name, wait until they are appended, and return the refusals.

    The producer lives until the end of the scenario. The list has the error of each event, `None` for an accepted one.
    """
    if producer not in _producers:
        _producers[producer] = Producer(url, linger=0.001, spool=spool)
    emitting = _producers[producer]
    refused = [_refusal(partial(emitting.emit, **event)) for event in events]
    emitting.flush(20)
    return refused


def emit_asyncio(url: str, events: list[dict[str, Any]]) -> list[str | None]:
    """Emit events with a new producer for asyncio, and return the refusals as `emit` does."""

    async def run() -> list[str | None]:
        refused: list[str | None] = []
        async with aio.Producer(url) as producer:
            for event in events:
                try:
                    await producer.emit(**event)
                    refused.append(None)
                except TallyError as error:
                    refused.append(str(error))
        return refused

    return _loop.run_until_complete(run())


def lost(producer: str) -> int:
    """Return the number of entries that the server has lost and the producer of this name no longer keeps."""
    return _producers[producer].stats.lost_entries if producer in _producers else 0


def close(producer: str) -> None:
    """Close the producer of this name."""
    if producer in _producers:
        _producers.pop(producer).close(20)


def decide(url: str, producer: str, event: dict[str, Any]) -> dict[str, Any]:
    """Decide one event; return the decision, or the error as `refused`."""
    if producer not in _producers:
        _producers[producer] = Producer(url, linger=0.001)
    try:
        decision = _producers[producer].decide(**event)
    except TallyError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {
        "accepted": decision.accepted,
        "total": decision.total,
        "remaining": decision.remaining,
        "reset_at": decision.reset_at,
        "reason": decision.reason,
        "id": decision.id,
    }


def plain(url: str, fields: list[dict[str, str]]) -> list[str]:
    """Append one plain entry for each dictionary of fields, and return the stream IDs."""
    with contextlib.closing(connect(url)) as client:
        layout = Deployment.load(client).layout
        return [client.xadd(layout.keys_of(each["subject"]).stream, each).decode() for each in fields]


def append_unreadable(url: str, subject: str, version: str, events: int) -> None:
    """Append an entry of a wire version that states a number of events, and whose bytes cannot be read."""
    with contextlib.closing(connect(url)) as client:
        keys = Deployment.load(client).layout.keys_of(subject)
        client.xadd(keys.stream, {"v": version, "n": str(events), "b": b"\x91\xc1"})


def streams(url: str) -> list[str]:
    """Return the keys of the streams that exist."""
    with contextlib.closing(connect(url)) as client:
        return [keys.stream for keys in Deployment.load(client).layout.keys if client.exists(keys.stream)]


def last_times(url: str) -> list[float]:
    """Return the time of the last ID of each partition's stream, in seconds since 1970; 0 for an empty stream."""
    with contextlib.closing(connect(url)) as client:
        times = []
        for keys in Deployment.load(client).layout.keys:
            last = client.xinfo_stream(keys.stream)["last-generated-id"] if client.exists(keys.stream) else b"0-0"
            times.append(int(last.partition(b"-")[0]) / 1000)
        return times


def count(url: str, consumer: str, shuffle: int | None = None, most: int | None = None) -> int:
    """Count the entries that wait, and return their number.

    Args:
        url: The server.
        consumer: Name of the consumer.
        shuffle: Seed of the order and of the splits; `None` for the order of the stream.
        most: Count at most so many batches in each partition; `None` for all.
    """
    chance = random.Random(shuffle)
    counted = 0
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(connect(url)))
        deployment = Deployment.load(client)
        for partition, keys in enumerate(deployment.layout.keys):
            refuse_lost(client, keys)
            fold = partial(
                Fold,
                deployment.layout,
                partition,
                max_deliveries=_MAX_DELIVERIES,
                begun=begun_of(client, keys),
            )
            fetch = Fetch(client, keys, consumer, claim_idle=_CLAIM_AT_ONCE)
            rules, revision = deployment.numbered_rules_of(keys.generation)
            if shuffle is not None:
                counted += _count_shuffled(
                    client, deployment, partition, fetch, RefreshingFold(rules, fold, _none, revision), chance
                )
            loop = CountingLoop(
                client, deployment.layout, partition, fetch, RefreshingFold(rules, fold, _none, revision)
            )
            batches = 0
            while (most is None or batches < most) and (done := loop.run_once()):
                batches += 1
                counted += int(done)
    return counted


def try_count(url: str, consumer: str) -> str | None:
    """Count as `count` does; return the name of the exception if the server refuses or the connection breaks."""
    try:
        count(url, consumer)
    except (redis.RedisError, KeyLost) as error:
        return type(error).__name__
    return None


def count_and_die(url: str, consumer: str, milliseconds: float) -> None:
    """Count in a forked process that is killed after some milliseconds."""
    pid = _fork(partial(count, url, consumer, shuffle=1))
    time.sleep(milliseconds / 1000)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def count_beside_frozen(url: str, consumer: str, milliseconds: float) -> None:
    """Freeze a forked process that counts, count under another name, then let the first continue.

    The process is frozen some milliseconds after it was forked.
    """
    pid = _fork(partial(count, url, consumer, shuffle=1))
    time.sleep(milliseconds / 1000)
    os.kill(pid, signal.SIGSTOP)
    count(url, f"{consumer}b")
    os.kill(pid, signal.SIGCONT)
    _wait(pid)


def count_beside(url: str, consumer: str) -> None:
    """Count in two processes with one name at once."""
    pid = _fork(partial(count, url, consumer, shuffle=2))
    count(url, consumer)
    _wait(pid)


def run_worker(config: str, milliseconds: float) -> None:
    """Run a worker in a forked process; send it SIGTERM some milliseconds after it has joined the consumer groups."""
    settings, name = load(Path(config), {}), f"whole{time.monotonic_ns()}"  # a name that no group knows yet
    pid = _fork(partial(_run_command, Path(config).parent, ["worker", "--name", name, "--config", config]))
    with contextlib.closing(connect(settings.redis.url)) as client:
        streams = [keys for keys in Deployment.load(client).layout.keys if client.exists(keys.stream)]
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not all(
            name.encode() in {row["name"] for row in client.xinfo_consumers(keys.stream, keys.group)}
            for keys in streams
        ):
            time.sleep(0.005)
    time.sleep(milliseconds / 1000)
    os.kill(pid, signal.SIGTERM)
    _wait(pid)


def kill_command(config: str, arguments: list[str], milliseconds: float) -> None:
    """Run the command line in a forked process that is killed after some milliseconds, unless it has ended."""
    pid = _fork(partial(_run_command, Path(config).parent, [*arguments, "--config", config]))
    time.sleep(milliseconds / 1000)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _fork(run: Callable[[], object]) -> int:
    """Call a function in a forked process, which ends with status 1 if it raises; return the process ID."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except Exception:  # noqa: BLE001  # print every exception before the process ends
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def _wait(pid: int) -> None:
    """Wait for a forked process; raise an exception if its exit status is not 0."""
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"a forked process ended with status {code}: its errors are in the log of this host")


def _count_shuffled(
    client: redis.Redis,
    deployment: Deployment,
    partition: int,
    fetch: Fetch,
    fold: RefreshingFold,
    chance: random.Random,
) -> int:
    """Count the entries of a partition in a random order, in batches of 1 to 4 entries."""
    held = fetch(10_000, 0)
    chance.shuffle(held)
    counted = len(held)
    while held:
        size = chance.randint(1, 4)
        part, held = held[:size], held[size:]
        handed = iter([part])
        CountingLoop(client, deployment.layout, partition, lambda *_, handed=handed: next(handed), fold).run_once()
    return counted


def maintain(config: str, consumer: str) -> None:
    """Run one pass of the services that keep the streams within bounds: trimming, losses, idle names."""
    settings = load(Path(config), {})
    with contextlib.closing(connect(settings.redis.url)) as client:
        deployment = Deployment.load(client)
    log = structlog.get_logger()
    for service in (
        trim_service(settings, deployment, log),
        losses_service(settings, deployment, log),
        reaper_service(settings, deployment, consumer, log),
    ):
        service.run_once()
        service.stop(time.monotonic() + 5)


def settle(config: str) -> None:
    """Run one pass of the service that looks for losses, which also sets the lag of a consumer group right."""
    settings = load(Path(config), {})
    with contextlib.closing(connect(settings.redis.url)) as client:
        deployment = Deployment.load(client)
    service = losses_service(settings, deployment, structlog.get_logger())
    service.run_once()
    service.stop(time.monotonic() + 5)


def reap(url: str, consumer: str, longest: float) -> None:
    """Make one pass that removes silent consumers and producers; it adds up to `longest` seconds to the active time."""
    with contextlib.closing(connect(url)) as client:
        for keys in Deployment.load(client).layout.keys:
            if client.exists(keys.stream):
                reap_consumers(client, keys, consumer)
                reap_producers(client, keys, "0", longest=longest)


def read(url: str, questions: list[list[Any]]) -> dict[str, Any]:
    """Ask `Totals` questions (method, arguments); return the answers, and this host's clock before and after them."""
    began = time.time()
    answers = []
    with Totals(url) as reader:  # a new one, because a reader remembers the live generation for a second
        for method, *arguments in questions:
            try:
                answers.append(msgspec.to_builtins(getattr(reader, method)(*arguments)))
            except TallyError as error:
                answers.append({"refused": f"{type(error).__name__}: {error}"})
    return {"began": began, "ended": time.time(), "answers": answers}


def http(config: str, requests: list[list[Any]]) -> dict[str, Any]:
    """Send HTTP requests to a read service on this host; return statuses and bodies.

    Args:
        config: The configuration file of the read service.
        requests: Method, path and body of each request; the body is text, or an object that is sent as JSON.
    """
    import httpx  # noqa: PLC0415

    if config not in _services:
        settings = load(Path(config), {})
        _services[config] = _open.enter_context(serving(settings, any_port=True))
    # A service remembers the server's clock for a second, in which a scenario can let days pass.
    time.sleep(max(0.0, _answered.get(config, 0.0) + DEPLOYMENT_AGE - time.monotonic()))
    began = time.time()
    with httpx.Client(base_url=_services[config], timeout=20) as client:
        answers = []
        for method, path, body in requests:
            content = body if isinstance(body, str) else json.dumps(body)
            response = client.request(method, path, content=content, headers={"Content-Type": "application/json"})
            kind = response.headers.get("content-type", "")
            answers.append([response.status_code, response.json() if "json" in kind else response.text])
    _answered[config] = time.monotonic()
    return {"began": began, "ended": time.time(), "answers": answers}


def command(config: str, arguments: list[str]) -> dict[str, Any]:
    """Run the command line in a forked process; return its exit status and what it wrote."""
    folder = Path(config).parent
    for module in (f"cli.commands.{arguments[0]}", *_SLOW.get(arguments[0], ())):
        importlib.import_module(f"tallystream_worker.{module}")  # once, and not in each fork
    pid = os.fork()
    if pid == 0:
        _run_command(folder, [*arguments, "--config", config])
    _, status = os.waitpid(pid, 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "out": (folder / f"{pid}.out").read_text(),
        "err": (folder / f"{pid}.err").read_text(),
    }


def _run_command(folder: Path, arguments: list[str]) -> None:
    status = 70
    try:
        for name, number in (("out", 1), ("err", 2)):
            descriptor = os.open(folder / f"{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = io.TextIOWrapper(io.FileIO(1, "w")), io.TextIOWrapper(io.FileIO(2, "w"))
        os.chdir(folder)
        sys.argv = ["tallystream", *arguments]
        command_line()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:  # noqa: BLE001  # print every exception before the process ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _refusal(call: partial[None]) -> str | None:
    try:
        call()
    except TallyError as error:
        return str(error)
    return None


def _none(_: int) -> None:
    return None


def main() -> None:
    """Run commands until standard input ends."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=sys.stderr))
    answers, sys.stdout = sys.stdout, sys.stderr  # a command that prints must not spoil the answers
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"result": globals()[name](**arguments)}
        except Exception:  # noqa: BLE001  # the test shows it as a failure
            answer = {"raised": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
