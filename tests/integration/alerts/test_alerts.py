"""Each change of an alert's state makes one notification, with several workers and after crashes; it is delivered."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ResponseError

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, KeyLost
from tallystream.producing.decider import Decider
from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream.rules.alerts import ENDED, Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream_worker.alerts.evaluator import AlertEvaluator
from tallystream_worker.alerts.notifier import Notifier
from tallystream_worker.archive.entries import entries
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.counting.fold import Fold
from tallystream_worker.counting.loop import CountingLoop
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.alerts import AlertTable, Hook
from tallystream_worker.settings.load import load
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.restore import restore
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tests.harness import Harness
from tests.http_service import http_service
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clock import ClockedServer
    from tests.servers import Server

METRICS = {
    "view": Metric("", ("minute", "hour", "day")),
    "like": Metric(""),
    "vote": Metric("", once="forever"),
    "call": Metric("", ("day",), limit=5, per="day", ids=None),
    "quiet": Metric("", ("hour",)),
}
Seen = list[tuple[str, str, str, str]]


def rules(*alerts: Alert) -> Rules:
    """Return the rules of this module with these alerts."""
    return Rules(METRICS, alert=alerts)


def noticed(harness: Harness) -> Seen:
    """Return the notifications in the outboxes: alert, subject, state, value."""
    return [
        tuple(fields[name].decode() for name in (b"alert", b"subject", b"state", b"value"))  # type: ignore[misc]
        for keys in harness.layout.keys
        for _, fields in harness.client.xrange(keys.outbox)
    ]


def count(harness: Harness, *events: tuple[Any, ...], **more: Any) -> Seen:
    """Emit events and count them; return the notifications that this has added."""
    before = len(noticed(harness))
    with Producer(harness.url) as producer:
        for event in events:
            producer.emit(*event, **more)
    harness.drain()
    return noticed(harness)[before:]


def watcher(harness: Harness, client: Any = None) -> AlertEvaluator:
    """Return an evaluator of the harness's alerts."""
    return AlertEvaluator(client or harness.connect(), lambda: harness.layout, harness.rules)


def test_the_latest_firing_alerts_are_first(server: Server) -> None:
    """With more firing subjects than a compact hash takes, every page is in order, latest first, and `more` is true."""
    subjects = [f"s{number}" for number in range(3000)]
    with Harness(server.url, partitions=1, rules=rules(Alert("hot", "like", above=0))) as harness:
        key = harness.layout.keys[0].alerting("hot", "")
        harness.client.hset(key, mapping={each: f"{1000 * n + 1000}-0 1" for n, each in enumerate(subjects)})
        harness.client.hset(key, "over", ENDED)
        with Totals(server.url) as totals:
            for offset in range(0, 3000, 1000):
                page = totals.alerts(1000, offset)
                assert [each.subject for each in page.firing] == subjects[::-1][offset : offset + 1000]
                assert (page.more, page.alerts[0].firing) == (offset < 2000, 3000)
            assert totals.alerts(0).more is True


def test_a_total_that_crosses_is_noticed_once(server: Server) -> None:
    """An alert fires once for a total beyond its bound, until it is back at `clear`; other subjects do not fire."""
    with Harness(server.url, rules=rules(Alert("hot", "like", "article:*", above=10, clear=5))) as harness:
        assert count(harness, ("like", "article:1", 10), ("like", "other", 99)) == []
        assert count(harness, ("like", "article:1", 1)) == [("hot", "article:1", "firing", "11")]
        assert count(harness, ("like", "article:1", 50)) == []
        assert count(harness, ("like", "article:1", -55)) == []  # 6: not clear yet
        assert count(harness, ("like", "article:1", 20)) == []
        assert count(harness, ("like", "article:1", -21)) == [("hot", "article:1", "resolved", "5")]
        assert count(harness, ("like", "article:1", 2_000_000)) == [("hot", "article:1", "firing", "2000005")]


def test_below_fires_as_a_total_falls(server: Server) -> None:
    """An alert with `below` fires when the total falls under the bound, and ends when it is back at `clear`."""
    with Harness(server.url, rules=rules(Alert("unloved", "like", below=0, clear=3))) as harness:
        assert count(harness, ("like", "a", -1)) == [("unloved", "a", "firing", "-1")]
        assert count(harness, ("like", "a", 2)) == []
        assert count(harness, ("like", "a", 2)) == [("unloved", "a", "resolved", "3")]


