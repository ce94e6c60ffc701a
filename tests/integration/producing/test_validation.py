"""The checks of events before they enter the buffer, while the deployment is read again in another thread."""

from __future__ import annotations

import pytest

from tallystream.errors import EventError
from tallystream.producing import validation
from tallystream.producing.validation import EventValidator
from tallystream.rules.metrics import Metric, Rules, publish
from tests.harness import Harness
from tests.integration.repartition.test_migration import moved


@pytest.fixture
def harness(server):
    """A test harness whose rules declare `view` with a limit."""
    with Harness(server.url, rules=Rules(metric={"view": Metric(limit=3, per="hour", ids=None)})) as harness:
        yield harness


@pytest.fixture
def validator(harness):
    """A validator that has read the rules."""
    validator = EventValidator(harness.client, None, "tally")
    validator.refresh()
    return validator


def declare_others(harness, validator):
    """Publish rules without `view`; the validator reads them."""
    harness.client.hset(harness.layout.meta, "rules", publish(Rules(metric={"like": Metric(ids=None)})))
    validator.forget()
    validator.refresh()


def test_rules_that_no_longer_declare_the_metric(harness, validator):
    """An event of a metric that new rules do not declare any more is invalid, also if it passed the first check."""
    assert validator.metric("view")
    declare_others(harness, validator)
    with pytest.raises(EventError, match="view is not declared; declared are like"):
        validator.admit("view", 1, None, None, 0)


def test_rules_that_change_during_the_check(harness, validator, monkeypatch):
    """A metric that was checked by earlier rules is checked again by the new ones before it is remembered."""
    really, seen = Rules.refuse_undeclared, []

    def meanwhile(rules, metric):
        really(rules, metric)
        seen.append(metric)
        if len(seen) == 1:
            declare_others(harness, validator)

    monkeypatch.setattr(Rules, "refuse_undeclared", meanwhile)
    with pytest.raises(EventError, match="view is not declared"):
        validator.metric("view")
    assert not validator.metrics


def test_a_topic_that_changes_during_the_check(harness, validator, monkeypatch):
    """The route that a subject has in an earlier topic is not remembered."""
    really, seen = validation.partition_of, []

    def meanwhile(subject, partitions):
        seen.append(partitions)
        if len(seen) == 1:
            moved(harness, 2)
            validator.forget()
            validator.refresh()
        return really(subject, partitions)

    monkeypatch.setattr(validation, "partition_of", meanwhile)
    _, route = validator.subject("a")
    assert seen == [4, 2]
    assert route in validator.deployment.layout.routes
    assert validator.known == {"a": route}
