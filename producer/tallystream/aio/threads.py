"""Runs blocking calls for coroutines in daemon threads, outside the event loop's executor."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def in_thread(call: Callable[[], None]) -> None:
    """Run a blocking call in a new daemon thread, and suspend the caller until it returns.

    A daemon thread does not keep the program from ending: the call is cut off then. If the caller is cancelled, the
    call still runs to its end, and its exception is ignored.

    The event loop's executor is not used: it has few threads, and the event loop waits for all of them when it ends,
    so a flush that was cancelled during an outage would keep the program from ending.

    Raises:
        RuntimeError: the system refuses the thread; the call did not run.

    Any error of `call` is raised too.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        try:
            call()
        except BaseException as error:  # noqa: BLE001  # the coroutine that awaits the call raises it
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name="tallystream-wait", daemon=True).start()
    await done
