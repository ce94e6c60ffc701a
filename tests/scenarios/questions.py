"""Questions: every read of the deployment, each with the answer that the model allows.

A question is asked by the methods of `Totals`, over HTTP and on the command line; the answers have the same fields.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from tallystream.rules.windows import bucket, seconds
from tallystream.wire.window import WINDOWS
from tests.scenarios.model import MINUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tallystream.rules.windows import Bucket
    from tests.scenarios.model import Model

RANGES: Final = ("1h", "30h", "7d", "30d")
"""The ranges of the questions that have one."""

LENGTHS: Final[dict[str, int]] = {"minute": 60, "hour": 3600, "day": 86_400, "month": 28 * 86_400}
"""The least seconds of a bucket, by window, except for days on which clocks change."""

FEW: Final = 900
"""A number of buckets with which a range surely has less than the 1,000 that a read may have."""

MOST_SUBJECTS: Final = 9
"""Subjects of a metric about which every question is asked; leaderboards have all of them."""


@dataclass(frozen=True)
class Present:
    """The time at which questions are answered, by the server's clock, in seconds since 1970.

    Attributes:
        first: The time before the first answer.
        last: The time after the last answer; it is in the same minute, unless the clock is set meanwhile.
    """

    first: float
    last: float

    def buckets(self, window: str, zone: str) -> tuple[Bucket, Bucket]:
        """Return the buckets of a window that contain the first and the last time."""
        return bucket(window, int(self.first) // MINUTE, zone), bucket(window, int(self.last) // MINUTE, zone)


@dataclass(frozen=True)
class Question:
    """One read.

    Attributes:
        method: The method of `Totals`, and its arguments.
        judge: Returns what is wrong with an answer; `None` for a right one.
        path: The path and query over HTTP; empty if there is none.
        command: The arguments of the command line; empty if there are none.
        may_be_refused: Whether the read may be refused, because it would read more than 1,000 buckets.
    """

    method: tuple[Any, ...]
    judge: Callable[[dict[str, Any]], str | None]
    path: str = ""
    command: tuple[str, ...] = field(default=())
    may_be_refused: bool = False

    def problem(self, answer: dict[str, Any]) -> str | None:
        """Return what is wrong with an answer, or with its refusal; `None` for a right one."""
        refused = answer.get("refused")
        if refused is None:
            return self.judge(answer)
        return None if self.may_be_refused and "would read more than 1,000" in refused else refused

    def __str__(self) -> str:
        name, *arguments = self.method
        return f"{name}({', '.join(map(repr, arguments))})"


def questions(model: Model, now: Present) -> Iterator[Question]:
    """Yield every question about the events of a model, with the answers that are right at a time."""
    yield _ledger(model)
    for metric, rule in model.rules.metric.items():
        if metric in model.changed:
            yield from (_sensible_votes(metric, subject) for subject in model.subjects(metric)[:MOST_SUBJECTS])
            continue
        for subject in model.subjects(metric)[:MOST_SUBJECTS]:
            yield _total(model, metric, subject)
            for window in _windows(model, metric):
                yield _series(model, metric, subject, window, now)
            for over in RANGES if _windows(model, metric) else ():
                yield _sum(model, metric, subject, over, now)
            if rule.once is not None:
                yield _votes(model, metric, subject)
            if rule.limit is not None:
                yield _limit(model, metric, subject, now)
            if rule.unique is not None:
                yield from _uniques(model, metric, subject, now)
        if rule.top:
            yield from _tops(model, metric, now)


def _windows(model: Model, metric: str) -> list[str]:
    """Return the windows of a metric."""
    return list(dict.fromkeys(model.rules.metric[metric].windows))


def _is_estimated(model: Model, metric: str) -> bool:
    """Return whether totals of a metric may be in a sketch, and so may be too high by the error of an answer."""
    rule = model.rules.metric[metric]
    return not rule.exact or rule.max_subjects is not None


def _differs(name: str, found: Any, expected: Any) -> str | None:
    return None if found == expected else f"{name} is {found}, expected {expected}"


def _ledger(model: Model) -> Question:
    def judge(answer: dict[str, Any]) -> str | None:
        if model.changed:
            return _differs("unaccounted", answer["unaccounted"], 0)
        expected = {name: events for name, events in model.ledger.items() if events}
        found = {name: events for name, events in answer["ledger"].items() if events}
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


def _series(model: Model, metric: str, subject: str, window: str, now: Present) -> Question:
    last = {"minute": 90, "hour": 60, "day": 45, "month": 4}[window]

    def judge(answer: dict[str, Any]) -> str | None:
        for point in answer["series"]:
            own = bucket(window, point["start"] // MINUTE, model.rules.zone)
            if point["bucket"] != own.label or point["start"] != own.start:
                return f"bucket {point} is {own}"
            if point["value"] is None:
                if not (model.may_be_removed(metric, window, own.end) or model.may_lack(metric, [window], own.start)):
                    return f"{point['bucket']} is missing, but it is kept"
                continue
            if not model.is_open(metric, window, own.end, now.first):
                return f"{point['bucket']} is {point['value']}, but it has closed"
            if model.lacks(metric, subject, own.start, own.end, [window]):
                continue
            truth = model.floored(metric, model.books.windows[window, metric, own.label, subject])
            lacking = answer["error"] if _is_estimated(model, metric) else 0
            if not truth - lacking <= point["value"] <= truth:
                return f"{point['bucket']} is {point['value']}, expected {truth}"
        return _misses_points(answer) or _is_one_of(
            "the last bucket", answer["series"][-1]["bucket"], [each.label for each in now.buckets(window, zone)]
        )

    zone = model.rules.zone
    path = f"/v1/counters/{quote(subject, safe='')}/{metric}?{urlencode({'window': window, 'last': last})}"
    command = ("get", subject, metric, "--window", window, "--last", str(last), "--json")
    return Question(("series", subject, metric, window, last), judge, path, command)


def _misses_points(answer: dict[str, Any]) -> str | None:
    """Return what is wrong with the bounds of a series: they are those of its points that have a value."""
    points = answer["series"]
    start = next((point["start"] for point in points if point["value"] is not None), answer["end"])
    missing = [] if start == points[0]["start"] else [{"start": points[0]["start"], "end": start}]
    expected = (start, not missing, missing)
    return _differs("start, complete, missing", (answer["start"], answer["complete"], answer["missing"]), expected)


def _is_one_of(name: str, found: Any, expected: list[Any]) -> str | None:
    return None if found in expected else f"{name} is {found}, expected one of {expected}"


def _wrong_bounds(
    model: Model,
    metric: str,
    windows: list[str],
    over: str,
    now: Present,
    answer: dict[str, Any],
    part: str | None = None,
) -> str | None:
    """Return what is wrong with the bounds of a figure over a duration that ends now.

    The figure covers the duration if any window keeps the bucket that contains its begin. Otherwise the figure begins
    with the first bucket that is kept, and states that everything before it is missing.
    """
    zone, length, start, end = model.rules.zone, seconds(over) or 0, answer["start"], answer["end"]
    if not now.first < end <= max(now.buckets(window, zone)[1].end for window in windows):
        return f"ends at {end}, but now is {now}"
    begins = int(now.first) - length + 1, int(now.last) - length + 1
    starting = [each for each in windows if bucket(each, start // MINUTE, zone).start == start]
    if not any(model.is_open(metric, each, bucket(each, start // MINUTE, zone).end, now.first) for each in starting):
        return f"begins at {start}, which is no begin of a bucket that is kept"
    if answer["complete"]:
        earliest = min(bucket(each, begins[0] // MINUTE, zone).start for each in windows)
        return None if earliest <= start <= begins[1] and not answer["missing"] else f"begins at {start}, not {begins}"
    (gap,) = answer["missing"]
    if gap["end"] != start or gap["start"] > begins[1] or start <= begins[0]:
        return f"states the gap {gap}, but begins at {start}, and {begins} was asked for"
    for each in windows:
        kept = min(length, model.rules.metric[metric].retention_seconds(each) or length)
        if kept // LENGTHS[each] > FEW:
            continue  # a read has at most 1,000 buckets, and so may begin later
        before = bucket(each, (start - 1) // MINUTE, zone)
        needed = [each if part != "unique" else part, *([part] if part else [])]
        if not (model.may_be_removed(metric, each, before.end) or model.may_lack(metric, needed, before.start)):
            return f"lacks what is before {start}, but its {each} is kept"
    return None


def _may_be_too_long(model: Model, metric: str, over: str) -> bool:
    """Return whether a range may need more than 1,000 buckets, because coarser ones do not meet or are not kept."""
    finest = next(window for window in WINDOWS if window in model.rules.metric[metric].windows)
    return (seconds(over) or 0) // LENGTHS[finest] > FEW


def _sum(model: Model, metric: str, subject: str, over: str, now: Present) -> Question:
    windows = list(model.rules.metric[metric].windows)

    def judge(answer: dict[str, Any]) -> str | None:
        start, end = answer["start"], answer["end"]
        if problem := _wrong_bounds(model, metric, windows, over, now, answer):
            return problem
        if model.lacks(metric, subject, start, end, windows):
            return None
        truth = model.floored(metric, model.books.within(metric, subject, start, end))
        lacking = answer["error"] if _is_estimated(model, metric) else 0
        return None if truth - lacking <= answer["value"] <= truth else f"{answer['value']}, expected {truth}"

    method = ("sum", subject, metric, over)
    if _may_be_too_long(model, metric, over):
        return Question(method, judge, may_be_refused=True)
    path = f"/v1/counters/{quote(subject, safe='')}/{metric}?over={over}"
    return Question(method, judge, path, ("get", subject, metric, "--over", over, "--json"))


def _votes(model: Model, metric: str, subject: str) -> Question:
    score, up = model.books.totals[metric, subject], model.books.up[metric, subject]

    def judge(answer: dict[str, Any]) -> str | None:
        return _differs("votes", (answer["score"], answer["up"], answer["down"]), (score, up, up - score))

    return Question(("votes", subject, metric), judge, f"/v1/votes/{metric}/{quote(subject, safe='')}")


def _sensible_votes(metric: str, subject: str) -> Question:
    def judge(answer: dict[str, Any]) -> str | None:
        score, up, down = answer["score"], answer["up"], answer["down"]
        fits = answer["error"] is None or score == up - down
        return None if min(up, down) >= 0 and fits else f"score {score} of {up} up and {down} down"

    return Question(("votes", subject, metric), judge, f"/v1/votes/{metric}/{quote(subject, safe='')}")


def _limit(model: Model, metric: str, subject: str, now: Present) -> Question:
    rule = model.rules.metric[metric]
    assert rule.per is not None
    per, limit = rule.per, rule.limit or 0

    def judge(answer: dict[str, Any]) -> str | None:
        expected = []
        if answer["error"] is None:
            starts = [each.start for each in now.buckets(per, model.rules.zone)]
            return None if model.may_lack(metric, ["limit"], min(starts)) else "the error is not known"
        for current in now.buckets(per, model.rules.zone):
            used = model.books.asked[metric, current.label, subject]
            expected.append((used, max(0, limit - used), None if per == "total" else float(current.end)))
        return _is_one_of("limit", (answer["used"], answer["remaining"], answer["reset_at"]), expected)

    return Question(("limit", subject, metric), judge, f"/v1/limits/{metric}/{quote(subject, safe='')}")


def _uniques(model: Model, metric: str, subject: str, now: Present) -> Iterator[Question]:
    unique = model.rules.metric[metric].unique
    assert unique is not None
    for over in (None, *RANGES):

        def judge(answer: dict[str, Any], over: str | None = over) -> str | None:
            start, end = answer["start"], answer["end"]
            if over is None:
                problem = _not_current(model, metric, unique, now, answer, ["unique"])
            else:
                problem = _wrong_bounds(model, metric, [unique], over, now, answer, "unique")
            if problem or model.lacks(metric, subject, start, end, [unique]):
                return problem
            truth = model.actors(metric, subject, start, end)
            fits = abs(answer["value"] - truth) <= 0.05 * truth
            return None if fits else f"{answer['value']} different actors, expected {truth}"

        path = f"/v1/uniques/{metric}/{quote(subject, safe='')}" + (f"?over={over}" if over else "")
        yield Question(("uniques", subject, metric, over), judge, path)


def _not_current(
    model: Model, metric: str, window: str, now: Present, answer: dict[str, Any], parts: list[str]
) -> str | None:
    """Return what is wrong with the bounds of a figure of the current bucket of a window."""
    current: list[tuple[Any, ...]] = []
    for each in now.buckets(window, model.rules.zone):
        current.append((each.start, each.end, True, []))
        if model.may_be_removed(metric, window, each.end) or model.may_lack(metric, parts, each.start):
            current.append((each.end, each.end, False, [{"start": each.start, "end": each.end}]))
    found = (answer["start"], answer["end"], answer["complete"], answer["missing"])
    return _is_one_of("start, end, complete, missing", found, current)


def _tops(model: Model, metric: str, now: Present) -> Iterator[Question]:
    for window in (None, *_windows(model, metric), *(RANGES if _windows(model, metric) else ())):
        yield _top(model, metric, window, now)


def _top(model: Model, metric: str, window: str | None, now: Present) -> Question:
    n, windows = min(10, model.rules.metric[metric].top), list(model.rules.metric[metric].windows)

    def judge(answer: dict[str, Any]) -> str | None:
        start, end = answer["start"], answer["end"]
        if window is None:
            known = answer["error"] is not None
            problem = _differs("start, end, complete", (start, end, answer["complete"]), (None, None, known))
            if not known:
                return problem if model.may_lack(metric, ["all"], None) else "the error is not known"
        elif window in WINDOWS:
            problem = _not_current(model, metric, window, now, answer, [window, "top"])
        else:
            problem = _wrong_bounds(model, metric, windows, window, now, answer, "top")
        if problem:
            return problem
        if window is not None and model.lacks(metric, None, start, end, windows):
            return None
        return _wrong_places(model, metric, model.ranking(metric, start, end), n, answer)

    method = ("top", metric, window)
    if window is not None and window not in WINDOWS and _may_be_too_long(model, metric, window):
        return Question(method, judge, may_be_refused=True)
    path = f"/v1/top/{metric}" + (f"?window={window}" if window else "")
    command = ("top", metric, "--json", *(("--window", window) if window else ()))
    return Question(method, judge, path, command)


def _wrong_places(
    model: Model, metric: str, ranking: list[tuple[str, int]], n: int, answer: dict[str, Any]
) -> str | None:
    """Return what is wrong with the places of a leaderboard, if these are the true values of all subjects."""
    truth = dict(ranking)
    error, floor = answer["error"], model.rules.metric[metric].floor
    places = [(place["subject"], place["value"]) for place in answer["top"]]
    for subject, value in places:
        if value == 0 and floor is None:
            return f"{subject} is listed with 0"
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
