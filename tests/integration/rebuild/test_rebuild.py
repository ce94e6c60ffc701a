"""A rebuild counts a new generation next to the live one and switches to it; it can be undone and dropped."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import LogCapture

from tallystream.deployment import Deployment
from tallystream.errors import ConfigurationError, StreamError, TallyError
from tallystream.producing.decider import Decider
from tallystream.producing.producer import Producer
from tallystream.reading.ledger import query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.wire.event import Event
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.rebuild import rebuild as rebuild_module
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.compare import Comparison, compare
from tallystream_worker.rebuild.drop import counter_keys, drop
from tallystream_worker.rebuild.rebuild import Rebuild, propose
from tallystream_worker.runtime.app import counting, without_history
from tallystream_worker.settings.load import load
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import RULES, deliver, feed, happenings, without_zeros
from tests.oracle_rules import tally
from tests.rewind import copy_of
from tests.waiting import until

relaxed = settings(
    max_examples=int(os.environ.get("TALLYSTREAM_EXAMPLES", "4")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def settings_for(url: str, rules: Rules, partitions: int = 2) -> Settings:
    """Return settings for one server."""
    return Settings(redis=RedisSettings(url=url, partitions=partitions), rules=rules)


def rebuilt(harness: Harness, rules: Rules | None = None, **options) -> int:
    """Rebuild, switch, and return the number of the new generation; the harness reads it from then on."""
    rules = rules or harness.rules
    generation = propose(harness.client, Deployment.create_or_load(harness.client), rules)
    with Rebuild(
        settings_for(harness.url, rules), Deployment.create_or_load(harness.client), generation, **options
    ) as run:
        run.begin()
        run.catch_up()
        run.switch()
    harness.rules, harness.layout = rules, Deployment.create_or_load(harness.client).layout
    return generation


def stored(harness: Harness) -> dict[str, dict]:
    """Return totals, numbers of votes above 0 and windows of the harness's generation, without zeros."""
    found = {"totals": {}, "up": {}, "windows": {}}
    for keys in harness.layout.keys:
        for key in counter_keys(harness.client, keys):
            kind, _, rest = key.decode().removeprefix(keys.counters).partition(":")
            metric, _, name = rest.partition(":")
            if kind in ("total", "up"):
                found["totals" if kind == "total" else "up"][metric, name] = int(harness.client.get(key))
            elif kind in ("minute", "hour", "day", "month"):
                for subject, value in harness.client.hgetall(key).items():
                    found["windows"][kind, metric, name, subject.decode()] = int(value)
    return {name: without_zeros(values) for name, values in found.items()}


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_a_rebuild_by_the_same_rules_equals_the_live_counters(server, drawn, seed):
    """By the same rules, a new generation equals the live one, both ledgers agree, and an audit finds no difference."""
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        feed(harness, drawn, chance)
        deliver(harness, chance)
        before = stored(harness)
        assert rebuilt(harness) == 2
        assert stored(harness) == before
        assert compare(harness.client, Deployment.create_or_load(harness.client), 1) == Comparison([], 0)
        assert audit(harness.client, Deployment.create_or_load(harness.client), RULES).differences == []
        with Totals(server.url) as totals:
            for layout in (harness.layout, harness.layout.of(1)):
                books = totals.run(query_ledger(layout))
                assert (books.unaccounted, books.appended) == (0, len(drawn))


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000))
def test_a_rebuild_by_other_rules_equals_the_oracle_under_these(server, drawn, seed):
    """After a change of rules, the rebuilt counters are those that the oracle calculates from the same events."""
    chance = random.Random(seed)
    server.clear()
    old = Rules({name: Metric(ids=None) for name in RULES.metric if RULES.metric[name].once is None})
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        happened = feed(harness, drawn, chance)  # decided by the new rules' limits and votes
        harness.rules = old
        deliver(harness, chance)
        rebuilt(harness, RULES)
        expected, found = tally(happened, RULES.metric), stored(harness)
        for name in ("totals", "up", "windows"):
            assert found[name] == without_zeros(getattr(expected, name)), name


def emit(harness: Harness, subject: str, n: int) -> None:
    """Append `n` plain views of a subject."""
    for _ in range(n):
        harness.client.xadd(harness.layout.keys_of(subject).stream, {"metric": "view", "subject": subject})


