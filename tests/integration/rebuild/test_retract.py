"""After a retraction, the counters are as if the retracted events had never happened."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystream.deployment import Deployment
from tallystream.producing.decider import Decider
from tallystream.producing.producer import Producer
from tallystream.reading.ledger import OUTCOMES, query_ledger
from tallystream.reading.totals import Totals
from tallystream.rules.metrics import Metric, Rules, publish
from tallystream.rules.retraction import Retraction
from tallystream.storage.keys import partition_of
from tallystream.wire.codec import Payload, Single, encode
from tallystream.wire.event import Event
from tallystream_worker.archive.service import Archive
from tallystream_worker.archive.store import Store
from tallystream_worker.cli.generation import build
from tallystream_worker.dead_letters.retry import retry
from tallystream_worker.dead_letters.store import letters
from tallystream_worker.rebuild.audit import audit
from tallystream_worker.rebuild.drop import drop
from tallystream_worker.rebuild.retract import effect, ends, propose_without
from tallystream_worker.repartition import topic
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.runtime.app import open_deployment
from tests.harness import Harness
from tests.integration.counting.test_rules_exact import RULES, deliver, feed, happenings, without_zeros
from tests.integration.rebuild.test_rebuild import rebuilt, relaxed, settings_for, stored
from tests.oracle_rules import tally

PROGRAM = Path(sys.executable).parent / "tallystream"


def taken_back(harness, **of):
    """Retract events and switch; return the effect. The harness reads the generation without them from then on."""
    deployment = Deployment.create_or_load(harness.client)
    retraction = Retraction(ends(harness.client, deployment), **of)
    found = effect(harness.client, deployment, retraction)
    generation = propose_without(harness.client, deployment, retraction)
    build(settings_for(harness.url, harness.rules), Deployment.create_or_load(harness.client), generation, "")
    deployment = Deployment.create_or_load(harness.client)
    harness.layout, harness.rules = deployment.layout, deployment.rules
    return found


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000), by=st.sampled_from(["actor", "subject", "metric", "id", "two"]))
def test_what_is_taken_back_never_happened(server, drawn, seed, by):
    """Under all rules, the counters are those of the other events by the oracle, and an audit finds no difference."""
    chance = random.Random(seed)
    server.clear()
    victim, _ = chance.choice(drawn)
    of = {by: getattr(victim, by)} if by != "two" else {"metric": victim.metric, "subject": victim.subject}
    of = {name: value for name, value in of.items() if value is not None} or {"subject": victim.subject}
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        happened = feed(harness, drawn, chance)
        deliver(harness, chance)
        kept = [one for one in happened if any(getattr(one, name) != value for name, value in of.items())]
        found = taken_back(harness, **of)
        assert found.total == len(happened) - len(kept)
        expected, now = tally(kept, RULES.metric), stored(harness)
        for name in ("totals", "up", "windows"):
            assert now[name] == without_zeros(getattr(expected, name)), name
        with Totals(server.url) as totals:
            ledger = totals.run(query_ledger(totals.deployment.layout))
            assert (ledger.unaccounted, ledger.appended, ledger.events["retracted"]) == (0, len(drawn), found.total)
        assert audit(harness.client, Deployment.create_or_load(harness.client), harness.rules).differences == []


def moved(harness, partitions):
    """Repartition, and drop everything that is not live; the harness reads the new topic from then on."""
    drop_all(harness)
    repartition(settings_for(harness.url, harness.rules), Deployment.create_or_load(harness.client), partitions)
    drop_all(harness)
    deployment = Deployment.create_or_load(harness.client)
    harness.layout, harness.rules = deployment.layout, deployment.rules


def drop_all(harness):
    """Remove the generations and topics that are not live."""
    deployment = Deployment.create_or_load(harness.client)
    for generation in deployment.others:
        drop(harness.client, deployment, generation)
    topic.drop(harness.client, deployment)


def stated(harness):
    """Return the events of the ledger by outcome, and check that an audit finds no difference."""
    deployment = Deployment.create_or_load(harness.client)
    assert audit(harness.client, deployment, deployment.rules).differences == []
    with Totals(harness.url) as totals:
        ledger = totals.run(query_ledger(totals.deployment.layout))
    assert ledger.unaccounted == 0
    return {"appended": ledger.appended} | {name: ledger.events[name] for name in OUTCOMES if ledger.events[name]}


@relaxed
@given(drawn=happenings(), seed=st.integers(0, 10_000), partitions=st.lists(st.integers(1, 4), min_size=2, max_size=2))
def test_what_is_taken_back_stays_so_in_every_later_topic(server, drawn, seed, partitions):
    """After moves between retractions, the counters are those of the other events by the oracle, also after a rebuild.

    Events that are appended after a retraction count, also if they match it. The ledger stays the same in a move. A
    rebuild by rules without retractions counts every event, so a move loses none of them.
    """
    chance = random.Random(seed)
    server.clear()
    with Harness(server.url, rules=RULES, partitions=2) as harness:
        happened, kept = feed(harness, drawn, chance), []
        for number, of in enumerate(({"actor": "u1"}, {"subject": happened[0].subject})):
            deliver(harness, chance)
            left = kept if number else happened
            kept = [one for one in left if any(getattr(one, name) != value for name, value in of.items())]
            assert taken_back(harness, **of).total == len(left) - len(kept)
            before = stated(harness)
            moved(harness, partitions[number])
            assert stated(harness) == before
            more = feed(harness, drawn[:10], chance)
            happened, kept = happened + more, kept + more
        deliver(harness, chance)
        for again in (False, True):
            if again:
                rebuilt(harness)
            expected, found = tally(kept, RULES.metric), stored(harness)
            for name in ("totals", "up", "windows"):
                assert found[name] == without_zeros(getattr(expected, name)), name
            assert stated(harness)["appended"] == len(happened)
        drop_all(harness)
        harness.client.hset(harness.layout.meta, "rules", publish(RULES))
        rebuilt(harness)
        assert stored(harness)["totals"] == without_zeros(tally(happened, RULES.metric).totals)


def test_a_move_marks_only_copies_of_retracted_events(server):
    """A copy without a retracted event has no mark, and a mark names the retractions that remove events of the copy."""
    with Harness(server.url, metrics=["view"], partitions=1) as harness, Producer(server.url, linger=0) as producer:
        for subject in ("a", "b", "c"):
            producer.emit("view", subject)
            producer.flush(5)
        harness.finish()
        taken_back(harness, subject="a")
        drop_all(harness)
        taken_back(harness, subject="c")
        for _ in range(2):
            moved(harness, 1 + harness.layout.partitions % 2)
            copies = [fields for keys in harness.layout.keys for _, fields in harness.client.xrange(keys.stream)]
            assert sorted(fields.get(b"r", b"") for fields in copies) == [b"", b"0", b"1"]
            assert stated(harness) == {"appended": 3, "counted": 1, "retracted": 2}


def test_a_retraction_after_a_move_is_undone_alone(server):
    """`rebuild --undo` of a retraction that was made after a move keeps the retractions that were made before it."""
    with Harness(server.url, metrics=["view"], partitions=2) as harness:
        for subject in ("a", "b", "c"):
            harness.client.xadd(harness.layout.keys_of(subject).stream, {"metric": "view", "subject": subject})
        harness.finish()
        taken_back(harness, subject="a")
        moved(harness, 3)
        before = harness.rules
        assert taken_back(harness, subject="b").total == 1
        assert harness.totals() == {("view", "c"): 1}
        subprocess.run([PROGRAM, "rebuild", "--undo", "--redis", harness.url], check=True, capture_output=True)
        deployment = Deployment.create_or_load(harness.client)
        assert deployment.rules == before
        harness.layout = deployment.layout
        assert harness.totals() == {("view", "b"): 1, ("view", "c"): 1}


def test_a_dead_letter_of_retracted_events_stays_retracted_after_a_move(server):
    """A dead letter that is retried after a move does not count the events that were retracted before the move."""
    with Harness(server.url, metrics=["view"], partitions=1) as harness:
        subject = next(name for n in range(9) if partition_of(name := f"s:{n}", 2) == 0)
        packed = encode(Payload([], [Single("view", subject, 1, 60_000, f"u{number}", None) for number in range(3)]))
        fields = {"v": "2", "p": "other", "q": 1, "n": 3, "b": packed}
        harness.client.xadd(harness.layout.keys[0].stream, fields)
        harness.client.hincrby(harness.layout.keys[0].topic_ledger, "appended", 3)
        harness.client.hincrby(harness.layout.keys[0].topic_ledger, "entries:gated", 1)
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": "b", "actor": "u1"})
        harness.finish()
        assert taken_back(harness, actor="u1").total == 1
        moved(harness, 2)
        (letter,) = (found for n in range(2) for found in letters(harness.client, harness.layout, n))
        readable = replace(letter, fields=dict(letter.fields) | {b"v": b"1"})  # as if a later release reads version 2
        now = Deployment.load(harness.client)
        retried = retry(harness.client, now.layout, now.rules, readable, now.revision)
        assert (retried.counted, retried.dead) == (3, 0)
        assert harness.totals() == {("view", subject): 2}
        assert harness.ledger()["retracted"] == 2


@pytest.fixture
def harness(server):
    """Provide counted views by actors, and counted votes."""
    rules = Rules({"view": Metric(unique="day", windows=("hour",), top=5), "vote": Metric(once="forever")})
    with Harness(server.url, rules=rules) as harness:
        with Producer(server.url) as producer:
            for number in range(60):
                producer.emit("view", f"a:{number % 3}", actor=f"u{number % 10}")
            producer.emit("view", "a:0", 5)
            producer.emit("vote", "a:0", 1, actor="u1", at=1_700_000_000)
            producer.emit("vote", "a:0", -1, actor="u1", at=1_700_000_060)
        harness.drain()
        yield harness


def test_a_vote_uncovers_the_one_before_it(harness):
    """When the latest vote of an actor is retracted, the vote before it counts again."""
    assert harness.totals()["vote", "a:0"] == -1
    found = taken_back(harness, metric="vote", begin=1_700_000_040_000)
    assert found.total == 1
    assert harness.totals()["vote", "a:0"] == 1


def test_unique_actors_forget_one(harness):
    """An actor whose events are retracted is not among the unique actors."""
    (key,) = [
        key for keys in harness.layout.keys for key in harness.client.scan_iter(f"{keys.prefix}unique:view:*:a:0")
    ]
    assert harness.client.pfcount(key) == 10
    taken_back(harness, actor="u1")
    (key,) = [
        key for keys in harness.layout.keys for key in harness.client.scan_iter(f"{keys.counters}unique:view:*:a:0")
    ]
    assert harness.client.pfcount(key) == 9


def test_what_happens_afterwards_counts(harness):
    """Later events that match a retraction count, and a worker's start keeps the retraction."""
    taken_back(harness, subject="a:1")
    assert ("view", "a:1") not in harness.totals()
    with Producer(harness.url) as producer:
        producer.emit("view", "a:1", actor="u1")
    harness.drain()
    Decider(harness.client, Deployment.create_or_load(harness.client))(Event("view", "a:1"))
    assert harness.totals()["view", "a:1"] == 2
    retracted = harness.rules.retracted
    open_deployment(settings_for(harness.url, Rules(harness.rules.metric), partitions=4))
    deployment = Deployment.create_or_load(harness.client)
    assert deployment.rules.retracted == retracted != ()
    assert audit(harness.client, deployment, deployment.rules).differences == []


