"""Rules are checked when they are declared, and a process that reads published rules gets the same rules."""

from __future__ import annotations

import pytest

from tallystream.errors import ConfigurationError, EventError
from tallystream.rules.metrics import Metric, Ratio, Rules, publish, read

RULES = Rules({"view": Metric("looked at"), "like": Metric()})


def test_what_is_published_is_read():
    """Reading published rules returns equal rules, so producers and readers have the rules of the worker."""
    assert read(publish(RULES)) == RULES


def test_what_nobody_uses_is_not_published():
    """Published rules leave out settings at their default, so a release without a setting can read them."""
    assert publish(Rules({"view": Metric()})) == b'{"metric":{"view":{}}}'
    assert publish(Rules({"view": Metric(top=3)})) == b'{"metric":{"view":{"top":3}}}'


def test_defaults_never_change():
    """The defaults never change, because a setting that is left out must mean the same to every release."""
    stated = {
        "description": "", "windows": (), "retention": {}, "unique": None, "top": 0, "floor": None, "once": None,
        "limit": None, "per": None, "ids": "day", "seen": "exact", "exact": True, "max_subjects": None,
        "accept_late": None, "late": "count", "spread": False,
    }  # fmt: skip
    metric, rules = Metric(), Rules({})
    assert {name: getattr(metric, name) for name in stated} == stated
    assert (rules.ratio, rules.zone, rules.alert, rules.retracted) == ({}, "UTC", (), ())


def test_publishing_is_stable():
    """The same rules are published as the same bytes, in whatever order they were declared."""
    assert publish(Rules({"like": Metric(), "view": Metric("looked at")})) == publish(RULES)


def test_a_declared_metric_passes():
    """A declared metric is accepted."""
    RULES.refuse_undeclared("view")


def test_an_undeclared_metric_is_refused():
    """The error for an undeclared metric names it, the declared metrics, and the section and file to add it to."""
    with pytest.raises(EventError) as refused:
        RULES.refuse_undeclared("veiw")
    assert refused.value.field == "metric"
    for part in ("veiw is not declared", "like, view", "[metric.veiw]", "tallystream.toml"):
        assert part in str(refused.value)


@pytest.mark.parametrize("metric", ["\x1b[31m", "m" * 5000, "", "a\nb"])
def test_a_refusal_repeats_nothing_harmful(metric):
    """The error for a metric that is not a valid name does not repeat it: the message is short and printable."""
    with pytest.raises(EventError) as refused:
        RULES.refuse_undeclared(metric)
    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["", "View", "a b", "-x", "m" * 65])
def test_a_metric_that_cannot_be_declared(name):
    """A metric with a name that no event can have is a configuration error."""
    with pytest.raises(ConfigurationError, match=r"the name must be 1 to 64 of a-z"):
        Rules({name: Metric()})


@pytest.mark.parametrize(
    "published",
    [
        b"",
        b"{}",
        b"[]",
        b'{"metric":{"view":{"windows":["hour"],"new":1}}}',
        b"\xff",
        b'{"metric":{"\xff":{}}}',
        b'{"zone":"\xff"}',
    ],
)
def test_rules_of_another_release(published):
    """Published rules that this release cannot read raise an error that names the remedy; they are never ignored."""
    with pytest.raises(ConfigurationError, match="update this library"):
        read(published)


