"""Queries for the state of a subject's rules: its limit, its votes, its unique actors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallystream.errors import EventError
from tallystream.reading.counters import NOTHING
from tallystream.reading.freshness import Figure, RangeFigure, freshness
from tallystream.reading.query import Command, Query, raise_on_error
from tallystream.reading.series import current_bucket, rolling_buckets
from tallystream.rules.parts import LIMITS, VOTES
from tallystream.rules.windows import bucket
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream.wire.position import parse_position, position_commands
from tallystream.wire.window import MINUTE, WINDOWS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tallystream.rules.metrics import Rules
    from tallystream.storage.keys import Layout

HLL_ERROR: Final = 0.0081
"""The standard error of a HyperLogLog of 16,384 registers, as a share of the value: 1.04 / sqrt(16384)."""


class Limit(Figure, frozen=True):
    """The current bucket of a subject's limit.

    Attributes:
        metric: The metric.
        subject: The subject.
        limit: The most events that count in each bucket.
        used: The number of events with a time in the bucket that the limit accepted or rejected; duplicates and late
            events are not included. It may be larger than `limit`. If `error` is `null`, the limit was added, or its
            period changed, after the bucket began or in the hour before: events that were counted before the change
            may be missing.
        remaining: The number of events that can still be accepted in the bucket, `limit - used`, at least 0. If `error`
            is `null`, it may be too high.
        reset_at: The second (since 1970) at which the bucket ends; `null` if it never ends (`per = "total"`).
    """

    metric: str
    subject: str
    limit: int
    used: int
    remaining: int
    reset_at: float | None


class Votes(Figure, frozen=True):
    """The votes for a subject: one for each actor, or one for each actor and period if `once` is not `forever`.

    Attributes:
        metric: The metric.
        subject: The subject.
        score: The sum of the votes, `up - down`; the metric's `floor` does not apply. If `error` is `null`, `once` was
            added to a metric with events: then the score also has the amounts of earlier events.
        up: The number of votes with the amount 1; votes with the amount 0 are in neither `up` nor `down`.
        down: The number of votes with the amount -1, computed as `up - score`. If `error` is `null`, it may be wrong
            (but not negative).
    """

    metric: str
    subject: str
    score: int
    up: int
    down: int


class Uniques(RangeFigure, frozen=True):
    """An estimate of the number of a subject's different actors; `error` is its standard error, as a share of `value`.

    The actors of a subject beyond the metric's `max_subjects` are not recorded: `error` does not include this.

    Attributes:
        metric: The metric.
        subject: The subject.
        over: The window or the duration that was asked for; the metric's `unique` window if none was asked for.
        value: The estimated number of different actors from `start` to `end`; 0 if none of these buckets is kept.
    """

    metric: str
    subject: str
    over: str
    value: int


def query_limit(
    layout: Layout, rules: Rules, subject: str, metric: str, now: float, removed: Mapping[str, int] = NOTHING
) -> Query[Limit]:
    """Return a query for how much of a subject's limit is used in the bucket of second `now` (since 1970).

    `removed` is that of the deployment: see `tallystream.deployment.Deployment`. Without it, the `error` of the answer
    is 0 even if the limit was changed in the bucket.

    Raises:
        EventError: the metric is not declared or has no limit, or `subject` is not valid.
    """
    rules.refuse_undeclared(metric)
    limit, per = rules.metric[metric].limit, rules.metric[metric].per
    if limit is None or per is None:
        raise EventError("metric", f"{metric} has no limit: declare limit and per in [metric.{metric}]")
    subject = check_text("subject", subject, MAX_SUBJECT_BYTES)
    keys = layout.keys_of(subject)
    current = bucket(per, int(now) // MINUTE, rules.zone)
    reset_at = None if per == "total" else float(current.end)
    commands: list[Command] = [*position_commands(keys), ("HGET", keys.limit(metric, current.label), subject)]

    def parse(replies: list[Any]) -> Limit:
        used = int(raise_on_error(replies[2]) or 0)
        error = None if current.start < removed.get(f"{LIMITS}:{metric}", 0) else 0
        fresh = freshness([parse_position(replies[:2], keys.group)], error)
        return Limit(metric, subject, limit, used, max(0, limit - used), reset_at, **fresh)

    return Query(commands, parse)


def query_votes(
    layout: Layout, rules: Rules, subject: str, metric: str, removed: Mapping[str, int] = NOTHING
) -> Query[Votes]:
    """Return a query for a subject's score in a metric with `once`, and for its numbers of votes for and against.

    `removed` is that of the deployment: see `tallystream.deployment.Deployment`. Without it, the `error` of the answer
    is 0 even if `once` was added to a metric with events.

    Raises:
        EventError: the metric is not declared or has no `once`, or `subject` is not valid.
    """
    rules.refuse_undeclared(metric)
    if rules.metric[metric].once is None:
        raise EventError("metric", f'{metric} has no votes: declare once = "forever" in [metric.{metric}]')
    subject = check_text("subject", subject, MAX_SUBJECT_BYTES)
    keys = layout.keys_of(subject)
    commands: list[Command] = [
        *position_commands(keys),
        ("MGET", keys.total(metric, subject), keys.up(metric, subject)),
    ]

    def parse(replies: list[Any]) -> Votes:
        score, up = (int(value or 0) for value in raise_on_error(replies[2]))
        error = None if f"{VOTES}:{metric}" in removed else 0
        fresh = freshness([parse_position(replies[:2], keys.group)], error)
        return Votes(metric, subject, score, up, up - score if error == 0 else max(0, up - score), **fresh)

    return Query(commands, parse)


def query_uniques(
    layout: Layout,
    rules: Rules,
    subject: str,
    metric: str,
    over: str | None,
    now: float,
    removed: Mapping[str, int] = NOTHING,
) -> Query[Uniques]:
    """Return a query for the estimated number of a subject's different actors, in whole buckets of the `unique` window.

    It reads the current bucket, or the kept buckets that cover a duration that ends now.

    Args:
        layout: The partitions.
        rules: The declared metrics.
        subject: The subject.
        metric: A metric with `unique` declared.
        over: `None`, `""` or the metric's `unique` window, such as `day`, for the current bucket; or a duration such as
            `7d`, rounded up to whole buckets.
        now: The current time, in seconds since 1970.
        removed: That of the deployment, see `tallystream.deployment.Deployment`: buckets that begin before its time for
            `unique:<metric>` are not read.

    Raises:
        EventError: the metric is not declared or has no `unique`, `subject` is not valid, or `over` is another window,
            or a duration that is not valid, longer than 4,000 days, or needs more than 1,000 buckets.
    """
    rules.refuse_undeclared(metric)
    unique = rules.metric[metric].unique
    if unique is None:
        raise EventError("metric", f'{metric} has no uniques: declare unique = "day" in [metric.{metric}]')
    subject = check_text("subject", subject, MAX_SUBJECT_BYTES)
    span = over or unique
    if span in WINDOWS and span != unique:
        raise EventError("over", f"{metric} has uniques by {unique}: use that window, or a duration such as 7d")
    if span == unique:
        covered = current_bucket(rules, metric, unique, now, "unique", removed)
    else:
        covered = rolling_buckets(rules, metric, span, now, removed, unique)
    keys = layout.keys_of(subject)
    commands: list[Command] = [
        *position_commands(keys),
    ]
    if names := [keys.unique(metric, each.label, subject) for _, each in covered.buckets]:
        commands.append(("PFCOUNT", *names))

    def parse(replies: list[Any]) -> Uniques:
        fresh = freshness([parse_position(replies[:2], keys.group)], HLL_ERROR)
        value = sum(int(raise_on_error(reply)) for reply in replies[2:])
        return Uniques(metric, subject, span, value, **covered.bounds, **fresh)

    return Query(commands, parse)
