"""Every read has the same answer in threads, in asyncio, over HTTP and, if a command exists, on the command line."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec
import pytest

import tallystream
from tallystream import EventError, FlushTimeout, Producer, Totals, aio
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Ratio, Rules
from tests.harness import Harness
from tests.http_service import http_service
from tests.integration.cli.test_cli import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.servers import Server

RULES = Rules(
    {
        "view": Metric("", ("hour", "day"), unique="day", top=100),
        "like": Metric("", ("day",), floor=0),
        "vote": Metric("", once="forever"),
        "call": Metric("", limit=3, per="total", ids=None),
        "tag": Metric("", exact=False, top=5, ids=None),
        "page": Metric("", ("day",), max_subjects=1, ids=None),
        "hot": Metric("", ("day",), top=5, spread=True, ids=None),
        "passing": Metric("", ("hour",), retention={"hour": "2h"}, unique="hour", top=5, ids=None),
    },
    {"engagement_rate": Ratio(("like",), ("view",))},
    alert=(Alert("viral", "view", above=15), Alert("many", "passing", over="2d", above=1)),
)
FRIEND = "caf\u00e9/1"


@dataclass(frozen=True)
class Read:
    """One read: a method and its arguments, and the HTTP path and the command that read the same."""

    verb: str
    arguments: tuple[Any, ...]
    path: str = ""
    named: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def path_of(*parts: str, **query: Any) -> str:
    """Return an HTTP path of percent-encoded parts, with a query string."""
    path = "/v1/" + "/".join(quote(part, safe="") for part in parts)
    return f"{path}?{urlencode(query, doseq=True)}" if query else path


EXPIRED = [
    Read(
        "series",
        ("s1", "passing", "hour", 9),
        path_of("counters", "s1", "passing", window="hour", last=9),
        command=("get", "s1", "passing", "--window", "hour", "--last", "9"),
    ),
    Read(
        "sum",
        ("s1", "passing", "1d"),
        path_of("counters", "s1", "passing", over="1d"),
        command=("get", "s1", "passing", "--over", "1d"),
    ),
    Read(
        "top", ("passing", "1d"), path_of("top", "passing", window="1d"), command=("top", "passing", "--window", "1d")
    ),
    Read("uniques", ("s1", "passing", "1d"), path_of("uniques", "passing", "s1", over="1d")),
]
"""Reads of a range of which a part has expired."""

READS = [
    Read("get", (FRIEND, "view"), path_of("counters", FRIEND, "view")),
    Read("get", ("cafe\u0301/1", "view"), path_of("counters", FRIEND, "view")),
    Read("get", ("never", "like"), path_of("counters", "never", "like")),
    Read("get", ("s1", "hot"), path_of("counters", "s1", "hot")),
    Read("get", ("t3", "tag"), path_of("counters", "t3", "tag")),
    Read(
        "get_many",
        ([(subject, metric) for subject in ("s1", FRIEND, "s1") for metric in ("view", "hot")],),
        path_of("counters", subject=["s1", FRIEND, "s1"], metric=["view", "hot"]),
    ),
    Read("of", (FRIEND,), path_of("counters", FRIEND), command=("get", FRIEND)),
    Read("of", ("s1", ["view"]), command=("get", "s1", "view")),
    Read(
        "series",
        (FRIEND, "view", "day", 3),
        path_of("counters", FRIEND, "view", window="day", last=3),
        command=("get", FRIEND, "view", "--window", "day", "--last", "3"),
    ),
    Read("series", ("s1", "hot", "day"), path_of("counters", "s1", "hot", window="day")),
    Read("series", ("beyond", "page", "day", 2), path_of("counters", "beyond", "page", window="day", last=2)),
    Read(
        "sum",
        (FRIEND, "view", "40d"),
        path_of("counters", FRIEND, "view", over="40d"),
        command=("get", FRIEND, "view", "--over", "40d"),
    ),
    Read("sum", ("beyond", "page", "2d"), path_of("counters", "beyond", "page", over="2d")),
    Read("top", ("view",), path_of("top", "view"), command=("top", "view")),
    Read(
        "top",
        ("view", "day"),
        path_of("top", "view", window="day", n=3),
        {"n": 3},
        command=("top", "view", "--window", "day", "-n", "3"),
    ),
    Read("top", ("view", "40d"), path_of("top", "view", window="40d", n=2, offset=1), {"n": 2, "offset": 1}),
    Read("top", ("hot",), path_of("top", "hot")),
    Read("top", ("tag",), path_of("top", "tag")),
    *EXPIRED,
    Read("limit", ("key:1", "call"), path_of("limits", "call", "key:1")),
    Read("votes", ("post:1", "vote"), path_of("votes", "vote", "post:1")),
    Read("uniques", (FRIEND, "view"), path_of("uniques", "view", FRIEND)),
    Read("uniques", (FRIEND, "view", "2d"), path_of("uniques", "view", FRIEND, over="2d")),
    Read("ledger", ()),
    Read("alerts", (), path_of("alerts")),
    Read("alerts", (0, 1), path_of("alerts", n=0, offset=1)),
    Read("search", ("s", 2), path_of("subjects", prefix="s", n=2)),
]

REFUSED = [
    Read("get", ("a\x00", "view"), path_of("counters", "a\x00", "view")),
    Read("get", ("a", "View"), path_of("counters", "a", "View")),
    Read("get", ("a", "view"), path_of("counters", "a", "view", after="x"), {"after": "x"}),
    Read("series", ("a", "view", "week"), path_of("counters", "a", "view", window="week")),
    Read("series", ("a", "view", "day", 0), path_of("counters", "a", "view", window="day", last=0)),
    Read("sum", ("a", "view", "a week"), path_of("counters", "a", "view", over="a week")),
    Read("top", ("vote",), path_of("top", "vote")),
    Read("top", ("view",), path_of("top", "view", n=101), {"n": 101}),
    Read("top", ("view",), path_of("top", "view", offset=100), {"offset": 100}),
    Read("top", ("view",), path_of("top", "view", after="1-"), {"after": "1-"}),
    Read("limit", ("a", "view"), path_of("limits", "view", "a")),
    Read("votes", ("a", "view"), path_of("votes", "view", "a")),
    Read("uniques", ("a", "vote"), path_of("uniques", "vote", "a")),
    Read("uniques", ("a", "view", "hour"), path_of("uniques", "view", "a", over="hour")),
    Read("alerts", (1001,), path_of("alerts", n=1001)),
    Read("alerts", (1, -1), path_of("alerts", n=1, offset=-1)),
    Read("search", ("s", 51), path_of("subjects", prefix="s", n=51)),
]

WAITING = [
    Read("get", (FRIEND, "view"), path_of("counters", FRIEND, "view")),
    Read("get_many", ([(FRIEND, "view")],), path_of("counters", subject=FRIEND, metric="view")),
    Read("of", (FRIEND,), path_of("counters", FRIEND)),
    Read("series", (FRIEND, "view", "day", 2), path_of("counters", FRIEND, "view", window="day", last=2)),
    Read("series", (FRIEND, "page", "day", 2), path_of("counters", FRIEND, "page", window="day", last=2)),
    Read("sum", (FRIEND, "view", "2d"), path_of("counters", FRIEND, "view", over="2d")),
    Read("top", ("view",), path_of("top", "view")),
    Read("top", ("hot",), path_of("top", "hot")),
    Read("limit", (FRIEND, "call"), path_of("limits", "call", FRIEND)),
    Read("votes", (FRIEND, "vote"), path_of("votes", "vote", FRIEND)),
    Read("uniques", (FRIEND, "view"), path_of("uniques", "view", FRIEND)),
]


@pytest.fixture
def harness(server: Server) -> Iterator[Harness]:
    """Return a harness with metrics of every rule, and events of each metric; the last entry is not counted yet."""
    with Harness(server.url, rules=RULES) as harness, Producer(server.url) as producer:
        at = int(time.time()) // 3600 * 3600
        for n in range(20):
            producer.emit("view", f"s{n}", n + 1, at=at, actor=f"u{n % 3}")
            producer.emit("tag", f"t{n}", n + 1, at=at)
            producer.emit("hot", f"s{n % 3}", n + 1, at=at)
            producer.emit("view", FRIEND, at=at, actor=f"u{n}")
        producer.emit("like", FRIEND, 5, at=at)
        for actor, amount in (("u1", 1), ("u2", 1), ("u3", -1)):
            producer.emit("vote", "post:1", amount, actor=actor, at=at)
        producer.emit("passing", "s1", 3, at=at, actor="u1")
        for _ in range(5):
            producer.emit("call", "key:1", at=at)
        beyond = harness.layout.keys_of("beyond")
        first = next(name for name in map(str, range(99)) if harness.layout.keys_of(name) is beyond)
        for subject in (first, "beyond"):
            producer.emit("page", subject, 5, at=at)
            producer.flush()
            harness.drain()
        producer.emit("view", "s1", 1000, at=at)
        producer.flush()
        yield harness


@pytest.fixture
def http(harness: Harness) -> Iterator[httpx.Client]:
    """Return an HTTP client of the read service."""
    with http_service(harness.url) as client:
        yield client


def in_threads(harness: Harness, read: Read, **settings: Any) -> Any:
    """Return the answer of `tallystream.Totals` to a read."""
    with Totals(harness.url) as totals:
        return getattr(totals, read.verb)(*read.arguments, **read.named, **settings)


def in_asyncio(harness: Harness, read: Read, **settings: Any) -> Any:
    """Return the answer of `tallystream.aio.Totals` to a read."""

    async def ask() -> Any:
        async with aio.Totals(harness.url) as totals:
            return await getattr(totals, read.verb)(*read.arguments, **read.named, **settings)

    return asyncio.run(ask())


def after_path(read: Read, after: str) -> str:
    """Return the path of a read that waits for a stream ID."""
    return f"{read.path}{'&' if '?' in read.path else '?'}after={after}"


def last_id(harness: Harness) -> str:
    """Return the latest stream ID of the partition of `FRIEND`."""
    ((id_, _),) = harness.client.xrevrange(harness.layout.keys_of(FRIEND).stream, count=1)
    return id_.decode()


@pytest.fixture(autouse=True)
def no_hour_ends() -> None:
    """Wait for the next hour if this one ends soon: a read that is repeated must find the same buckets."""
    left = 3600 - time.time() % 3600
    if left < 20:
        time.sleep(left)


def test_every_read_has_one_answer(harness: Harness, http: httpx.Client) -> None:
    """Threads and asyncio return equal structs, and HTTP and the command line encode the same struct."""
    for read in READS:
        answer = in_threads(harness, read)
        assert in_asyncio(harness, read) == answer, read
        encoded = msgspec.json.encode(answer)
        if read.path:
            found = http.get(read.path)
            assert (found.status_code, found.content) == (200, encoded), read
        if read.command:
            command = [PROGRAM, *read.command, "--json", "--redis", harness.url]
            assert subprocess.run(command, check=True, capture_output=True).stdout.strip() == encoded, read


def test_what_has_expired_is_said_alike(harness: Harness, http: httpx.Client) -> None:
    """Structs, HTTP and the command line state the bounds of a figure, and what it lacks; so do alerts."""
    for read in EXPIRED:
        answer = in_threads(harness, read)
        assert (answer.complete, answer.error < 0.01, answer.missing[0].end) == (False, True, answer.start), read
        assert answer.end - answer.start == 3 * 3600
        assert http.get(read.path).json()["missing"] == [{"start": answer.missing[0].start, "end": answer.start}]
        if read.command:
            command = [PROGRAM, *read.command, "--redis", harness.url]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            assert "have expired, or lack events; the figures begin at" in " ".join(done.stderr.split()), read
    assert [each["complete"] for each in http.get("/v1/alerts").json()["alerts"]] == [True, False]
    assert 'tallystream_alert_silent{alert="many"} 1.0' in http.get("/metrics").text


def test_what_is_refused_is_refused_alike(harness: Harness, http: httpx.Client) -> None:
    """An invalid read is rejected with the same field and the same message in threads, in asyncio and over HTTP."""
    for read in REFUSED:
        with pytest.raises(EventError) as refused:
            in_threads(harness, read)
        with pytest.raises(EventError) as again:
            in_asyncio(harness, read)
        assert (again.value.field, again.value.problem) == (refused.value.field, refused.value.problem), read
        problem = http.get(read.path).json()
        told = (problem["status"], problem["field"], problem["limit"])
        assert told == (400, refused.value.field, refused.value.problem), read


def test_a_metric_that_is_not_declared(harness: Harness, http: httpx.Client) -> None:
    """Every read of a metric that is not declared is rejected; none returns 0."""
    for read in WAITING:
        if read.verb == "of":
            continue
        arguments = tuple("veiw" if part in RULES.metric else part for part in map(_hashed, read.arguments))
        wrong = Read(read.verb, arguments if read.verb != "get_many" else ([(FRIEND, "veiw")],))
        for ask in (in_threads, in_asyncio):
            with pytest.raises(EventError, match="metric: veiw is not declared; declared are call, hot, like"):
                ask(harness, wrong)
    assert http.get("/v1/votes/veiw/a").status_code == 404


def _hashed(part: Any) -> Any:
    return part if isinstance(part, (str, int)) else str(part)


def test_every_read_waits_for_a_position(harness: Harness, http: httpx.Client) -> None:
    """A read after a stream ID fails at its timeout if that is not counted yet, and is answered once it is counted."""
    with Producer(harness.url) as producer:
        producer.emit("view", FRIEND, actor="u99")
    after = last_id(harness)
    for read in WAITING:
        for ask in (in_threads, in_asyncio):
            with pytest.raises(FlushTimeout, match=f"entry {after} was not counted within 0.02 seconds"):
                ask(harness, read, after=after, timeout=0.02)
        assert http.get(after_path(read, after)).status_code == 504, read
    harness.drain()
    for read in WAITING:
        answer = in_threads(harness, read, after=after)
        assert in_asyncio(harness, read, after=after) == answer
        found = http.get(after_path(read, after))
        assert (found.status_code, found.content) == (200, msgspec.json.encode(answer)), read
    assert in_threads(harness, WAITING[0]).value == 21


def test_the_verbs_are_the_same() -> None:
    """`Totals` and `aio.Totals` have the same methods with the same parameters, in the same order."""
    verbs = {read.verb for read in READS} | {"read"}
    for verb in verbs:
        threads, asynchronous = (inspect.signature(getattr(face, verb)) for face in (Totals, aio.Totals))
        assert str(threads) == str(asynchronous), verb
    assert {"get", "get_many", "of", "series", "sum", "top", "limit", "votes", "uniques", "ledger"} <= verbs


def test_an_answer_reads_back(harness: Harness) -> None:
    """A Python client can decode an HTTP answer into the struct that the library returns."""
    for read in READS:
        answer = in_threads(harness, read)
        assert msgspec.json.decode(msgspec.json.encode(answer), type=type(answer)) == answer


def test_the_public_face() -> None:
    """`tallystream` exports every name in `__all__`, every error and its version, and imports the reads only on use."""
    assert all(getattr(tallystream, name) is not None for name in tallystream.__all__)
    errors = {
        name
        for name, value in vars(tallystream.errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert errors <= set(tallystream.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Total'"):
        tallystream.Total  # noqa: B018
    program = "import sys, tallystream; print('tallystream.reading.totals' in sys.modules, tallystream.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
    assert json.dumps(tallystream.__version__).startswith('"0.')
