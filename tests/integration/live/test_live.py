"""Live updates over HTTP and WebSockets reach every reader that follows a counter, also after it reconnects."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from http.client import HTTPConnection, HTTPException
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx
import pytest

from tallystream import subscribe
from tallystream.errors import ConfigurationError, TallyError
from tallystream.producing.producer import Producer
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream_worker.service.server import serving
from tests.harness import Harness
from tests.http_service import settings_for
from tests.rewind import copy_of, go_back
from tests.waiting import until
from tests.web_socket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers import Server


@pytest.fixture
def harness(server: Server) -> Iterator[Harness]:
    """Yield a harness on an empty server."""
    with Harness(server.url) as harness:
        yield harness


@pytest.fixture
def url(harness: Harness) -> Iterator[str]:
    """Yield the URL of a read service."""
    with serving(settings_for(harness.url)) as url:
        yield url


class Following:
    """A live stream that a thread reads; `next` returns its events."""

    def __init__(self, url: str, **headers: str) -> None:
        self._events: Queue[tuple[str, str, Any] | None] = Queue()
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        address = urlsplit(url)
        self._connection = HTTPConnection(address.hostname, address.port, timeout=30)
        self._connection.request("GET", f"{address.path}?{address.query}", headers=self._headers)
        self._socket = self._connection.sock
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, HTTPException), self._connection.getresponse() as response:
            name, id_ = "", ""
            while line := response.readline():
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "id":
                    id_ = value
                elif field == "data":
                    self._events.put((name, id_, json.loads(value)))
        self._events.put(None)

    def next(self, name: str = "counters", timeout: float = 30) -> tuple[str, Any]:
        """Return the id and data of the next event of this name; skip others."""
        deadline = time.monotonic() + timeout
        while (event := self._events.get(timeout=max(0.01, deadline - time.monotonic()))) is not None:
            if event[0] == name:
                return event[1:]
        raise AssertionError(f"the stream ended before {name}")

    def until_value(self, value: int, metric: str = "view") -> str:
        """Read until a counter of the metric has a value; return the id of that update."""
        while True:
            id_, data = self.next()
            if any(each["value"] == value and each["metric"] == metric for each in data["counters"]):
                return id_

    def ended(self, timeout: float = 30) -> bool:
        """Wait for the end of the stream; return whether it ended in time."""
        deadline = time.monotonic() + timeout
        with contextlib.suppress(Empty):
            while self._events.get(timeout=max(0.01, deadline - time.monotonic())) is not None:
                pass
            return True
        return False

    def close(self) -> None:
        """Close the connection, and wait for the thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._connection.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def count(harness: Harness, *events: tuple[str, str], times: int = 1) -> None:
    """Emit events and count them."""
    with Producer(harness.url) as producer:
        for _ in range(times):
            for metric, subject in events:
                producer.emit(metric, subject)
    harness.drain()


def values(data: Any) -> dict[tuple[str, str], int]:
    """Return the values of an update by metric and subject."""
    return {(each["metric"], each["subject"]): each["value"] for each in data["counters"]}


def test_a_named_counter_comes_at_once_and_as_it_changes(harness: Harness, url: str) -> None:
    """A reader gets the total of a named counter at once, and again after each change, with `as_of` and `lag`."""
    count(harness, ("view", "article:1"), times=3)
    with Following(f"{url}/v1/live?metric=view&subject=article:1") as stream:
        _, data = stream.next()
        assert values(data) == {("view", "article:1"): 3}
        assert data["lag"] == 0
        assert data["as_of"] == httpx.get(f"{url}/v1/counters/article:1/view").json()["as_of"]
        count(harness, ("view", "article:1"), ("view", "article:2"), ("like", "article:1"))
        _, data = stream.next()
        assert values(data) == {("view", "article:1"): 4}


def test_a_pattern_gets_what_matches_and_nothing_else(harness: Harness, url: str) -> None:
    """The reader of a pattern gets the counters that match it, and no others."""
    with Following(f"{url}/v1/live?subject=article:*&metric=view&metric=like") as stream:
        assert values(stream.next()[1]) == {}
        count(harness, ("view", "user:1"), ("vote", "article:9"))
        count(harness, ("view", "article:é}{"), ("like", "article:7"))
        got = values(stream.next()[1])
        while len(got) < 2:
            got |= values(stream.next()[1])
        assert got == {("view", "article:é}{"): 1, ("like", "article:7"): 1}


