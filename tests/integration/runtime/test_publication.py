"""The rules of a configuration are published once, with a record, and remove no metric that the configuration lacks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
import structlog
from structlog.testing import LogCapture

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, NothingDeclared
from tallystream.producing.producer import Producer
from tallystream.rules.alerts import Alert
from tallystream.rules.changes import RuleChange, changes_of
from tallystream.rules.metrics import Metric, Ratio, Rules
from tallystream.storage.rule_changes import read_changes
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.runtime.app import counting, open_deployment
from tallystream_worker.runtime.partition_follower import PartitionFollower
from tallystream_worker.runtime.publication import publish_again, publish_lost
from tallystream_worker.runtime.supervisor import WorkerPool
from tallystream_worker.settings.load import load
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.rewind import copy_of, go_back
from tests.waiting import until

OWN = Rules({"view": Metric(windows=("day",))})
BOTH = Rules(
    {"view": Metric(), "like": Metric(windows=("hour",))},
    {"liked": Ratio(("like",), ("view",)), "viewed": Ratio(("view",), ("view",))},
    alert=(Alert("hot", "like", above=5), Alert("cold", "view", above=5)),
)


def settings_for(url: str, rules: Rules) -> Settings:
    """Return the settings of a worker."""
    return Settings(RedisSettings(url), rules=rules)


def stored(client) -> Rules:
    """Return the stored rules."""
    return Deployment.load(client).rules


def changes(client) -> list[RuleChange]:
    """Return the recorded changes."""
    return changes_of(client.xrange(Deployment.load(client).layout.rule_changes))


def start(url: str, rules: Rules, **options) -> list[dict]:
    """Publish rules as a worker does at its start, and return the log lines."""
    lines = LogCapture()
    log = structlog.wrap_logger(None, processors=[lines], wrapper_class=structlog.make_filtering_bound_logger(0))
    open_deployment(settings_for(url, rules), log, **options)
    return lines.entries


def test_a_metric_that_the_configuration_lacks_stays(server):
    """A start keeps stored metrics that its configuration lacks, with their alerts and ratios, and logs them once."""
    client = server.client()
    start(server.url, BOTH)
    lines = start(server.url, OWN)
    found = stored(client)
    assert found.metric == {"view": OWN.metric["view"], "like": BOTH.metric["like"]}
    assert (found.ratio, found.alert) == ({"liked": BOTH.ratio["liked"]}, (BOTH.alert[0],))
    (kept,) = [line for line in lines if line["event"] == "rules.kept"]
    assert kept["metrics"] == "like"
    assert "--replace-rules" in kept["action"]
    (published,) = [line for line in lines if line["event"] == "rules.published"]
    assert published["changes"] == "view: window day added; ratio viewed removed; alert cold removed"


def test_a_metric_is_removed_if_it_is_named(server):
    """A start removes the stored metrics that its options name, and no other."""
    client = server.client()
    start(server.url, Rules(BOTH.metric | {"share": Metric()}, BOTH.ratio, alert=BOTH.alert))
    start(server.url, OWN, removing=["like"])
    found = stored(client)
    assert sorted(found.metric) == ["share", "view"]
    assert (found.ratio, found.alert) == ({}, ())


def test_a_file_without_metrics_adds_none(server, tmp_path):
    """A configuration that states a zone and no metrics changes the zone, and no stored metric."""
    client = server.client()
    start(server.url, OWN)
    file = tmp_path / "zone.toml"
    file.write_text('zone = "Asia/Tokyo"\n', encoding="utf-8")
    open_deployment(replace(load(file, {}), redis=RedisSettings(server.url)))
    assert stored(client) == Rules(OWN.metric, zone="Asia/Tokyo")


def test_a_contradiction_with_a_kept_metric_is_explained(server):
    """If the zone of a configuration contradicts a stored metric that it lacks, the error names the metric."""
    start(server.url, Rules({"call": Metric(windows=("day",), limit=5, per="hour")}))
    with pytest.raises(ConfigurationError, match=r"lacks call, which the server has: .* --replace-rules"):
        start(server.url, Rules(OWN.metric, zone="Asia/Kolkata"))


def test_each_change_is_recorded_once(server):
    """A start with other rules adds a record with number, time, publisher and rules; an equal start adds none."""
    client = server.client()
    start(server.url, OWN)
    start(server.url, OWN)
    before = int(client.time()[0]) * 1000
    start(server.url, Rules({"view": Metric(windows=("day",), limit=5, per="day")}))
    first, second = changes(client)
    assert (first.number, first.generation, first.rules, first.differences) == (1, 1, OWN, [])
    assert (second.number, second.rules) == (2, stored(client))
    assert second.differences == ["view: limit none -> 5", "view: per none -> day"]
    assert before <= second.at <= int(client.time()[0]) * 1000 + 1000
    assert " pid " in second.by


def test_the_record_is_bounded(server):
    """The thousand latest changes are kept."""
    client = server.client()
    start(server.url, OWN)
    layout = Deployment.load(client).layout
    ((_, fields),) = client.xrange(layout.rule_changes)
    with client.pipeline() as pipeline:
        for number in range(2, 1000):
            pipeline.xadd(layout.rule_changes, {**fields, b"number": number})
        pipeline.hset(layout.meta, mapping={"revision": 999, "newest-revision": 999})
        pipeline.execute()
    for number in range(3):
        start(server.url, Rules({"view": Metric(top=number)}))
    assert [change.number for change in changes(client)] == list(range(3, 1003))


def test_starts_at_the_same_time_keep_the_metrics_of_all(server):
    """If workers with different configurations start at once, every metric of each is stored, and each change once."""
    names = [f"m{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as threads:
        list(threads.map(lambda name: start(server.url, Rules({name: Metric()})), names))
    with closing(connect(server.url)) as client:
        assert sorted(stored(client).metric) == names
        assert [change.number for change in changes(client)] == list(range(1, 9))


def lose_the_last_rules(server) -> tuple[bytes, ...]:
    """Let a partition be counted by rules whose publication is then lost, as on another node; return its live value."""
    client = server.client()
    start(server.url, OWN)
    with Harness(server.url, rules=OWN, partitions=4) as harness:
        earlier = client.dump(harness.layout.meta)
        start(server.url, BOTH)
        harness.rules = stored(client)
        with Producer(server.url) as producer:
            for number in range(20):
                producer.emit("view", f"s{number}")
            producer.flush()
        harness.drain()
        client.restore(harness.layout.meta, 0, earlier, replace=True)
        return tuple(client.get(keys.live) for keys in harness.layout.keys)


def test_a_worker_publishes_again_after_a_loss(server):
    """If the server lost the rules that count a partition, decisions are taken again soon, though no event arrives."""
    client = server.client()
    assert b"1 2" in lose_the_last_rules(server)
    lines = LogCapture()
    log = structlog.wrap_logger(None, processors=[lines], wrapper_class=structlog.make_filtering_bound_logger(0))
    settings = settings_for(server.url, OWN)
    with counting(settings, log, publishing=False):
        until(lambda: Deployment.load(client).revision == 3, what="the rules with a higher number")
    assert stored(client) == OWN
    assert [line["number"] for line in lines.entries if line["event"] == "rules.lost"] == [2]
    with Producer(server.url) as producer:
        assert all(producer.decide("view", f"s{number}").accepted for number in range(20))


def followed(url: str) -> tuple[PartitionFollower, LogCapture]:
    """Return what follows the rules of a server in a worker, whose partitions are not counted, and its log lines."""
    lines, settings = LogCapture(), settings_for(url, OWN)
    log = structlog.wrap_logger(None, processors=[lines], wrapper_class=structlog.make_filtering_bound_logger(0))
    with closing(connect(url)) as client:
        deployment = Deployment.load(client)
    return PartitionFollower(settings, deployment, log, lambda found: WorkerPool(settings, found, log)), lines


@pytest.mark.parametrize("kept", ["earlier rules", "no rules"])
def test_a_worker_reports_rules_that_a_rollback_lost(server, kept):
    """If older data is on the server, a worker that followed later rules logs their number once, and uses none again.

    No partition shows the loss: the numbers in the partitions are older too.
    """
    client = server.client()
    if kept == "no rules":
        Deployment.create_or_load(client)
        older = copy_of(client)
    start(server.url, OWN)
    if kept == "earlier rules":
        older = copy_of(client)
    start(server.url, BOTH)
    number = Deployment.load(client).revision
    follower, lines = followed(server.url)
    follower.run_once()
    assert lines.entries == []
    go_back(client, older)
    for _ in range(3):
        follower.run_once()
    (line,) = lines.entries
    assert (line["event"], line["number"]) == ("rules.lost", number)
    assert f"change {number} of the rules in tally:meta" in line["problem"]
    start(server.url, Rules({"view": Metric(windows=("hour",))}))
    assert Deployment.load(client).revision > (number if kept == "earlier rules" else 0)


def test_an_undone_rebuild_is_no_lost_rule(server):
    """If a rebuild by other rules is undone, a worker that followed it logs no loss, although the number is lower."""
    with Harness(server.url, rules=OWN) as harness:
        before = Deployment.load(harness.client)
        settings = settings_for(server.url, BOTH)
        with Rebuild(settings, before, propose(harness.client, before, BOTH)) as rebuild:
            rebuild.begin()
            rebuild.catch_up()
            rebuild.switch()
        follower, lines = followed(server.url)
        follower.run_once()
        now = Deployment.load(harness.client)
        with Rebuild(settings, now, 1) as undone:
            undone.catch_up()
            undone.switch()
        assert Deployment.load(harness.client).revision < now.revision
        follower.run_once()
    assert lines.entries == []


def test_a_lost_number_is_not_used_again(server):
    """Rules that are published after a loss get a number above that of the lost rules."""
    client = server.client()
    lose_the_last_rules(server)
    start(server.url, Rules({"view": Metric(windows=("hour",))}))
    assert Deployment.load(client).revision == 3


def copied(client) -> dict[str, dict[str, str]]:
    """Return the recorded changes as an archive has them."""
    return {
        name.decode(): {field.decode(): text.decode() for field, text in fields.items()}
        for name, fields in read_changes(client, Deployment.load(client).layout)
    }


def test_lost_rules_are_brought_back_although_others_are_published(server):
    """If another process publishes rules meanwhile, these and the lost ones are live, and each change is recorded.

    This is so although a worker has given the rules before the loss a higher number than that of the lost change.
    """
    client = server.client()
    start(server.url, OWN)
    older = copy_of(client)
    start(server.url, BOTH)
    archived = copied(client)
    go_back(client, older)
    publish_again(client, Deployment.load(client), 2)
    before = Deployment.load(client)
    start(server.url, Rules({"share": Metric()}))
    assert publish_lost(client, before, archived) == ([2], True)
    assert stored(client).metric == BOTH.metric | {"share": Metric()}
    found = changes(client)
    assert [(each.number, each.at) for each in found] == sorted((each.number, each.at) for each in found)
    assert [each.number for each in found] == [1, 2, 3, 4, 5]
    assert found[1].rules == BOTH
    assert publish_lost(client, Deployment.load(client), archived) == ([], False)


def test_lost_rules_that_contradict_later_ones_are_not_live(server):
    """If the lost rules and those of the server contradict each other, those of the server stay, and this is stated."""
    client = server.client()
    start(server.url, Rules(BOTH.metric))
    older = copy_of(client)
    start(server.url, Rules(BOTH.metric, {"liked": BOTH.ratio["liked"]}))
    archived = copied(client)
    go_back(client, older)
    publish_again(client, Deployment.load(client), 2)
    start(server.url, OWN, removing=["like"])
    assert publish_lost(client, Deployment.load(client), archived) == ([2], False)
    assert stored(client) == OWN


def test_a_number_that_was_given_again_is_not_recorded_twice(server):
    """If the server has given the number of a lost change to other rules, the change is not brought back."""
    client = server.client()
    start(server.url, OWN)
    older = copy_of(client)
    start(server.url, BOTH)
    archived = copied(client)
    go_back(client, older)
    start(server.url, Rules({"share": Metric()}))
    before = changes(client)
    assert publish_lost(client, Deployment.load(client), archived) == ([], False)
    assert changes(client) == before


def test_a_restarted_process_brings_nothing_back(server):
    """A start that does not publish leaves the stored rules alone; if none are stored, it stores none."""
    client = server.client()
    with pytest.raises(NothingDeclared, match="restart the workers"):
        start(server.url, OWN, publishing=False)
    assert client.dbsize() == 0
    start(server.url, OWN)
    start(server.url, BOTH)
    start(server.url, OWN, publishing=False)
    assert stored(client) == BOTH
