"""The names of the windows, and the units of time in seconds."""

from __future__ import annotations

from typing import Final, Literal

Window = Literal["minute", "hour", "day", "month"]
"""The name of a window."""

WINDOWS: Final[tuple[Window, ...]] = ("minute", "hour", "day", "month")
"""The windows from the finest to the coarsest."""

MINUTE: Final = 60
"""Seconds in a minute."""

HOUR: Final = 3600
"""Seconds in an hour."""

DAY: Final = 86_400
"""Seconds in a day."""
