"""`Deployment`: finding, creating and reading it again, and the errors if rules or data are missing or replaced."""

from __future__ import annotations

import pytest
from redis.exceptions import RedisError

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, DeploymentChanged, NothingDeclared
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.storage.keys import Layout
from tallystream.storage.sentinels import lost_key, open_partitions
from tallystream_worker.counting.fetch import Fetch
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.verify.verify import verify
from tests.waiting import until

RULES = Rules({"view": Metric()})


@pytest.fixture
def client(server):
    """A client of an empty server."""
    return server.client()


@pytest.fixture
def stored(client):
    """The deployment that a producer stores if it starts before the first worker."""
    return Deployment.create_or_load(client, 2)


def declare(client, deployment, rules=RULES):
    """Publish rules, as a worker does."""
    client.hset(deployment.layout.meta, "rules", publish(rules))


def test_nothing_is_stored_yet(client):
    """`Deployment.find` stores nothing; if nothing is stored, the errors state which process to start."""
    found = Deployment.find(client)
    assert (found.is_stored, found.declared, client.dbsize()) == (False, None, 0)
    with pytest.raises(ConfigurationError, match="no deployment is stored: tally:meta does not exist"):
        found.ensure_stored()
    with pytest.raises(NothingDeclared, match="no deployment is stored"):
        Deployment.load(client)
    assert client.dbsize() == 0


@pytest.mark.parametrize("read_before", [True, False])
def test_a_deleted_description_is_no_empty_system(client, stored, server, read_before):
    """If the description is deleted and counters are there, or were there, a read fails; it does not answer 0."""
    declare(client, stored)
    if not read_before:
        client.hset(stored.layout.keys[0].ledger, "appended", 1)
    with Totals(server.url) as totals:
        if read_before:
            assert totals.get("s", "view").value == 0
        client.delete(stored.layout.root)

        def fails() -> bool:
            try:
                totals.get("s", "view")
            except DeploymentChanged as error:
                return "tally:meta was deleted" in str(error)
            return False

        until(fails, timeout=20, what="a read that fails")


def test_a_server_that_is_emptied_during_creation_loses_nothing(client, monkeypatch):
    """If the server is emptied between the opening of partitions and the storing of the hash, it opens them again."""
    emptied = []

    def opened(*arguments) -> None:
        open_partitions(*arguments)
        if not emptied:
            emptied.append(client.flushall())

    monkeypatch.setattr("tallystream.deployment.open_partitions", opened)
    found = Deployment.create_or_load(client, 2)
    assert [lost_key(client, keys) for keys in found.layout.keys] == [None, None]


def test_a_process_that_creates_with_another_number_harms_nothing(client, monkeypatch):
    """If two processes create at the same time, the second one is refused; what it opened is reported as of no use."""

    def opened(_, layout: Layout) -> None:
        open_partitions(client, layout)
        if layout.partitions == 4:
            Deployment.create_or_load(client, 2)

    monkeypatch.setattr("tallystream.deployment.open_partitions", opened)
    with pytest.raises(ConfigurationError, match="was created with 2"):
        Deployment.create_or_load(client, 4)
    stored = Deployment.find(client)
    declare(client, stored)
    for keys in stored.layout.keys:
        Fetch(client, keys, "w").ensure_group()
    found = verify(client, "tally", Sources())
    assert found.findings == {}
    assert [each.text for each in found.limits if "of no use: partition" in each.text]


def test_nothing_is_declared_yet(client, stored):
    """Before the first worker, a deployment has its layout; each access to its rules fails and names the worker."""
    assert (stored.is_stored, stored.layout, stored.declared) == (True, Layout(2), None)
    stored.ensure_stored()
    for needs_rules in (
        lambda: stored.rules,
        lambda: stored.rules_of(1),
        stored.ensure_declared,
        lambda: Deployment.load(client),
    ):
        with pytest.raises(ConfigurationError, match=r"start a worker .*, which publishes the rules"):
            needs_rules()


def test_what_is_declared_is_there_for_all(client, stored):
    """Published rules are in every deployment read from the namespace; another namespace is empty."""
    declare(client, stored)
    found = Deployment.load(client)
    assert found.rules == found.declared == found.rules_of(1) == found.rules_of(7) == RULES
    assert found.epoch == stored.epoch
    assert Deployment.create_or_load(client) == Deployment.find(client) == found
    assert not Deployment.find(client, "other").is_stored


def test_other_rules_are_the_same_data(client, stored):
    """A deployment that is read again has the rules published since."""
    declare(client, stored)
    stored.ensure_same(client)
    assert stored.reload(client).rules == RULES


def test_data_that_is_gone_or_another_is_not_gone_on_with(client, stored):
    """A deployment rejects the server after its data was deleted, and after a new deployment was stored there."""
    client.flushall()
    for check in (stored.reload, stored.ensure_same):
        with pytest.raises(DeploymentChanged, match="tally:meta was deleted: this is not the data that this process"):
            check(client)
    Deployment.create_or_load(client, 2)
    for check in (stored.reload, stored.ensure_same):
        with pytest.raises(
            DeploymentChanged, match=r"tally:meta was replaced: .* restart the process.*\(tallystream restore --force\)"
        ):
            check(client)


def test_a_server_that_does_not_answer_is_no_other_data(fresh_server):
    """A server that is down raises a `RedisError`, not `DeploymentChanged`."""
    server = fresh_server()
    client = connect(server.url)
    deployment = Deployment.create_or_load(client)
    server.stop()
    for check in (deployment.reload, deployment.ensure_same):
        with pytest.raises(RedisError):
            check(client)
    client.close()
