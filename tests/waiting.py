"""Wait for a condition in a test, instead of sleeping for a fixed time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def until(
    condition: Callable[[], T],
    timeout: float = 30,
    interval: float = 0.005,
    what: str = "the condition",
) -> T:
    """Call `condition` every `interval` seconds until it returns a true value, and return that value.

    Raises:
        AssertionError: it returned no true value within `timeout` seconds; the message has `what` and the last value.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"timed out after {timeout} s waiting for {what}; the last value was {value!r}")
        time.sleep(interval)
    return value
