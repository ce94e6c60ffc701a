r"""Access logs in Apache's combined format, which nginx and most others write as well.

    83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /a?b=1 HTTP/1.1" 200 203023 "http://from/" "Mozilla"

The path is taken as it stands, with its query string and with what the server escaped (`\"`, `\xhh`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tallystream_worker.ingest.lines import (
    MAX_LINE_BYTES,
    TOO_LONG,
    VIEWS,
    BadLine,
    Line,
    Mapping,
    Outcome,
    ParsedLine,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Every repetition stops where the next part starts, so a line costs its length, whatever it contains.
# The user (the third word) may contain spaces; a path may, too, if a client sent such a request.
_HEAD: Final = (
    rb"(?P<host>\S+) [^\[]*"
    rb"\[(?P<hour>\d\d/\w{3}/\d{4}:\d\d):(?P<second>\d\d:\d\d) (?P<zone>[+-][01]\d[0-5]\d)\] "
    rb'"[!#-\[\]-~]+ (?P<path>(?=[^" ])[^"\\ ]*+(?:(?:\\.| (?!HTTP/))[^"\\ ]*+)*+)(?: HTTP/[^"\\]*+)?" '
    rb"(?P<status>\d{3})\b"
)
# The last quote may be missing: servers cut the longest lines short, and lose no request that way.
_TAIL: Final = rb' \S+ "(?P<referrer>[^"\\]*+(?:\\.[^"\\]*+)*+)" "(?P<agent>[^"\\]*+(?:\\.[^"\\]*+)*+)'
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), 1
    )
}
_SECONDS: Final = {b"%02d:%02d" % divmod(second, 60): second for second in range(3600)}
_NEEDS_TAIL: Final = {"referrer", "agent"}


def parse(lines: Iterable[Line], mapping: Mapping = VIEWS) -> Iterator[Outcome]:
    """Yield an event, or what is wrong, for each line of an access log.

    The event's time is the line's, read with its zone; its amount is 1; it has no `id`.
    A `-` (nothing known) stands for itself as a subject, and for no actor as an actor.
    """
    metric, actor_field = mapping.metric, mapping.actor
    needs_tail = not _NEEDS_TAIL.isdisjoint((mapping.subject, actor_field))
    match = re.compile(_HEAD + _TAIL if needs_tail else _HEAD, re.DOTALL).match
    # Group numbers, not names: this loop runs once a line, and a number costs half of what a name does.
    groups = re.compile(_HEAD + _TAIL).groupindex
    wanted = [groups[name] for name in ("hour", "zone", "second", mapping.subject, actor_field or mapping.subject)]
    for number, offset, text in lines:
        if len(text) > MAX_LINE_BYTES:
            yield BadLine(number, TOO_LONG)
            continue
        if (found := match(text)) is None:
            yield BadLine(number, "not a line of an access log in the combined format")
            continue
        hour, zone, second, subject, actor = found.group(*wanted)
        start = _hour_start(hour, zone)
        past = _SECONDS.get(second)
        if start is None or past is None:
            yield BadLine(number, "the time is not a date of the calendar and a time of the day")
            continue
        try:
            who = None if actor_field is None or actor == b"-" else str(actor, "utf-8")
            fields = (metric, str(subject, "utf-8"), 1, who, start + past, None)
        except UnicodeDecodeError:
            yield BadLine(number, "not UTF-8")
            continue
        yield ParsedLine(number, offset, fields)


@lru_cache(maxsize=1024)
def _hour_start(hour: bytes, zone: bytes) -> float | None:
    """Return the seconds since 1970 at which `17/May/2015:10` began in zone `+0200`; `None` if never."""
    month = _MONTHS.get(hour[3:6], 0)
    try:
        clock = datetime(int(hour[7:11]), month, int(hour[:2]), int(hour[12:]), tzinfo=UTC)
    except ValueError:
        return None
    east = int(zone[1:3]) * 3600 + int(zone[3:]) * 60
    return clock.timestamp() + (east if zone.startswith(b"-") else -east)
