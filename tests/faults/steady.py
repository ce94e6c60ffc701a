"""The soak's producer: a sustained rate of pairs, and at the end what they must add up to."""

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
"""Pairs in a chunk: drawn beforehand, so that emitting them costs what emitting costs."""

CHUNKS: Final = 64
BEHIND: Final = 2.0
"""Seconds of load that are made up for after an outage; what lies further back is left out."""


def steady(url: str, books: str, seed: int, rate: float, subjects: int) -> int:
    """Emit `rate` events a second until told to stop; write the confirmed sums and the statistics to `books`."""
    chance = random.Random(seed)
    # A few subjects get most of it, as in life.
    chunks = [[f"s{int(subjects ** chance.random()) - 1}" for _ in range(PAIRS)] for _ in range(CHUNKS)]
    emitted: Counter[int] = Counter()
    began = time.monotonic()
    due = began
    producer = Producer(url, linger=BY_HAND, entry_events=500, entry_bytes=2**20, block_timeout=120)
    with listening() as stop:
        producer.emit("view", "s0", 0)
        producer.flush(30)  # the first seal comes at once whatever the linger is
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
    Path(books).write_text(json.dumps(told))
    return 0
