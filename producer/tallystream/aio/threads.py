"""Runs calls that block without making the event loop wait."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


async def in_thread(call: Callable[[], None]) -> None:
    """Run a call that blocks in a thread of its own.

    Not in the loop's executor: that has few threads, and its end waits for all of them, so a flush that was given
    up while the server is away would keep the program from ending.
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
        except BaseException as error:  # noqa: BLE001  # it is raised where the caller waits
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, failure)

    threading.Thread(target=run, name="tallystream-wait", daemon=True).start()
    await done
