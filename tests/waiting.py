"""Waiting for a condition: the only place in the tests that sleeps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def until(
    condition: Callable[[], T],
    timeout: float = 10,
    interval: float = 0.005,
    what: str = "the condition",
) -> T:
    """Return what `condition` returns as soon as it is true; it is asked every `interval` seconds.

    Raises:
        AssertionError: it was not true within `timeout` seconds; says what it returned last.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not hold within {timeout} s; the last answer was {value!r}")
        time.sleep(interval)
    return value
