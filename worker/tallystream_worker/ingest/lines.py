"""What file readers take in and give out: lines, and what became of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from tallystream.wire.packer import Columns

MAX_LINE_BYTES: Final = 64 * 1024
"""The longest line that is read; a longer one is a bad line, so a file without line ends needs no memory."""

EventFields: TypeAlias = tuple[str, str, int, str | None, float | None, str | None]
"""`(metric, subject, amount, actor, at, id)`, decoded but not yet judged: `Event(*fields)` does that."""

Field: TypeAlias = Literal["path", "host", "status", "agent", "referrer"]
"""A part of an access-log line."""


class Line(NamedTuple):
    """One line of a file, without its line end.

    Attributes:
        number: Counted from 1, blank lines included.
        offset: Bytes of (decompressed) text before it.
        text: Its bytes; cut off somewhere behind `MAX_LINE_BYTES` when it is longer than that.
    """

    number: int
    offset: int
    text: bytes


class Block(NamedTuple):
    """Whole lines that follow one another, each with its line end; the file's last line may have none.

    Attributes:
        number: That of the first line, as in `Line`.
        offset: Bytes of (decompressed) text before it.
        end: Bytes of text up to its end, which is more than it has where it is one line that is cut off.
        text: The bytes of all lines.
    """

    number: int
    offset: int
    end: int
    text: bytes

    def lines(self) -> Iterator[Line]:
        """Yield the lines that are not blank."""
        offset = self.offset
        for number, text in enumerate(self.text.split(b"\n"), self.number):
            if text and not text.isspace():
                yield Line(number, offset, text)
            offset += len(text) + 1


class Mapping(msgspec.Struct, frozen=True):
    """Which part of a line becomes which part of an event.

    Attributes:
        metric: The metric of every event; a row that names its own keeps that.
        subject: The part of an access-log line that is counted for.
        actor: The part that says who did it; `None` for events without an actor.
    """

    metric: str = "view"
    subject: Field = "path"
    actor: Field | None = "host"


VIEWS: Final = Mapping()
"""What is usually wanted of an access log: a view of its path by its host."""


class ParsedLine(msgspec.Struct, frozen=True, gc=False):
    """A line that is an event."""

    number: int
    offset: int
    event: EventFields


class BadLine(msgspec.Struct, frozen=True, gc=False):
    """A line that is not an event; `reason` is one printable line and safe to show."""

    number: int
    reason: str


LineOutcome: TypeAlias = ParsedLine | BadLine
"""What became of a line: the readers never raise for what a line contains."""

TOO_LONG: Final = f"longer than {MAX_LINE_BYTES:,} bytes"


def plain(reason: object) -> str:
    """Return `reason` fit for a terminal and a log: one line, ASCII, at most 200 characters."""
    return str(reason).encode("unicode_escape", "backslashreplace").decode("ascii")[:200]


class BlockEvents(NamedTuple):
    """What a block says.

    Attributes:
        visits: By partition and minute, the events with an actor.
        units: By partition and minute, the number of events without one by subject.
        doubtful: The lines that are for `combined.parse`.
    """

    visits: dict[tuple[int, int], Columns]
    units: dict[tuple[int, int], Counter[str]]
    doubtful: list[Line]
