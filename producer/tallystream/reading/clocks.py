"""Reads the last step of a server's clock, which a worker noticed and published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tallystream.client.replies import is_unreachable
from tallystream.reading.query import Query, raise_on_error
from tallystream.storage.deployment_hash import CLOCK_STEP

if TYPE_CHECKING:
    from typing import Any

    from tallystream.storage.keys import Layout


@dataclass(frozen=True)
class ClockStep:
    """A step of a server's clock: a moment at which it was set ahead or back.

    Attributes:
        at: The server's time after the step, in seconds since 1970.
        seconds: The size of the step: above 0 if the clock was set ahead, below 0 if it was set back.
    """

    at: float
    seconds: float


def query_clock_step(layout: Layout) -> Query[ClockStep | None]:
    """Return a query for the last step of a server's clock that a worker published in the hash of the layout's topic.

    Its answer is `None` if none was published there, or if the node of a cluster that has the hash does not answer.
    """

    def parse(replies: list[Any]) -> ClockStep | None:
        return None if is_unreachable(replies[0]) else parse_step(raise_on_error(replies[0]))

    return Query([("HGET", layout.meta, CLOCK_STEP)], parse)


def write_step(step: ClockStep) -> str:
    """Return the text of a step for `CLOCK_STEP`: `at`, a space, `seconds`; both in seconds with 3 decimals."""
    return f"{step.at:.3f} {step.seconds:.3f}"


def parse_step(text: bytes | None) -> ClockStep | None:
    """Return the step in a value of the field `CLOCK_STEP`, made by `write_step`; `None` if it is `None` or empty."""
    return ClockStep(*(float(part) for part in text.split())) if text else None
