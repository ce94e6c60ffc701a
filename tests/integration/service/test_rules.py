"""Tests of the rules over HTTP: windows, leaderboards, limits, votes, unique actors, and writes of events."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Ratio, Rules
from tests.harness import Harness
from tests.http_service import http_service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tallystream_worker.server.embedded import EmbeddedServer
    from tests.servers import Server

RULES = Rules(
    {
        "view": Metric("", ("hour", "day"), unique="day", top=100),
        "like": Metric("", ("day",), floor=0),
        "vote": Metric("", once="forever"),
        "call": Metric("", limit=3, per="total", ids=None),
        "api-call": Metric("", limit=2, per="day"),
        "tag": Metric("", exact=False, top=5, ids=None),
        "page": Metric("", ("day",), max_subjects=1, ids=None),
        "clap": Metric(""),
    },
    {"engagement_rate": Ratio(("like",), ("view",))},
)
PROBLEM = "application/problem+json"


@pytest.fixture
def harness(server: Server) -> Iterator[Harness]:
    """Provide a deployment with groups and consumers, and metrics with every rule."""
    with Harness(server.url, rules=RULES) as harness:
        yield harness


@pytest.fixture
def http(harness: Harness) -> Iterator[httpx.Client]:
    """Provide a client of the service."""
    with http_service(harness.url) as client:
        yield client


def refused(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the field of a problem, which must be complete."""
    body = answer.json()
    assert answer.headers["content-type"] == PROBLEM
    assert body["status"] == answer.status_code
    assert body["field"] in body["detail"]
    assert "Traceback" not in answer.text
    return answer.status_code, body["field"]


def test_what_is_no_exact_count_is_not_declared_as_one(server: Server) -> None:
    """The overview does not show metrics with a sketch or a Bloom filter as exact."""
    rules = Rules({"view": Metric(""), "tag": Metric("", exact=False), "order": Metric("", seen="bloom")})
    with Harness(server.url, rules=rules), http_service(server.url) as http:
        declared = http.get("/v1/overview").json()["declared"]
    assert {each["metric"]: each["exact"] for each in declared} == {"view": True, "tag": False, "order": False}


def posted_until_taken(http: httpx.Client, event: dict[str, str]) -> int:
    """Post an event until one is appended; return how many were accepted, buffered ones included."""
    deadline = time.monotonic() + 20
    taken = 0
    while time.monotonic() < deadline:
        status = http.post("/v1/events", json=event).status_code
        taken += status in (202, 504)
        if status == 202:
            return taken
    pytest.fail("nothing was appended after the server had come back")


def test_a_subject_has_its_ratios_and_floors(harness: Harness, http: httpx.Client) -> None:
    """The response for a subject has the declared ratios, and no counter is below its floor."""
    with Producer(harness.url) as producer:
        producer.emit("view", "a", 5)
        producer.emit("like", "a", 2)
        producer.emit("like", "b", -3)
    harness.drain()
    answer = http.get("/v1/counters/a").json()
    assert answer["ratios"] == {"engagement_rate": 0.4}
    assert (answer["counters"]["like"], answer["error"]) == (2, 0)
    answer = http.get("/v1/counters/b").json()
    assert answer["ratios"] == {"engagement_rate": 0.0}
    assert answer["counters"]["like"] == 0


def test_a_window_is_a_series_of_buckets(harness: Harness, http: httpx.Client) -> None:
    """`window` and `last` give the last buckets, oldest first, with each event in the bucket of its time."""
    now = time.time()
    with Producer(harness.url) as producer:
        producer.emit("view", "/a", 7, at=now - 86_400)
        producer.emit("view", "/a", 3, at=now)
    harness.drain()
    answer = http.get("/v1/counters/%2Fa/view?window=day&last=3").json()
    assert [point["value"] for point in answer["series"]][-3:] in ([0, 7, 3], [7, 3, 0])  # midnight may pass
    assert all(b["start"] - a["start"] == 86_400 for a, b in zip(answer["series"], answer["series"][1:], strict=False))
    assert answer["series"][0]["bucket"] == time.strftime("%Y-%m-%d", time.gmtime(answer["series"][0]["start"]))
    assert (answer["subject"], answer["metric"], answer["window"]) == ("/a", "view", "day")
    assert (answer["lag"], answer["error"]) == (0, 0)
    assert answer["as_of"] != "0-0"
    assert len(http.get("/v1/counters/%2Fa/view?window=hour").json()["series"]) == 24


