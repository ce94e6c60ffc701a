"""Tests of events over HTTP: every media type, and the errors about invalid events."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest

from tallystream.aio import Producer
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.service.stream_capacity import StreamCapacity
from tallystream_worker.service.writer import Writer
from tests.harness import Harness
from tests.http_service import http_service
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.servers import Server

RULES = Rules({"view": Metric("", ("day",)), "vote": Metric("", once="forever"), "com.example.read": Metric("")})
VIEW = {"metric": "view", "subject": "article:1"}


@pytest.fixture
def harness(server: Server) -> Iterator[Harness]:
    """Provide a deployment with groups and consumers."""
    with Harness(server.url, rules=RULES) as harness:
        yield harness


@pytest.fixture
def http(harness: Harness) -> Iterator[httpx.Client]:
    """Provide a client of the service."""
    with http_service(harness.url) as client:
        yield client


def post(http: httpx.Client, body: Any, kind: str = "application/json", query: str = "", **headers: str) -> Any:
    """Post a body unchanged, or as JSON."""
    content = body if isinstance(body, (bytes, str)) else json.dumps(body)
    return http.post(f"/v1/events{query}", content=content, headers={"content-type": kind} | headers)


def faults(answer: httpx.Response) -> list[tuple[int, str]]:
    """Return the indexes and fields of an error; its top level must have the first of them."""
    body = answer.json()
    found = [(fault["index"], fault["field"]) for fault in body["faults"]]
    assert (body["index"], body["field"]) == found[0]
    assert body["limit"] == body["faults"][0]["limit"]
    return found


def test_lines_of_json(harness: Harness, http: httpx.Client) -> None:
    """NDJSON is one event per line, with blank lines and both line endings; a bad line is reported."""
    lines = "\r\n".join(json.dumps(VIEW | {"amount": n}) for n in (1, 2, 4)) + "\n\n"
    assert post(http, lines, "application/x-ndjson; charset=utf-8").json() == {"appended": 3}
    answer = post(http, '{"metric":"view","subject":"a"}\n{"metric":"view"\n', "application/x-ndjson")
    assert (answer.status_code, faults(answer)) == (400, [(1, "body")])
    answer = post(http, '{"metric":"view","subject":"a"},{"metric":"view","subject":"a"}', "application/x-ndjson")
    assert answer.status_code == 400
    harness.drain()
    assert harness.totals() == {("view", "article:1"): 7}


def test_cloud_events(harness: Harness, http: httpx.Client) -> None:
    """CloudEvents, one or a batch, count once per source and id, by type or data.metric, at their time."""
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "com.example.read", "subject": "article:1"}
    at = dt.datetime.now(dt.UTC).replace(microsecond=500_000) - dt.timedelta(days=2)
    shown = at.astimezone(dt.timezone(dt.timedelta(hours=1))).isoformat()
    event |= {"time": shown, "traceparent": "00-x", "datacontenttype": "application/json"}
    for _ in range(2):
        assert post(http, event, "application/cloudevents+json").json() == {"appended": 1}
    batch = [
        event | {"source": "/b"},
        event | {"id": "2", "type": "anything", "data": {"metric": "view", "amount": 5, "colour": "red"}},
        event | {"id": "3", "data": {"metric": "vote", "actor": "u1"}},
        event | {"id": "long" * 100, "data": "not an object"},
    ]
    for _ in range(2):
        assert post(http, batch, "application/cloudevents-batch+json").json() == {"appended": 4}
    harness.drain()
    assert harness.totals() == {
        ("com.example.read", "article:1"): 3,
        ("view", "article:1"): 5,
        ("vote", "article:1"): 1,
    }
    (bucket,) = {key.decode().rpartition(":")[2] for key in harness.client.scan_iter("*:day:view:*")}
    assert bucket == f"{at:%Y-%m-%d}"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"subject": None}, "subject"),
        ({"id": ""}, "id"),
        ({"source": ""}, "source"),
        ({"type": "undeclared"}, "metric"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-01-31T12:00:00"}, "time"),
        ({"time": "9999-12-31T23:59:59-12:00"}, "at"),
        ({"data": {"amount": "5"}}, "amount"),
        ({"data": {"metric": {}}}, "metric"),
        ({"data": {"actor": ["u"]}}, "actor"),
    ],
)
def test_cloud_events_at_fault(harness: Harness, http: httpx.Client, change: dict[str, Any], field: str) -> None:
    """An invalid CloudEvent, or one that cannot be counted, is rejected with the attribute."""
    event = {"specversion": "1.0", "id": "1", "source": "/a", "type": "view", "subject": "article:1"}
    answer = post(http, [event, event | change], "application/cloudevents-batch+json")
    assert (answer.status_code, faults(answer)) == (400, [(1, field)])
    assert harness.ledger() == {}


def test_what_a_browser_sends_on_leaving_a_page(harness: Harness, http: httpx.Client) -> None:
    """A beacon is plain text with JSON; it is accepted from a page of the service, not of another site."""
    ours = str(http.base_url).rstrip("/")
    assert post(http, [VIEW, VIEW], "text/plain;charset=UTF-8", origin=ours).json() == {"appended": 2}
    assert post(http, VIEW, "text/plain").json() == {"appended": 1}
    for origin in ("https://elsewhere.example", "null", ours.replace("http", "https") + ".example"):
        answer = post(http, VIEW, "text/plain;charset=UTF-8", origin=origin)
        assert (answer.status_code, answer.json()["field"]) == (403, "origin")
    assert harness.ledger()["appended"] == 3


def test_packed_bodies(harness: Harness, http: httpx.Client) -> None:
    """A body may be compressed with gzip; the limit is for the decompressed size, and no more is decompressed."""
    packed = gzip.compress(json.dumps([VIEW] * 1000).encode())
    assert post(http, packed, **{"content-encoding": "gzip"}).json() == {"appended": 1000}
    bomb = gzip.compress(b" " * 200_000_000)
    answer = post(http, bomb, **{"content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["field"]) == (413, "body")
    for broken in (packed[:-1], packed + b"x", b"", b"[]"):
        answer = post(http, broken, **{"content-encoding": "gzip"})
        assert (answer.status_code, answer.json()["field"]) == (400, "body")
    answer = post(http, packed, **{"content-encoding": "br"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip")
    assert harness.ledger()["appended"] == 1000


def test_one_event_at_fault_keeps_the_others_out(harness: Harness, http: httpx.Client) -> None:
    """If events are invalid, none is appended, and each is reported with index, field and limit."""
    bad = [VIEW, VIEW | {"amount": 1.5}, VIEW, VIEW | {"metric": "x"}, VIEW | {"at": time.time() + 9999}, {}]
    answer = post(http, bad)
    assert (answer.status_code, faults(answer)) == (400, [(1, "amount"), (3, "metric"), (4, "at"), (5, "metric")])
    assert answer.json()["detail"].startswith("event 1: amount: ")
    assert len(post(http, [{}] * 1000).json()["faults"]) == 20
    assert harness.ledger() == {}


def test_partial_takes_the_good_events(harness: Harness, http: httpx.Client) -> None:
    """With `partial` the valid events are appended and the others reported; without a valid one it is a 400."""
    answer = post(http, [VIEW, VIEW | {"amount": True}, VIEW], query="?partial=true")
    assert answer.status_code == 202
    body = answer.json()
    assert (body["appended"], body["at_fault"]) == (2, 1)
    assert [(fault["index"], fault["field"]) for fault in body["refused"]] == [(1, "amount")]
    assert post(http, [{}, {}], query="?partial=true").status_code == 400
    assert harness.ledger()["appended"] == 2


def refused_after(monkeypatch: pytest.MonkeyPatch, events: int) -> None:
    """Let the next producer of a service be refused for good, once it has so many events of a request."""
    really, given = Producer.emit, []

    async def emit(producer: Producer, *event: Any, **more: Any) -> None:
        if len(given) == events:
            producer._inner._buffer.fail(ConfigurationError("the server refuses this producer"))
        given.append(event)
        await really(producer, *event, **more)

    monkeypatch.setattr(Producer, "emit", emit)


@pytest.mark.parametrize("taken", [0, 2])
def test_a_producer_that_is_refused_during_a_request(
    harness: Harness, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """A 503 has `Retry-After` only if no event was taken; else `unknown` is the number of events that may be appended.

    The next request gets a new producer.
    """
    refused_after(monkeypatch, taken)
    answer = post(http, [VIEW] * 3)
    assert answer.status_code == 503
    assert answer.headers.get("retry-after") == ("1" if taken == 0 else None)
    assert answer.json().get("unknown") == (taken or None)
    assert ("no event of this request was accepted" in answer.json()["detail"]) == (taken == 0)
    assert "the server refuses this producer" in answer.json()["detail"]
    before = harness.ledger().get("appended", 0)
    assert before <= taken
    assert post(http, [VIEW] * 3).json() == {"appended": 3}
    assert harness.ledger()["appended"] == before + 3


def test_rules_that_change_during_a_request(
    harness: Harness, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an event becomes invalid meanwhile, a 400 has its index in the body, and how many are appended."""
    assert post(http, VIEW).json() == {"appended": 1}
    really, given = Producer.emit, []

    async def emit(producer: Producer, metric: str, *event: Any, **more: Any) -> None:
        given.append(event)
        await really(producer, "unheard-of" if len(given) == 3 else metric, *event, **more)

    monkeypatch.setattr(Producer, "emit", emit)
    answer = post(http, [VIEW, {}, VIEW, VIEW, VIEW], query="?partial=true")
    assert (answer.status_code, faults(answer), answer.json()["taken"]) == (400, [(3, "metric")], 2)
    until(lambda: harness.ledger()["appended"] == 3, what="the events that were taken")