def test_undo_catches_up_and_goes_back(server):
    """After an undo, the old generation contains events counted after the switch, and the new one can be dropped."""
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        emit(harness, "a", 3)
        harness.finish()
        rebuilt(harness)
        emit(harness, "a", 4)
        harness.drain()
        Decider(harness.client, Deployment.create_or_load(harness.client))(Event("view", "a"))
        deployment = Deployment.create_or_load(harness.client)
        with Rebuild(settings_for(server.url, RULES), deployment, 1) as run:
            run.catch_up()
            run.switch()
        with Totals(server.url) as totals:
            assert totals.get("a", "view").value == 8
            assert totals.deployment.generation == 1
        assert drop(harness.client, Deployment.create_or_load(harness.client), 2) > 0
        assert not list(harness.client.scan_iter("tally:*:g2:*"))
        assert all(len(harness.client.xinfo_groups(keys.stream)) == 1 for keys in harness.layout.keys)
        assert (
            propose(harness.client, Deployment.create_or_load(harness.client), RULES) == 3
        )  # a number is never used again


def test_the_first_generation_can_be_dropped(server):
    """Dropping the first generation removes its counters and group; the topic's ledger stays, counting continues."""
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        emit(harness, "a", 3)
        harness.finish()
        rebuilt(harness)
        drop(harness.client, Deployment.create_or_load(harness.client), 1)
        assert not any(list(counter_keys(harness.client, keys)) for keys in harness.layout.of(1).keys)
        emit(harness, "a", 2)
        harness.drain()
        with Totals(server.url) as totals:
            assert totals.get("a", "view").value == 5
            books = totals.run(query_ledger(totals.deployment.layout))
            assert (books.appended, books.unaccounted) == (5, 0)


def test_readers_never_see_a_total_go_back(server):
    """While events are counted, a rebuild and an undo never make a total fall or disappear for a reader."""
    configured = settings_for(server.url, RULES)
    logger = structlog.wrap_logger(None, processors=[LogCapture()])
    seen: list[int] = []
    stop = threading.Event()
    with counting(configured, logger), Producer(server.url) as producer, Totals(server.url) as totals:
        producer.emit("view", "a")
        producer.flush(10, wait="counted")

        def read() -> None:
            while not stop.is_set():
                seen.append(totals.get("a", "view").value)

        def write() -> None:
            while not stop.is_set():
                producer.emit("view", "a")
                stop.wait(0.0005)

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        try:
            with Harness(server.url, rules=RULES, partitions=2) as harness:
                rebuilt(harness)
                with Rebuild(configured, Deployment.create_or_load(harness.client), 1) as run:
                    run.catch_up()
                    run.switch()
            looks = len(seen)
            until(lambda: len(seen) > looks + 20, what="the reader to continue")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        producer.flush(20, wait="counted")
        emitted = producer.stats.emitted
        until(lambda: totals.get("a", "view").value == emitted, what="the reader to follow the switch")
        assert seen == sorted(seen)
        assert seen[0] >= 1
        assert totals.run(query_ledger(totals.deployment.layout)).unaccounted == 0


def test_a_switch_that_never_catches_up_gives_up(server, monkeypatch):
    """A switch ends with an error at its limit, also if each of its steps has counted entries until then."""
    monkeypatch.setattr(rebuild_module, "SWITCH_TIMEOUT", 0.5)  # less than CLAIM_IDLE
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        emit(harness, "a", 3)
        harness.finish()
        generation = propose(harness.client, Deployment.create_or_load(harness.client), RULES)
        keys = harness.layout.of(generation).keys[0]
        with Rebuild(settings_for(server.url, RULES), Deployment.create_or_load(harness.client), generation) as run:
            run.begin()
            run.catch_up()
            emit(harness, "a", 1)
            assert harness.client.xreadgroup(keys.group, "other", {keys.stream: ">"})  # stays pending
            (partition,) = run._partitions
            step = partition._step

            def step_under_load() -> int:
                emit(harness, "a", 1)
                return step()

            monkeypatch.setattr(partition, "_step", step_under_load)
            with pytest.raises(StreamError, match="did not catch up"):
                run.switch()


