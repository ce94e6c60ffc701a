"""The event: one thing that happened. It is checked when it is made, so every `Event` is valid."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

from tallystream.errors import EventError

MAX_AMOUNT: Final = 2**53 - 1
"""The largest amount and the largest total: a double, and so Lua, can represent all whole numbers up to it exactly."""

MAX_SUBJECT_BYTES: Final = 1024
"""The most bytes of UTF-8 in a subject."""

MAX_ACTOR_BYTES: Final = 256
"""The most bytes of UTF-8 in an actor."""

MAX_ID_BYTES: Final = 256
"""The most bytes of UTF-8 in an id."""

MAX_AT: Final = 253_402_300_800
"""The beginning of the year 10000, in seconds since 1970."""

MAX_AHEAD: Final = 3600
"""The most seconds by which the time of an event may be ahead of the clock that it is compared with."""

METRIC: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
"""The names that a metric or an alert may have."""

# Control characters, line and paragraph separators, bidirectional overrides, lone surrogates:
# characters that are invisible and can break a log line, a terminal, a label or a page.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]",
)


class Event(msgspec.Struct, frozen=True, kw_only=False, forbid_unknown_fields=True):
    """One thing that happened. The constructor checks every field, so an `Event` is always valid.

    The rules of the metric are not checked here: a producer may still reject the event (`Rules.refuse`).

    Args:
        metric: The kind of event, for example `view`: 1 to 64 of `a-z 0-9 _ . -`, starting with a letter or digit.
        subject: The thing that the event is counted for, for example `article:1`: 1 to 1,024 bytes of UTF-8 without
            control characters, line separators, bidirectional overrides or U+FEFF. Stored in Unicode normal form C, so
            that two spellings of `é` are one subject.
        amount: How much to add: a whole number within +-(2^53 - 1); 0 and negative amounts are allowed.
        actor: The person or program that caused the event: 1 to 256 bytes, with the same characters as `subject`, and
            stored in the same normal form.
        at: The time of the event, in seconds since 1970 (UTC): an `int` or a `float`, not negative, before the year
            10000. It is not compared with a clock here. `None` means the moment at which a producer emits it, or at
            which the server receives a plain entry.
        id: An ID of the event, for metrics that count each ID once: 1 to 256 bytes, with the same characters as
            `subject`, and stored in the same normal form.

    Raises:
        EventError: a field has a value that is not allowed; the error names the field and the limit.
    """

    metric: str
    subject: str
    amount: int = 1
    actor: str | None = None
    at: float | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        check_metric(self.metric)
        check_amount(self.amount)
        _normalise(self, "subject", check_text("subject", self.subject, MAX_SUBJECT_BYTES))
        if self.actor is not None:
            _normalise(self, "actor", check_text("actor", self.actor, MAX_ACTOR_BYTES))
        if self.id is not None:
            _normalise(self, "id", check_text("id", self.id, MAX_ID_BYTES))
        if self.at is not None:
            check_at(self.at)


def _normalise(event: Event, field: str, value: str) -> None:
    if value is not getattr(event, field):
        msgspec.structs.force_setattr(event, field, value)


def check_metric(metric: object) -> None:
    """Raise `EventError` unless `metric` is a `str` that matches `METRIC`; it need not be declared."""
    if not isinstance(metric, str) or METRIC.fullmatch(metric) is None:
        raise EventError("metric", "must be 1 to 64 of a-z, 0-9, '_', '.', '-', starting with a letter or digit")


def check_amount(amount: object) -> None:
    """Raise `EventError` unless `amount` is a whole number (`int`, not `True` or `1.0`) within +-(2^53 - 1)."""
    if type(amount) is not int:
        raise EventError("amount", f"must be a whole number, not {type(amount).__name__}")
    if not -MAX_AMOUNT <= amount <= MAX_AMOUNT:
        raise EventError("amount", "must lie within +-(2^53 - 1)")


def check_text(field: str, text: object, limit: int) -> str:
    """Return `text` in Unicode normal form C.

    Args:
        field: The name of the field, for the error.
        text: The value of the field.
        limit: The most bytes of UTF-8 that the result may have, and the most characters of `text`.

    Raises:
        EventError: `text` is not a `str`, is empty or too long, or contains a control character, a line separator, a
            bidirectional override, U+FEFF or a lone surrogate.
    """
    if not isinstance(text, str):
        raise EventError(field, f"must be text, not {type(text).__name__}")
    if not text:
        raise EventError(field, "must not be empty")
    if len(text) > limit:
        raise EventError(field, f"must be at most {limit:,} bytes of UTF-8, has over {len(text) - 1:,}")
    if text.isascii():
        if not text.isprintable():
            raise EventError(field, "must not contain control characters")
        return text
    if (found := _FORBIDDEN.search(text)) is not None:
        raise EventError(field, f"must not contain the character U+{ord(found.group()):04X}")
    text = unicodedata.normalize("NFC", text)
    if (size := len(text.encode())) > limit:
        raise EventError(field, f"must be at most {limit:,} bytes of UTF-8, has {size:,}")
    return text


def check_at(at: object, now: float | None = None) -> None:
    """Raise `EventError` if a time is not valid.

    Args:
        at: The time; it must be an `int` or a `float` of seconds since 1970, not negative, before the year 10000.
        now: The time to compare with: `at` may be at most `MAX_AHEAD` seconds later. `None` skips this check.
    """
    if type(at) not in (int, float) or at != at:  # noqa: PLR0124  # NaN; math.isnan fails on a very large int
        raise EventError("at", "must be a number of seconds since 1970 (UTC)")
    if not 0 <= at < MAX_AT:  # type: ignore[operator]  # `at` is a number here
        raise EventError("at", "must lie between the years 1970 and 9999")
    if now is not None and at > now + MAX_AHEAD:  # type: ignore[operator]
        raise EventError("at", f"must not lie more than {MAX_AHEAD:,} seconds in the future")