@pytest.mark.parametrize(("during", "unknown"), [("emit", None), ("flush", 3)])
def test_a_producer_that_another_request_gives_up(
    harness: Harness, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, during: str, unknown: int | None
) -> None:
    """If the producer is closed during a request, the answer does not promise that its events are still sent."""
    assert post(http, VIEW).json() == {"appended": 1}
    really, producer_of, writers = getattr(Producer, during), Writer.producer, []

    def remembering(writer: Writer) -> Producer:
        writers.append(writer)
        return producer_of(writer)

    async def given_up(producer: Producer, *arguments: Any, **more: Any) -> None:
        monkeypatch.undo()
        await writers[0].give_up(producer)
        await really(producer, *arguments, **more)

    monkeypatch.setattr(Writer, "producer", remembering)
    monkeypatch.setattr(Producer, during, given_up)
    sequences = harness.layout.keys_of(VIEW["subject"]).sequences
    monkeypatch.setattr(StreamCapacity, "is_there_for", AsyncMock(return_value=True))
    harness.client.hset(sequences, "!limit", 1)  # no entry is appended before the producer is closed
    answer = post(http, [VIEW] * 3)
    harness.client.hdel(sequences, "!limit")
    assert (answer.status_code, answer.json().get("unknown")) == (503, unknown)
    assert answer.headers.get("retry-after") == ("1" if unknown is None else None)
    until(lambda: post(http, VIEW).json() == {"appended": 1}, what="room in the stream")
    assert harness.ledger()["appended"] == 2


