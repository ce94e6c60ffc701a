"""Tests of the state log: each change of state is one line, for any number of repetitions."""

from __future__ import annotations

import pytest
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import LogCapture

from tallystream.errors import StreamError
from tallystream_worker.process.state_log import StateLog, StreamStates


@pytest.fixture
def lines():
    """Return the captured log lines as a list."""
    return LogCapture()


@pytest.fixture
def log(lines):
    """Return a logger whose lines are captured."""
    return structlog.wrap_logger(None, processors=[lines])


def said(lines: LogCapture) -> list[tuple[str, str, str | None]]:
    """Return the level, event and problem of each line."""
    return [(line["log_level"], line["event"], line.get("problem")) for line in lines.entries]


def test_a_problem_is_logged_when_it_begins_and_when_it_ends(log, lines):
    """A hundred failures of one kind are one line, their end is one more; a working start is none."""
    state = StateLog(log, failed="paused", works="resumed")
    state.works()
    for _ in range(100):
        state.failed("no disk", stream="s")
        assert state.problem == "no disk"
    for _ in range(100):
        state.works()
        assert state.problem is None
    assert said(lines) == [("error", "paused", "no disk"), ("info", "resumed", None)]
    assert lines.entries[0]["stream"] == "s"


def test_another_problem_is_another_line(log, lines):
    """A change to another problem is logged; a text that differs only in numbers is the same problem."""
    state = StateLog(log, failed="paused", works="resumed")
    for problem in ("Error 111 connecting to 10.0.0.1:6379", "Error 111 connecting to 10.0.0.2:6380", "no disk"):
        state.failed(problem)
    assert [problem for _, _, problem in said(lines)] == ["Error 111 connecting to 10.0.0.1:6379", "no disk"]


def test_what_has_not_worked_yet_is_logged_once_it_does(log, lines):
    """A state that begins with a problem logs its end, and does not log the same problem again."""
    state = StateLog(log, failed="paused", works="resumed", problem="starting")
    state.failed("starting")
    state.works()
    assert said(lines) == [("info", "resumed", None)]


def test_a_start_is_no_resumption(log, lines):
    """A thing that works at its first attempt logs that it begins, and not that it works again."""
    for problems in ((), ("no disk",)):
        state = StateLog(log, failed="paused", works="resumed", problem="starting", started="started")
        for problem in problems:
            state.failed(problem)
        state.works()
        state.failed("no memory")
        state.works()
    assert [event for _, event, _ in said(lines)] == [
        "started", "paused", "resumed", "paused", "resumed", "paused", "resumed"
    ]  # fmt: skip


def test_only_a_bug_has_a_traceback(log, lines):
    """Errors of Redis and of tallystream are logged with their text, any other with its traceback."""
    state = StateLog(log, failed="paused", works="resumed")
    bug = KeyError("a")
    for error in (RedisConnectionError("gone"), StreamError("trimmed"), RedisConnectionError(), bug, bug):
        state.failed_with(error)
    assert [problem for _, _, problem in said(lines)] == ["gone", "trimmed", "ConnectionError", "KeyError: 'a'"]
    assert [line.get("exc_info") for line in lines.entries] == [None, None, None, bug]


def test_each_stream_has_a_state_of_its_own(log, lines):
    """A condition that begins in two streams and ends in one is three lines, each with its stream."""
    states = StreamStates(log, "full", "over: full")
    for stream in ("a", "b", "a"):
        states[stream].failed("why")
    states["a"].works()
    assert [(line["event"], line["stream"]) for line in lines.entries] == [
        ("full", "a"),
        ("full", "b"),
        ("over: full", "a"),
    ]
