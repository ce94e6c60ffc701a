"""Case a: one INCR at a time, each after the reply to the one before, as counters are usually written."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import redis

from .load import zipf
from .measure import RATE, Sample, Skipped
from .server import Arena

_SCRIPT = Path(__file__).with_name("incr_one.cjs")


def redis_py(arena: Arena) -> Sample:
    """Return the rate of INCR with redis-py on one connection."""
    subjects = zipf(arena.events(50_000, 10_000))
    with redis.Redis.from_url(arena.url) as client:
        client.ping()
        started = time.perf_counter()
        for subject in subjects:
            client.incr(f"view:{subject}")
        return Sample({RATE: len(subjects) / (time.perf_counter() - started)})


def redis_py_one_core(arena: Arena) -> Sample:
    """Return the rate of INCR with redis-py, with client and server pinned to one core.

    A reply that wakes a process on another core costs more than the increment, so the figure of `redis_py` depends on
    the cores that the scheduler chooses. This case is the most favourable to INCR.

    Raises:
        Skipped: the system cannot pin a process to a core.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise Skipped("this system cannot pin a process to a core")
    server = int(arena.client.info("server")["process_id"])
    ours, theirs = os.sched_getaffinity(0), os.sched_getaffinity(server)
    core = {min(ours & theirs)}
    try:
        os.sched_setaffinity(server, core)
        os.sched_setaffinity(0, core)
        return redis_py(arena)
    finally:
        os.sched_setaffinity(0, ours)
        os.sched_setaffinity(server, theirs)


def ioredis(arena: Arena) -> Sample:
    """Return the rate of INCR with ioredis on one connection, one `await` after the other, as in the Node tutorial.

    Raises:
        Skipped: node or npm is missing, or npm cannot install ioredis.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise Skipped("no node and npm on PATH")
    modules = _install(npm, arena.scratch / "ioredis")
    subjects = zipf(arena.events(50_000, 10_000))
    keys = arena.scratch / "keys.txt"
    keys.write_text("\n".join(f"view:{subject}" for subject in subjects), encoding="utf-8")
    ran = subprocess.run(
        [node, str(_SCRIPT), str(arena.port), str(keys)],
        env={**os.environ, "NODE_PATH": str(modules)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return Sample({RATE: len(subjects) / float(ran.stdout)})


def _install(npm: str, folder: Path) -> Path:
    modules = folder / "node_modules"
    if not (modules / "ioredis").is_dir():
        folder.mkdir(exist_ok=True)
        command = [
            npm,
            "install",
            "--prefix",
            str(folder),
            "--no-save",
            "--no-fund",
            "--no-audit",
            "ioredis@5",
        ]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if ran.returncode:
            lines = ran.stderr.strip().splitlines()
            raise Skipped(f"npm cannot install ioredis: {lines[-1] if lines else ran.returncode}")
    return modules