def test_the_effect_ends_where_the_retraction_ends(harness, tmp_path):
    """Entries after the end of a retraction are not in its effect, also if only the archive has them."""
    deployment = Deployment.create_or_load(harness.client)
    retraction = Retraction(ends(harness.client, deployment), subject="a:1")
    before = effect(harness.client, deployment, retraction)
    assert before.total > 0
    with Producer(harness.url) as producer:
        producer.emit("view", "a:1", actor="u1")
    harness.drain()
    archive = Store(str(tmp_path))
    Archive(harness.client, archive, deployment).run_once(settled=0)
    assert effect(harness.client, deployment, retraction, archive.url) == before
    for keys in deployment.layout.keys:
        harness.client.xtrim(keys.stream, maxlen=0, approximate=False)
    assert effect(harness.client, deployment, retraction, archive.url) == before


def test_a_second_retraction_and_a_rebuild_keep_the_first(harness):
    """Retracted events stay retracted after another retraction and after a rebuild."""
    taken_back(harness, subject="a:1")
    subprocess.run([PROGRAM, "rebuild", "--drop", "--redis", harness.url], check=True, capture_output=True)
    taken_back(harness, subject="a:2")
    subprocess.run([PROGRAM, "rebuild", "--drop", "--redis", harness.url], check=True, capture_output=True)
    rebuilt(harness)
    assert {subject for _, subject in harness.totals()} == {"a:0"}