def test_over_is_a_rolling_sum(harness: Harness, http: httpx.Client) -> None:
    """`over` gives the sum of the last days with its bounds in seconds, without older events."""
    now = time.time()
    with Producer(harness.url) as producer:
        for days, amount in ((0, 1), (3, 10), (6, 100), (9, 1000)):
            producer.emit("view", "a", amount, at=now - days * 86_400)
    harness.drain()
    answer = http.get("/v1/counters/a/view?over=7d").json()
    assert (answer["value"], answer["over"], answer["lag"], answer["error"]) == (111, "7d", 0, 0)
    assert answer["end"] > now - 1
    assert 7 * 86_400 <= answer["end"] - answer["start"] <= 7 * 86_400 + 2 * 3600


def test_a_window_waits_for_a_position(harness: Harness, http: httpx.Client) -> None:
    """A series after a stream ID that is not counted is a 504, as a total is."""
    with Producer(harness.url) as producer:
        producer.emit("view", "a")
    ((id_, _),) = harness.client.xrange(harness.layout.keys_of("a").stream)
    path = f"/v1/counters/a/view?window=day&last=2&after={id_.decode()}"
    assert http.get(path).status_code == 504
    harness.drain()
    assert sum(point["value"] for point in http.get(path).json()["series"]) == 1


def test_a_subject_beyond_the_quota_says_what_its_buckets_lack(harness: Harness, http: httpx.Client) -> None:
    """A subject without its own buckets has as its error the number of events that are in no bucket."""
    first, beyond = [name for name in map(str, range(99)) if harness.layout.keys_of(name) is harness.layout.keys[0]][:2]
    for subject in (first, beyond):
        with Producer(harness.url) as producer:
            producer.emit("page", subject, 5)
        harness.drain()
    for query in ("window=day", "over=2d"):
        assert http.get(f"/v1/counters/{first}/page?{query}").json()["error"] == 0
        answer = http.get(f"/v1/counters/{beyond}/page?{query}").json()
        assert answer["error"] == 5
    assert answer["value"] == 0
    total = http.get(f"/v1/counters/{beyond}/page").json()
    assert (total["value"], total["error"]) == (5, 1)
    assert http.get(f"/v1/counters/{beyond}").json()["error"] == 1
    assert http.get("/v1/counters", params={"subject": beyond}).json()["error"] == 1


def test_a_leaderboard_is_ranked(harness: Harness, http: httpx.Client) -> None:
    """The leaderboard is in descending order: of all time, of a window, and over a range."""
    now = time.time()
    with Producer(harness.url) as producer:
        for n in range(20):
            producer.emit("view", f"s{n:02}", n + 1, at=now)
        producer.emit("view", "old", 1000, at=now - 30 * 86_400)
    harness.drain()
    answer = http.get("/v1/top/view").json()
    assert answer["as_of"] != ""
    assert answer | {"as_of": "", "top": answer["top"][:2]} == {
        "metric": "view",
        "window": "all",
        "top": [{"subject": "old", "value": 1000}, {"subject": "s19", "value": 20}],
        "next": 10,
        "start": None,
        "end": None,
        "complete": True,
        "missing": [],
        "as_of": "",
        "lag": 0,
        "error": 0,
        "unreachable": [],
    }
    assert len(answer["top"]) == 10
    answer = http.get("/v1/top/view?window=7d&n=3").json()
    assert [place["subject"] for place in answer["top"]] == ["s19", "s18", "s17"]
    assert (answer["window"], answer["error"]) == ("7d", 0)
    assert http.get("/v1/top/view?window=day&n=1").json()["window"] == "day"
    pages = [http.get(f"/v1/top/view?n=7&offset={offset}").json() for offset in (0, 7, 14)]
    assert [len(page["top"]) for page in pages] == [7, 7, 7]
    assert [page["next"] for page in pages] == [7, 14, 21]
    last = http.get("/v1/top/view?n=100").json()
    assert [place for page in pages for place in page["top"]] == last["top"][:21]
    assert (last["next"], http.get("/v1/top/view?offset=99").json()["top"]) == (None, [])
    assert http.get("/v1/top/tag").json()["top"] == []  # a leaderboard shorter than the default of ten places


