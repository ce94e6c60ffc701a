"""Many readers of live updates in one process: they read what comes and throw it away.

Usage: python -m benchmarks.live_clients HOST PORT READERS PATH
Prints "reading" once all of them have their first event, and at the end (a line on standard input) bytes and seconds.
"""

import asyncio
import sys
import time


async def _read(host: str, port: int, path: str, first: asyncio.Semaphore, read: list[int]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    while data := await reader.read(65536):
        if b"event:" in data:
            first.release()
        read[0] += len(data)


async def _main(host: str, port: int, readers: int, path: str) -> None:
    first, read = asyncio.Semaphore(0), [0]
    reading = [asyncio.create_task(_read(host, port, path, first, read)) for _ in range(readers)]
    for _ in range(readers):
        await first.acquire()
    print("reading", flush=True)
    began, before = time.monotonic(), read[0]
    await asyncio.to_thread(sys.stdin.readline)
    print(f"{(read[0] - before) / (time.monotonic() - began) / 1e6:.2f} MB/s")
    for task in reading:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
