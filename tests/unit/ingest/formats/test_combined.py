"""Access logs in the combined format."""

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
    """Return what becomes of a single line."""
    (outcome,) = parse([Line(1, 0, text)], Mapping(**mapping))
    return outcome


def subject(request: str) -> str:
    """Return the subject of a line with a request as it stands in the log."""
    text = LINE.replace(b"GET /a?b=1 HTTP/1.1", request.encode())
    return one(text).event[1]


@pytest.fixture(scope="module")
def access_log(tmp_path_factory):
    """A log of 10,000 lines: the real one where it is at hand, else one of the same size and shape."""
    if REAL_LOG.exists():
        return REAL_LOG
    rng = random.Random(20150517)
    path = tmp_path_factory.mktemp("log") / "access.log.gz"
    with gzip.open(path, "wb") as log:
        for number in range(10_000):
            # Each path once, then the popular ones more often than the rest.
            which = number if number < 1498 else int(1498 * rng.random() ** 3)
            host = f"10.0.{rng.randrange(7)}.{rng.randrange(250)}"
            stamp = f"{17 + number // 2500}/May/2015:{number // 105 % 24:02}:05:{rng.randrange(60):02} +0000"
            request = f"GET /page/{which}?q={which % 7} HTTP/1.1"
            log.write(f'{host} - - [{stamp}] "{request}" 200 {number} "-" "Mozilla/5.0"\n'.encode())
    return path


def test_every_line_of_a_log_is_an_event(access_log):
    """All 10,000 lines are events, of 1,498 paths, and each path and host comes out as it went in."""
    with open_source(access_log) as source:
        outcomes = list(parse(source))
    assert [outcome for outcome in outcomes if isinstance(outcome, BadLine)] == []
    views = Counter(outcome.event[1] for outcome in outcomes)
    assert (views.total(), len(views)) == (10_000, 1_498)
    # The plainest reading there is: words between spaces.
    words = [line.split(b" ") for line in gzip.decompress(access_log.read_bytes()).splitlines()]
    assert views == Counter(word[6].decode() for word in words)
    assert Counter(outcome.event[3] for outcome in outcomes) == Counter(word[0].decode() for word in words)


@pytest.mark.skipif(not REAL_LOG.exists(), reason="the real log is not at hand")
def test_the_figures_of_the_real_log():
    """The figures that others counted in the real log are ours, too."""
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
    """A line becomes one `view` of the path with its query string, by the host, at the line's time."""
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
    """Each named part of a line can be what is counted for, and who did it."""
    _, what, _, who, _, _ = one(LINE, metric="hit", subject=field, actor=field).event
    assert (what, who) == (expected, expected)


def test_an_actor_can_be_left_out():
    """Without an actor field events have no actor, and `-` is no actor either."""
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
    """The event's time is the line's, whatever zone the server wrote it in."""
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
    """A date that is in no calendar, or a time that is on no clock, makes a bad line."""
    assert isinstance(one(LINE.replace(b"17/May/2015:10:05:03 +0000", stamp)), BadLine)


def test_requests_as_clients_really_send_them():
    """Escaped quotes, spaces, a missing protocol and other methods leave the path as it stands in the log."""
    assert subject(r"GET /say?\"hi\" HTTP/1.1") == r"/say?\"hi\""
    assert subject(r"GET /\xe4\xe5 HTTP/1.1") == r"/\xe4\xe5"
    assert subject("GET /two words HTTP/1.1") == "/two words"
    assert subject("GET /old") == "/old"
    assert subject("OPTIONS * HTTP/1.0") == "*"
    assert subject("M-SEARCH * HTTP/1.1") == "*"


@pytest.mark.parametrize("request_line", [b"-", b"", rb"\x16\x03\x01", b"GET", b"GET  HTTP/1.1"])
def test_no_request_is_a_bad_line(request_line):
    """What is logged for a connection without a request is no view of anything."""
    assert one(LINE.replace(b"GET /a?b=1 HTTP/1.1", request_line)) == BadLine(
        1, "not a line of an access log in the combined format"
    )


def test_a_line_cut_short_still_counts():
    """A line whose last quote is missing keeps its request, and its agent as far as it goes."""
    assert one(LINE[:-3]).event[1] == "/a?b=1"
    assert one(LINE[:-3], subject="agent").event[1] == "Mozil"


def test_a_line_without_the_wanted_part_is_bad():
    """The common format has no referrer: its lines are views of a path, and no referrer's."""
    common = LINE.partition(b' "http')[0]
    assert one(common).event[1] == "/a?b=1"
    assert isinstance(one(common, subject="referrer"), BadLine)


def test_a_line_that_is_not_utf8_is_bad():
    """Bytes that are no text in a part that is wanted make a bad line; elsewhere they do not matter."""
    assert one(LINE.replace(b"/a?", b"/\xff?")) == BadLine(1, "not UTF-8")
    assert one(LINE.replace(b"Mozilla", b"\xff")).event[1] == "/a?b=1"


def test_an_endless_line_is_bad():
    """A line over 64 KiB is bad however well it begins; one of exactly 64 KiB is not."""
    padding = MAX_LINE_BYTES - len(LINE)
    assert isinstance(one(LINE + b" " * padding), ParsedLine)
    assert one(LINE + b" " * (padding + 1)) == BadLine(1, "longer than 65,536 bytes")


@pytest.mark.parametrize("piece", [b" ", b"\\", b"a", b'" ', b"[", rb"\"", b" HTTP/", b"GET "])
def test_no_line_takes_long(piece):
    """A line of 64 KiB made to be hard is judged in a few milliseconds."""
    began = time.process_time()
    one(LINE[:60] + piece * (65_000 // len(piece)), subject="agent")
    one(piece * (65_000 // len(piece)))
    assert time.process_time() - began < 0.2


@given(st.binary() | st.from_regex(re.compile(rb'\S+ - - \[\d\d/May/\d{4}:.{8} .{5}\] "(.|\\")*" \d{3} .*')))
def test_no_bytes_raise(text):
    """Whatever is in a line, it is an event or a bad line with a reason that is safe to show."""
    for field in ("path", "agent"):
        outcome = one(text, subject=field)
        assert isinstance(outcome, ParsedLine) or outcome.reason.isprintable()
