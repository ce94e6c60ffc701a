"""The parser of the combined format turns lines of access logs into events, and gives reasons for bad lines."""

from __future__ import annotations

import gzip
import random
import re
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream_worker.ingest import MAX_LINE_BYTES, BadLine, Line, Mapping, ParsedLine, open_source
from tallystream_worker.ingest.formats.combined import parse
from tests.paths import REAL_LOG

LINE = b'83.149.9.216 - me [17/May/2015:10:05:03 +0000] "GET /a?b=1 HTTP/1.1" 200 203023 "http://a/" "Mozilla"'


def one(text: bytes, **mapping: str | None) -> ParsedLine | BadLine:
    """Return the outcome of a single line."""
    (outcome,) = parse([Line(1, 0, text)], Mapping(**mapping))
    return outcome


def subject(request: str) -> str:
    """Return the subject of a line with this request."""
    text = LINE.replace(b"GET /a?b=1 HTTP/1.1", request.encode())
    return one(text).event[1]


@pytest.fixture(scope="module")
def access_log(tmp_path_factory):
    """Return the path of a log of 10,000 lines: the real one if it exists, else a generated one of the same shape."""
    if REAL_LOG.exists():
        return REAL_LOG
    rng = random.Random(20150517)
    path = tmp_path_factory.mktemp("log") / "access.log.gz"
    with gzip.open(path, "wb") as log:
        for number in range(10_000):
            # Each path once, then popular paths more often than others.
            which = number if number < 1498 else int(1498 * rng.random() ** 3)
            host = f"10.0.{rng.randrange(7)}.{rng.randrange(250)}"
            stamp = f"{17 + number // 2500}/May/2015:{number // 105 % 24:02}:05:{rng.randrange(60):02} +0000"
            request = f"GET /page/{which}?q={which % 7} HTTP/1.1"
            log.write(f'{host} - - [{stamp}] "{request}" 200 {number} "-" "Mozilla/5.0"\n'.encode())
    return path


def test_every_line_of_a_log_is_an_event(access_log):
    """All 10,000 lines of a log are events, with the same paths and hosts as in the log."""
    with open_source(access_log) as source:
        outcomes = list(parse(source))
    assert [outcome for outcome in outcomes if isinstance(outcome, BadLine)] == []
    views = Counter(outcome.event[1] for outcome in outcomes)
    assert (views.total(), len(views)) == (10_000, 1_498)
    # For comparison, split the lines at spaces.
    words = [line.split(b" ") for line in gzip.decompress(access_log.read_bytes()).splitlines()]
    assert views == Counter(word[6].decode() for word in words)
    assert Counter(outcome.event[3] for outcome in outcomes) == Counter(word[0].decode() for word in words)


@pytest.mark.skipif(not REAL_LOG.exists(), reason="the real log is not at hand")
def test_the_figures_of_the_real_log():
    """The parsed events of the real log give its known figures."""
    hosts = defaultdict(set)
    views, hours = Counter(), set()
    with open_source(REAL_LOG) as source:
        for outcome in parse(source):
            _, path, amount, host, at, _ = outcome.event
            views[path] += amount
            hosts[path].add(host)
            hours.add(at // 3600)
    assert views.most_common(5) == [
        ("/favicon.ico", 807),
        ("/style2.css", 546),
        ("/reset.css", 538),
        ("/images/jordan-80.png", 533),
        ("/images/web/2009/banner.png", 516),
    ]
    assert len(hosts["/favicon.ico"]) == 683
    assert len(set.union(*hosts.values())) == 1_753
    assert len(hours) == 84
    assert max(len(path) for path in views) == 595


def test_a_line_is_a_view_of_its_path_by_its_host():
    """A line is an event `view` with the path and query string as subject, the host as actor, and the line's time."""
    assert one(LINE).event == ("view", "/a?b=1", 1, "83.149.9.216", 1431857103.0, None)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("path", "/a?b=1"),
        ("host", "83.149.9.216"),
        ("status", "200"),
        ("referrer", "http://a/"),
        ("agent", "Mozilla"),
    ],
)
def test_any_part_can_be_subject_or_actor(field, expected):
    """Each named part of a line can be the subject and the actor."""
    _, what, _, who, _, _ = one(LINE, metric="hit", subject=field, actor=field).event
    assert (what, who) == (expected, expected)


def test_an_actor_can_be_left_out():
    """Without an actor field events have no actor; `-` is a subject, but not an actor."""
    assert one(LINE, actor=None).event[3] is None
    assert one(LINE.replace(b"http://a/", b"-"), subject="referrer", actor="referrer").event[1:4] == (
        "-",
        1,
        None,
    )


