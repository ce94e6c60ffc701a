"""Splits an iterable into pages, so that each page is read from the server by one pipeline."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Item = TypeVar("Item")

PAGE: Final = 500
"""The number of items of a page."""


def pages(every: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield the items in lists of 500; the last one may be shorter, and none is empty."""
    left = iter(every)
    while page := list(islice(left, PAGE)):
        yield page
