"""Many readers of live updates in one process: they read what comes and throw it away.

Usage: python -m benchmarks.live_clients HOST PORT READERS PATH
Prints "reading" once all of them have their first event, and at the end (a line on standard input) bytes and seconds.
Readers are elsewhere in real life: this one takes as little as it can, so that what is measured is the service.
"""

import selectors
import socket
import sys
import time

_PAUSE = 0.1
"""Seconds between two looks at all connections."""


def _main(host: str, port: int, readers: int, path: str) -> None:
    connections = [socket.create_connection((host, port)) for _ in range(readers)]
    silent = set(connections)
    selector = selectors.DefaultSelector()
    for connection in connections:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        selector.register(connection, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    read, began = 0, 0.0
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                print(f"{read / (time.monotonic() - began) / 1e6:.2f} MB/s")
                return
            assert isinstance(key.fileobj, socket.socket)  # noqa: S101  # the only others
            data = key.fileobj.recv(65536)
            if not data:
                sys.exit("the service ended a stream")
            read += len(data)
            if silent and b"event:" in data:
                silent.discard(key.fileobj)
        if not silent and not began:
            print("reading", flush=True)
            read, began = 0, time.monotonic()
        if began:
            time.sleep(_PAUSE)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
