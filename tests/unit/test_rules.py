"""Rules: declared once, published, and read by everybody else."""

from __future__ import annotations

import pytest

from tallystream.errors import ConfigurationError, EventError
from tallystream.rules import Metric, Rules, publish, read

RULES = Rules({"view": Metric("looked at"), "like": Metric()})


def test_what_is_published_is_read():
    """Producers and readers get the rules that the worker has."""
    assert read(publish(RULES)) == RULES


def test_publishing_is_stable():
    """The same rules are the same bytes, in whatever order they were declared."""
    assert publish(Rules({"like": Metric(), "view": Metric("looked at")})) == publish(RULES)


def test_a_declared_metric_passes():
    """A declared metric is not refused."""
    RULES.refuse_undeclared("view")


def test_an_undeclared_metric_is_refused():
    """The refusal names the metric, the declared ones, and where to add it."""
    with pytest.raises(EventError) as refused:
        RULES.refuse_undeclared("veiw")
    assert refused.value.field == "metric"
    for part in ("veiw is not declared", "like, view", "[metric.veiw]", "tallystream.toml"):
        assert part in str(refused.value)


@pytest.mark.parametrize("metric", ["\x1b[31m", "m" * 5000, "", "a\nb"])
def test_a_refusal_repeats_nothing_harmful(metric):
    """What could not be a metric's name does not get into a message."""
    with pytest.raises(EventError) as refused:
        RULES.refuse_undeclared(metric)
    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["", "View", "a b", "-x", "m" * 65])
def test_a_metric_that_cannot_be_declared(name):
    """A name that no event could carry is a mistake in the configuration."""
    with pytest.raises(ConfigurationError, match=r"the name must be 1 to 64 of a-z"):
        Rules({name: Metric()})


@pytest.mark.parametrize("published", [b"", b"{}", b"[]", b'{"metric":{"view":{"windows":["hour"],"new":1}}}', b"\xff"])
def test_rules_of_another_release(published):
    """Rules that this release cannot follow are an error that says what to do, never ignored."""
    with pytest.raises(ConfigurationError, match="update this library"):
        read(published)
