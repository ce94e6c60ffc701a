"""Public API for asyncio: `Producer` and `Totals`, with coroutines in place of blocking methods.

from tallystream.aio import Producer, Totals

async with Producer("redis://127.0.0.1:6379") as producer:
    await producer.emit("view", "article:1")
    await producer.flush(wait="counted")
"""

from tallystream.aio.producer import Producer
from tallystream.aio.totals import Totals

__all__ = ["Producer", "Totals"]
