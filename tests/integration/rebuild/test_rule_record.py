"""The lost record of the changes of the rules is written again, and states nothing that did not happen."""

from __future__ import annotations

import json
import re
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import DeploymentChanged
from tallystream.rules.changes import changes_of
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.rebuild.rule_record import MOST, is_record_lost, record_again
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.integration.cli.test_cli import Shell
from tests.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import redis

    from tallystream.rules.changes import RuleChange

RULES = [Rules({"view": Metric(limit=limit, per="day")}) for limit in (1, 2, 3, 4)]


def publish(url: str, rules: Rules) -> None:
    """Publish rules as a worker does at its start."""
    open_deployment(Settings(RedisSettings(url, partitions=1), rules=rules))


@pytest.fixture
def client(server) -> Iterator[redis.Redis]:
    """Provide the client of a server with a deployment whose rules were changed twice."""
    for rules in RULES[:3]:
        publish(server.url, rules)
    with closing(connect(server.url)) as client:
        yield client


def recorded(client: redis.Redis) -> list[RuleChange]:
    """Return the recorded changes."""
    return changes_of(read_changes(client, Deployment.load(client).layout))


def archived(client: redis.Redis) -> dict[str, dict[str, str]]:
    """Return the recorded changes as an archive has them."""
    changes = read_changes(client, Deployment.load(client).layout)
    return {
        name.decode(): {field.decode(): text.decode() for field, text in fields.items()} for name, fields in changes
    }


def lose(client: redis.Redis) -> Deployment:
    """Delete the record; return the deployment."""
    deployment = Deployment.load(client)
    client.delete(deployment.layout.rule_changes)
    assert is_record_lost(client, deployment)
    return deployment


def test_without_an_archive_the_record_begins_with_the_live_rules(client, server):
    """The only change has the live rules and their number, and states that they were recorded again."""
    deployment = lose(client)
    assert record_again(client, deployment, {})
    (change,) = recorded(client)
    assert (change.number, change.rules, change.differences) == (3, RULES[2], [])
    assert change.by.endswith("recorded them again: the record was lost")
    assert (deployment.reload(client), is_record_lost(client, deployment)) == (deployment, False)
    publish(server.url, RULES[3])
    assert [each.number for each in recorded(client)] == [3, 4]


def test_the_archive_has_the_earlier_changes(client):
    """With an archive, the record is the one before the loss."""
    known, before = archived(client), recorded(client)
    assert record_again(client, lose(client), known)
    assert recorded(client) == before


def test_a_change_that_the_archive_lacks_is_added(client):
    """If the archive lacks the last change, the live rules follow those that it has."""
    known = archived(client)
    known.popitem()
    assert record_again(client, lose(client), known)
    assert [(each.number, each.rules) for each in recorded(client)] == list(enumerate(RULES[:3], 1))


def test_changes_that_the_server_has_lost_are_left_out(client):
    """A change of other data, one above the live number, and one whose number has other rules are not recorded."""
    known, before = archived(client), recorded(client)
    first, second, last = known.values()
    known["1-1"] = {**last, "rules": first["rules"]}  # the server lost it, and gave its number again
    known["2-1"] = {**first, "epoch": "other"}
    known["99999999999999-1"] = {**second, "number": "7"}
    assert record_again(client, lose(client), known)
    assert recorded(client) == before


def test_changes_with_higher_numbers_than_the_live_one_stay(client):
    """After `rebuild --undo`, the number of the live rules is lower than others; all changes are recorded again."""
    layout = Deployment.load(client).layout
    _, (_, second), _ = read_changes(client, layout)
    client.hset(layout.meta, mapping={"rules": second[b"rules"], "revision": 2})
    client.xadd(layout.rule_changes, second)
    known, before = archived(client), recorded(client)
    assert record_again(client, lose(client), known)
    assert recorded(client) == before


def test_as_many_changes_are_recorded_as_the_scripts_keep():
    """The greatest number of recorded changes is the one in `lib/rule_changes.lua`."""
    text = (ROOT / "producer/tallystream/storage/lua/lib/rule_changes.lua").read_text(encoding="utf-8")
    assert re.findall(r"local MOST = (\d+)", text) == [str(MOST)]


def test_a_recorded_change_stays(client):
    """If a change was recorded since, or the rules have changed since, nothing is written."""
    deployment, before = Deployment.load(client), recorded(client)
    assert not record_again(client, deployment, {})
    assert recorded(client) == before
    lose(client)
    client.hset(deployment.layout.meta, "revision", 4)
    assert not record_again(client, deployment, {})
    assert recorded(client) == []
    client.delete(deployment.layout.meta)
    with pytest.raises(DeploymentChanged):
        record_again(client, deployment, {})


@pytest.mark.parametrize("has_archive", [False, True])
def test_the_command_that_verify_names_writes_the_record(client, server, tmp_path: Path, has_archive):
    """If the record is lost, `verify` names a command after which it finds nothing."""
    shell, before = Shell(server.url, tmp_path), recorded(client)
    (tmp_path / "tallystream.toml").write_text('[archive]\nurl = "archive"\n' if has_archive else "", encoding="utf-8")
    if has_archive:
        Archive(client, Store(str(tmp_path / "archive")), Deployment.load(client)).run_once(settled=0)
    lose(client)
    (finding,) = json.loads(shell("verify", "--json", status=1).stdout)["findings"]
    command = re.search("tallystream ([a-z]+)", finding["remedy"])
    assert command is not None
    assert "mended tally:{tally:meta}:rules" in shell(command[1]).stdout
    assert json.loads(shell("verify", "--json").stdout)["findings"] == []
    assert [each.number for each in recorded(client)] == ([1, 2, 3] if has_archive else [3])
    assert (recorded(client) == before) == has_archive
    assert "nothing was changed" in shell("reopen").stdout
