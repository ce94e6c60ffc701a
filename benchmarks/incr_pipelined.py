"""Case b: INCR in pipelines of 1,000 with redis-py."""

import time

import redis

from .load import zipf
from .measure import RATE, Sample
from .server import Arena

_PIPELINE = 1_000


def redis_py(arena: Arena) -> Sample:
    """Return the rate of INCR with redis-py on one connection, with one round trip for each 1,000 increments."""
    subjects = zipf(arena.events(500_000, 100_000))
    with redis.Redis.from_url(arena.url) as client:
        client.ping()
        started = time.perf_counter()
        for first in range(0, len(subjects), _PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for subject in subjects[first : first + _PIPELINE]:
                pipeline.incr(f"view:{subject}")
            pipeline.execute()
        return Sample({RATE: len(subjects) / (time.perf_counter() - started)})