@pytest.fixture
def retract(harness):
    """Provide a function that runs `tallystream retract` with arguments, and checks its exit status."""

    def run(*arguments, status=0):
        done = subprocess.run(
            [PROGRAM, "retract", *arguments, "--redis", harness.url], capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        return done

    return run


def test_the_command_states_up_to_which_moment_events_are_taken_back(harness, retract):
    """The answer states the last moment, and that later events count; after a drop, the command takes these too."""
    before = ends(harness.client, Deployment.load(harness.client))
    assert json.loads(retract("--actor", "u1", "--dry-run", "--json").stdout)["until"] == before
    answer = " ".join(retract("--actor", "u1").stdout.split())
    milliseconds = max(int(last.partition("-")[0]) for last in before.values())
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    assert f"taken back up to {moment}.{milliseconds % 1000:03} UTC; generation 2 is live" in answer
    assert "Events that were appended later count, even if they match" in answer
    assert "run tallystream rebuild --drop, then this command again" in answer
    with Producer(harness.url) as producer:
        producer.emit("view", "a:1", actor="u1")
    subprocess.run([PROGRAM, "rebuild", "--drop", "--redis", harness.url], check=True, capture_output=True)
    now = ends(harness.client, Deployment.load(harness.client))
    found = json.loads(retract("--actor", "u1", "--json").stdout)
    assert (found["events"], found["generation"], found["until"]) == (1, 3, now)
    assert now != before


def test_a_retraction_that_is_refused_shows_no_events(harness, retract):
    """While another generation is kept or built, or a repartition runs, the refusal is all that is printed.

    The entries are not read before. With --dry-run, the command shows the events.
    """

    def refusal(*options):
        done = retract("--actor", "u1", "--archive", "nothing://x", *options, status=1)
        assert done.stdout == ""
        return " ".join(done.stderr.split())

    rebuilt(harness)
    assert "generation 1 is still kept" in (told := refusal())
    assert "tallystream rebuild --drop" in told
    assert "8 events of 4 counters" in retract("--actor", "u1", "--dry-run").stdout
    drop_all(harness)
    deployment = Deployment.load(harness.client)
    propose_without(harness.client, deployment, Retraction(ends(harness.client, deployment), actor="u2"))
    assert "generation 3 is being built by other rules" in refusal("--json")
    drop_all(harness)
    topic.propose(harness.client, Deployment.load(harness.client), 2)
    assert "while a repartition is running" in refusal()


def test_a_repeated_retraction_that_is_refused_shows_no_events(harness, retract):
    """If a retraction is repeated while the generation before is kept, later events that match are refused unseen."""
    retract("--actor", "u1")
    with Producer(harness.url) as producer:
        producer.emit("view", "a:1", actor="u1")
    done = retract("--actor", "u1", status=1)
    assert (done.stdout, "generation 1 is still kept" in done.stderr) == ("", True)


def test_the_command(harness, retract):
    """`retract --dry-run` shows the events and changes nothing; `retract` removes them, or reports that none match."""
    dry = json.loads(retract("--actor", "u1", "--metric", "view", "--dry-run", "--json").stdout)
    assert (dry["events"], dry["generation"]) == (6, None)
    assert {(row["subject"], row["events"], row["amount"]) for row in dry["counters"]} == {
        ("a:0", 2, 2), ("a:1", 2, 2), ("a:2", 2, 2),
    }  # fmt: skip
    assert harness.totals()["view", "a:0"] == 25
    assert "6 events of 3 counters" in retract("--actor", "u1", "--metric", "view", "--dry-run").stdout
    assert "generation 2 is live" in retract("--actor", "u1", "--metric", "view").stdout.replace("\n", " ")
    with Totals(harness.url) as totals:
        assert totals.get("a:0", "view").value == 23
    assert "no stored event matches" in retract("--actor", "u1", "--metric", "view").stdout, "a repetition"
    drop_all(harness)
    assert "no stored event matches" in retract("--actor", "nobody").stdout
    assert "name the events" in retract(status=2).stderr
    assert "whole minute" in retract("--from", "1700000001", status=2).stderr