def test_a_client_that_comes_back_misses_nothing(harness: Harness, url: str) -> None:
    """A client that reconnects with the id of the last event gets exactly the counters that changed meanwhile."""
    count(harness, ("view", "a"), ("view", "b"))
    with Following(f"{url}/v1/live?metric=view") as stream:
        id_, _ = stream.next()
        count(harness, ("view", "a"))
        id_ = stream.until_value(2)
    count(harness, ("view", "b"), ("view", "new"), times=2)
    with Following(f"{url}/v1/live?metric=view", last_event_id=id_) as stream:
        again, data = stream.next()
        got = values(data)
        while len(got) < 2:
            again, data = stream.next()
            got |= values(data)
        assert got == {("view", "b"): 3, ("view", "new"): 2}
    with Following(f"{url}/v1/live?metric=view&since={again}") as stream:
        assert values(stream.next()[1]) == {}


def test_a_log_that_was_trimmed_resets(harness: Harness, url: str) -> None:
    """If the entries after a client's position were trimmed, it gets a reset, and then updates."""
    count(harness, ("view", "a"))
    with Following(f"{url}/v1/live?metric=view") as stream:
        id_, _ = stream.next()
    count(harness, ("view", "a"))
    harness.client.xtrim(harness.layout.keys_of("a").stream, maxlen=0)
    with Following(f"{url}/v1/live?metric=view", last_event_id=id_) as stream:
        _, data = stream.next("reset")
        assert "streams no longer have the entries" in data["reason"]
        count(harness, ("view", "a"))
        stream.until_value(3)


