"""A script: everything that one scenario does, as data that can be stored, shortened, read and played again."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import msgspec

from tallystream.rules.metrics import Rules  # noqa: TC001  # msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.scenarios.move import Move


class Occurrence(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event of a script.

    Attributes:
        metric: Its metric.
        subject: Its subject.
        amount: Its amount.
        actor: Its actor, if it has one.
        at: Its time, in seconds since the start of the scenario; `None` for the clock of the host that emits it.
        id: Its id, if it has one.
    """

    metric: str
    subject: str
    amount: int = 1
    actor: str | None = None
    at: float | None = None
    id: str | None = None

    def fields(self, start: float) -> dict[str, Any]:
        """Return the arguments of `Producer.emit` for a scenario that starts at second `start`."""
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return given if self.at is None else given | {"at": start + self.at}


class Script(msgspec.Struct, frozen=True):
    """A scenario.

    Attributes:
        seed: The seed that it was drawn from; 0 for a script that a person wrote.
        server: The kind of server: `valkey` or `redis`.
        start: The time at which all clocks start, such as `2026-03-29T00:40:10`, in UTC.
        partitions: The number of partitions.
        age: The time for which counted entries stay in the streams.
        rules: The rules of the metrics.
        steps: The moves, in order; each is an object with the name of the move in `move`.
    """

    seed: int
    server: str
    start: str
    partitions: int
    age: str
    rules: Rules
    steps: list[dict[str, Any]]

    @property
    def began(self) -> float:
        """The start in seconds since 1970."""
        return dt.datetime.fromisoformat(self.start).replace(tzinfo=dt.UTC).timestamp()

    def moves(self) -> Iterator[Move]:
        """Yield the moves of the script."""
        from tests.scenarios.move import decode  # noqa: PLC0415  # moves use the types of this module

        return map(decode, self.steps)

    def text(self) -> str:
        """Return the script as JSON, one line for each step."""
        head = msgspec.json.encode(msgspec.structs.replace(self, steps=[])).decode()
        steps = ",\n  ".join(msgspec.json.encode(step).decode() for step in self.steps)
        return head.replace('"steps":[]', f'"steps":[\n  {steps}\n]')


def parse(text: str | bytes) -> Script:
    """Return the script that `Script.text` wrote."""
    return msgspec.json.decode(text, type=Script)