def test_a_limit_says_what_remains(harness: Harness, http: httpx.Client) -> None:
    """The response for a limit has the used and the remaining number, and the second of the reset."""
    with Producer(harness.url) as producer:
        for _ in range(5):
            producer.emit("call", "key:1")
        producer.emit("api-call", "key/2")
    harness.drain()
    answer = http.get("/v1/limits/call/key:1").json()
    assert (answer["limit"], answer["used"], answer["remaining"], answer["reset_at"]) == (3, 5, 0, None)
    assert (answer["metric"], answer["subject"], answer["lag"]) == ("call", "key:1", 0)
    answer = http.get("/v1/limits/api-call/key%2F2").json()
    assert answer["reset_at"] % 86_400 == 0
    assert (answer["used"], answer["remaining"]) in ((1, 1), (0, 2))  # midnight may pass


def test_votes_are_a_score_and_both_sides(harness: Harness, http: httpx.Client) -> None:
    """Votes are shown as score, up and down; a vote that was taken back is in none of them."""
    with Producer(harness.url) as producer:
        for actor, amount in (("u1", 1), ("u2", 1), ("u3", -1), ("u4", 1)):
            producer.emit("vote", "post:1", amount, actor=actor, at=1_763_900_000)
        producer.emit("vote", "post:1", 0, actor="u4", at=1_763_900_001)
    harness.drain()
    answer = http.get("/v1/votes/vote/post:1").json()
    assert (answer["score"], answer["up"], answer["down"], answer["lag"]) == (1, 2, 1, 0)


def test_uniques_are_an_estimate_with_its_error(harness: Harness, http: httpx.Client) -> None:
    """Unique actors are estimated for the present bucket and over a range, with the standard error as a share."""
    with Producer(harness.url) as producer:
        for n in range(200):
            producer.emit("view", "a", actor=f"u{n % 100}")
    harness.drain()
    for query, span in (("", "day"), ("?over=day", "day"), ("?over=7d", "7d")):
        answer = http.get(f"/v1/uniques/view/a{query}").json()
        assert (answer["over"], answer["error"], answer["lag"]) == (span, 0.0081, 0)
        assert 95 <= answer["value"] <= 105