def test_a_lost_group_is_made_good(server):
    """After the consumer groups were destroyed, a rebuild counts every entry of the streams."""
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        emit(harness, "a", 3)
        harness.finish()
        emit(harness, "a", 2)
        for keys in harness.layout.keys:
            harness.client.xgroup_destroy(keys.stream, keys.group)
        rebuilt(harness)
        with Totals(server.url) as totals:
            assert totals.get("a", "view").value == 5


@pytest.mark.parametrize("left", [2, 0])
def test_what_is_gone_comes_from_the_archive(server, tmp_path, left):
    """A rebuild of trimmed or empty streams is refused without an archive; with one, it counts each entry once."""
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        emit(harness, "a", 30)
        emit(harness, "b", 30)
        harness.finish()
        store = Store(str(tmp_path / "archive"))
        Archive(harness.client, store, Deployment.create_or_load(harness.client)).run_once(settled=0)
        for keys in harness.layout.keys:
            harness.client.xtrim(keys.stream, maxlen=left, approximate=False)
        with pytest.raises(ConfigurationError, match="no longer in the streams"):
            rebuilt(harness)
        rebuilt(harness, archive=store.url)
        emit(harness, "a", 1)
        harness.drain()
        with Totals(server.url) as totals:
            assert (totals.get("a", "view").value, totals.get("b", "view").value) == (31, 30)
            books = totals.run(query_ledger(totals.deployment.layout))
            assert (books.appended, books.unaccounted) == (61, 0)


@pytest.mark.parametrize("archive", ["", "lacks the entries", "does not exist", "is no folder"])
def test_a_refused_rebuild_leaves_nothing(server, tmp_path, archive):
    """If entries are gone, and no archive has them, a rebuild leaves no generation that would have to be finished."""
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        emit(harness, "a", 30)
        harness.finish()
        store = Store(str(tmp_path / "archive"))
        if archive == "lacks the entries":
            Archive(harness.client, store, Deployment.load(harness.client)).run_once(settled=0)
            for file in (tmp_path / "archive").glob("**/*.parquet"):
                file.unlink()
        elif archive == "is no folder":
            (tmp_path / "archive").write_text("x")
        for keys in harness.layout.keys:
            harness.client.xtrim(keys.stream, maxlen=2, approximate=False)
        before = copy_of(harness.client)
        with pytest.raises(TallyError):
            rebuilt(harness, archive=archive and store.url)
        after = copy_of(harness.client)
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        names = {name for keys in harness.layout.keys for name in (keys.stream, keys.sequences)}  # with the turn
        assert changed <= {b"tally:meta", *(name.encode() for name in names)}
        assert [len(harness.client.xinfo_groups(keys.stream)) for keys in harness.layout.keys] == [
            1 + bool(archive == "lacks the entries")
        ] * 2
        deployment = Deployment.load(harness.client)
        assert (deployment.building, deployment.others) == (None, {})
        rebuilt(harness, accept_loss=True)


def test_a_refusal_keeps_what_an_interrupted_rebuild_has_counted(server, tmp_path):
    """If a rebuild that was interrupted is continued without the archive that it needs, it can still be continued."""
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        (keys,) = harness.layout.keys
        emit(harness, "a", 30)
        harness.finish()
        store = Store(str(tmp_path))
        Archive(harness.client, store, Deployment.load(harness.client)).run_once(settled=0)
        harness.client.xtrim(keys.stream, maxlen=2, approximate=False)
        generation = propose(harness.client, Deployment.load(harness.client), RULES)
        deployment = Deployment.load(harness.client)
        with Rebuild(settings_for(server.url, RULES), deployment, generation, archive=store.url) as run:
            run.begin()  # and it is killed
        with pytest.raises(ConfigurationError, match="no longer in the streams"):
            rebuilt(harness)
        assert Deployment.load(harness.client).building == generation
        assert rebuilt(harness, archive=store.url) == generation


