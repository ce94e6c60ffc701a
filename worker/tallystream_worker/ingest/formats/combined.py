r"""Parses access logs in Apache's combined format, which nginx and most other servers also write.

    83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /a?b=1 HTTP/1.1" 200 203023 "http://from/" "Mozilla"

The path is used unchanged, with its query string and with the escapes of the server (`\"`, `\xhh`).
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
    LineOutcome,
    Mapping,
    ParsedLine,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Every repetition ends at the first character of the next part, so the time is linear in the length of the line.
# The user (the third word) may contain spaces; so may a path, if a client sent such a request.
# No part matches a line end, so the pattern also serves for many lines at once.
_HEAD: Final = (
    rb"(?P<host>\S+) [^\[\n]*"
    rb"\[(?P<stamp>\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-][01]\d[0-5]\d)\] "
    rb'"[!#-\[\]-~]+ (?P<path>(?=[^" \n])[^"\\ \n]*+(?:(?:\\[^\n]| (?!HTTP/))[^"\\ \n]*+)*+)(?: HTTP/[^"\\\n]*+)?" '
    rb"(?P<status>\d{3})\b"
)
# The last quote may be missing: servers cut off very long lines, which are still events.
_TAIL: Final = rb' \S+ "(?P<referrer>[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+)" "(?P<agent>[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+)'
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"), 1
    )
}
_SECONDS: Final = {b"%02d:%02d" % divmod(second, 60): second for second in range(3600)}
_NEEDS_TAIL: Final = {"referrer", "agent"}


def parse(lines: Iterable[Line], mapping: Mapping = VIEWS) -> Iterator[LineOutcome]:
    """Yield, for each line of an access log, its event or the reason why the line is not an event.

    The event has the metric of `mapping`, the time of the line, read with its zone, the amount 1 and no `id`. A `-`
    (not known) is an ordinary subject; as an actor it means that the event has no actor. The event is not checked.
    """
    metric, actor_field = mapping.metric, mapping.actor
    pattern = re.compile(pattern_of(mapping))
    match = pattern.match
    # Use the numbers of the groups, not their names: this loop runs for each line, and a number is twice as fast.
    groups = pattern.groupindex
    wanted = [groups[name] for name in ("stamp", mapping.subject, actor_field or mapping.subject)]
    for number, offset, text in lines:
        if len(text) > MAX_LINE_BYTES:
            yield BadLine(number, TOO_LONG)
            continue
        if (found := match(text)) is None:
            yield BadLine(number, "not a line of an access log in the combined format")
            continue
        stamp, subject, actor = found.group(*wanted)
        at = moment_of(stamp)
        if at is None:
            yield BadLine(number, "the time is not a valid date and time of day")
            continue
        try:
            who = None if actor_field is None or actor == b"-" else str(actor, "utf-8")
            fields = (metric, str(subject, "utf-8"), 1, who, at, None)
        except UnicodeDecodeError:
            yield BadLine(number, "not UTF-8")
            continue
        yield ParsedLine(number, offset, fields)


def pattern_of(mapping: Mapping) -> bytes:
    """Return the regular expression that an access-log line in the combined format must match from its beginning.

    Its groups are `host`, `stamp` (the time), `path` and `status`. If the mapping uses the referrer or the agent, it
    also has the groups `referrer` and `agent`; otherwise the rest of the line is not checked.
    """
    needs_tail = not _NEEDS_TAIL.isdisjoint((mapping.subject, mapping.actor))
    return _HEAD + _TAIL if needs_tail else _HEAD


def moment_of(stamp: bytes) -> float | None:
    """Return the seconds since 1970 of a time such as `17/May/2015:10:05:03 +0200`; `None` if there is no such time.

    The form is not checked: the text must be one that the `stamp` of `pattern_of` matches.
    """
    start, past = _hour_start(stamp[:14], stamp[21:]), _SECONDS.get(stamp[15:20])
    return None if start is None or past is None else start + past


@lru_cache(maxsize=1024)
def _hour_start(hour: bytes, zone: bytes) -> float | None:
    """Return the seconds since 1970 at which hour `17/May/2015:10` of zone `+0200` began; `None` if there is none."""
    month = _MONTHS.get(hour[3:6], 0)
    try:
        clock = datetime(int(hour[7:11]), month, int(hour[:2]), int(hour[12:]), tzinfo=UTC)
    except ValueError:
        return None
    east = int(zone[1:3]) * 3600 + int(zone[3:]) * 60
    return clock.timestamp() + (east if zone.startswith(b"-") else -east)
