"""The producer process of the soak: it emits pairs at a steady rate, and writes the sums that must be counted."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tallystream import Producer
from tests.faults.processes import BY_HAND, listening

PAIRS: Final = 500
"""The number of pairs in a chunk. Chunks are drawn in advance, so that the loop costs only the calls of `emit`."""

CHUNKS: Final = 64
"""The number of different chunks."""
BEHIND: Final = 2.0
"""The most seconds of load that are emitted late after an outage; older load is left out."""


def steady(url: str, ledger: str, seed: int, rate: float, subjects: int) -> int:
    """Emit `rate` events a second until SIGTERM, flush, and write a JSON file; return the exit status 0.

    The file `ledger` has the number of pairs of each subject, the seconds and the producer's statistics.
    """
    chance = random.Random(seed)
    # As in practice, a few subjects get most of the events.
    chunks = [[f"s{int(subjects ** chance.random()) - 1}" for _ in range(PAIRS)] for _ in range(CHUNKS)]
    emitted: Counter[int] = Counter()
    began = time.monotonic()
    due = began
    producer = Producer(url, linger=BY_HAND, entry_events=500, entry_bytes=2**20, block_timeout=120)
    with listening() as stop:
        producer.emit("view", "s0", 0)
        producer.flush(30)  # the first entry is sealed at once, whatever the linger is
        while not stop.is_set():
            number = chance.randrange(CHUNKS)
            emitted[number] += 1
            for subject in chunks[number]:
                producer.emit("view", subject)
                producer.emit("like", subject)
            due = max(due + 2 * PAIRS / rate, time.monotonic() - BEHIND)
            stop.wait(max(0.0, due - time.monotonic()))
        seconds = time.monotonic() - began
        producer.flush(120)
    sums: Counter[str] = Counter()
    for number, times in emitted.items():
        for subject in chunks[number]:
            sums[subject] += times
    told = {"sums": sums, "seconds": seconds, "statistics": asdict(producer.stats)}
    producer.close()
    Path(ledger).write_text(json.dumps(told))
    return 0
