"""Questions: every read of the deployment, each with the answer that the model allows.

A question is asked by the methods of `Totals`, over HTTP and on the command line; the answers have the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from tallystream.rules.windows import bucket, seconds
from tallystream.wire.window import WINDOWS
from tests.scenarios.known import Known, avoided
from tests.scenarios.model import MINUTE, covering

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.scenarios.model import Model

RANGES: Final = ("1h", "30h", "7d", "30d")
"""The ranges of the questions that have one."""

MOST_SUBJECTS: Final = 9
"""Subjects of a metric about which every question is asked; leaderboards have all of them."""


@dataclass(frozen=True)
class Question:
    """One read.

    Attributes:
        method: The method of `Totals`, and its arguments.
        judge: Returns what is wrong with an answer; `None` for a right one.
        path: The path and query over HTTP; empty if there is none.
        command: The arguments of the command line; empty if there are none.
    """

    method: tuple[Any, ...]
    judge: Callable[[dict[str, Any]], str | None]
    path: str = ""
    command: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        name, *arguments = self.method
        return f"{name}({', '.join(map(repr, arguments))})"


def questions(model: Model, now: float) -> Iterator[Question]:
    """Yield every question about the events of a model, for a reader whose clock shows second `now`."""
    yield _ledger(model)
    for metric, rule in model.rules.metric.items():
        for subject in model.subjects(metric)[:MOST_SUBJECTS]:
            yield _total(model, metric, subject)
            for window in _windows(model, metric):
                yield _series(model, metric, subject, window, now)
            for over in RANGES if _windows(model, metric) else ():
                if question := _sum(model, metric, subject, over, now):
                    yield question
            if rule.once is not None:
                yield _votes(model, metric, subject)
            if rule.limit is not None:
                yield _limit(model, metric, subject, now)
            if rule.unique is not None:
                yield from _uniques(model, metric, subject, now)
        if rule.top:
            yield from _tops(model, metric, now)


def _windows(model: Model, metric: str) -> list[str]:
    """Return the windows of a metric; none if one was added to it, because its buckets do not have the older events."""
    if any(name == metric for name, _ in model.unsure):
        return []
    return list(dict.fromkeys(model.rules.metric[metric].windows))


def _is_estimated(model: Model, metric: str) -> bool:
    """Return whether totals of a metric may be in a sketch, and so may be too high by the error of an answer."""
    rule = model.rules.metric[metric]
    return not rule.exact or rule.max_subjects is not None


def _differs(name: str, found: Any, expected: Any) -> str | None:
    return None if found == expected else f"{name} is {found}, expected {expected}"


def _ledger(model: Model) -> Question:
    def judge(answer: dict[str, Any]) -> str | None:
        expected = {name: events for name, events in model.ledger.items() if events}
        found = {name: events for name, events in answer["ledger"].items() if events}
        if model.resets:  # corrections are events as well, as many as the buckets that they change
            corrections = found.get("appended", 0) - expected.get("appended", 0)
            for name in ("appended", "counted") if corrections else ():
                expected[name] = expected.get(name, 0) + corrections
        return _differs("ledger", found, expected) or _differs("unaccounted", answer["unaccounted"], 0)

    return Question(("ledger",), judge, "", ("status", "--json"))


def _total(model: Model, metric: str, subject: str) -> Question:
    expected = model.floored(metric, model.books.totals[metric, subject])

    def judge(answer: dict[str, Any]) -> str | None:
        if _is_estimated(model, metric):
            fits = expected <= answer["value"] <= expected + answer["error"]
            return None if fits else f"{answer['value']} with error {answer['error']}, expected {expected}"
        return _differs("value", answer["value"], expected) or _differs("error", answer["error"], 0)

    return Question(("get", subject, metric), judge, f"/v1/counters/{quote(subject, safe='')}/{metric}")


def _retained(model: Model, metric: str, window: str, end: int, now: float) -> bool:
    kept = model.rules.metric[metric].retention_seconds(window)
    return kept is None or end + kept > now + MINUTE


def _series(model: Model, metric: str, subject: str, window: str, now: float) -> Question:
    last = {"minute": 90, "hour": 60, "day": 45, "month": 4}[window]

    def judge(answer: dict[str, Any]) -> str | None:
        for point in answer["series"]:
            own = bucket(window, point["start"] // MINUTE, model.rules.zone)
            truth = model.floored(metric, model.books.windows[window, metric, own.label, subject])
            if point["bucket"] != own.label or point["start"] != own.start:
                return f"bucket {point} is {own}"
            if not _retained(model, metric, window, own.end, now) and avoided(Known.EXPIRED_RANGES):
                continue
            missing = answer["error"] if _is_estimated(model, metric) else 0
            if not truth - missing <= point["value"] <= truth and not _is_incomplete(answer, point):
                return f"{point['bucket']} is {point['value']}, expected {truth}"
        newest = bucket(window, int(now) // MINUTE, model.rules.zone)
        return _differs("the last bucket", answer["series"][-1]["bucket"], newest.label)

    path = f"/v1/counters/{quote(subject, safe='')}/{metric}?{urlencode({'window': window, 'last': last})}"
    command = ("get", subject, metric, "--window", window, "--last", str(last), "--json")
    return Question(("series", subject, metric, window, last), judge, path, command)


def _is_incomplete(answer: dict[str, Any], part: dict[str, Any] | None = None) -> bool:
    """Return whether an answer states that something is missing from it."""
    return answer.get("complete") is False or (part or {}).get("complete") is False


def _range(model: Model, metric: str, over: str, now: float) -> tuple[int, int] | None:
    """Return the seconds that a range covers, in whole buckets of the finest window; `None` if a part has expired."""
    rule, zone = model.rules.metric[metric], model.rules.zone
    length = seconds(over) or 0
    finest = next(window for window in WINDOWS if window in rule.windows)
    if length // {"minute": 60, "hour": 3600}.get(finest, 86_400) > 900:
        return None
    start = bucket(finest, (int(now) - length + 1) // MINUTE, zone).start
    end = bucket(finest, int(now) // MINUTE, zone).end
    if avoided(Known.EXPIRED_RANGES):
        kept = [rule.retention_seconds(window) for window in rule.windows]
        if any(each is not None and now - start > each for each in kept):
            return None
    return start, end


def _sum(model: Model, metric: str, subject: str, over: str, now: float) -> Question | None:
    span = _range(model, metric, over, now)
    if span is None:
        return None

    def judge(answer: dict[str, Any]) -> str | None:
        if answer["start"] > span[0] or answer["end"] < span[1]:
            return f"covers {answer['start']} to {answer['end']}, not {span}"
        truth = model.floored(metric, model.books.within(metric, subject, answer["start"], answer["end"]))
        missing = answer["error"] if _is_estimated(model, metric) else 0
        if _is_incomplete(answer) or truth - missing <= answer["value"] <= truth:
            return None
        return _differs(f"sum {answer['start']} to {answer['end']}", answer["value"], truth)

    path = f"/v1/counters/{quote(subject, safe='')}/{metric}?over={over}"
    return Question(("sum", subject, metric, over), judge, path, ("get", subject, metric, "--over", over, "--json"))


def _votes(model: Model, metric: str, subject: str) -> Question:
    score, up = model.books.totals[metric, subject], model.books.up[metric, subject]

    def judge(answer: dict[str, Any]) -> str | None:
        return _differs("votes", (answer["score"], answer["up"], answer["down"]), (score, up, up - score))

    return Question(("votes", subject, metric), judge, f"/v1/votes/{metric}/{quote(subject, safe='')}")


def _limit(model: Model, metric: str, subject: str, now: float) -> Question:
    rule = model.rules.metric[metric]
    assert rule.per is not None
    assert rule.limit is not None
    current = bucket(rule.per, int(now) // MINUTE, model.rules.zone)
    used = model.books.asked[metric, current.label, subject]

    def judge(answer: dict[str, Any]) -> str | None:
        expected = (used, max(0, (rule.limit or 0) - used), None if rule.per == "total" else float(current.end))
        return _differs("limit", (answer["used"], answer["remaining"], answer["reset_at"]), expected)

    return Question(("limit", subject, metric), judge, f"/v1/limits/{metric}/{quote(subject, safe='')}")


def _uniques(model: Model, metric: str, subject: str, now: float) -> Iterator[Question]:
    rule, zone = model.rules.metric[metric], model.rules.zone
    unique = rule.unique
    assert unique is not None
    for over in (None, *RANGES):
        length = 0 if over is None else (seconds(over) or 0) - 1
        buckets = list(covering(unique, now - length, int(now) + 1, zone))
        if not _retained(model, metric, unique, buckets[0].end, now) and avoided(Known.EXPIRED_RANGES):
            continue
        truth = model.actors(metric, subject, buckets)

        def judge(answer: dict[str, Any], truth: int = truth) -> str | None:
            fits = _is_incomplete(answer) or abs(answer["value"] - truth) <= 0.05 * truth
            return None if fits else f"{answer['value']} different actors, expected {truth}"

        path = f"/v1/uniques/{metric}/{quote(subject, safe='')}" + (f"?over={over}" if over else "")
        yield Question(("uniques", subject, metric, over), judge, path)


def _tops(model: Model, metric: str, now: float) -> Iterator[Question]:
    yield _top(model, metric, None, model.ranking(metric))
    for window in _windows(model, metric):
        current = bucket(window, int(now) // MINUTE, model.rules.zone)
        yield _top(model, metric, window, model.ranking(metric, current.start, current.end))
    for over in RANGES if _windows(model, metric) else ():
        if span := _range(model, metric, over, now):
            yield _top(model, metric, over, model.ranking(metric, *span))


def _top(model: Model, metric: str, window: str | None, ranking: list[tuple[str, int]]) -> Question:
    truth = dict(ranking)
    n = min(10, model.rules.metric[metric].top)

    def judge(answer: dict[str, Any]) -> str | None:
        if _is_incomplete(answer):
            return None
        error, floor = answer["error"], model.rules.metric[metric].floor
        places = [(place["subject"], place["value"]) for place in answer["top"]]
        for subject, value in places:
            expected = model.floored(metric, truth.get(subject, 0))
            if abs(value - expected) > (error if floor is None or expected != floor else 2**53):
                return f"{subject} has {value} with error {error}, expected {expected} of {ranking}"
        listed = {subject for subject, _ in places}
        # A list that is not full has every subject above 0, unless it states an error.
        last = places[-1][1] if len(places) == n or (error and places) else 0
        for subject, value in ranking:
            if subject not in listed and value > max(last, floor or 0) + error:
                return f"{subject} with {value} is not listed, error {error}: {places}"
        return None

    path = f"/v1/top/{metric}" + (f"?window={window}" if window else "")
    command = ("top", metric, "--json", *(("--window", window) if window else ()))
    return Question(("top", metric, window), judge, path, command)
