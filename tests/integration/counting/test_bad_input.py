"""Bad input is rejected by the producer and over HTTP, and dead-lettered by the worker.

The producer and HTTP name the field and the limit. The worker receives bad input from clients that append without the
producer; it dead-letters the bad events and counts the good events around them.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tallystream.errors import EventError
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules
from tests.harness import Harness
from tests.http_service import http_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.servers import Server

RULES = Rules({"view": Metric("", ("hour",), top=10, ids=None), "vote": Metric("")})
GOOD = {"metric": "view", "subject": "a"}


@dataclass(frozen=True)
class Row:
    """A bad input: its field and value, a part of the error message, and whether JSON and plain entries can contain it.

    It is combined with the other fields of a good event.
    """

    field: str
    value: Any
    limit: str
    json: bool = True
    plain: bool = True


REFUSED = {
    "empty subject": Row("subject", "", "empty"),
    "long subject": Row("subject", "x" * 1025, "1,024 bytes"),
    "subject long in UTF-8": Row("subject", "é" * 513, "1,024 bytes"),
    "undeclared metric": Row("metric", "unheard-of", "declared"),
    "metric with a newline and quotes": Row("metric", 'a"\n', "a-z"),
    "empty metric": Row("metric", "", "a-z"),
    "control character": Row("subject", "a\x07", "control"),
    "NUL": Row("subject", "a\x00b", "control"),
    "ESC": Row("subject", "\x1b[2J", "control"),
    "override of direction": Row("subject", "a\u202eb", "U+202E"),
    "line separator": Row("subject", "a\u2028b", "U+2028"),
    "lone surrogate": Row("subject", "a\ud800b", "U+D800", plain=False),
    "amount of 2^53": Row("amount", 2**53, "2^53"),
    "amount of 2^63": Row("amount", 2**63, "2^53"),
    "amount of uint64": Row("amount", 2**64 - 1, "2^53"),
    "amount of 400 digits": Row("amount", 10**400, "2^53"),
    "amount with a point": Row("amount", 1.0, "whole"),
    "amount with an exponent": Row("amount", 1e3, "whole"),
    "amount of true": Row("amount", value=True, limit="whole"),
    "amount of NaN": Row("amount", float("nan"), "whole", json=False),
    "amount in text": Row("amount", "05", "whole"),
    "time before 1970": Row("at", -1, "1970"),
    "time in the year 9999": Row("at", 253_400_000_000, "future"),
    "time in text": Row("at", "yesterday", "seconds"),
    "long actor": Row("actor", "u" * 257, "256 bytes"),
    "empty actor": Row("actor", "", "empty"),
    "long id": Row("id", "i" * 257, "256 bytes"),
    "ESC in an id": Row("id", "\x1b", "control"),
}
ACCEPTED = [
    "a}b{c",
    "{}",
    "*",
    "?",
    "[",
    "[a-z]*",
    "<img src=x onerror=alert(1)>",
    "__proto__",
    "a'b\"c`",
    "a/b",
    "日本",
]


@pytest.fixture
def harness(server: Server) -> Iterator[Harness]:
    """Yield a harness of one partition, on an empty server, with the metrics `view` and `vote`."""
    with Harness(server.url, partitions=1, rules=RULES) as harness:
        yield harness


@pytest.fixture
def http(harness: Harness) -> Iterator[httpx.Client]:
    """Yield a client of the read service."""
    with http_service(harness.url) as client:
        yield client


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_producer_and_over_http(harness: Harness, http: httpx.Client, name: str) -> None:
    """The producer raises and HTTP replies with 400; both name the field and the limit, and nothing is appended."""
    row = REFUSED[name]
    event = GOOD | {row.field: row.value}
    with Producer(harness.url) as producer:
        producer.flush(5)
        producer.emit("view", "warm-up")
        producer.flush(5)
        with pytest.raises(EventError) as refused:
            producer.emit(**event)
        assert refused.value.field == row.field
        assert row.limit in str(refused.value)
    if row.json:
        for path in ("/v1/events", "/v1/decide"):
            body = json.dumps(event)
            answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400, answer.text
            assert answer.json()["field"] in (row.field, "body"), answer.text
            assert answer.json()["limit"]
            assert "\x1b" not in answer.text
    assert harness.client.xlen(harness.layout.keys[0].stream) == 1


@pytest.mark.parametrize("name", [name for name, row in REFUSED.items() if row.plain])
def test_dead_lettered_by_the_worker(harness: Harness, name: str) -> None:
    """A bad entry of a plain Redis client is dead-lettered with a reason; the entries around it are counted."""
    row = REFUSED[name]
    stream = harness.layout.keys[0].stream
    harness.client.xadd(stream, GOOD)
    harness.client.xadd(stream, GOOD | {row.field: row.value if isinstance(row.value, str) else json.dumps(row.value)})
    harness.client.xadd(stream, GOOD)
    harness.drain()
    (letter,) = harness.dead()
    assert letter[b"reason"]
    assert harness.totals() == {("view", "a"): 2}
    assert harness.waiting() == 0
    ledger = harness.ledger()
    assert ledger["appended"] == 3
    assert {events for field, events in ledger.items() if field.startswith("dead")} == {1}


@pytest.mark.parametrize("subject", ACCEPTED)
def test_accepted_as_it_is(harness: Harness, http: httpx.Client, subject: str) -> None:
    """A subject with braces, wildcards, markup or quotes is counted in one key, and returned unchanged."""
    with Producer(harness.url) as producer:
        producer.emit("view", subject)
    assert http.post("/v1/events", json={"metric": "view", "subject": subject}).status_code == 202
    harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": subject})
    harness.drain()
    assert harness.totals() == {("view", subject): 3}
    answer = http.get("/v1/counters", params={"subject": subject, "metric": "view"})
    assert answer.json()["counters"] == [{"subject": subject, "metric": "view", "value": 3}]
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = http.get("/metrics")
    assert page.status_code == 200
    assert subject == "a/b" or subject not in page.text or len(subject) < 3


def test_one_subject_in_two_spellings(harness: Harness, http: httpx.Client) -> None:
    """A subject in composed and decomposed form is the same subject for the producer, HTTP and plain entries."""
    for spelling in ("caf\u00e9", "cafe\u0301"):
        with Producer(harness.url) as producer:
            producer.emit("view", spelling)
        assert http.post("/v1/events", json={"metric": "view", "subject": spelling}).status_code == 202
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": spelling})
    harness.drain()
    assert harness.totals() == {("view", "caf\u00e9"): 6}


def test_an_amount_of_nothing_changes_nothing(harness: Harness, http: httpx.Client) -> None:
    """An event of amount 0 is accepted and counted, and changes no total."""
    with Producer(harness.url) as producer:
        producer.emit("view", "a", 0)
    assert http.post("/v1/events", json=GOOD | {"amount": 0}).status_code == 202
    harness.client.xadd(harness.layout.keys[0].stream, GOOD | {"amount": 0})
    harness.drain()
    assert set(harness.totals().values()) <= {0}
    assert harness.dead() == []


BODIES: dict[str, tuple[bytes, int]] = {
    "not UTF-8": (b'{"metric":"view","subject":"\xff"}', 400),
    "nested arrays": (b"[" * 100_000, 400),
    "nested objects": (b'{"metric":' * 20_000, 400),
    "an extra field": (b'{"metric":"view","subject":"a","colour":1}', 400),
    "a key twice": (b'{"metric":"view","subject":"a","subject":"b"}', 400),
    "a list that is too long": (b"[" + b",".join([b'{"metric":"view","subject":"a"}'] * 1001) + b"]", 400),
    "an empty list": (b"[]", 400),
    "nothing": (b"", 400),
    "null": (b"null", 400),
    "over the limit": (b" " * (2**20 + 1), 413),
    "a number of a million digits": (b'{"metric":"view","subject":"a","amount":' + b"9" * 1_000_000 + b"}", 400),
    "NaN": (b'{"metric":"view","subject":"a","amount":NaN}', 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_event(harness: Harness, http: httpx.Client, name: str) -> None:
    """An invalid body is rejected as a whole within 5 seconds, with a problem that names the field and the limit."""
    body, status = BODIES[name]
    began = time.monotonic()
    answer = http.post("/v1/events", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert {"field", "limit"} <= answer.json().keys()
    assert len(answer.text) < 5_000
    assert time.monotonic() - began < 5
    assert harness.client.xlen(harness.layout.keys[0].stream) == 0


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/top/view?n=1000000000", "n"), ("/v1/top/view?n=0", "n"), ("/v1/top/view?n=-1", "n"),
        ("/v1/counters/a/view?window=hour&last=1000000000", "last"), ("/v1/counters/a/view?window=hour&last=x", "last"),
        ("/v1/counters/a/view?window=week", "window"), ("/v1/counters/a/view?over=99999999d", "over"),
        ("/v1/counters/a/view?after=nonsense", "after"), ("/v1/counters/a?after=1-2-3", "after"),
        ("/v1/counters?" + "&".join(f"subject={n}" for n in range(5_000)), "subject"), ("/v1/counters", "subject"),
        ("/v1/counters/%FF", "subject"), ("/v1/counters/%00", "subject"), ("/v1/counters/" + "x" * 1025, "subject"),
    ],
)  # fmt: skip
def test_a_question_beyond_a_cap(http: httpx.Client, path: str, field: str) -> None:
    """A request with a parameter that is too large or invalid gets a 400 that names the parameter and its limit."""
    answer = http.get(path)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
    assert answer.json()["limit"]


ENTRIES: dict[str, dict[str, Any]] = {
    "random bytes": {"v": "1", "p": "x", "q": "1", "n": "1", "b": bytes(range(256))},
    "a later version": {"v": "99", "p": "x", "q": "1", "n": "1", "b": b"\x93\x90\x90\x90"},
    "an array of 4 G items": {"v": "1", "p": "x", "q": "1", "n": "1", "b": b"\xdd\xff\xff\xff\xff"},
    "a map of 4 G items": {
        "v": "1",
        "p": "x",
        "q": "1",
        "n": "1",
        "b": b"\x92\x91\x95\xa4view\x01\x90\xdf\xff\xff\xff\xff",
    },
    "nested arrays": {"v": "1", "p": "x", "q": "1", "n": "1", "b": b"\x91" * 100_000},
    "a false number of events": {"v": "1", "p": "x", "q": "1", "n": "7", "b": msgspec.msgpack.encode([[], []])},
    "an extra field": {"metric": "view", "subject": "a", "colour": "red"},
    "no field of ours": {"colour": "red"},
    "a subject that is no UTF-8": {"metric": "view", "subject": b"\xff\xfe"},
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_that_is_none_is_dead_lettered_beside_the_good(harness: Harness, name: str) -> None:
    """An entry with random or hostile bytes, or of a later version, is dead-lettered whole; the others are counted."""
    stream = harness.layout.keys[0].stream
    harness.client.xadd(stream, GOOD)
    harness.client.xadd(stream, ENTRIES[name])
    harness.client.xadd(stream, GOOD)
    harness.drain()
    (letter,) = harness.dead()
    assert letter[b"reason"]
    assert harness.totals() == {("view", "a"): 2}
    assert harness.waiting() == 0