@pytest.mark.parametrize(
    ("stamp", "at"),
    [
        (b"17/May/2015:10:05:03 +0200", 1431849903.0),
        (b"17/May/2015:10:05:03 -0330", 1431869703.0),
        (b"29/Feb/2024:23:59:59 +0000", 1709251199.0),
        (b"01/Jan/1970:00:00:00 +0000", 0.0),
    ],
)
def test_the_time_is_read_with_its_zone(stamp, at):
    """The time of an event is the time of its line, read with the line's zone."""
    assert one(LINE.replace(b"17/May/2015:10:05:03 +0000", stamp)).event[4] == at


@pytest.mark.parametrize(
    "stamp",
    [
        b"30/Feb/2015:10:05:03 +0000",
        b"17/Mai/2015:10:05:03 +0000",
        b"17/May/2015:24:05:03 +0000",
        b"17/May/2015:10:60:03 +0000",
        b"17/May/2015:10:05:60 +0000",
        b"17/May/0000:10:05:03 +0000",
        b"17/May/2015:10:05:03 +9900",
    ],
)
def test_a_time_that_never_was_is_a_bad_line(stamp):
    """A line with an impossible date, time or zone is a bad line."""
    assert isinstance(one(LINE.replace(b"17/May/2015:10:05:03 +0000", stamp)), BadLine)


def test_requests_as_clients_really_send_them():
    """The path is used unchanged with escapes, spaces, a missing protocol or any method."""
    assert subject(r"GET /say?\"hi\" HTTP/1.1") == r"/say?\"hi\""
    assert subject(r"GET /\xe4\xe5 HTTP/1.1") == r"/\xe4\xe5"
    assert subject("GET /two words HTTP/1.1") == "/two words"
    assert subject("GET /old") == "/old"
    assert subject("OPTIONS * HTTP/1.0") == "*"
    assert subject("M-SEARCH * HTTP/1.1") == "*"


@pytest.mark.parametrize("request_line", [b"-", b"", rb"\x16\x03\x01", b"GET", b"GET  HTTP/1.1"])
def test_no_request_is_a_bad_line(request_line):
    """A line without a request is a bad line."""
    assert one(LINE.replace(b"GET /a?b=1 HTTP/1.1", request_line)) == BadLine(
        1, "not a line of an access log in the combined format"
    )


def test_a_line_cut_short_still_counts():
    """A line whose end is cut off is an event; its agent is cut off, too."""
    assert one(LINE[:-3]).event[1] == "/a?b=1"
    assert one(LINE[:-3], subject="agent").event[1] == "Mozil"


def test_a_line_without_the_wanted_part_is_bad():
    """A line in the common format, without referrer and agent, is an event unless the mapping needs these."""
    common = LINE.partition(b' "http')[0]
    assert one(common).event[1] == "/a?b=1"
    assert isinstance(one(common, subject="referrer"), BadLine)


def test_a_line_that_is_not_utf8_is_bad():
    """A line is bad if a wanted part is not UTF-8; other parts may have any bytes."""
    assert one(LINE.replace(b"/a?", b"/\xff?")) == BadLine(1, "not UTF-8")
    assert one(LINE.replace(b"Mozilla", b"\xff")).event[1] == "/a?b=1"


def test_an_endless_line_is_bad():
    """A line of more than 64 KiB is a bad line; one of exactly 64 KiB is not."""
    padding = MAX_LINE_BYTES - len(LINE)
    assert isinstance(one(LINE + b" " * padding), ParsedLine)
    assert one(LINE + b" " * (padding + 1)) == BadLine(1, "longer than 65,536 bytes")


@pytest.mark.parametrize("piece", [b" ", b"\\", b"a", b'" ', b"[", rb"\"", b" HTTP/", b"GET "])
def test_no_line_takes_long(piece):
    """Lines of 64 KiB that are hard to match are parsed in less than 0.2 s of processor time."""
    began = time.process_time()
    one(LINE[:60] + piece * (65_000 // len(piece)), subject="agent")
    one(piece * (65_000 // len(piece)))
    assert time.process_time() - began < 0.2


@given(st.binary() | st.from_regex(re.compile(rb'\S+ - - \[\d\d/May/\d{4}:.{8} .{5}\] "(.|\\")*" \d{3} .*')))
def test_no_bytes_raise(text):
    """Any bytes are an event or a bad line with a printable reason."""
    for field in ("path", "agent"):
        outcome = one(text, subject=field)
        assert isinstance(outcome, ParsedLine) or outcome.reason.isprintable()
