"""Many readers of live updates in one process, which discard what they read.

Usage: python -m benchmarks.live_clients HOST PORT READERS PATH
It prints "reading" when all readers have their first event. After a line on standard input it prints the rate in MB/s
and ends. In practice, readers are on other machines, so this process uses little processor time, in order not to
distort the figures of the service.
"""

import selectors
import socket
import sys
import time

_PAUSE = 0.1
"""Seconds between two reads of all connections."""


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
            assert isinstance(key.fileobj, socket.socket)  # noqa: S101  # all others are sockets
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
