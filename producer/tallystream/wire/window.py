"""The windows that an entry may name, and the grain of time in it."""

from __future__ import annotations

from typing import Final, Literal

Window = Literal["minute", "hour", "day", "month"]
WINDOWS: Final[tuple[Window, ...]] = ("minute", "hour", "day", "month")
"""From the finest to the coarsest."""

MINUTE: Final = 60
HOUR: Final = 3600
DAY: Final = 86_400
"""Seconds."""
