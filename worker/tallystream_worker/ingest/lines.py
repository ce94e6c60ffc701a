"""The input and output types of the parsers: lines and blocks, events, and bad lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from tallystream.wire.packer import Columns

MAX_LINE_BYTES: Final = 64 * 1024
"""The largest length of a line; a longer line is a bad line, so a file without line ends needs little memory."""

EventFields: TypeAlias = tuple[str, str, int, str | None, float | None, str | None]
"""`(metric, subject, amount, actor, at, id)`, decoded but not checked; `Event(*fields)` checks them.

`at` is in seconds since 1970; `None` if the line states no time."""

Field: TypeAlias = Literal["path", "host", "status", "agent", "referrer"]
"""A part of an access-log line."""


class Line(NamedTuple):
    """A line of a file, without its line feed; a carriage return before the line feed stays.

    Attributes:
        number: The line's number, blank lines included; 1 is the first line that the `Source` reads, which is not the
            first of the file after `Source.seek`.
        offset: The number of bytes of (decompressed) text of the file before the line.
        text: The line's bytes; a line longer than `MAX_LINE_BYTES` may be cut off somewhere after that many.
    """

    number: int
    offset: int
    text: bytes


class Block(NamedTuple):
    """Consecutive whole lines of a file, each with its line end; the file's last line may have none.

    Attributes:
        number: The number of the first line, as in `Line`.
        offset: The number of bytes of (decompressed) text of the file before the block.
        end: The number of bytes of text up to the end of the block, with the bytes that were cut off a too long line.
        text: The bytes of all lines.
    """

    number: int
    offset: int
    end: int
    text: bytes

    def lines(self) -> Iterator[Line]:
        """Yield each line of the block that is not blank (empty or white space), with its number and offset."""
        offset = self.offset
        for number, text in enumerate(self.text.split(b"\n"), self.number):
            if text and not text.isspace():
                yield Line(number, offset, text)
            offset += len(text) + 1


class Mapping(msgspec.Struct, frozen=True):
    """Which part of a line becomes which part of an event.

    Attributes:
        metric: The metric of lines that do not name one; those of an access log never do.
        subject: The part of an access-log line that becomes the subject.
        actor: The part of an access-log line that becomes the actor; `None` for events without an actor.
    """

    metric: str = "view"
    subject: Field = "path"
    actor: Field | None = "host"


VIEWS: Final = Mapping()
"""The default mapping: an event of the metric `view`, whose subject is the path and whose actor is the host."""


class ParsedLine(msgspec.Struct, frozen=True, gc=False):
    """A line from which an event was read; whether the event breaks a rule is not checked.

    Attributes:
        number: The number of the line, as in `Line`.
        offset: The offset of the line, as in `Line`.
        event: The fields of the event, decoded but not checked.
    """

    number: int
    offset: int
    event: EventFields


class BadLine(msgspec.Struct, frozen=True, gc=False):
    """A line that is not an event.

    Attributes:
        number: The number of the line, as in `Line`.
        reason: Why it is not an event: a printable text of one line that is safe to show.
    """

    number: int
    reason: str


LineOutcome: TypeAlias = ParsedLine | BadLine
"""The result of parsing a line; a parser never raises an error because of the content of a line."""

TOO_LONG: Final = f"longer than {MAX_LINE_BYTES:,} bytes"
"""The reason of a bad line that is too long."""


def plain(reason: object) -> str:
    """Return the text of a reason as one line of ASCII, at most 200 characters, safe for a terminal and a log."""
    return str(reason).encode("unicode_escape", "backslashreplace").decode("ascii")[:200]


class BlockEvents(NamedTuple):
    """The events of a block of an access log, and the lines that are not parsed yet. Minutes are counted from 1970.

    Attributes:
        visits: By partition and minute, the events with an actor: columns of subjects, actors, and milliseconds after
            the beginning of the minute.
        units: By partition and minute, the number of events without an actor, by subject.
        doubtful: The lines that `combined.parse` must parse: they may be events or not.
    """

    visits: dict[tuple[int, int], Columns]
    units: dict[tuple[int, int], Counter[str]]
    doubtful: list[Line]
