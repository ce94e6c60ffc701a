"""An event with an invalid field is rejected, and the error names the field and the limit."""

from __future__ import annotations

import math
import time

import pytest

from tallystream import Event, EventError, TallyError
from tallystream.wire.event import MAX_AHEAD, MAX_AMOUNT, check_at

REFUSED = {
    "empty subject": ({"subject": ""}, "subject", "must not be empty"),
    "long subject": ({"subject": "x" * 1025}, "subject", "at most 1,024 bytes"),
    "long in bytes": ({"subject": "\u65e5" * 342}, "subject", "at most 1,024 bytes of UTF-8, has 1,026"),
    "subject is no text": ({"subject": b"article:1"}, "subject", "must be text, not bytes"),
    "subject is nothing": ({"subject": None}, "subject", "must be text"),
    "newline": ({"subject": "a\nb"}, "subject", "control characters"),
    "NUL": ({"subject": "a\x00"}, "subject", "control characters"),
    "ESC": ({"subject": "\x1b[31m"}, "subject", "control characters"),
    "DEL": ({"subject": "\x7f"}, "subject", "control characters"),
    "ESC among others": ({"subject": "\u00e9\x1b"}, "subject", "U+001B"),
    "C1 control": ({"subject": "a\x85"}, "subject", "U+0085"),
    "right-to-left override": ({"subject": "\u202egpj.exe"}, "subject", "U+202E"),
    "isolate": ({"subject": "a\u2066"}, "subject", "U+2066"),
    "line separator": ({"subject": "a\u2028"}, "subject", "U+2028"),
    "lone surrogate": ({"subject": "a\ud800"}, "subject", "U+D800"),
    "byte order mark": ({"subject": "\ufeffa"}, "subject", "U+FEFF"),
    "empty metric": ({"metric": ""}, "metric", "1 to 64"),
    "long metric": ({"metric": "m" * 65}, "metric", "1 to 64"),
    "metric with a blank": ({"metric": "a b"}, "metric", "a-z"),
    "metric in capitals": ({"metric": "View"}, "metric", "a-z"),
    "metric that could be an option": ({"metric": "-view"}, "metric", "starting with"),
    "metric with a newline at its end": ({"metric": "view\n"}, "metric", "a-z"),
    "metric of full-width letters": ({"metric": "\uff56iew"}, "metric", "a-z"),
    "metric is no text": ({"metric": 7}, "metric", "a-z"),
    "2^53": ({"amount": 2**53}, "amount", "2^53 - 1"),
    "-2^53": ({"amount": -(2**53)}, "amount", "2^53 - 1"),
    "2^63": ({"amount": 2**63}, "amount", "2^53 - 1"),
    "2^64 - 1": ({"amount": 2**64 - 1}, "amount", "2^53 - 1"),
    "400 digits": ({"amount": 10**400}, "amount", "2^53 - 1"),
    "1.0": ({"amount": 1.0}, "amount", "whole number, not float"),
    "1e3": ({"amount": 1e3}, "amount", "whole number, not float"),
    "NaN": ({"amount": math.nan}, "amount", "whole number, not float"),
    "true": ({"amount": True}, "amount", "whole number, not bool"),
    "text 05": ({"amount": "05"}, "amount", "whole number, not str"),
    "at negative": ({"at": -1}, "at", "1970 and 9999"),
    "at year 10000": ({"at": 253_402_300_800}, "at", "1970 and 9999"),
    "at in milliseconds": ({"at": 1_763_900_000_000}, "at", "1970 and 9999"),
    "at of 400 digits": ({"at": 10**400}, "at", "1970 and 9999"),
    "at infinite": ({"at": math.inf}, "at", "1970 and 9999"),
    "at NaN": ({"at": math.nan}, "at", "number of seconds"),
    "at is text": ({"at": "2025-01-01"}, "at", "number of seconds"),
    "at is true": ({"at": True}, "at", "number of seconds"),
    "empty actor": ({"actor": ""}, "actor", "must not be empty"),
    "long actor": ({"actor": "u" * 257}, "actor", "at most 256 bytes"),
    "actor with ESC": ({"actor": "\x1b"}, "actor", "control characters"),
    "empty id": ({"id": ""}, "id", "must not be empty"),
    "long id": ({"id": "i" * 257}, "id", "at most 256 bytes"),
    "id is a number": ({"id": 7}, "id", "must be text, not int"),
}


@pytest.mark.parametrize(("fields", "at_fault", "limit"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_field_and_limit(fields, at_fault, limit):
    """Each row of the bad-input table is rejected with a message that names the field and the limit."""
    with pytest.raises(EventError) as refused:
        Event(**({"metric": "view", "subject": "article:1"} | fields))
    assert refused.value.field == at_fault
    assert str(refused.value).startswith(f"{at_fault}: ")
    assert limit in str(refused.value)
    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


def test_an_extra_field_is_refused():
    """An event cannot be made with a field other than the six."""
    with pytest.raises(TypeError):
        Event("view", "article:1", colour="red")


@pytest.mark.parametrize(
    "subject",
    [
        *("a}b{c", "{}", "*", "?", "[", "__proto__", "<img src=x onerror=alert(1)>", "\"'", "a b", " ", "x" * 1024),
        *("\u65e5\u672c\u8a9e", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "/favicon.ico", "100 %", "$(id)"),
    ],
)
def test_harmless_text_is_kept(subject):
    """A subject of unusual but allowed characters is stored unchanged."""
    assert Event("view", subject).subject == subject


def test_two_spellings_are_one_subject():
    """A composed and a decomposed spelling of a letter give the same subject, actor and id."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    event = Event("view", decomposed, 1, decomposed, None, decomposed)
    assert (event.subject, event.actor, event.id) == (composed, composed, composed)


def test_the_limit_holds_for_the_normal_form():
    """The limit of a subject's length applies to its normal form, in which it is stored."""
    assert len(Event("view", "e\u0301" * 512).subject.encode()) == 1024


@pytest.mark.parametrize("amount", [0, 1, -1, MAX_AMOUNT, -MAX_AMOUNT])
def test_amounts_up_to_the_bounds(amount):
    """Any whole number within +-(2^53 - 1) is a valid amount, including 0."""
    assert Event("view", "a", amount).amount == amount


def test_the_future_is_bounded():
    """The time of an event may be at most an hour ahead of the clock that it is compared with."""
    now = time.time()
    check_at(now + MAX_AHEAD, now)
    check_at(0, now)
    with pytest.raises(EventError, match=r"at: must not lie more than 3,600 seconds in the future"):
        check_at(now + MAX_AHEAD + 1, now)


def test_one_except_clause_catches_refusals():
    """An EventError can be caught as a TallyError and as a ValueError."""
    assert issubclass(EventError, TallyError)
    assert issubclass(EventError, ValueError)
