"""Tests of counters over HTTP: totals, their position and lag, and rejected requests."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tallystream.producing.producer import Producer
from tests.harness import Harness
from tests.http_service import http_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.servers import Server

ODD_SUBJECTS = [
    "/favicon.ico",
    "/",
    "//a//b/",
    "a/view",
    "a b+c&d=e?f#g",
    "100%2F",
    "é/日本",
    "a}b{c",
    "*?[",
    "__proto__",
    "<img src=x onerror=alert(1)>",
    "x" * 1024,
]


@pytest.fixture
def harness(server: Server) -> Iterator[Harness]:
    """Provide a deployment with groups and consumers."""
    with Harness(server.url) as harness:
        yield harness


@pytest.fixture
def http(harness: Harness) -> Iterator[httpx.Client]:
    """Provide a client of the read service."""
    with http_service(harness.url) as client:
        yield client


def emit(harness: Harness, *events: tuple[str, str, int]) -> None:
    """Append events of a metric, a subject and an amount."""
    with Producer(harness.url) as producer:
        for metric, subject, amount in events:
            producer.emit(metric, subject, amount)


def test_a_subject_has_every_declared_metric(harness: Harness, http: httpx.Client) -> None:
    """The response for a subject has all declared metrics, 0 for those without events, and a lag of 0."""
    emit(harness, ("view", "article:1", 800), ("view", "article:1", 7), ("like", "article:1", -1))
    harness.drain()
    answer = http.get("/v1/counters/article:1").json()
    (last_id, _), *_ = harness.client.xrevrange(harness.layout.keys_of("article:1").stream, count=1)
    assert answer == {
        "subject": "article:1",
        "counters": {"like": -1, "view": 807, "vote": 0},
        "ratios": {},
        "missing": [],
        "as_of": last_id.decode(),
        "lag": 0,
        "error": 0,
        "unreachable": [],
    }


def test_one_counter(harness: Harness, http: httpx.Client) -> None:
    """The response for a counter has its value, position and lag; a counter without events is 0."""
    emit(harness, ("view", "article:1", 3))
    harness.drain()
    answer = http.get("/v1/counters/article:1/view").json()
    assert answer["as_of"] != "0-0"
    assert answer | {"as_of": ""} == {
        "subject": "article:1",
        "metric": "view",
        "value": 3,
        "as_of": "",
        "lag": 0,
        "error": 0,
        "unreachable": [],
    }
    assert http.get("/v1/counters/never/view").json()["value"] == 0


def test_entries_that_wait_show_as_lag(harness: Harness, http: httpx.Client) -> None:
    """Uncounted entries are in no total, and `lag` is their number."""
    emit(harness, ("view", "article:1", 3))
    answer = http.get("/v1/counters/article:1/view").json()
    assert (answer["value"], answer["lag"], answer["as_of"]) == (0, 1, "0-0")


@pytest.mark.parametrize("subject", ODD_SUBJECTS)
def test_any_subject_can_be_asked_for(harness: Harness, http: httpx.Client, subject: str) -> None:
    """A subject with slashes, braces, markup or any other text is found by path and by query."""
    emit(harness, ("view", subject, 5))
    harness.drain()
    by_path = http.get(f"/v1/counters/{quote(subject, safe='')}/view").json()
    assert (by_path["subject"], by_path["value"]) == (subject, 5)
    assert http.get(f"/v1/counters/{quote(subject, safe='')}").json()["counters"]["view"] == 5
    (by_query,) = http.get("/v1/counters", params={"subject": subject, "metric": "view"}).json()["counters"]
    assert by_query == {"subject": subject, "metric": "view", "value": 5}


def test_a_slash_separates_and_an_encoded_slash_belongs_to_the_subject(harness: Harness, http: httpx.Client) -> None:
    """`a/view` in a path is the metric `view` of `a`; `a%2Fview` is a subject."""
    emit(harness, ("view", "a", 1), ("view", "a/view", 2))
    harness.drain()
    assert http.get("/v1/counters/a/view").json()["value"] == 1
    assert http.get("/v1/counters/a%2Fview").json()["counters"]["view"] == 2
    assert http.get("/v1/counters/a%2Fview/view").json()["value"] == 2


def test_two_spellings_are_one_subject(harness: Harness, http: httpx.Client) -> None:
    """A decomposed letter finds the counter of the composed one, and the response has the composed one."""
    decomposed = "cafe\u0301"
    emit(harness, ("view", "caf\u00e9", 1))
    harness.drain()
    answer = http.get(f"/v1/counters/{quote(decomposed)}").json()
    assert (answer["subject"], answer["counters"]["view"]) == ("caf\u00e9", 1)


def test_many_counters_come_in_the_order_asked(harness: Harness, http: httpx.Client) -> None:
    """Many subjects and metrics give each pair once, in order, with the position of each stream involved."""
    emit(harness, ("view", "a", 1), ("view", "/b", 2), ("like", "/b", 3))
    harness.drain()
    query = {"subject": ["/b", "a", "/b"], "metric": ["view", "like"]}
    answer = http.get("/v1/counters", params=query).json()
    assert [tuple(c.values()) for c in answer["counters"]] == [
        ("/b", "view", 2),
        ("/b", "like", 3),
        ("a", "view", 1),
        ("a", "like", 0),
    ]
    assert answer["positions"].keys() == {harness.layout.keys_of(subject).stream for subject in ("a", "/b")}
    assert (answer["lag"], answer["error"]) == (0, 0)
    assert len(http.get("/v1/counters", params={"subject": "a"}).json()["counters"]) == 3


def test_after_waits_until_counted(harness: Harness) -> None:
    """With `after` the response arrives when that entry is counted, and includes it."""
    emit(harness, ("view", "article:1", 3))
    ((id_, _),) = harness.client.xrange(harness.layout.keys_of("article:1").stream)
    with http_service(harness.url, read_timeout=20) as http:
        answers = []
        path = f"/v1/counters/article:1/view?after={id_.decode()}"
        waiting = threading.Thread(target=lambda: answers.append(http.get(path, timeout=30).json()))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        harness.drain()
        waiting.join(10)
    assert answers[0]["value"] == 3


def test_after_gives_up_in_time(harness: Harness, http: httpx.Client) -> None:
    """With `after` for an entry that is not counted, the response is 504 after the configured timeout."""
    emit(harness, ("view", "article:1", 3))
    ((id_, _),) = harness.client.xrange(harness.layout.keys_of("article:1").stream)
    answer = http.get(f"/v1/counters/article:1?after={id_.decode()}")
    assert answer.status_code == 504
    assert answer.headers["content-type"] == "application/problem+json"
    assert f"entry {id_.decode()} was not counted within 0.3 seconds" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status", "field", "limit"),
    [
        ("/v1/counters/a/view?after=x", 400, "after", "1763900000000-0"),
        ("/v1/counters/a/view?after=", 400, "after", "1763900000000-0"),
        ("/v1/counters?subject=a&after=1-2-3", 400, "after", "1763900000000-0"),
        ("/v1/counters/a/share", 404, "metric", "declared are like, view, vote"),
        ("/v1/counters?subject=a&metric=share", 404, "metric", "declared are like, view, vote"),
        ("/v1/counters/a/View", 400, "metric", "1 to 64 of a-z"),
        ("/v1/counters/" + "a" * 1025, 400, "subject", "1,024 bytes"),
        ("/v1/counters/" + "%C3%A9" * 513, 400, "subject", "1,024 bytes"),
        ("/v1/counters?subject=" + "a" * 1025, 400, "subject", "1,024 bytes"),
        ("/v1/counters/a%00", 400, "subject", "control characters"),
        ("/v1/counters/a%1B%5B31m", 400, "subject", "control characters"),
        ("/v1/counters/a%E2%80%AEb", 400, "subject", "U+202E"),
        ("/v1/counters/%ED%A0%80", 400, "subject", "UTF-8"),
        ("/v1/counters/%ff", 400, "subject", "UTF-8"),
        ("/v1/counters?subject=%ff", 400, "query", "UTF-8"),
        ("/v1/counters?subject=", 400, "subject", "empty"),
        ("/v1/counters", 400, "subject", "at least one"),
        ("/v1/counters?" + "&".join(f"subject={n}" for n in range(334)), 400, "subject", "at most 1,000 counters"),
        ("/v1/counters//favicon.ico", 404, "path", "%2F"),
        ("/v1/counters/a/", 404, "path", "%2F"),
        ("/v1/counters/" + "a" * 5000, 414, "path", "4,096 bytes"),
    ],
)
def test_a_bad_request_names_field_and_limit(
    http: httpx.Client, path: str, status: int, field: str, limit: str
) -> None:
    """A bad request is a problem with the field and the limit, and without internals."""
    answer = http.get(path)
    body = answer.json()
    assert answer.status_code == body["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["field"] == field
    assert limit in body["limit"]
    assert "Traceback" not in answer.text


def test_exactly_the_cap_is_answered(http: httpx.Client) -> None:
    """One request may ask for exactly 1,000 counters."""
    answer = http.get("/v1/counters", params={"subject": [str(n) for n in range(1000)], "metric": "view"})
    assert len(answer.json()["counters"]) == 1000


def test_every_answer_is_guarded(http: httpx.Client) -> None:
    """Every response, errors included, has headers against sniffing, framing and storing."""
    for path in ("/v1/counters/a", "/v1/counters/a/b/c", "/v1/counters//", "/metrics", "/schema/openapi.json"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] in ("no-store", "private, no-cache")


def test_nothing_can_be_written(http: httpx.Client) -> None:
    """Every writing method is rejected with a problem that lists the allowed methods."""
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = http.request(method, "/v1/counters/a/view", content=b"x" * 100_000)
        assert (answer.status_code, answer.json()["title"]) == (405, "Method Not Allowed")
        assert "GET" in answer.headers["allow"]


def test_the_schema_is_one_json_document(http: httpx.Client) -> None:
    """The service serves its OpenAPI description, and none of its pages loads anything from another site."""
    schema = http.get("/schema/openapi.json").json()
    assert {"/v1/counters/{subject}", "/v1/counters/{subject}/{metric}", "/v1/counters"} <= schema["paths"].keys()
    for path in ("/schema", "/schema/swagger", "/schema/redoc", "/schema/elements"):
        assert "<script" not in http.get(path).text


def test_before_any_worker_has_started(server: Server) -> None:
    """On an empty server a read is rejected with advice, and stores nothing."""
    with http_service(server.url) as http:
        answer = http.get("/v1/counters/a")
    assert answer.status_code == 503
    assert "start a worker" in answer.json()["detail"]
    assert server.client().dbsize() == 0


def test_reading_runs_no_keys_and_no_scan(harness: Harness, http: httpx.Client) -> None:
    """No read uses KEYS or SCAN."""
    emit(harness, ("view", "a", 1))
    harness.drain()
    harness.client.config_resetstat()
    for path in ("/v1/counters/a", "/v1/counters/a/view", "/v1/counters?subject=a", "/metrics", "/readyz"):
        assert http.get(path).status_code == 200
    assert harness.client.info("commandstats").keys().isdisjoint({"cmdstat_keys", "cmdstat_scan", "cmdstat_hscan"})
