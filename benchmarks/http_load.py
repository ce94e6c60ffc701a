"""A load generator for HTTP: it opens a number of connections, each with one request at a time.

It runs in a separate process, and parses only the length and the status of an answer.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """The figures of a load.

    Attributes:
        rate: Requests a second.
        p50: The median latency, in seconds.
        p99: The 99th percentile of the latency, in seconds.
        errors: The number of answers without a status of 200 to 209.
    """

    rate: float
    p50: float
    p99: float
    errors: int


class Loader:
    """A process that sends requests, started once for several loads; a context manager that ends it."""

    def __init__(self) -> None:
        self._pool = multiprocessing.get_context("spawn").Pool(1)

    def __call__(self, port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Load:
        """Send the requests in turn over a number of connections for some seconds, and return the figures."""
        return self._pool.apply(_in_process, (port, list(requests), connections, seconds))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()


def load(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """Send the requests in turn for some seconds from a new process, and return the figures."""
    with Loader() as send:
        return send(port, requests, connections=connections, seconds=seconds)


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
    """Return the bytes of an HTTP request to this machine; a body gets a length and the content type `kind`."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if body:
        head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


@contextmanager
def service(url: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run `tallystream serve` until the block ends; yield its port and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("tallystream"))
    command = [program, "serve", "--port", str(port), "--redis", url]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def cpu_seconds(process: psutil.Process) -> float:
    """Return the processor time in seconds that a process has used, which depends little on other load."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _in_process(port: int, requests: list[bytes], connections: int, seconds: float) -> Load:
    return asyncio.run(_run(port, requests, connections, seconds))


async def _run(port: int, requests: list[bytes], connections: int, seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    ends = time.perf_counter() + seconds
    clients = [_Client(requests, n, ends, loop) for n in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
    await asyncio.gather(*(client.done for client in clients))
    took = sorted(one for client in clients for one in client.took)
    errors = sum(client.errors for client in clients)
    return Load(len(took) / seconds, took[len(took) // 2], took[len(took) * 99 // 100], errors)


class _Client(asyncio.Protocol):
    def __init__(self, requests: list[bytes], first: int, ends: float, loop: asyncio.AbstractEventLoop) -> None:
        self._requests = requests
        self._next = first
        self._ends = ends
        self._buffer = b""
        self.took: list[float] = []
        self.errors = 0
        self.done: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._next = (self._next + 1) % len(self._requests)
        self._began = time.perf_counter()
        self._transport.write(self._requests[self._next])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        if not separator or found is None or len(body) < int(found[1]):
            return
        now = time.perf_counter()
        self.took.append(now - self._began)
        self.errors += not head.startswith(b"HTTP/1.1 20")
        self._buffer = b""
        if now < self._ends:
            self._send()
        else:
            self._transport.close()
            if not self.done.done():
                self.done.set_result(None)
