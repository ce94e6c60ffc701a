"""While a primary without a replica is down, what is on the other nodes is read, and what is missing is named."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import redis
import structlog

from tallystream import NodeUnreachable, Producer, Totals, aio
from tallystream.client.connect import connect
from tallystream.reading.counters import MissingCounter
from tallystream.reading.reach import UnreachablePartition
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.keys import Layout, partition_of
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.http_service import http_service
from tests.integration.cli.test_cli import Shell
from tests.local_cluster import KINDS, local_cluster
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

RULES = Rules(
    {
        "view": Metric("", ("hour",), top=10, ids=None),
        "hot": Metric("", ("hour",), top=10, spread=True, ids=None),
        "call": Metric("", limit=10, per="total", ids=None),
    }
)
PARTITIONS = 8
SUBJECTS = [f"s{number}" for number in range(40)]
HOT = 400


class Broken(NamedTuple):
    """A cluster of which one node is down, and what it had."""

    url: str
    node: str
    streams: list[str]
    lost: list[str]
    """The subjects in the partitions of the node."""
    kept: list[str]
    """The other subjects."""
    totals: Totals
    """Has read the deployment while the node was up."""
    http: httpx.Client
    """A client of a read service that was started while the node was up."""
    has_meta: bool
    """Whether the node had the description of the deployment."""
    position: str
    """The position of a reader of live updates, just before the node went down."""


@pytest.fixture(
    scope="module", params=[(kind, node) for kind in KINDS for node in ("another node", "node of meta")], ids=str
)
def broken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    """Provide a cluster that has counted events of all subjects, and of which one of three nodes was then killed."""
    kind, which = request.param
    with ExitStack() as stack:
        cluster = stack.enter_context(local_cluster(kind, tmp_path_factory.mktemp(kind), replicas=0))
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        keys = Layout(PARTITIONS).keys
        meta = cluster.owner("tally:meta")
        owners = [cluster.owner(each.stream) for each in keys]
        gone = meta if which == "node of meta" else next(owner for owner in owners if owner is not meta)
        settings = Settings(redis=RedisSettings(url=cluster.url, partitions=PARTITIONS), rules=RULES)
        with counting(settings, structlog.get_logger()), Producer(cluster.url) as producer:
            for subject in SUBJECTS:
                producer.emit("view", subject)
            for _ in range(HOT // 10):  # each entry may go to another partition
                for _ in range(10):
                    producer.emit("hot", "all")
                producer.flush(20)
            producer.flush(20, wait="counted")
        totals = stack.enter_context(Totals(cluster.url))
        assert totals.get("all", "hot").value == HOT
        http = stack.enter_context(http_service(cluster.url))
        assert http.get("/v1/counters/all/hot").json()["value"] == HOT
        with (
            http_service(cluster.url) as reading,
            reading.stream("GET", "/v1/live", params={"metric": "view"}) as lines,
        ):
            position = next(line.removeprefix("id: ") for line in lines.iter_lines() if line.startswith("id: "))
        gone.server.kill()
        others = [node for node in cluster.nodes if node is not gone]
        until(lambda: all(b"fail" in bytes(node.ask("CLUSTER", "NODES")) for node in others), 30, 0.05, "the failure")
        lost = {number for number, owner in enumerate(owners) if owner is gone}
        yield Broken(
            cluster.url,
            f"127.0.0.1:{gone.port}",
            [keys[number].stream for number in sorted(lost)],
            [each for each in SUBJECTS if partition_of(each, PARTITIONS) in lost],
            [each for each in SUBJECTS if partition_of(each, PARTITIONS) not in lost],
            totals,
            http,
            gone is meta,
            position,
        )


@pytest.fixture
def named(broken: Broken) -> list[UnreachablePartition]:
    """Provide the partitions that answers must name."""
    return [UnreachablePartition(stream, broken.node) for stream in broken.streams]


def test_a_pipeline_raises_the_error_of_a_node_that_is_down(broken):
    """A reply that a node did not give is an error of the pipeline, unless the caller asks for the errors."""
    with closing(connect(broken.url)) as client:
        names = [keys.sequences for keys in Layout(PARTITIONS).keys]
        with client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.exists(name)
            with pytest.raises(redis.ConnectionError):
                pipeline.execute()
            for name in names:
                pipeline.exists(name)
            replies = pipeline.execute(raise_on_error=False)
        down = sum(isinstance(reply, redis.RedisError) for reply in replies)
        assert down == len(broken.streams)


def test_a_total_on_another_node_is_exact(broken):
    """A counter whose partition is on a node that answers is read as if nothing had happened."""
    for subject in broken.kept:
        found = broken.totals.get(subject, "view")
        assert (found.value, found.lag, found.error, found.unreachable) == (1, 0, 0, [])


def test_a_total_on_the_node_that_is_down_is_an_error_that_names_it(broken):
    """A counter whose only partition is missing raises the error `NodeUnreachable`, which names stream and node."""
    for read in (
        lambda: broken.totals.get(broken.lost[0], "view"),
        lambda: broken.totals.get_many([(broken.lost[0], "view")]),
        lambda: broken.totals.series(broken.lost[0], "view", "hour"),
        lambda: broken.totals.limit(broken.lost[0], "call"),
    ):
        with pytest.raises(NodeUnreachable) as caught:
            read()
        assert caught.value.nodes == [broken.node]
        assert caught.value.keys[0] in broken.streams
        assert broken.node in str(caught.value)


def test_many_totals_are_read_in_part(broken, named):
    """`get_many` returns the totals that can be read, and names each other one with its stream."""
    found = broken.totals.get_many([*((subject, "view") for subject in SUBJECTS), ("all", "hot")])
    assert found.values == {(subject, "view"): 1 for subject in broken.kept}
    assert found.unreachable == named
    assert (found.lag, found.error) == (None, None)
    *views, hot = found.missing
    streams = {subject: [Layout(PARTITIONS).keys_of(subject).stream] for subject in broken.lost}
    assert views == [MissingCounter(subject, "view", streams[subject], None) for subject in broken.lost]
    assert hot.streams == broken.streams
    assert hot.at_least == broken.totals.get("all", "hot").value


def test_a_spread_total_is_a_lower_bound(broken, named):
    """The total, the series and the sum of a spread metric state what the other partitions have, and that it lacks."""
    total = broken.totals.get("all", "hot")
    assert 0 < total.value < HOT
    assert (total.lag, total.error, total.unreachable) == (None, None, named)
    series = broken.totals.series("all", "hot", "hour", 3)
    assert sum(point.value for point in series.series) == total.value
    summed = broken.totals.sum("all", "hot", "3h")
    assert summed.value == total.value
    for each in (series, summed):
        assert (each.complete, each.error, each.unreachable) == (False, None, named)


def test_a_subject_is_read_in_part(broken, named):
    """`of` returns what is known about a subject, and names each metric that is not."""
    lost = broken.totals.of(broken.lost[0])
    assert lost.counters == {}
    assert {each.metric: each.at_least for each in lost.missing} == {"view": None, "call": None, "hot": 0}
    assert lost.unreachable == named
    kept = broken.totals.of(broken.kept[0])
    assert kept.counters == {"view": 1, "call": 0}


def test_a_leaderboard_is_read_in_part(broken, named):
    """Leaderboards of all time and of a window have the subjects of the other nodes, and state what they lack."""
    for window in (None, "hour", "3h"):
        board = broken.totals.top("view", window, n=10)
        assert {place.subject for place in board.top} <= set(broken.kept)
        assert [place.value for place in board.top] == [1] * 10
        assert (board.complete, board.error, board.unreachable) == (False, None, named)
        spread = broken.totals.top("hot", window)
        assert 0 < spread.top[0].value < HOT
        assert (spread.complete, spread.unreachable) == (False, named)


def test_the_ledger_and_a_search_are_read_in_part(broken, named):
    """The ledger has the other partitions and proves nothing; a search finds the other subjects."""
    ledger = broken.totals.ledger()
    assert {each.stream for each in ledger.partitions}.isdisjoint(broken.streams)
    assert len(ledger.partitions) == PARTITIONS - len(broken.streams)
    assert (ledger.lag, ledger.unaccounted, ledger.unreachable) == (None, None, named)
    found = broken.totals.search("s", 50)
    assert {each.subject for each in found.subjects} <= set(broken.kept)
    assert found.unreachable == named


def test_asyncio_reads_in_part(broken, named):
    """The class for asyncio answers in the same way, also if its first read finds the node down."""

    async def read() -> None:
        async with aio.Totals(broken.url) as totals:
            if broken.has_meta:
                with pytest.raises(NodeUnreachable, match="tally:meta"):
                    await totals.get(broken.kept[0], "view")
                return
            answers = await asyncio.gather(
                *(totals.get(subject, "view") for subject in broken.kept),
                totals.get("all", "hot"),
                totals.get(broken.lost[0], "view"),
                return_exceptions=True,
            )
            assert [each.value for each in answers[:-2]] == [1] * len(broken.kept)
            assert answers[-2].unreachable == named
            assert isinstance(answers[-1], NodeUnreachable)

    asyncio.run(read())


def test_http_answers_in_part(broken):
    """HTTP responds 503 only if nothing that was asked for can be read; the problem names the streams."""
    http, lost, kept = broken.http, broken.lost[0], broken.kept[0]
    assert http.get(f"/v1/counters/{kept}/view").json()["value"] == 1
    refused = http.get(f"/v1/counters/{lost}/view")
    assert refused.status_code == 503
    assert refused.json()["unreachable"][0] in broken.streams
    assert refused.headers["retry-after"] == "1"
    many = http.get("/v1/counters", params={"subject": [lost, kept], "metric": "view"})
    assert many.status_code == 200
    assert [each["subject"] for each in many.json()["counters"]] == [kept]
    assert [each["subject"] for each in many.json()["missing"]] == [lost]
    for path in (
        "/v1/top/view",
        "/v1/counters/all/hot",
        "/v1/counters/all/hot?window=hour",
        "/v1/counters/all/hot?over=3h",
    ):
        answer = http.get(path)
        assert answer.status_code == 200, path
        assert [each["stream"] for each in answer.json()["unreachable"]] == broken.streams
    overview = http.get("/v1/overview").json()["overview"]
    assert [each["stream"] for each in overview["unreachable"]] == broken.streams
    assert http.get("/healthz").status_code == 200
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert sum(broken.node in warning for warning in ready.json()["warnings"]) == len(broken.streams)


def test_the_exporter_names_what_is_missing(broken):
    """Metrics of the other partitions stay; sums over all partitions are absent, so no counter seems to be reset."""
    lines = broken.http.get("/metrics").text.splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    away = {name: value for name, value in samples.items() if name.startswith("tallystream_partition_unreachable")}
    assert {name for name, value in away.items() if float(value)} == {
        f'tallystream_partition_unreachable{{partition="{stream}"}}' for stream in broken.streams
    }
    assert len(away) == PARTITIONS
    assert sum(name.startswith("tallystream_lag_entries") for name in samples) == PARTITIONS - len(broken.streams)
    assert float(samples["tallystream_redis_up"]) == 1
    assert "tallystream_events_counted_total" not in "".join(samples)


def test_live_updates_of_other_nodes_go_on(broken):
    """A reader gets the totals that can be read, and a message that names the partitions that cannot."""
    got: dict[str, Any] = {}
    query = {"metric": "view", "subject": [broken.lost[0], broken.kept[0]]}
    with broken.http.stream("GET", "/v1/live", params=query, timeout=20) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                got[event] = json.loads(value)
            if {"counters", "unreachable"} <= got.keys():
                break
    assert [each["subject"] for each in got["counters"]["counters"]] == [broken.kept[0]]
    assert [each["stream"] for each in got["unreachable"]["unreachable"]] == broken.streams


def test_a_reader_resumes_at_a_service_that_has_not_read_the_node(broken):
    """A service that started while the node is down does not know its position: it does not call it rewound."""
    if broken.has_meta:
        return  # such a service cannot start
    query = {"metric": "view", "subject": [broken.lost[0], broken.kept[0]]}
    heard = []
    with (
        http_service(broken.url) as http,
        http.stream("GET", "/v1/live", params=query, timeout=20, headers={"Last-Event-ID": broken.position}) as lines,
    ):
        for line in lines.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                heard.append(value)
            if {"counters", "unreachable"} <= set(heard):
                break
    assert "reset" not in heard


def test_commands_name_the_node(broken, tmp_path):
    """`get`, `top` and `status` print what can be read, and the node and the streams that are missing."""
    shell = Shell(broken.url, tmp_path)
    if broken.has_meta:
        for command in (["status"], ["get", broken.kept[0]], ["top", "view"]):
            failed = shell(*command, status=1)
            assert broken.node in failed.stderr
            assert "Traceback" not in failed.stderr
        return
    status = shell("status")
    assert broken.node in status.stdout
    assert broken.streams[0] in status.stdout
    assert [each["stream"] for each in shell.json("status")["unreachable"]] == broken.streams
    assert broken.node in shell("top", "view").stderr
    assert {each["metric"] for each in shell.json("get", broken.lost[0])["missing"]} == set(RULES.metric)
    assert "unknown" in shell("get", broken.lost[0]).stdout
    assert broken.node in shell("get", broken.lost[0], "view", status=1).stderr


def test_a_node_that_returns_is_read_again(tmp_path):
    """A reader of live updates gets the totals of a node that was paused; other reads are complete again."""
    with ExitStack() as stack:
        cluster = stack.enter_context(local_cluster(KINDS[0], tmp_path, replicas=0))
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        settings = Settings(redis=RedisSettings(url=cluster.url, partitions=PARTITIONS), rules=RULES)
        with counting(settings, structlog.get_logger()), Producer(cluster.url) as producer:
            for subject in SUBJECTS:
                producer.emit("view", subject)
            producer.flush(20, wait="counted")
        http = stack.enter_context(http_service(cluster.url))
        assert http.get("/v1/top/view").json()["complete"]
        keys = Layout(PARTITIONS).keys
        gone = next(owner for each in keys if (owner := cluster.owner(each.stream)) is not cluster.owner("tally:meta"))
        lost = next(each for each in SUBJECTS if cluster.owner(Layout(PARTITIONS).keys_of(each).stream) is gone)
        first = _messages(stack, http, {"metric": "view", "subject": lost})  # so the service knows all positions
        assert next(first)[0] == "counters"
        gone.freeze()
        stack.callback(gone.thaw)
        heard = _messages(stack, http, {"metric": "view", "subject": lost})
        event, data = next(heard)
        assert (event, bool(data.get("unreachable"))) == ("unreachable", True)
        gone.thaw()
        told = dict(next(heard) for _ in range(2))
        assert told["unreachable"]["unreachable"] == []
        assert [(each["subject"], each["value"]) for each in told["counters"]["counters"]] == [(lost, 1)]
        assert until(lambda: http.get("/v1/top/view").json()["complete"], 10, what="a whole leaderboard")


def _messages(stack: ExitStack, http: httpx.Client, query: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the messages of a live stream, each with its name, except those with no totals."""
    response = stack.enter_context(http.stream("GET", "/v1/live", params=query, timeout=30))
    assert response.status_code == 200
    event = ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        elif name == "data" and (event != "counters" or json.loads(value)["counters"]):
            yield event, json.loads(value)