@pytest.mark.parametrize("first", [10, 0])
def test_a_continued_rebuild_counts_nothing_twice(server, tmp_path, first):
    """Entries that are archived and trimmed after a rebuild began are counted once if it is interrupted and continued.

    `first` is the number of entries that the stream has when the rebuild begins.
    """
    with Harness(server.url, rules=RULES, partitions=1) as harness:
        (keys,) = harness.layout.keys
        emit(harness, "a", 30)
        harness.finish()
        archive = Archive(harness.client, store := Store(str(tmp_path)), Deployment.create_or_load(harness.client))
        archive.run_once(settled=0)
        harness.client.xtrim(keys.stream, maxlen=first, approximate=False)
        deployment = Deployment.create_or_load(harness.client)
        generation = propose(harness.client, deployment, RULES)
        deployment = Deployment.create_or_load(harness.client)
        settings = settings_for(server.url, RULES)
        with Rebuild(settings, deployment, generation, archive=store.url) as run:
            run.begin()  # and it is killed
        emit(harness, "a", 5)
        harness.drain()
        archive.run_once(settled=0)
        with Rebuild(settings, deployment, generation, archive=store.url) as run:
            run.begin()
            run.catch_up()
        harness.client.xtrim(keys.stream, maxlen=3, approximate=False)
        rebuilt(harness, archive=store.url)
        with Totals(server.url) as totals:
            assert totals.get("a", "view").value == 35
            books = totals.run(query_ledger(totals.deployment.layout))
            assert (books.appended, books.counted, books.unaccounted) == (35, 35, 0)


def test_a_continued_rebuild_leaves_live_partitions_to_the_workers(server):
    """In a partition that has switched, a continued rebuild counts nothing: the worker counts, and alerts fire."""
    alert = Alert("many", "view", above=5)
    rules = Rules({"view": Metric()}, alert=(alert,))
    with Harness(server.url, rules=rules, partitions=1) as harness:
        emit(harness, "a", 3)
        harness.finish()
        generation = propose(harness.client, Deployment.create_or_load(harness.client), rules)
        deployment = Deployment.create_or_load(harness.client)
        with Rebuild(settings_for(server.url, rules), deployment, generation) as run:
            run.begin()
            run.catch_up()
            run._partitions[0].switch()  # and it is killed before the description changes
        emit(harness, "a", 3)
        rebuilt(harness, rules)
        (keys,) = harness.layout.keys
        assert keys.generation == generation
        harness.drain()
        with Totals(server.url) as totals:
            assert totals.get("a", "view").value == 6
        ((_, notification),) = harness.client.xrange(keys.outbox)
        assert notification[b"subject"] == b"a"


PLACES = ["rebuild-begun:1", "before-apply:1", "after-apply:2", "rebuild-filled:2", "rebuild-caught-up:1"]
SWITCHING = ["rebuild-switching:1", "rebuild-switching:2", "rebuild-switched:1"]


@pytest.mark.slow
@pytest.mark.parametrize("place", [*PLACES, *SWITCHING])
def test_a_killed_rebuild_goes_on_where_it_was(server, tmp_path, place):
    """If a rebuild is killed with SIGKILL at any step, totals stay correct, and the same command completes it."""
    config = tmp_path / "tallystream.toml"
    config.write_text('[redis]\npartitions = 2\n[metric.view]\nwindows = ["day"]\ntop = 5\n')
    rules = Rules({"view": Metric(windows=("day",), top=5)})
    program = Path(sys.executable).parent / "tallystream"
    command = [str(program), "rebuild", "--redis", server.url, "--config", str(config)]
    with Harness(server.url, rules=rules, partitions=2) as harness, Totals(server.url) as totals:
        for number in range(600):
            emit(harness, f"s{number % 9}", 1)
        harness.finish()
        before = totals.get_many((f"s{n}", "view") for n in range(9)).values
        killed = subprocess.run(command, env=os.environ | {"TALLYSTREAM_FAILPOINT": place}, check=False, timeout=60)
        assert killed.returncode == -9
        with Totals(server.url) as reader:
            assert reader.get_many((f"s{n}", "view") for n in range(9)).values == before
        if place != "rebuild-switched:1":
            subprocess.run(command, check=True, timeout=60)
        harness.layout = Deployment.create_or_load(harness.client).layout
        emit(harness, "s0", 1)
        harness.drain()
        deployment = Deployment.create_or_load(harness.client)
        assert {keys.generation for keys in deployment.layout.keys} == {deployment.generation} == {2}
        with Totals(server.url) as reader:
            assert reader.get("s0", "view").value == before["s0", "view"] + 1
            assert reader.run(query_ledger(deployment.layout)).unaccounted == 0
        assert audit(harness.client, deployment, rules).differences == []