def two_timelines(harness: Harness) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Return two states after one view of `a`: with a second one; with a later view of a neighbour in its stream."""
    keys = harness.layout.keys_of("a")
    neighbour = next(name for n in range(1_000) if harness.layout.keys_of(name := f"s{n}") == keys)
    count(harness, ("view", "a"))
    common = copy_of(harness.client)
    count(harness, ("view", "a"))
    one = copy_of(harness.client)
    go_back(harness.client, common)
    count(harness, ("view", neighbour))
    return one, copy_of(harness.client)


@pytest.mark.parametrize("follows", ["again", "now"])
def test_a_reader_of_entries_that_the_server_lost_is_reset(harness: Harness, url: str, follows: str) -> None:
    """If a server lost entries and has later ones, a reader of the lost ones gets a reset and the true totals."""
    with_a, with_b = two_timelines(harness)
    go_back(harness.client, with_a)
    address = f"{url}/v1/live?metric=view&subject=a"
    with Following(address) as stream:
        id_ = stream.until_value(2)
        go_back(harness.client, with_b)
        if follows == "now":
            assert "lost by the server" in stream.next("reset")[1]["reason"]
            stream.until_value(1)
    if follows == "again":
        with Following(address, last_event_id=id_) as stream:
            assert "lost by the server" in stream.next("reset")[1]["reason"]
            stream.until_value(1)


def test_other_data_resets(url: str) -> None:
    """A client with a position of other data gets a reset."""
    with Following(f"{url}/v1/live?metric=view", last_event_id="00000000.1.1.1.1") as stream:
        assert "data was replaced" in stream.next("reset")[1]["reason"]


def test_more_than_can_be_told_resets_patterns_and_rereads_names(harness: Harness, url: str) -> None:
    """If too many counters change, readers of patterns are reset, and named counters stay exact."""
    with (
        Following(f"{url}/v1/live?metric=view") as everything,
        Following(f"{url}/v1/live?subject=s7&metric=view") as one,
    ):
        everything.next()
        one.next()
        with Producer(harness.url) as producer:
            for number in range(60_000):
                producer.emit("view", f"s{number}")
        harness.drain()
        assert "changed" in everything.next("reset")[1]["reason"]
        one.until_value(1)
        count(harness, ("view", "s7"))
        one.until_value(2)

        def told() -> bool:
            count(harness, ("view", "afterwards"))
            with contextlib.suppress(Empty):
                return ("view", "afterwards") in values(everything.next(timeout=1)[1])
            return False

        until(told, what="being told one by one again")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("metric=nothing", "metric"),
        ("metric=Bad%20Name", "metric"),
        ("subject=", "subject"),
        ("subject=%00", "subject"),
        ("subject=*********", "subject"),
        ("&".join(f"subject={n}" for n in range(51)), "subject"),
        ("every=0.01", "every"),
        ("every=1e9", "every"),
        ("every=nan", "every"),
        ("top=fortnight", "top"),
        ("since=nonsense", "last-event-id"),
    ],
)
def test_bad_questions_are_refused(url: str, query: str, field: str) -> None:
    """An invalid request is rejected with an error that names the field."""
    answer = httpx.get(f"{url}/v1/live?{query}")
    assert answer.status_code in (400, 404)
    assert answer.json()["field"] == field


def test_the_overview_and_the_leaderboards(server: Server) -> None:
    """The overview has the totals of each metric, the ledger and the workers; leaderboards are sent with it."""
    from tallystream_worker.process import logs  # noqa: PLC0415
    from tallystream_worker.runtime.app import counting  # noqa: PLC0415

    settings = settings_for(server.url)
    with (
        counting(settings, logs.configure(quiet=True)),
        serving(settings) as url,
        Producer(server.url) as producer,
        Following(f"{url}/v1/live?overview=true&top=day") as stream,
    ):
        stream.next("overview")
        producer.emit("view", "article:1", 5)
        producer.flush(10, wait="counted")

        def totals() -> Any:
            _, data = stream.next("overview")
            found = {each["metric"]: each["total"] for each in data["metrics"]}
            return data if found["view"] == 5 and data["unaccounted"] == 0 and data["rate"] else None

        data = until(totals, interval=0)
        assert (data["workers"], data["lag"], data["dead"], data["snapshot_age_seconds"]) == (1, 0, 0, None)
        _, top = stream.next("top")
        assert top["window"] == "day"
        assert top["metrics"].get("view") == [{"subject": "article:1", "value": 5}]


def test_a_stop_ends_every_stream(harness: Harness) -> None:
    """A service that stops ends its streams within 3 s, and `follow` continues with the next service."""
    with serving(settings_for(harness.url)) as url:
        port = int(url.rpartition(":")[2])
        updates = subscribe.follow(url, metric="view", subject="a")
        assert next(updates).values == {("a", "view"): 0}
        stream = Following(f"{url}/v1/live")
        stream.next()
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert stream.ended()
    stream.close()
    count(harness, ("view", "a"), times=4)
    with serving(settings_for(harness.url, port=port)):
        assert next(updates).values == {("a", "view"): 4}
        updates.close()


def test_the_helper_says_why_it_is_refused(url: str) -> None:
    """`follow` raises the error of the service, an error after its patience, and an error for an invalid URL."""
    with pytest.raises(subscribe.SubscriptionRefused, match="not declared"):
        next(subscribe.follow(url, metric="nothing"))
    with pytest.raises(TallyError, match="no connection"):
        next(subscribe.follow("http://127.0.0.1:1", patience=0.2))
    with pytest.raises(TallyError, match="http://HOST:PORT"):
        next(subscribe.follow("redis://x"))


@pytest.mark.parametrize(
    ("address", "token"),
    [
        ("http://127.0.0.1:99999", ""),
        ("http://127.0.0.1:port", ""),
        ("http://[::1", ""),
        ("http://127.0.0.1:1/a b", ""),
        ("http://a b", ""),
        ("http://" + "a" * 64, ""),
        ("", "two\nlines"),
    ],
)
def test_the_helper_refuses_an_address_that_cannot_be_sent(url: str, address: str, token: str) -> None:
    """`follow` raises `ConfigurationError` for an invalid port, host or path, and for an invalid token."""
    with pytest.raises(ConfigurationError, match=r"^the read service's URL "):
        next(subscribe.follow(address or url, token=token, patience=0))


def test_the_helper_loses_patience_with_responses_that_end() -> None:
    """If every response is empty and ends without an error, `follow` raises after its patience."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                with accepted:
                    accepted.recv(65_536)
                    accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nretry: 1000\n\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TallyError, match=r"for 0\.5 seconds: the service ended its response"):
            next(subscribe.follow(f"http://127.0.0.1:{listener.getsockname()[1]}", patience=0.5))
        assert time.monotonic() - began < 30
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_redis_away_is_told_and_nothing_is_missed(fresh_server: Any) -> None:
    """If Redis is down, readers get `stale`; afterwards they get new totals without reconnecting."""
    server = fresh_server()
    with (
        Harness(server.url) as harness,
        serving(settings_for(server.url)) as url,
        Following(f"{url}/v1/live?metric=view&subject=a") as stream,
    ):
        count(harness, ("view", "a"))
        stream.until_value(1)
        server.stop()
        assert stream.next("stale")[1]["since"] <= time.time()
        server.start()
        count(harness, ("view", "a"))
        stream.until_value(2)


