"""Tests of `tallystream rules`, and of `--replace-rules`, as separate processes."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tallystream import Producer
from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Ratio, Rules
from tallystream_worker.runtime.app import open_deployment
from tallystream_worker.runtime.publication import publish_again
from tallystream_worker.settings.load import load
from tallystream_worker.settings.settings import RedisSettings, Settings
from tallystream_worker.settings.toml import to_toml
from tests.harness import Harness
from tests.integration.cli.test_cli import Shell

if TYPE_CHECKING:
    from pathlib import Path

RULES = Rules(
    {
        "view": Metric('a "quoted" text\n\x7fé', ("hour", "day"), retention={"hour": "3d"}, unique="day", top=5),
        "api.call": Metric(windows=("hour",), limit=5, per="hour", accept_late="1d"),
        "vote": Metric(once="30d", floor=0),
        "tag": Metric(exact=False, top=3),
    },
    {"rate": Ratio(("vote",), ("view",))},
    "Europe/Vienna",
    (Alert("hot", "view", window="hour", above=5.5), Alert("cold", "view", over="2h", below=1.0, clear=3.0)),
)
FEW = Rules({"view": Metric(windows=("day",))})


@pytest.fixture
def shell(server, tmp_path) -> Shell:
    """Provide commands in a folder whose configuration has one metric, against a server that has two."""
    publish(server.url, Rules({"view": Metric(), "like": Metric()}))
    (tmp_path / "tallystream.toml").write_text(to_toml(FEW), encoding="utf-8")
    return Shell(server.url, tmp_path)


def publish(url: str, rules: Rules) -> None:
    """Publish rules as a worker does at its start."""
    open_deployment(Settings(RedisSettings(url), rules=rules))


def metrics(url: str) -> list[str]:
    """Return the names of the stored metrics."""
    with closing(connect(url)) as client:
        return sorted(Deployment.load(client).rules.metric)


def test_the_stored_rules_are_a_configuration(server, tmp_path: Path):
    """`rules` prints a configuration file with which a worker changes nothing; `rules --json` prints the same rules."""
    publish(server.url, RULES)
    shell = Shell(server.url, tmp_path)
    file = tmp_path / "copy.toml"
    file.write_text(shell("rules").stdout, encoding="utf-8")
    assert load(file, {}).rules == RULES
    open_deployment(replace(load(file, {}), redis=RedisSettings(server.url)))
    found = shell.json("rules")
    assert found["number"] == 1
    assert found["rules"]["metric"]["vote"] == {"once": "30d", "floor": 0}


def test_the_history_names_each_change(server, shell):
    """`rules --history` prints time, publisher and differences of each change; with --json also its places."""
    with Harness(server.url, rules=Rules({"view": Metric(), "like": Metric()})) as harness, Producer(server.url) as out:
        for rules in (None, Rules({"view": Metric(windows=("hour",)), "like": Metric(limit=5, per="day")})):
            if rules is not None:
                publish(server.url, rules)
            harness.rules = Deployment.load(harness.client).rules
            out.emit("view", "a")
            out.flush(10)
            harness.drain()
    text = shell("rules", "--history").stdout
    assert "view: window hour added" in text
    assert "like: limit none -> 5" in text
    assert " pid " in text
    first, second = shell.json("rules", "--history")["changes"]
    assert (first["number"], second["number"]) == (1, 2)
    assert second["differences"][0] == "like: limit none -> 5"
    assert first["places"] == {}
    ((_, place),) = second["places"].items()
    assert place["first"] == place["last"]


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_history_states_that_it_is_lost(server, shell, *, is_whole):
    """If the record of the changes, or the last change in it, is lost, `rules --history` fails and names what mends it.

    With `--json`, it still prints the recorded changes.
    """
    with Harness(server.url, rules=Rules({"view": Metric()})) as harness:
        for windows in ((), ("hour",)):
            publish(server.url, Rules({"view": Metric(windows=windows)}))
        client, name = harness.client, harness.layout.rule_changes
        if is_whole:
            client.delete(name)
        else:
            client.xdel(name, client.xrevrange(name, count=1)[0][0])
        told = shell("rules", "--history", status=1).stderr
        assert f"{name}: the server has lost the record of the change 2, whose rules are live" in told
        assert ("tallystream reopen" if is_whole else "tallystream verify") in told
        changes = json.loads(shell("rules", "--history", "--json", status=1).stdout)["changes"]
        assert [change["number"] for change in changes] == ([] if is_whole else [1])


def test_an_audit_counts_each_event_by_the_rules_of_its_time(server, tmp_path):
    """After a change of the rules, an audit finds no difference.

    With `--present-rules`, it prints what a rebuild would change, and the changes of the rules since the last rebuild;
    after a rebuild, none.
    """
    shell = Shell(server.url, tmp_path)

    def audit(status: int) -> tuple[str, dict[str, Any]]:
        assert " 0 of " in f" {shell('audit').stdout}"
        options = ("audit", "--present-rules")
        return shell(*options, status=status).stdout, json.loads(shell(*options, "--json", status=status).stdout)

    with Harness(server.url, rules=Rules({"view": Metric(limit=2, per="total")})) as harness:
        publish(server.url, harness.rules)
        with Producer(server.url) as producer:
            for _ in range(5):
                producer.emit("view", "a")
        harness.drain()
        text, found = audit(0)
        assert ("The rules have changed" in text, found["rule_changes"]) == (False, [])
        publish(server.url, Rules({"view": Metric(limit=4, per="total")}))
        text, found = audit(1)
        assert text.startswith("The rules have changed since these counters began")
        assert "view: limit 2 -> 4" in text
        assert "run: tallystream rebuild" in text
        assert [change["differences"] for change in found["rule_changes"]] == [["view: limit 2 -> 4"]]
        assert found["remedy"] == "tallystream rebuild"
        shell("rebuild")
        text, found = audit(0)
        assert ("The rules have changed" in text, found["rule_changes"], found["remedy"]) == (False, [], None)


def test_a_check_says_what_a_start_would_change(shell):
    """`check --redis` prints the differences from the stored rules, and the metrics that a start would keep."""
    text = shell("check", "tallystream.toml", "--redis", shell.url).stdout
    assert "a start would change: view: window day added" in text
    assert "a start would keep, although the file lacks them: like" in text
    found = json.loads(shell("check", "tallystream.toml", "--redis", shell.url, "--json").stdout)
    assert (found["changes"], found["kept"]) == (["view: window day added"], ["like"])
    assert "changes" not in json.loads(shell("check", "tallystream.toml", "--json").stdout)


def test_nothing_is_removed_without_a_confirmation(shell):
    """Without a terminal and --yes, --replace-rules is refused, and prints what it would remove."""
    done = shell("rebuild", "--replace-rules", status=1, stdin="y\n")
    assert "like: 0 events were counted" in done.stderr
    assert "confirm it with --yes" in done.stderr
    assert metrics(shell.url) == ["like", "view"]
    for other in (["--undo"], ["--drop"], ["--partitions", "8"]):
        assert "do not combine --replace-rules" in shell("rebuild", "--replace-rules", *other, status=1).stderr
    assert "--yes confirms --replace-rules, which is missing" in shell("worker", "--yes", status=1).stderr


def test_a_replacement_needs_a_configuration(shell):
    """Without a configuration file that has metrics, --replace-rules is refused."""
    (shell.folder / "tallystream.toml").unlink()
    done = shell("rebuild", "--replace-rules", "--yes", status=1)
    assert "needs a configuration file" in done.stderr


def test_a_rebuild_keeps_or_removes(server, shell):
    """A rebuild counts the stored metrics that the file lacks, too; with --replace-rules --yes it removes them."""
    with Harness(server.url, rules=Rules({"view": Metric(), "like": Metric()})):
        shell("rebuild")
        assert metrics(server.url) == ["like", "view"]
        shell("rebuild", "--drop")
        done = shell("rebuild", "--replace-rules", "--yes")
        assert "like: 0 events were counted" in done.stderr
        assert metrics(server.url) == ["view"]
        last = shell.json("rules", "--history")["changes"][-1]
        assert (last["differences"], last["generation"]) == (["like: metric removed"], 3)


def test_an_undo_says_which_rules_are_live_again(server, shell):
    """After an undo, the differences of the rules are printed, also those that a restarted worker publishes again.

    --drop prints how the removed rules differ from the live ones. Without a difference, nothing is printed.
    """
    added = "view: window day added"
    with Harness(server.url, rules=Rules({"view": Metric(), "like": Metric()})):
        assert shell.json("rebuild")["rules"] == [added]
        undone = shell("rebuild", "--undo").stdout.splitlines()
        again = "a worker that restarts publishes the rules of its configuration file again:"
        assert undone[1:] == [
            "the rules of generation 1 are live again:", "    view: window day removed", again, f"    {added}"
        ]  # fmt: skip
        assert shell.json("rebuild", "--undo")["rules"] == [added]
        dropped = shell("rebuild", "--drop").stdout.splitlines()
        assert dropped[1:] == ["the rules of generation 1 are removed too; the live rules differ:", f"    {added}"]
        shell("rebuild")
        assert len(shell("rebuild", "--undo").stdout.splitlines()) == 1
        assert list(shell.json("rebuild", "--drop")["rules"].values()) == [[]]


def test_a_restore_says_that_its_rules_are_not_the_present_ones(server, tmp_path):
    """After a rule was added since the snapshot, `restore` names the rebuild; by the same rules, it does not."""
    shell = Shell(server.url, tmp_path)
    with Harness(server.url, rules=Rules({"view": Metric()})) as harness:
        publish(server.url, harness.rules)
        shell("snapshot", "tally.sqlite", "--once")
    same = shell.json("restore", "tally.sqlite", "--force")
    assert same["rules_differ"] is False
    publish(server.url, Rules({"view": Metric(), "like": Metric()}))
    assert "tallystream rebuild" in shell("restore", "tally.sqlite", "--force").stdout
    (tmp_path / "tallystream.toml").write_text(to_toml(FEW), encoding="utf-8")
    assert shell.json("restore", "tally.sqlite", "--force")["rules_differ"] is True


def test_a_configuration_that_contradicts_the_rules_ends_no_restore(server, tmp_path):
    """A restore that has ended is no error, although the configuration contradicts a metric that it lacks."""
    shell = Shell(server.url, tmp_path)
    with Harness(server.url, rules=Rules({"call": Metric(windows=("day",), limit=5, per="hour")})) as harness:
        publish(server.url, harness.rules)
        shell("snapshot", "tally.sqlite", "--once")
        harness.client.flushall()
    rules = to_toml(Rules({"view": Metric()}, zone="Asia/Kolkata"))
    (tmp_path / "tallystream.toml").write_text(rules, encoding="utf-8")
    assert "differ from the present ones" in shell("restore", "tally.sqlite").stdout
    assert shell.json("status")["unaccounted"] == 0


def test_the_history_states_rules_that_were_stored_again(server, shell):
    """If older data was put back, and the rules got a new number, the history states that they are the same rules."""
    with closing(connect(server.url)) as client:
        deployment = Deployment.load(client)
        publish_again(client, deployment, deployment.revision + 3)
    first, nothing, _, again = shell("rules", "--history").stdout.splitlines()
    assert "rules 1," in first
    assert nothing.strip() == "no earlier rules are recorded"
    assert "the same rules as before" in again
