"""`reopen` describes a deployment again whose hash was lost, as far as its other keys and the archive state it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import Layout
from tallystream_worker.rebuild.describe import describe
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.reopen import find_deployment
from tallystream_worker.runtime.publication import publish_again
from tests.harness import Harness
from tests.integration.rebuild.test_rebuild import rebuilt
from tests.integration.repartition.test_migration import moved

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = Rules({"view": Metric(ids=None, spread=True), "call": Metric(limit=5, per="total")})


@pytest.fixture
def harness(server) -> Iterator[Harness]:
    """Yield a harness of 8 partitions, in which an event was counted by published rules."""
    with Harness(server.url, rules=RULES, partitions=8) as harness:
        publish_again(harness.client, Deployment.load(harness.client), 0)
        harness.client.hset(harness.layout.meta, "spread@view", 1)
        harness.client.xadd(harness.layout.keys[3].stream, {"metric": "view", "subject": "a"})
        harness.drain()
        yield harness


@pytest.mark.parametrize("generation", [1, 2])
def test_the_last_change_of_the_rules_describes_a_deployment(harness, generation):
    """The epoch, the partitions, the rules, their number and the live generation are the same again."""
    if generation == 2:
        rebuilt(harness)
        drop(harness.client, Deployment.load(harness.client), 1)
    before = Deployment.load(harness.client)
    newest = int(harness.client.hget(before.layout.root, "newest-revision"))
    harness.client.delete(before.layout.root)
    assert describe(harness.client, "tally", 0, None)
    assert Deployment.load(harness.client) == before
    assert int(harness.client.hget(before.layout.root, "newest-revision")) > newest
    assert not describe(harness.client, "tally", 0, None)


def test_another_generation_can_be_dropped(harness):
    """A generation that was kept when the hash was lost is kept again, so that it can be removed."""
    rebuilt(harness)
    harness.client.delete(harness.layout.root)
    describe(harness.client, "tally", 0, None)
    found = Deployment.load(harness.client)
    assert (found.generation, set(found.others)) == (2, {1})
    assert drop(harness.client, found, 1) > 0


def test_the_archive_and_the_configuration_state_what_the_record_does_not(harness):
    """Without a record of the rules, the archive has the epoch; without one, the configuration has the number."""
    harness.client.delete(harness.layout.rule_changes, harness.layout.root)
    manifest = {"epoch": "archived", "partitions": 8}
    assert describe(harness.client, "tally", 0, manifest)
    found = find_deployment(harness.client, "tally")
    assert (found.epoch, found.layout.partitions, found.declared) == ("archived", 8, None)
    harness.client.delete(harness.layout.root)
    for number in (0, 7):
        with pytest.raises(ConfigurationError, match=r"at least 8\. Set \[redis\] partitions"):
            describe(harness.client, "tally", number, None)
    assert describe(harness.client, "tally", 9, None)
    assert find_deployment(harness.client, "tally").layout.partitions == 9


def test_nothing_is_described_without_a_deployment(server):
    """If there are no keys, no deployment is made up."""
    with pytest.raises(ConfigurationError, match="nothing is stored under tally"):
        describe(server.client(), "tally", 4, None)
    assert not server.client().exists(Layout().root)


@pytest.mark.parametrize("name", ["root", "meta"])
def test_a_deployment_that_was_repartitioned_needs_a_snapshot(harness, name):
    """After a repartition, the command names the snapshot, and changes nothing."""
    moved(harness, 3)
    harness.client.delete(getattr(harness.layout, name))
    action = {"root": lambda: describe(harness.client, "tally", 0, None), "meta": lambda: find(harness)}[name]
    with pytest.raises(ConfigurationError, match=r"only a snapshot has .*tallystream restore --force"):
        action()


def find(harness: Harness) -> Deployment:
    """Return the deployment as `reopen` finds it."""
    return find_deployment(harness.client, "tally")


def test_a_hash_that_was_lost_during_a_switch_is_not_guessed(harness):
    """If the partitions count different generations, the command names the snapshot, and changes nothing."""
    harness.client.set(harness.layout.keys[1].live, "2")
    harness.client.delete(harness.layout.root)
    with pytest.raises(ConfigurationError, match="while a rebuild was switching"):
        describe(harness.client, "tally", 0, None)
    assert not harness.client.exists(harness.layout.root)