@pytest.mark.parametrize(
    ("path", "status", "field", "limit"),
    [
        ("/v1/counters/a/view?window=month", 400, "window", "its windows are: hour, day"),
        ("/v1/counters/a/clap?window=day", 400, "window", "its windows are: none"),
        ("/v1/counters/a/share?window=day", 404, "metric", "share is not declared"),
        ("/v1/counters/a/view?window=day&last=0", 400, "last", "1 to 1,000"),
        ("/v1/counters/a/view?window=day&last=1001", 400, "last", "1 to 1,000"),
        ("/v1/counters/a/view?window=day&last=" + "9" * 5000, 400, "last", ""),
        ("/v1/counters/a/view?window=day&last=x", 400, "last", "int"),
        ("/v1/counters/a/view?window=day&over=7d", 400, "window", "either"),
        ("/v1/counters/a/view?over=week", 400, "over", "90s, 15m, 8h, 400d"),
        ("/v1/counters/a/view?over=forever", 400, "over", "4000d"),
        ("/v1/counters/a/view?over=", 400, "over", "90s"),
        ("/v1/counters/a/clap?over=7d", 400, "metric", "clap has no windows"),
        ("/v1/top/view?n=101", 400, "n", "1 to 100"),
        ("/v1/top/view?n=0", 400, "n", "1 to 100"),
        ("/v1/top/view?offset=100", 400, "offset", "0 to 99"),
        ("/v1/top/view?offset=-1", 400, "offset", "0 to 99"),
        ("/v1/top/view?window=week", 400, "over", "400d"),
        ("/v1/top/view?window=month", 400, "window", "its windows are: hour, day"),
        ("/v1/top/share", 404, "metric", "share is not declared"),
        ("/v1/top/View", 400, "metric", "a-z"),
        ("/v1/top/clap", 400, "metric", "clap has no leaderboard"),
        ("/v1/limits/share/a", 404, "metric", "share is not declared"),
        ("/v1/limits/clap/a", 400, "metric", "clap has no limit"),
        ("/v1/limits/call/a%00", 400, "subject", "control characters"),
        ("/v1/votes/share/a", 404, "metric", "share is not declared"),
        ("/v1/votes/clap/a", 400, "metric", "clap has no votes"),
        ("/v1/uniques/share/a", 404, "metric", "share is not declared"),
        ("/v1/uniques/clap/a", 400, "metric", "clap has no uniques"),
        ("/v1/uniques/view/a?over=hour", 400, "over", "uniques by day"),
        ("/v1/uniques/view/a?over=x", 400, "over", "400d"),
        ("/v1/uniques/view/a?over=9999999d", 400, "over", "4000d"),
    ],
)
def test_a_bad_read_names_field_and_limit(http: httpx.Client, path: str, status: int, field: str, limit: str) -> None:
    """An unknown window, range, metric or rule is rejected with the existing ones."""
    answer = http.get(path)
    assert refused(answer) == (status, field)
    assert limit in answer.json()["limit"]


def test_events_are_appended(harness: Harness, http: httpx.Client) -> None:
    """One event, or a list of a thousand, gets its response when it is in the streams, and is then counted."""
    answer = http.post("/v1/events", json={"metric": "view", "subject": "a", "amount": 2, "actor": "u1", "id": "x"})
    assert (answer.status_code, answer.json()) == (202, {"appended": 1})
    assert harness.ledger()["appended"] == 1
    answer = http.post("/v1/events", json=[{"metric": "view", "subject": "a", "at": 1_763_900_000}] * 1000)
    assert (answer.status_code, answer.json()) == (202, {"appended": 1000})
    harness.drain()
    assert http.get("/v1/counters/a/view").json()["value"] == 1002


GOOD = '{"metric": "view", "subject": "a"}'


@pytest.mark.parametrize(
    ("event", "field", "limit"),
    [
        ('{"metric": "share", "subject": "a"}', "metric", "not declared"),
        ('{"metric": "view", "subject": ""}', "subject", "empty"),
        ('{"metric": "view", "subject": "a\\u0000"}', "subject", "control characters"),
        ('{"metric": "view"}', "subject", "missing"),
        ('{"metric": "view", "subject": "a", "amount": "1"}', "amount", "int"),
        ('{"metric": "view", "subject": "a", "amount": 9007199254740992}', "amount", "2^53"),
        ('{"metric": "view", "subject": "a", "amount": 1.5}', "amount", "int"),
        ('{"metric": "view", "subject": "a", "at": 253402300799}', "at", "future"),
        ('{"metric": "view", "subject": "a", "at": -1}', "at", "1970"),
        ('{"metric": "view", "subject": "a", "at": 1e400}', "at", ""),
        ('{"metric": "view", "subject": "a", "colour": 1}', "colour", "unknown field"),
        ('{"metric": "view", "subject": "a", "subject": "b"}', "subject", "once"),
        ('{"metric": "view", "subject": "a", "\\u0073ubject": "b"}', "subject", "once"),
        ('{"metric": "vote", "subject": "a"}', "actor", "once per actor"),
        ('{"metric": "api-call", "subject": "a", "amount": 2}', "amount", "limit"),
        ('{"metric": "tag", "subject": "a", "amount": -2}', "amount", "sketch"),
        ("7", "body", "object"),
        ("[]", "body", "object"),
        ("null", "body", "object"),
    ],
)
def test_a_bad_event_keeps_the_others_out(
    harness: Harness, http: httpx.Client, event: str, field: str, limit: str
) -> None:
    """An invalid event is rejected with its index and field on every route, and no event is appended."""
    headers = {"content-type": "application/json"}
    answer = http.post("/v1/events", content=f"[{GOOD}, {event}, {GOOD}]", headers=headers)
    assert refused(answer) == (400, field)
    assert answer.json()["index"] == 1
    assert answer.json()["detail"].startswith("event 1: ")
    assert limit in answer.json()["limit"]
    answer = http.post("/v1/decide", content=event, headers=headers)
    assert refused(answer) == (400, field)
    assert harness.ledger() == {}
    assert all(harness.client.xlen(keys.stream) == 0 for keys in harness.layout.keys)