def test_rules_with_memory_are_watched_too(server: Server) -> None:
    """Alerts on metrics with votes, limits and ids evaluate the counted events, not the appended ones."""
    alerts = (Alert("votes", "vote", above=1), Alert("calls", "call", above=4), Alert("ids", "like", above=1))
    with Harness(server.url, rules=rules(*alerts)) as harness:
        votes = [("vote", "p", 1, {"actor": f"u{n}"}) for n in (1, 1, 1)]
        with Producer(harness.url) as producer:
            for metric, subject, amount, more in votes:
                producer.emit(metric, subject, amount, **more)
            for _ in range(3):
                producer.emit("like", "x", 1, id="same")
            for _ in range(5):
                producer.emit("call", "k")
        harness.drain()
        assert noticed(harness) == [("calls", "k", "firing", "5")]
        with Producer(harness.url) as producer:
            producer.emit("vote", "p", actor="u2")
            producer.emit("like", "x", id="other")
            for _ in range(9):
                producer.emit("call", "k")
        harness.drain()
        assert sorted(noticed(harness)) == [
            ("calls", "k", "firing", "5"),
            ("ids", "x", "firing", "2"),
            ("votes", "p", "firing", "2"),
        ]


def test_a_bucket_fires_once_and_ends_with_it(server: Server) -> None:
    """An alert on a bucket fires once and ends with the bucket; later events of that bucket do not fire it again."""
    with Harness(server.url, rules=rules(Alert("busy", "view", window="day", above=2))) as harness:
        now = time.time()
        yesterday = now - 86_400
        assert count(harness, ("view", "a", 9), at=yesterday) == []
        assert count(harness, ("view", "a", 3), at=now) == [("busy", "a", "firing", "3")]
        assert count(harness, ("view", "a", 3), at=now) == []
        assert watcher(harness).run_once(now) == 0
        tomorrow = now + 86_400
        assert watcher(harness).run_once(tomorrow) == 1
        assert noticed(harness)[-1] == ("busy", "a", "resolved", "3")
        assert watcher(harness).run_once(tomorrow) == 0
        assert count(harness, ("view", "a", 3), at=now) == []
        (key,) = harness.client.scan_iter("*alerting:busy:*")
        assert 86_400 - 5 < harness.client.ttl(key) <= 2 * 86_400


def test_a_decision_is_watched(server: Server) -> None:
    """A decision makes a notification in the same call, and none when the worker reads its entry."""
    with Harness(server.url, rules=rules(Alert("votes", "vote", above=0))) as harness:
        Decider(harness.connect(), Deployment.create_or_load(harness.client))(Event("vote", "p", actor="u1"))
        assert noticed(harness) == [("votes", "p", "firing", "1")]
        harness.drain()
        assert len(noticed(harness)) == 1