def test_no_reader_no_question(harness: Harness, url: str) -> None:
    """Without readers the service sends no commands to Redis."""
    with Following(f"{url}/v1/live?metric=view&overview=true") as stream:
        stream.next()
    harness.client.config_resetstat()

    def calls() -> int:
        return sum(v["calls"] for k, v in harness.client.info("commandstats").items() if "xinfo" in k)

    seen = [-1]

    def quiet() -> bool:
        seen.append(calls())
        return seen[-1] == seen[-2]

    until(quiet, interval=0.6)


def test_a_socket_says_the_same(harness: Harness, url: str) -> None:
    """A WebSocket gets the same messages as JSON texts; an invalid request is rejected in the closing frame."""
    count(harness, ("view", "a"))
    with WebSocket(url, "/v1/live/ws?metric=view&subject=a") as web:
        first = json.loads(web.receive())
        assert (first["event"], values(first["data"])) == ("counters", {("view", "a"): 1})
        count(harness, ("view", "a"))
        assert values(json.loads(web.receive())["data"]) == {("view", "a"): 2}
    count(harness, ("view", "a"))
    with WebSocket(url, f"/v1/live/ws?metric=view&since={first['id']}") as web:
        assert values(json.loads(web.receive())["data"]) == {("view", "a"): 3}
    with WebSocket(url, "/v1/live/ws?metric=nothing") as web:
        code, reason = web.closing()
        assert code == 1008
        assert "not declared" in reason


def test_a_page_of_another_site_opens_no_socket(url: str) -> None:
    """A WebSocket whose origin is not this service is rejected, because browsers let any page open one."""
    with pytest.raises(ConnectionError), WebSocket(url, "/v1/live/ws", origin="https://evil.example"):
        pass


def test_a_stop_closes_sockets(harness: Harness) -> None:
    """A service that stops closes its WebSockets with code 1001."""
    with contextlib.ExitStack() as stack, contextlib.ExitStack() as service:
        url = service.enter_context(serving(settings_for(harness.url)))
        web = stack.enter_context(WebSocket(url, "/v1/live/ws?metric=view"))
        assert json.loads(web.receive())["event"] == "counters"
        service.close()
        assert web.closing()[0] == 1001


def test_subjects_are_found_by_their_beginning(harness: Harness, url: str) -> None:
    """A search returns the leading subjects with a prefix, largest first; an invalid prefix or number is rejected."""
    rules = Rules({"view": Metric(top=10), "like": Metric()})
    harness.client.hset(harness.layout.meta, "rules", publish(rules))
    with Harness(harness.url, rules=rules) as ranked, Producer(harness.url) as producer:
        for place in range(1, 4):
            producer.emit("view", f"article:{place}", place)
        producer.emit("view", "user:1", 9)
        producer.emit("like", "article:9", 99)
        producer.flush(5)
        ranked.drain()
        answer = until(
            lambda: (found := httpx.get(f"{url}/v1/subjects?prefix=article:&n=2").json()).get("subjects") and found
        )
    assert answer["subjects"] == [
        {"subject": "article:3", "metric": "view", "value": 3},
        {"subject": "article:2", "metric": "view", "value": 2},
    ]
    assert answer["searched"] == ["view"]
    assert httpx.get(f"{url}/v1/subjects?prefix=*").json()["subjects"] == []
    for query in ("prefix=", "prefix=%00", "prefix=a&n=51", "prefix=a&n=0", "n=3"):
        assert httpx.get(f"{url}/v1/subjects?{query}").status_code == 400


def test_the_whole_at_once(harness: Harness, url: str) -> None:
    """`GET /v1/overview` returns the totals, the ledger and the declared metrics."""
    count(harness, ("view", "a"), ("like", "b"))
    answer = httpx.get(f"{url}/v1/overview").json()
    assert {each["metric"]: each["total"] for each in answer["overview"]["metrics"]} == {
        "view": 1,
        "like": 1,
        "vote": 0,
    }
    assert answer["overview"]["unaccounted"] == 0
    assert [each["metric"] for each in answer["declared"]] == ["like", "view", "vote"]
