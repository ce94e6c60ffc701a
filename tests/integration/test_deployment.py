"""What is stored is read once, says what is missing of it, and is read again only while it is the same data."""

from __future__ import annotations

import pytest
from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DeploymentChanged
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.keys import Layout

RULES = Rules({"view": Metric()})


@pytest.fixture
def client(server):
    """A client of an empty server."""
    return server.client()


@pytest.fixture
def stored(client):
    """What a producer stores that comes before the first worker."""
    return Deployment.create_or_load(client, 2)


def declare(client, deployment, rules=RULES):
    """Publish rules, as a worker does."""
    client.hset(deployment.layout.meta, "rules", publish(rules))


def test_nothing_is_stored_yet(client):
    """Looking stores nothing; what is not there is said with what to do."""
    found = Deployment.find(client)
    assert (found.is_stored, found.declared, client.dbsize()) == (False, None, 0)
    with pytest.raises(ConfigurationError, match="tally:meta does not exist: no worker or producer has started"):
        found.ensure_stored()
    with pytest.raises(ConfigurationError, match="start a worker"):
        Deployment.load(client)
    assert client.dbsize() == 0


def test_nothing_is_declared_yet(client, stored):
    """Who comes before the first worker finds where things lie, and is told where rules come from."""
    assert (stored.is_stored, stored.layout, stored.declared) == (True, Layout(2), None)
    stored.ensure_stored()
    for needs_rules in (
        lambda: stored.rules,
        lambda: stored.rules_of(1),
        stored.ensure_declared,
        lambda: Deployment.load(client),
    ):
        with pytest.raises(ConfigurationError, match=r"start a worker .* once, which publishes the rules"):
            needs_rules()


def test_what_is_declared_is_there_for_all(client, stored):
    """With rules published, everyone who reads what is stored has them; another namespace has its own."""
    declare(client, stored)
    found = Deployment.load(client)
    assert found.rules == found.declared == found.rules_of(1) == found.rules_of(7) == RULES
    assert found.epoch == stored.epoch
    assert Deployment.create_or_load(client) == Deployment.find(client) == found
    assert not Deployment.find(client, "other").is_stored


def test_other_rules_are_the_same_data(client, stored):
    """Reading again shows what was published meanwhile."""
    declare(client, stored)
    stored.ensure_same(client)
    assert stored.reload(client).rules == RULES


def test_data_that_is_gone_or_another_is_not_gone_on_with(client, stored):
    """An emptied server, and one that was begun anew, are told from the one that the process began with."""
    client.flushall()
    for check in (stored.reload, stored.ensure_same):
        with pytest.raises(DeploymentChanged, match="tally:meta is gone: this is not the data that this process began"):
            check(client)
    Deployment.create_or_load(client, 2)
    for check in (stored.reload, stored.ensure_same):
        with pytest.raises(DeploymentChanged, match=r"tally:meta is another: .* \(tallystream restore\), or restart"):
            check(client)


def test_a_server_that_does_not_answer_is_no_other_data(fresh_server):
    """Without an answer nothing is known of the data."""
    server = fresh_server()
    client = connect(server.url)
    deployment = Deployment.create_or_load(client)
    server.stop()
    for check in (deployment.reload, deployment.ensure_same):
        with pytest.raises(RedisError):
            check(client)
    client.close()