def test_a_decision_of_a_host_with_another_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision checks an alert on a bucket until the bucket ends by the server's clock, whatever its host's clock."""
    with Harness(server.url, rules=rules(Alert("busy", "view", window="minute", above=0))) as harness:
        decide = Decider(harness.connect(), Deployment.create_or_load(harness.client))
        present = time.time
        now = present()
        for ahead, at, fires in ((-1800, now - 600, False), (0, now - 600, False), (1800, now + 60, True)):
            monkeypatch.setattr(time, "time", lambda ahead=ahead: present() + ahead)
            decide(Event("view", f"s{ahead}", at=at))
            assert len(noticed(harness)) == fires


def test_a_rebuild_notices_nothing(server: Server) -> None:
    """A rebuild counts the same totals and makes no notification."""
    with Harness(server.url, rules=rules(Alert("hot", "like", above=10)), partitions=1) as harness:
        count(harness, ("like", "a", 11))
        anew = harness.layout.of(2)
        harness.client.xgroup_create(anew.keys[0].stream, anew.keys[0].group, "0")
        harness.client.hset(anew.keys[0].ledger, "entries:settled", 0)  # as the begin of a rebuild does
        fetch = Fetch(harness.connect(), anew.keys[0], "w")
        fold = Fold(anew, 0, harness.rules, watching=False)
        consumer = CountingLoop(harness.connect(), anew, 0, fetch, fold, live_only=False)
        while consumer.run_once():
            pass
        assert harness.client.get(anew.keys[0].total("like", "a")) == b"11"
        assert len(noticed(harness)) == 1


def test_a_refused_batch_notices_nothing(server: Server) -> None:
    """If a total cannot take its delta, it makes no notification; other totals of the same batch do."""
    with Harness(server.url, rules=rules(Alert("hot", "like", above=10)), partitions=1) as harness:
        harness.client.set(harness.layout.keys[0].total("like", "full"), 2**53 - 2)
        assert count(harness, ("like", "full", 5), ("like", "ok", 11)) == [("hot", "ok", "firing", "11")]


def test_a_full_outbox_loses_no_crossing(server: Server) -> None:
    """If the outbox is full, an alert does not fire; it fires with the next event after there is room."""
    with Harness(server.url, rules=rules(Alert("hot", "like", above=0)), partitions=1) as harness:
        outbox = harness.layout.keys[0].outbox
        with harness.client.pipeline(transaction=False) as pipeline:
            for _ in range(10_000):
                pipeline.xadd(outbox, {"alert": "x"})
            pipeline.execute()
        with Producer(harness.url) as producer:
            producer.emit("like", "a")
        harness.drain()
        assert harness.client.xlen(outbox) == 10_000
        harness.client.xtrim(outbox, maxlen=0)
        assert count(harness, ("like", "a")) == [("hot", "a", "firing", "2")]


def test_an_outbox_of_another_type_counts_nothing_half(server: Server) -> None:
    """If the outbox has another type, a batch that adds a notification fails before its first write."""
    with Harness(server.url, rules=rules(Alert("hot", "like", above=0)), partitions=1) as harness:
        harness.client.set(harness.layout.keys[0].outbox, "x")
        with Producer(harness.url) as producer:
            producer.emit("like", "a")
        with pytest.raises(KeyLost, match=":alerts has the type string"):
            harness.drain()
        assert (harness.totals(), harness.waiting()) == ({}, 1)
        harness.client.delete(harness.layout.keys[0].outbox)
        harness.finish()
        assert (harness.totals(), len(noticed(harness))) == ({("like", "a"): 1}, 1)


def test_a_sum_over_a_range_rises_and_falls_by_itself(server: Server) -> None:
    """A sum over a range fires after events, and ends when they are past; one of two evaluators notifies."""
    with Harness(server.url, rules=rules(Alert("busy", "view", "a*", over="10m", above=5, clear=1))) as harness:
        assert count(harness, ("view", "a", 6), ("view", "b", 6)) == []
        first, second = watcher(harness), watcher(harness, harness.connect())
        now = time.time()
        assert (first.run_once(now), second.run_once(now), first.run_once(now + 60)) == (1, 0, 0)
        assert noticed(harness) == [("busy", "a", "firing", "6")]
        assert (second.run_once(now + 660), first.run_once(now + 660)) == (1, 0)
        assert noticed(harness)[-1] == ("busy", "a", "resolved", "0")


def test_a_sum_fires_after_the_clock_jumped(clocked: ClockedServer) -> None:
    """After a clock was ahead for a moment, subjects that are counted then are evaluated, in the order of counting."""
    metrics = {"daily": Metric("", ("day",))}
    busy = Rules(metrics, alert=(Alert("busy", "daily", over="2d", above=5),))
    with Harness(clocked.url, rules=busy, partitions=1) as harness:
        evaluator = watcher(harness)
        for offset, subject in ((0.0, "a"), (7 * 86_400.0, "b"), (0.0, "c")):
            clocked.set(offset)
            count(harness, ("daily", subject, 1))
            assert evaluator.run_once() == 0
        count(harness, ("daily", "a", 10))
        assert (evaluator.run_once(), noticed(harness)) == (1, [("busy", "a", "firing", "11")])
        count(harness, ("daily", "c", 10))
        assert (evaluator.run_once(), noticed(harness)[1:]) == (1, [("busy", "c", "firing", "11")])


def test_silence_is_noticed(server: Server) -> None:
    """An alert on a rate below a bound fires for a named subject, even if it never had an event."""
    with Harness(server.url, rules=rules(Alert("silent", "view", "heart", rate="5m", below=0.01))) as harness:
        assert watcher(harness).run_once() == 1
        assert noticed(harness) == [("silent", "heart", "firing", "0")]
        count(harness, ("view", "heart", 1000))
        assert watcher(harness).run_once() == 1
        assert noticed(harness)[-1][2] == "resolved"


def test_an_alert_is_silent_in_a_partition_that_has_lost_its_keys(server: Server) -> None:
    """A missing value is not taken for 0: the alert does not fire there, and fires in another partition."""
    alerts = [Alert(f"silent-{subject}", "view", subject, rate="5m", below=0.01) for subject in ("a", "d")]
    with Harness(server.url, rules=rules(*alerts), partitions=2) as harness:
        count(harness, ("view", "a", 1000))
        keys = harness.layout.keys_of("a")
        assert keys != harness.layout.keys_of("d")
        harness.client.delete(*harness.client.scan_iter(f"{keys.prefix}*"))
        assert watcher(harness).run_once() == 1
        assert noticed(harness) == [("silent-d", "d", "firing", "0")]


def test_delivery_leaves_a_partition_alone_that_has_lost_its_keys(server: Server) -> None:
    """The outbox is not created again there; the notifications of the other partitions are delivered."""
    alerts = [Alert(f"busy-{subject}", "view", subject, above=0) for subject in ("a", "d")]
    with Harness(server.url, rules=rules(*alerts), partitions=2) as harness, receiving() as receiver:
        lost = harness.layout.keys_of("a")
        hooks = {alert.name: Hook(receiver.url) for alert in alerts}
        delivery = Notifier(harness.connect(), harness.layout, "w", hooks, logs.configure(quiet=True))
        delivery.run_once()
        harness.client.delete(*harness.client.scan_iter(f"{lost.prefix}*"))
        other = next(number for number, keys in enumerate(harness.layout.keys) if keys is not lost)
        harness.client.xadd(harness.layout.keys[other].stream, {"metric": "view", "subject": "d"})
        while harness.consumer(other).run_once():
            pass
        with pytest.raises(ResponseError, match="NOGROUP"):
            delivery.run_once()
        delivery.run_once()
        assert receiver.states == [("d", "firing")]
        assert [*harness.client.scan_iter(f"{lost.prefix}*")] == []


def test_without_alerts_nothing_is_stored(server: Server) -> None:
    """Counting a metric without an alert writes no key of alerts."""
    with Harness(server.url, rules=rules(Alert("hot", "like", above=10))) as harness:
        count(harness, ("view", "a", 5))
        assert [*harness.client.scan_iter("*alert*"), *harness.client.scan_iter("*watched*")] == []


class Receiver:
    """A web server that keeps the requests it receives in `got`, and replies with `status`."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    @property
    def states(self) -> list[tuple[str, str]]:
        """The subjects and states of the received notifications."""
        return [(data["subject"], data["state"]) for data in (json.loads(body)["data"] for _, body in self.got)]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Yield a running receiver; stop it when the block ends."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