def test_rules_that_change_are_said(server):
    """A worker that starts with other rules logs the metrics that need a rebuild, and the command for it."""
    log = LogCapture()
    logger = structlog.wrap_logger(None, processors=[log])
    with counting(settings_for(server.url, Rules({"view": Metric(), "like": Metric()})), logger):
        pass
    with counting(settings_for(server.url, Rules({"view": Metric(top=5), "like": Metric(floor=0)})), logger):
        pass
    (warning,) = [entry for entry in log.entries if entry["event"] == "rules.changed"]
    assert warning["metrics"] == "view"
    assert "tallystream rebuild" in warning["action"]


@pytest.mark.parametrize(
    ("change", "is_said"),
    [
        ({"top": 2}, False), ({"top": 0}, False), ({"top": 9}, True),
        ({"windows": ("day",)}, False), ({"windows": ("day", "hour", "month")}, True),
        ({"retention": {"hour": "1d"}}, False), ({"retention": {"hour": "900d"}}, True),
        ({"retention": {"hour": "forever"}}, True),
        ({"unique": None}, False), ({"unique": "hour"}, True),
        ({"ids": "hour"}, False), ({"description": "A"}, False), ({"limit": 3, "per": "hour"}, True),
    ],
)  # fmt: skip
def test_a_rebuild_is_named_only_if_it_changes_a_figure(change, is_said):
    """A worker does not name a metric whose new rules only leave out what was counted before."""
    before = Metric(windows=("day", "hour"), top=5, unique="day", retention={"hour": "400d"})
    now = msgspec.structs.replace(before, **change)
    assert without_history(Rules({"view": before}), Rules({"view": now})) == ["view"] * is_said


LIMITED = Metric(limit=5, per="day")
FEW = Metric(max_subjects=9)


@pytest.mark.parametrize(
    ("before", "now", "is_said"),
    [
        (LIMITED, Metric(limit=3, per="day"), False), (LIMITED, Metric(limit=9, per="day"), False),
        (LIMITED, Metric(), False), (LIMITED, Metric(limit=5, per="hour"), True), (Metric(), LIMITED, True),
        (Metric(once="day"), Metric(), False), (Metric(once="day"), Metric(once="30d"), False),
        (Metric(), Metric(once="forever"), True),
        (Metric(), FEW, False), (FEW, Metric(max_subjects=5), False), (FEW, Metric(max_subjects=50), True),
        (FEW, Metric(), True), (Metric(), Metric(exact=False), True), (Metric(exact=False), Metric(), True),
        (Metric(), Metric(seen="bloom"), False), (Metric(ids=None), Metric(), False),
        (Metric(), Metric(accept_late="1h"), False), (Metric(), Metric(late="aside"), False),
        (Metric(ids=None), Metric(ids=None, spread=True), False),
    ],
)  # fmt: skip
def test_a_rebuild_is_named_as_on_the_page(before, now, is_said):
    """A worker names a metric if the page lists its change among those that make figures inexact until a rebuild."""
    assert without_history(Rules({"view": before}), Rules({"view": now})) == ["view"] * is_said


def test_without_a_configuration_the_stored_rules_stay(server, tmp_path):
    """A worker or a rebuild in a folder without a configuration uses the stored rules, and reports it."""
    rules = Rules({"signup": Metric(windows=("day",))}, zone="Asia/Kolkata")
    log = LogCapture()
    logger = structlog.wrap_logger(None, processors=[log], wrapper_class=structlog.make_filtering_bound_logger(0))
    with counting(settings_for(server.url, rules), logger):
        pass
    nothing = replace(load(environment={}, file=empty(tmp_path)), redis=RedisSettings(url=server.url))
    with counting(nothing, logger):
        pass
    (entry,) = [entry for entry in log.entries if entry["event"] == "rules.stored"]
    assert entry["metrics"] == "signup"
    with Harness(server.url, rules=rules, partitions=2) as harness:
        assert Deployment.create_or_load(harness.client).rules == rules
        program = Path(sys.executable).parent / "tallystream"
        done = subprocess.run(
            [str(program), "rebuild", "--redis", server.url, "--json"],
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert "no configuration file states rules: the stored rules are used" in done.stderr
        deployment = Deployment.create_or_load(harness.client)
        assert (deployment.generation, deployment.rules) == (2, rules)


def empty(folder: Path) -> Path:
    """Return a configuration file that states no rules."""
    file = folder / "other.toml"
    file.write_text("[worker]\nprocesses = 1\n", encoding="utf-8")
    return file