@pytest.mark.parametrize(
    "text",
    [
        '[{"metric":"view","subject":"a"},{"metric":"view","subject":"a","subject":"b"}]',
        '[{"metric":"view","subject":"a","amount":1},{"metric":"view","subject":"a","amount":1,"amount":2}]',
        '[{"metric":"view","subject":"a"},{"metric" : "view", "subject" : "a" , "subject" : "\\u0022"}]',
        '[{"metric":"view","subject":"a"},{"metric":"view","subject":"a","id":null,"id":null}]',
    ],
)
def test_a_key_that_comes_twice_is_refused(harness: Harness, http: httpx.Client, text: str) -> None:
    """An event with a repeated key is rejected with the key, also in a list."""
    answer = post(http, text)
    assert answer.status_code == 400
    assert answer.json()["faults"][0]["limit"] == "must be given only once"
    assert answer.json()["index"] == 1
    assert harness.ledger() == {}


def test_texts_that_look_like_keys(harness: Harness, http: httpx.Client) -> None:
    """Colons, braces, brackets and escaped quotes in a subject are text."""
    subjects = ['{"a":"b"}', "a:b,c", "[", "\\", "é", "x" * 1000]
    assert post(http, [VIEW | {"subject": subject} for subject in subjects]).status_code == 202
    harness.drain()
    assert {subject for _, subject in harness.totals()} == set(subjects)


def test_long_answers_are_packed(harness: Harness, http: httpx.Client) -> None:
    """A response of more than one kilobyte is compressed if the client accepts gzip, and plain otherwise."""
    harness.drain()
    path = "/v1/counters/a/view?window=day&last=200"
    packed = http.get(path)
    plain = http.get(path, headers={"accept-encoding": "identity"})
    none = http.get(path, headers={"accept-encoding": "gzip;q=0"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in packed.headers["vary"].lower()
    assert int(packed.headers["content-length"]) * 3 < len(plain.content)
    assert not {"content-encoding"} & (plain.headers.keys() | none.headers.keys())
    assert packed.json() == plain.json()
    assert "content-encoding" not in http.get("/v1/counters/a").headers


def test_an_answer_that_is_the_same_is_not_sent_again(harness: Harness, http: httpx.Client) -> None:
    """A client that has a response already gets 304, until a total changes."""
    harness.drain()
    first = http.get("/v1/counters/article:1")
    assert first.headers["cache-control"] == "private, no-cache"
    again = http.get("/v1/counters/article:1", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    post(http, VIEW)
    harness.drain()
    changed = http.get("/v1/counters/article:1", headers={"if-none-match": first.headers["etag"]})
    assert (changed.status_code, changed.json()["counters"]["view"]) == (200, 1)
    assert http.get("/healthz").headers["cache-control"] == "no-store"