def notifier(harness: Harness, url: str = "", key: bytes = b"", name: str = "w", said: Any = None) -> Notifier:
    """Return a notifier with its own connection."""
    hooks = {"hot": Hook(url, key)} if url else {}
    return Notifier(
        harness.connect(), harness.layout, name, hooks, logs.configure(quiet=True), said or (lambda *_: None)
    )


def test_a_notification_is_signed(server: Server) -> None:
    """A notification contains the change and a unique id, and is signed with its time as in Standard Webhooks."""
    with Harness(server.url, rules=rules(Alert("hot", "like", above=10))) as harness, receiving() as receiver:
        count(harness, ("like", "a", 11))
        assert notifier(harness, receiver.url, b"key").run_once() == 1
        ((headers, body),) = receiver.got
        assert noticed(harness) == []
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"key", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    said = json.loads(body)
    assert said["type"] == "alert.firing"
    assert said["data"]["id"] == headers["webhook-id"]
    assert (said["data"]["alert"], said["data"]["subject"], said["data"]["value"]) == ("hot", "a", 11)


def test_a_notification_is_sent_until_it_is_taken(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notification is sent with the same id until the receiver accepts it, in order; another worker can claim it."""
    monkeypatch.setattr("tallystream_worker.alerts.notifier.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("tallystream_worker.alerts.notifier.LONGEST_PAUSE", 0.02)
    outcomes: list[str] = []
    with (
        Harness(server.url, rules=rules(Alert("hot", "like", above=10)), partitions=1) as harness,
        receiving() as receiver,
    ):
        count(harness, ("like", "a", 11))
        count(harness, ("like", "a", -11))
        first = notifier(harness, receiver.url, said=lambda _, outcome: outcomes.append(outcome))
        for status in (500, 302, 404):
            receiver.status, sent = status, len(receiver.got)
            until(lambda sent=sent: first.run_once() or len(receiver.got) > sent)
        assert set(receiver.states) == {("a", "firing")}
        assert {headers["webhook-id"] for headers, _ in receiver.got} == {receiver.got[0][0]["webhook-id"]}
        receiver.status = 204
        receiver.got.clear()
        until(lambda: first.run_once() or not noticed(harness))
        assert receiver.states == [("a", "firing"), ("a", "resolved")]
        assert set(outcomes) == {"failed", "delivered"}
        count(harness, ("like", "a", 11))
        dying = notifier(harness, "http://127.0.0.1:1/", name="dying")
        dying.run_once()
        monkeypatch.setattr("tallystream_worker.alerts.notifier.CLAIM_IDLE", 0.0)
        assert notifier(harness, receiver.url, name="next").run_once() == 1
        assert receiver.states[-1] == ("a", "firing")
        assert noticed(harness) == []


def test_a_notification_that_nobody_takes_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notification that is older than `KEPT` is abandoned when its delivery fails."""
    monkeypatch.setattr("tallystream_worker.alerts.notifier.KEPT", -1.0)
    outcomes: list[tuple[str, str]] = []
    with Harness(server.url, rules=rules(Alert("hot", "like", above=10))) as harness:
        count(harness, ("like", "a", 11))
        assert notifier(harness, "http://127.0.0.1:1/", said=lambda *said: outcomes.append(said)).run_once() == 1
        assert (outcomes, noticed(harness)) == ([("hot", "abandoned")], [])


def test_workers_notice_and_deliver(server: Server) -> None:
    """With two workers each notification is delivered once, and firing alerts are shown over HTTP and as a metric."""
    subjects = [f"article:{n}" for n in range(20)]
    with receiving() as receiver:
        settings = Settings(
            redis=RedisSettings(url=server.url),
            rules=rules(Alert("hot", "like", above=10), Alert("busy", "view", window="hour", above=1)),
            hooks={"hot": Hook(receiver.url)},
        )
        log = logs.configure(quiet=True)
        with (
            counting(settings, log, consumer="a"),
            counting(settings, log, consumer="b"),
            Producer(server.url) as producer,
        ):
            for _ in range(30):
                for subject in subjects:
                    producer.emit("like", subject)
                producer.flush(10)
            producer.emit("view", "page", 2)
            producer.flush(10, wait="counted")
            until(lambda: len(receiver.got) >= len(subjects))
            with http_service(server.url) as http:
                found = http.get("/v1/alerts?n=5").json()
                assert {alert["alert"]: alert["firing"] for alert in found["alerts"]} == {"hot": 20, "busy": 1}
                assert (len(found["firing"]), found["more"]) == (5, True)
                everyone = http.get("/v1/alerts?n=1000").json()
                assert {each["subject"] for each in everyone["firing"]} == {*subjects, "page"}
                assert everyone["more"] is False
                until(lambda: http.get("/v1/alerts").json()["undelivered"] == 0)
                page = http.get("/metrics").text
                assert 'tallystream_alerts_firing{alert="hot"} 20.0' in page
                assert http.get("/v1/alerts?n=1001").status_code == 400
                assert http.get("/v1/alerts?offset=-1").status_code == 400
    assert sorted(receiver.states) == sorted((subject, "firing") for subject in subjects)


@pytest.mark.parametrize(
    ("alert", "problem"),
    [
        (Alert("a", "nothing", above=1), "not declared"),
        (Alert("A b", "view", above=1), "name"),
        (Alert("a", "view"), "either above or below"),
        (Alert("a", "view", above=1, below=0), "either above or below"),
        (Alert("a", "view", window="hour", over="1h", above=1), "one of window, over and rate"),
        (Alert("a", "view", over="", above=1), "not a duration"),
        (Alert("a", "view", rate="", above=1), "not a duration"),
        (Alert("a", "view", above=1, clear=2), "clear"),
        (Alert("a", "view", window="month", above=1), "view has the windows minute, hour, day"),
        (Alert("a", "view", window="hour", below=1), "below"),
        (Alert("a", "like", over="1h", above=1), "windows"),
        (Alert("a", "quiet", over="10m", above=1), "from one hour"),
        (Alert("a", "view", over="tomorrow", above=1), "duration"),
    ],
)
def test_a_contradiction_is_refused(alert: Alert, problem: str) -> None:
    """An alert whose condition is invalid is rejected with its name and the fault."""
    with pytest.raises(ConfigurationError, match=problem) as found:
        rules(alert)
    assert alert.name in str(found.value)


def test_alerts_are_configured(tmp_path: Path) -> None:
    """The secret of an alert is read from the environment or a file, and is not shown in the settings' repr."""
    text = '[[alert]]\nname = "hot"\nmetric = "view"\nabove = 5\nwebhook = "https://example.com/x"\nsecret = "{}"\n'
    file = tmp_path / "tallystream.toml"
    (tmp_path / "key").write_text("whsec_c2VjcmV0\n")
    for secret, key in (("env:KEY", b"plain"), (f"file:{tmp_path}/key", b"secret")):
        file.write_text(text.format(secret))
        settings = load(file, {"KEY": "plain"})
        assert settings.hooks["hot"].key == key
        assert settings.rules.alert == (Alert("hot", "view", above=5),)
        assert "plain" not in repr(settings)
        assert "secret'" not in repr(settings)
    for secret in ("plain", "env:MISSING", "file:/nowhere"):
        file.write_text(text.format(secret))
        with pytest.raises(ConfigurationError, match="secret"):
            load(file, {})
    for webhook in ("ftp://x", "https://", "https://[x", "https://x:port", "https://x:70000"):
        with pytest.raises(ConfigurationError, match="http or https"):
            AlertTable("a", "view", above=1, webhook=webhook).hook({})


def test_a_file_can_be_checked_without_its_secrets(tmp_path: Path) -> None:
    """Without an environment, neither variables nor the secrets of alerts are read, but their form is checked."""
    text = '[[alert]]\nname = "hot"\nmetric = "view"\nabove = 5\nwebhook = "https://example.com/x"\nsecret = "{}"\n'
    file = tmp_path / "tallystream.toml"
    for secret in ("env:MISSING", "file:/nowhere"):
        file.write_text(text.format(secret))
        assert load(file, None).hooks["hot"].key == b""
    for secret in ("plain", "env:", "file:"):
        file.write_text(text.format(secret))
        with pytest.raises(ConfigurationError, match="secret"):
            load(file, None)


def test_what_has_fired_does_not_fire_again_after_a_restore(server: Server, tmp_path: Path) -> None:
    """A restore brings back states, watched subjects and waiting notifications; later changes make one notification."""
    alerts = (
        Alert("viral", "view", above=4),
        Alert("busy", "view", window="day", above=4),
        Alert("lively", "view", over="1h", above=4),
    )
    database = Database(str(tmp_path / "snapshot.sqlite"))
    with Harness(server.url, rules=rules(*alerts), partitions=1) as harness:
        count(harness, ("view", "s", 5), ("view", "t", 3))
        watcher(harness).run_once()
        before = noticed(harness)
        assert sorted(before) == [(name, "s", "firing", "5") for name in ("busy", "lively", "viral")]
        states = states_of(harness)
        Snapshotter(harness.client, database, Deployment.create_or_load(harness.client)).run_once()
        count(harness, ("view", "t", 2))  # after the snapshot, so only in the archive
        store = Store(str(tmp_path / "archive"))
        Archive(harness.client, store, harness.deployment).run_once(settled=0)
        harness.client.flushall()
        restore(harness.client, database, partial(entries, store))
        since = noticed(harness)[len(before) :]
        assert noticed(harness)[: len(before)] == before
        assert sorted(since) == [(name, "t", "firing", "5") for name in ("busy", "viral")]
        assert states_of(harness).items() >= states.items()
        assert count(harness, ("view", "s", 1)) == []
        watcher(harness).run_once()
        assert noticed(harness)[len(before) + len(since) :] == [("lively", "t", "firing", "5")]
    database.close()


def states_of(harness: Harness) -> dict[tuple[bytes, bytes], bytes]:
    """Return the records of the firing alerts, by key and subject."""
    return {
        (key, subject): record
        for key in harness.client.scan_iter(match="*:alerting:*")
        for subject, record in harness.client.hgetall(key).items()
    }


def test_a_courier_goes_on_after_a_restore(server: Server) -> None:
    """A notifier whose consumer group was deleted creates it again, and delivers the waiting notifications."""
    with Harness(server.url, rules=rules(Alert("viral", "view", above=0)), partitions=1) as harness:
        notifier = Notifier(harness.connect(), harness.layout, "w", {}, logs.configure(quiet=True))
        notifier.run_once()
        harness.client.delete(harness.layout.keys[0].outbox)
        with pytest.raises(ResponseError, match="NOGROUP"):
            notifier.run_once()
        count(harness, ("view", "s"))
        assert notifier.run_once() == 1
