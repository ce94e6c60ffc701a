"""Case d: a usual stream consumer with FastStream, with one INCR for each message."""

import asyncio
import logging
import time

import redis.asyncio
from faststream.redis import RedisBroker, StreamSub

from .load import zipf
from .measure import RATE, Sample
from .server import Arena

_STREAM = "events"
_GROUP = "counters"


def consumer(arena: Arena) -> Sample:
    """Measure a drain of a stream with one message per event, read in batches of 1,000 and acknowledged one by one."""
    subjects = zipf(arena.events(20_000, 5_000))
    arena.client.xgroup_create(_STREAM, _GROUP, "0", mkstream=True)
    pipeline = arena.client.pipeline(transaction=False)
    for subject in subjects:
        # `__data__` is the field in which FastStream expects the body, as JSON.
        pipeline.xadd(_STREAM, {"__data__": f'"{subject}"'})
    pipeline.execute()
    arena.settle()
    return Sample({RATE: len(subjects) / asyncio.run(_drain(arena.url, len(subjects)))})


async def _drain(url: str, n: int) -> float:
    quiet = logging.getLogger("benchmarks.faststream")
    quiet.setLevel(logging.WARNING)  # by default, logging two lines for each message would dominate
    broker = RedisBroker(url, logger=quiet)
    counters = redis.asyncio.Redis.from_url(url)
    everything_counted = asyncio.Event()
    remaining = n

    @broker.subscriber(stream=StreamSub(_STREAM, group=_GROUP, consumer="bench", max_records=1_000))
    async def count(subject: str) -> None:
        nonlocal remaining
        await counters.incr(f"view:{subject}")
        remaining -= 1
        if not remaining:
            everything_counted.set()

    async with broker, counters:
        started = time.perf_counter()
        await broker.start()
        await asyncio.wait_for(everything_counted.wait(), timeout=300)
        return time.perf_counter() - started