@pytest.mark.parametrize("path", ["/v1/events", "/v1/decide"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[",
        b"\xff",
        b'{"metric": "view", "subject": "\xff"}',
        b'{"metric": "view", "subject": "\\ud800"}',
        b"[" * 60_000,
    ],
)
def test_what_is_no_json_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    """A body that cannot be read is a 400."""
    assert refused(http.post(path, content=body, headers={"content-type": "application/json"})) == (400, "body")


@pytest.mark.parametrize("kind", [None, "text/html", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_must_say_that_it_is_json(harness: Harness, http: httpx.Client, kind: str | None) -> None:
    """A body without a JSON media type, as a page of another site could send it, is rejected."""
    for path in ("/v1/events", "/v1/decide"):
        answer = http.post(path, content=GOOD, headers={} if kind is None else {"content-type": kind})
        assert refused(answer) == (415, "content-type")
    assert http.post("/v1/decide", content=GOOD, headers={"content-type": "text/plain"}).status_code == 415
    assert harness.ledger() == {}


def test_too_much_at_once_is_refused(harness: Harness, http: httpx.Client) -> None:
    """No event, more than a thousand events, or too many bytes are rejected with the limit."""
    event = json.loads(GOOD)
    for events in ([], [event] * 1001):
        assert refused(http.post("/v1/events", json=events)) == (400, "body")
    headers = {"content-type": "application/json"}
    for path, most in (("/v1/events", 2**20), ("/v1/decide", 2**16)):
        answer = http.post(path, content=GOOD.ljust(most), headers=headers)
        assert answer.status_code in (200, 202)
        answer = http.post(path, content=GOOD.ljust(most + 1), headers=headers)
        assert (refused(answer), answer.headers["connection"]) == ((413, "body"), "close")  # not all was read
        assert f"{most:,} bytes" in answer.json()["limit"]
        answer = http.post(path, content=iter([b" " * 4096] * (most // 4096 + 1)), headers=headers)  # without a length
        assert refused(answer) == (413, "body")
    assert harness.ledger()["appended"] == 2


def test_a_limit_is_decided_at_once(harness: Harness, http: httpx.Client) -> None:
    """Decisions are accepted up to the limit with the remaining number; the next is a 429 with the time to wait."""
    event = {"metric": "api-call", "subject": "key:1", "at": time.time()}
    answers = [http.post("/v1/decide", json=event) for _ in range(3)]
    bodies = [answer.json() for answer in answers]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert [(body["accepted"], body["remaining"], body["reason"]) for body in bodies] == [
        (True, 1, None),
        (True, 0, None),
        (False, 0, "limit"),
    ]
    assert [body["total"] for body in bodies] == [1, 2, 2]
    assert len({body["id"] for body in bodies}) == 3
    assert 0 <= int(answers[2].headers["retry-after"]) <= 86_400
    assert bodies[2]["reset_at"] % 86_400 == 0
    assert "retry-after" not in answers[0].headers
    assert harness.ledger()["rejected:limit@api-call"] == 1
    for _ in range(4):
        final = http.post("/v1/decide", json={"metric": "call", "subject": "key:1"})
    assert (final.status_code, final.json()["reset_at"]) == (429, None)
    assert "retry-after" not in final.headers  # it can never be accepted


def test_a_second_vote_and_a_second_id_conflict(http: httpx.Client) -> None:
    """A repeated vote or id is a 409 with the reason; the vote of another actor counts."""
    vote = {"metric": "vote", "subject": "post:1", "actor": "u1"}
    assert http.post("/v1/decide", json=vote).status_code == 200
    again = http.post("/v1/decide", json=vote)
    assert (again.status_code, again.json()["reason"], again.json()["total"]) == (409, "once", 1)
    assert http.post("/v1/decide", json=vote | {"actor": "u2"}).json()["total"] == 2
    view = {"metric": "view", "subject": "a", "id": "x", "at": int(time.time()) - 60}
    assert http.post("/v1/decide", json=view).json()["accepted"]
    again = http.post("/v1/decide", json=view)
    assert (again.status_code, again.json()["reason"], again.json()["total"]) == (409, "duplicate", 1)


def test_a_sketched_metric_cannot_be_decided(http: httpx.Client) -> None:
    """A decision of a metric without exact counters is rejected with advice."""
    answer = http.post("/v1/decide", json={"metric": "tag", "subject": "a"})
    assert refused(answer) == (400, "metric")
    assert "emit it instead" in answer.json()["limit"]


def test_decisions_at_once_accept_exactly_the_limit(harness: Harness, http: httpx.Client) -> None:
    """Of many concurrent requests, exactly the number of the limit is accepted."""

    def decide(_: int) -> int:
        return http.post("/v1/decide", json={"metric": "call", "subject": "key:1"}).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(decide, range(40)))
    assert (answers.count(200), answers.count(429)) == (3, 37)
    harness.drain()
    assert http.get("/v1/counters/key:1/call").json()["value"] == 3


def test_writes_before_any_worker_has_started(server: Server) -> None:
    """On an empty server a write is rejected with advice, and stores nothing."""
    with http_service(server.url) as http:
        for path in ("/v1/events", "/v1/decide"):
            answer = http.post(path, json=json.loads(GOOD))
            assert answer.status_code == 503
            assert "start a worker" in answer.json()["detail"]
    assert server.client().dbsize() == 0


def test_events_while_redis_is_away_are_held(
    fresh_server: Callable[..., EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Redis a decision is unknown and events are buffered; the buffered ones are appended later."""
    monkeypatch.setattr("tallystream_worker.service.routes.events.CONFIRM_TIMEOUT", 0.2)
    monkeypatch.setattr("tallystream_worker.service.stream_capacity._HOLDS", 60)  # it goes away just after the check
    server = fresh_server(extra=["--appendfsync", "always"])
    event = json.loads(GOOD)
    with Harness(server.url, rules=RULES) as harness, http_service(server.url) as http:
        assert http.post("/v1/events", json=event).status_code == 202
        server.kill()
        answer = http.post("/v1/events", json=[event] * 3)
        assert (answer.status_code, answer.headers.get("retry-after")) == (504, None)
        assert "buffered" in answer.json()["detail"]
        answer = http.post("/v1/decide", json=event)
        assert (answer.status_code, answer.headers.get("retry-after")) == (503, None)
        assert "unknown whether" in answer.json()["detail"]
        server.start()
        taken = 4 + posted_until_taken(http, event)
        assert harness.ledger()["appended"] == taken


def test_a_full_stream_is_backpressure(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events for a full stream are rejected at once, and those for other streams are accepted."""
    monkeypatch.setattr("tallystream_worker.service.stream_capacity._HOLDS", 0.0)
    event = json.loads(GOOD)
    with Harness(server.url, rules=RULES) as harness, http_service(server.url) as http:
        assert http.post("/v1/events", json=event).status_code == 202
        full = harness.layout.keys_of(event["subject"])
        harness.client.hset(full.sequences, "!limit", 1)
        for path in ("/v1/events", "/v1/decide"):
            answer = http.post(path, json=event)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "no event of this request was accepted" in http.post("/v1/events", json=event).json()["detail"]
        other = next(name for name in map(str, range(99)) if harness.layout.keys_of(name) is not full)
        assert http.post("/v1/events", json=[event, event | {"subject": other}]).status_code == 503
        assert http.post("/v1/events", json=event | {"subject": other}).status_code == 202
        assert harness.client.xlen(full.stream) == 1
        harness.client.hdel(full.sequences, "!limit")
        assert http.post("/v1/events", json=event).status_code == 202
        assert harness.ledger()["appended"] == 3


def test_a_full_buffer_takes_all_or_none(
    fresh_server: Callable[..., EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that do not fit into the buffer are all rejected, and may be sent again."""
    monkeypatch.setattr("tallystream_worker.service.routes.events.CONFIRM_TIMEOUT", 0.1)
    monkeypatch.setattr("tallystream_worker.service.routes.events.MAX_HELD", 5)
    monkeypatch.setattr("tallystream_worker.service.stream_capacity._HOLDS", 60)
    server = fresh_server(extra=["--appendfsync", "always"])
    event = json.loads(GOOD)
    with Harness(server.url, rules=RULES) as harness, http_service(server.url) as http:
        assert http.post("/v1/events", json=event).status_code == 202
        server.kill()
        assert http.post("/v1/events", json=[event] * 3).status_code == 504
        answer = http.post("/v1/events", json=[event] * 3)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "no event of this request was accepted" in answer.json()["detail"]
        server.start()
        taken = 4 + posted_until_taken(http, event)
        assert harness.ledger()["appended"] == taken


def test_a_body_that_never_ends_is_given_up(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that announces a body and does not send it gets a response within the timeout."""
    monkeypatch.setattr("tallystream_worker.service.bodies.body._RECEIVE_TIMEOUT", 0.1)
    with http_service(harness.url) as http:
        address = (http.base_url.host, http.base_url.port or 80)
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(
                b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_sketches_show_on_the_metrics_page(harness: Harness, http: httpx.Client) -> None:
    """The page has the sketched amount and the number of exact subjects by metric, and no subjects."""
    names = [name for name in map(str, range(99)) if harness.layout.keys_of(name) is harness.layout.keys[0]][:3]
    with Producer(harness.url) as producer:
        for name in names:
            producer.emit("page", name, 5)
        producer.emit("tag", "secret-subject", 7)
        for _ in range(2):
            producer.emit("vote", "a", actor="u1")
            producer.emit("view", "a", id="x", at=time.time() // 60 * 60)
    harness.drain()
    page = http.get("/metrics").text
    samples = {
        (sample.name, sample.labels.get("metric"), sample.labels.get("rule")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["tallystream_exact_subjects", "page", None] == 1
    assert samples["tallystream_sketched_amount", "page", None] == 10
    assert samples["tallystream_sketched_amount", "tag", None] == 7
    assert samples["tallystream_events_rejected_total", "vote", "once"] == 1
    assert samples["tallystream_events_duplicate_total", "view", None] == 1
    assert samples["tallystream_unaccounted_events", None, None] == 0
    assert "secret-subject" not in page


def test_the_schema_names_every_path(http: httpx.Client) -> None:
    """The OpenAPI description has the paths of the rules too."""
    paths = http.get("/schema/openapi.json").json()["paths"].keys()
    assert {"/v1/top/{metric}", "/v1/limits/{metric}/{subject}", "/v1/votes/{metric}/{subject}"} <= paths
    assert {"/v1/uniques/{metric}/{subject}", "/v1/events", "/v1/decide"} <= paths


def test_a_subject_with_a_slash_is_found(harness: Harness, http: httpx.Client) -> None:
    """A percent-encoded slash is part of the subject, also in paths that end with the subject."""
    with Producer(harness.url) as producer:
        producer.emit("call", "/a/b")
    harness.drain()
    assert http.get(f"/v1/limits/call/{quote('/a/b', safe='')}").json()["used"] == 1