def refusal(rule: Metric) -> str:
    """Return the error message for an invalid rule of the metric `view`, without its prefix."""
    with pytest.raises(ConfigurationError) as refused:
        Rules({"view": rule})
    message = str(refused.value)
    assert message.startswith("[metric.view] ")
    return message.removeprefix("[metric.view] ")


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        (Metric(retention={"hour": "a week"}), ["retention.hour: 'a week' is not a duration", "8h, 400d or forever"]),
        (Metric(retention={"day": "4001d"}), ["retention.day: 4001d is over 4000d", "forever"]),
        (Metric(accept_late="soon"), ["accept_late: 'soon' is not a duration", "90s, 15m"]),
        (Metric(top=-1), ["top: must be 0 (none) to 10,000, not -1"]),
        (Metric(top=10_001), ["top: must be 0 (none) to 10,000, not 10,001"]),
        (Metric(max_subjects=0), ["max_subjects: must be 1 to 1,000,000,000"]),
        (Metric(max_subjects=10**9 + 1), ["max_subjects: must be 1 to 1,000,000,000"]),
        (Metric(spread=True, once="day"), ["spread: cannot be combined with once", "in one partition"]),
        (Metric(spread=True, limit=5, per="day"), ["spread: cannot be combined with limit", "in one partition"]),
        (Metric(spread=True, unique="day"), ["spread: cannot be combined with unique", "in one partition"]),
        (Metric(spread=True, max_subjects=5), ["spread: cannot be combined with max_subjects", "in one partition"]),
        (Metric(spread=True, exact=False), ["spread: cannot be combined with exact = false", "in one partition"]),
        (Metric(max_subjects=5, once="day"), ["max_subjects: cannot be combined with once or limit"]),
        (Metric(max_subjects=5, limit=1, per="day"), ["max_subjects: cannot be combined with once or limit"]),
        (Metric(once="always"), ["once: 'always' is not a duration"]),
        (Metric(once="12h"), ["once: must be", '"forever", "hour", "day"', '"30d"', "'12h'"]),
        (Metric(once="day", limit=1, per="day"), ["once and limit: declare only one of them"]),
        (Metric(limit=5), ['limit and per go together: limit = 1000, per = "hour"']),
        (Metric(per="hour"), ['limit and per go together: limit = 1000, per = "hour"']),
        (Metric(limit=0, per="hour"), ["limit: must be 1 to 1,000,000,000, not 0"]),
        (Metric(limit=10**9 + 1, per="hour"), ["limit: must be 1 to 1,000,000,000, not 1,000,000,001"]),
        (Metric(limit=5, per="day", windows=("minute", "hour", "day")), ["windows: minute, hour", "per = day"]),
        (Metric(limit=5, per="total", windows=("month",)), ["windows: month", "per = total"]),
        (Metric(windows=("day", "hour", "day")), ["windows: day is listed twice"]),
        (Metric(windows=("hour", "hour"), once="day"), ["windows: hour is listed twice"]),
        (Metric(exact=False, windows=("day",)), ["exact = false: use only top and floor with it"]),
        (Metric(exact=False, unique="day"), ["exact = false: use only top and floor with it"]),
        (Metric(exact=False, once="day"), ["exact = false: use only top and floor with it"]),
        (Metric(exact=False, limit=1, per="day"), ["exact = false: use only top and floor with it"]),
        (Metric(exact=False, max_subjects=5), ["exact = false: use only top and floor with it"]),
    ],
)
def test_rules_that_cannot_be(rule, parts):
    """A rule that contradicts itself or another is rejected: the message names the setting and the allowed values."""
    message = refusal(rule)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "rule",
    [
        Metric(retention={"hour": "1h", "day": "4000d", "month": "forever"}, accept_late="forever"),
        Metric(top=10_000, max_subjects=10**9),
        Metric(once="365d", windows=("minute", "hour", "day", "month")),
        Metric(limit=10**9, per="total"),
        Metric(limit=1, per="minute", windows=("minute", "hour", "day", "month")),
        Metric(exact=False, top=10, floor=0),
    ],
)
def test_rules_at_their_bounds(rule):
    """Rules with the smallest and largest allowed values are accepted."""
    assert Rules({"view": rule}).metric["view"] == rule


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (Ratio(("like",), ("viev",)), r"\[ratio.rate\]: viev is not declared as a metric"),
        (Ratio((), ("view",)), r"\[ratio.rate\]: of and by must each name at least one metric"),
        (Ratio(("like",), ()), r"\[ratio.rate\]: of and by must each name at least one metric"),
        (Ratio(("like", "view", "like"), ("view",)), r"\[ratio.rate\]: of: like is listed twice"),
        (Ratio(("like",), ("view", "view")), r"\[ratio.rate\]: by: view is listed twice"),
    ],
)
def test_ratios_that_cannot_be(ratio, message):
    """A ratio of an undeclared metric or of no metric is rejected, and the message names the ratio."""
    with pytest.raises(ConfigurationError, match=message):
        Rules({"view": Metric(), "like": Metric()}, {"rate": ratio})


def test_a_zone_that_does_not_exist():
    """A time zone that does not exist is rejected when the rules are made."""
    with pytest.raises(ConfigurationError, match="zone: 'Mars/Olympus' is not a time zone"):
        Rules({"view": Metric()}, zone="Mars/Olympus")


PICKY = Rules(
    {
        "view": Metric(),
        "vote": Metric(once="forever"),
        "call": Metric(limit=3, per="hour"),
        "path": Metric(exact=False),
    }
)


@pytest.mark.parametrize(
    ("metric", "amount", "actor", "field", "message"),
    [
        ("vote", 1, None, "actor", "is needed: vote counts once per actor"),
        ("vote", 2, "u1", "amount", "must be 1, -1 or 0: vote counts one vote per actor"),
        ("call", 2, None, "amount", "must be 1: call has a limit"),
        ("call", 0, "u1", "amount", "must be 1: call has a limit"),
        ("path", -1, None, "amount", "must not be negative: path is kept in a sketch"),
    ],
)
def test_events_that_a_rule_has_no_place_for(metric, amount, actor, field, message):
    """An event that its rule cannot count is rejected with the name of the field and what the rule needs."""
    with pytest.raises(EventError, match=message) as refused:
        PICKY.refuse(metric, amount, actor)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("metric", "amount", "actor"),
    [
        ("view", -5, None),
        ("view", 0, "u1"),
        ("vote", -1, "u1"),
        ("vote", 0, "u1"),
        ("call", 1, None),
        ("path", 0, None),
        ("path", 10**12, "u1"),
    ],
)
def test_events_that_a_rule_takes(metric, amount, actor):
    """A metric without such rules accepts any amount, and other metrics accept what their rule can count."""
    PICKY.refuse(metric, amount, actor)


@pytest.mark.parametrize(
    ("rule", "late", "aside"),
    [
        (Metric(), None, False),
        (Metric(accept_late="2h"), 7200, False),
        (Metric(accept_late="2h", late="aside"), 7200, True),
        (Metric(limit=1, per="hour"), 7 * 86_400, True),
        (Metric(limit=1, per="hour", accept_late="1d"), 86_400, True),
        (Metric(once="day"), 7 * 86_400, True),
        (Metric(once="forever"), None, False),
    ],
)
def test_how_late_events_may_be(rule, late, aside):
    """A rule with state by period bounds how late events may be and leaves out later ones; others have no bound."""
    assert (rule.late_seconds, rule.rejects_late) == (late, aside)


def test_how_long_buckets_are_kept():
    """Each window has its own retention in seconds, and a declared retention replaces the default."""
    rule = Metric(retention={"hour": "2d"})
    kept = [rule.retention_seconds(window) for window in ("minute", "hour", "day", "month")]
    assert kept == [7200, 172_800, 34_560_000, None]
