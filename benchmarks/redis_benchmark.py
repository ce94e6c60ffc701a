"""Case c: redis-benchmark, the load generator of the server, sends INCR on 100,000 random keys in pipelines of 64."""

import csv
import shutil
import subprocess

from .measure import RATE, Sample, Skipped
from .server import Arena


def pipelined(arena: Arena) -> Sample:
    """Return the rate of redis-benchmark with 50 connections and pipelines of 64 increments.

    Raises:
        Skipped: neither redis-benchmark nor valkey-benchmark is on PATH.
    """
    program = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if program is None:
        raise Skipped("no redis-benchmark or valkey-benchmark on PATH")
    n = arena.events(2_000_000, 500_000)
    target = ["-h", "127.0.0.1", "-p", str(arena.port)]
    shape = ["-P", "64", "-c", "50", "-r", "100000", "-n", str(n), "--csv"]
    command = [program, *target, *shape, "INCR", "view:article:__rand_int__"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    rows = [row for row in csv.reader(ran.stdout.splitlines()) if len(row) > 1 and row[0] != "test"]
    return Sample({RATE: float(rows[-1][1])})
