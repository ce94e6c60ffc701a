"""Each field of a deployment is deleted once: it is refused or found by name, mended, or harmless for a stated reason.

The fields, and the members of sets, are those of two real deployments. So a field of a new feature is among them, and
fails the test until `ROWS` states what happens without it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from msgspec.structs import replace

from tallystream.client.connect import connect
from tallystream.deployment import Deployment
from tallystream.errors import KeyLost, TallyError
from tallystream.producing.appender import Appender
from tallystream.rules.metrics import Metric, Rules
from tallystream_worker.maintenance.losses import settle_losses
from tallystream_worker.maintenance.reaper import reap_producers
from tallystream_worker.maintenance.trim import trim
from tallystream_worker.rebuild.baseline import Sources
from tallystream_worker.rebuild.describe import describe
from tallystream_worker.rebuild.drop import KINDS
from tallystream_worker.rebuild.reopen import reopen
from tallystream_worker.repartition.migration import repartition
from tallystream_worker.runtime.publication import publish_again, publish_rules
from tallystream_worker.settings.settings import RedisSettings, RetentionSettings, Settings
from tallystream_worker.snapshot.database import Database
from tallystream_worker.snapshot.snapshotter import Snapshotter
from tallystream_worker.verify.lost_fields import LOST_PART
from tallystream_worker.verify.verify import verify
from tests.harness import Harness
from tests.integration.storage import test_every_key as every_key
from tests.integration.storage.test_every_key import append, saved, use  # noqa: F401  # `saved` is a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

    from tests.servers import Server

PROGRAM: Final = Path(sys.executable).with_name("tallystream")
RULES: Final = every_key.RULES
CHANGED: Final = replace(
    RULES,
    metric=RULES.metric
    | {
        "view": Metric(windows=("day", "hour"), top=3, unique="hour", ids="hour"),
        "call": Metric(limit=50, per="hour", ids=None),
    },
)
RETENTION: Final = RetentionSettings(bytes=1)
"""A retention that removes every entry that no reader needs."""

REFUSED, FOUND, MENDED, HARMLESS, LIMITED = "refused", "found", "mended", "harmless", "limited"


@dataclass(frozen=True)
class Row:
    """What happens without a field.

    Attributes:
        kinds: A pattern of the kinds of keys: see `kind_of`.
        fields: A pattern of their fields or members.
        outcome: `REFUSED`: a process states the key. `FOUND`: a verification states the key or the field; after more
            events were counted, it still does, or everything is right again. `MENDED`: it is there again after the
            next passes of a worker, and everything is right. `HARMLESS`: everything is right. `LIMITED`: the same, and
            a verification states that it does not check the key.
        reason: Why the loss is harmless.
    """

    kinds: str
    fields: str
    outcome: str
    reason: str = field(default="", compare=False)


_NOT_LIVE: Final = "it describes the first topic, which is not live"

ROWS: Final = [
    Row("meta|root", "layout|epoch", REFUSED),
    Row("meta", "partitions|rules", REFUSED),
    Row("root", "partitions|rules|tags|revision|newest-revision", HARMLESS, _NOT_LIVE),
    Row("meta", r"generation|newest|newest-revision|revision|tags|rules@\d+|revision@\d+", FOUND),
    Row("meta", "snapshot", MENDED),
    Row("root", "log", REFUSED),
    Row("root", r"partitions@\d+|newest-log|kept", FOUND),
    Row("root", "closing", HARMLESS, "the partitions have the number too, and the next closing is above theirs"),
    Row("meta", "turn", HARMLESS, "the partitions have the number too, and the next turn is above theirs"),
    Row("seq", "!turn", HARMLESS, "a command that runs is refused in the partition, and the next one writes it again"),
    Row("seq", "!begun", REFUSED),
    Row("seq", "!snapshots", MENDED),
    Row("seq", "!clock|!limit|!dead|!reaped|!reaped:spool|!active|!marks:drawn|!marks:spool", MENDED),
    Row("seq", "[0-9a-f]{16}|file:.*|spool:.*", FOUND),
    Row("seq", "!closed", HARMLESS, "the partition is open, and stays so"),
    Row("seq", "!stated", HARMLESS, "no entry that states an earlier time waits; `test_verify.py` has one that waits"),
    Row("ledger|topic ledger", "entries:gated", REFUSED),
    Row(
        "ledger|topic ledger|later ledger",
        "(appended|counted|dead|rejected|total|sketched|subjects|duplicate|late)([@:].*)?|dropped|entries:(settled|dropped)",
        FOUND,
    ),
    Row("topic ledger", "plain", FOUND),
    Row("later ledger", "plain", HARMLESS, "it is read in the ledger of the topic only"),
    Row("ledger", "entries:plain", MENDED),
    Row("ledger|topic ledger", "entries:(removed|retired)", FOUND),
    Row("topic ledger", "entries:copied", HARMLESS, "it only shows the loss of the marks of copied entries"),
    Row("ledger", "entries:adopted", HARMLESS, "it only shows the loss of places, on which no figure depends"),
    Row(
        "ledger|later ledger", "entries:first", HARMLESS, "the changes of the rules show it as well, or it is in doubt"
    ),
    Row("forgotten", "(boards|limits|hour|day|unique|minute|month|votes|sketches):.*", FOUND),
    Row("forgotten", "!rules:.*|!former:.*|copies:.*", FOUND),
    Row("adopted|copied|dropped|files|labels|resets|limit|once|seen|top|minute|hour|day|month", ".*", FOUND),
    Row("periods", ".*", FOUND),
    Row("alerting|watched", ".*", MENDED),
    Row("archive", ".*", HARMLESS, "the next archiver claims a range again"),
    Row("holds", ".*", MENDED),
    Row("kept", ".*", LIMITED),
]


@dataclass(frozen=True)
class Saved:
    """A deployment of one partition, in which an entry waits to be counted.

    Attributes:
        rules: Its rules.
        keys: Every key, as DUMP returns it.
        snapshot: The file of its snapshot.
    """

    rules: Rules
    keys: dict[bytes, bytes]
    snapshot: Path


@pytest.fixture(scope="module")
def rebuilt(saved: tuple[dict[bytes, bytes], Path]) -> Saved:  # noqa: F811  # the fixture
    """Return a deployment in its second generation; the first one is kept."""
    return Saved(RULES, *saved)


@pytest.fixture(scope="module")
def moved(server_process: Server, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return a deployment in its second topic, whose rules were changed, and which was trimmed and reaped."""
    server_process.clear()
    snapshot = tmp_path_factory.mktemp("every-field") / "snapshot.sqlite"
    with (
        Harness(server_process.url, rules=RULES, partitions=1) as harness,
        closing(Database(str(snapshot))) as database,
    ):
        client = harness.client
        publish_again(client, Deployment.load(client), 0)
        append(Appender(client, harness.layout, harness.deployment.epoch), 1)
        harness.drain()
        settings = Settings(RedisSettings(harness.url, partitions=1), rules=RULES)
        repartition(settings, Deployment.load(client), 1)
        harness.layout = Deployment.load(client).layout
        (keys,) = harness.layout.keys
        appender = Appender(client, harness.layout, harness.deployment.epoch)
        append(appender, 2)
        with client.pipeline() as pipeline:
            for _ in range(250):
                pipeline.xadd(keys.stream, {"metric": "page", "subject": "many"})
            pipeline.execute()
        harness.drain()
        publish_rules(client, Settings(settings.redis, rules=CHANGED), Deployment.load(client))
        harness.rules = CHANGED
        append(appender, 3)
        harness.drain()
        settle_losses(client, keys)
        Snapshotter(client, database, Deployment.load(client)).run_once()
        assert trim(client, keys, RETENTION).removed
        for _ in range(3):
            reap_producers(client, keys, "0", silence=10_000.0, spool_silence=10_000.0)
        Snapshotter(client, database, Deployment.load(client)).run_once()
        append(appender, 4)
        found = {key: client.dump(key) for key in client.keys("*")}
    server_process.close_clients()
    return Saved(CHANGED, found, snapshot)


@dataclass(frozen=True)
class World:
    """A saved deployment that was put on a server.

    Attributes:
        harness: The server.
        database: The snapshot.
    """

    harness: Harness
    database: Database

    @property
    def client(self) -> redis.Redis:
        """A client of the server."""
        return self.harness.client

    def work(self) -> list[str]:
        """Append, decide and count; return the text of each refusal."""
        try:
            return use(self.harness)
        except TallyError as error:
            return [str(error)]

    def look_after(self) -> None:
        """Do what workers do now and then: look for losses, trim, remove records of producers, take a snapshot."""
        keys = Deployment.load(self.client).layout.keys[0]
        settle_losses(self.client, keys)
        trim(self.client, keys, RetentionSettings())
        reap_producers(self.client, keys, "0")
        Snapshotter(self.client, self.database, Deployment.load(self.client)).run_once()

    def verify(self) -> tuple[str, str]:
        """Return the details of everything that a verification finds or cannot check, and of what it does not prove."""
        try:
            report = verify(self.client, "tally", Sources(None, self.database))
        except TallyError as error:
            return str(error), ""
        found = [detail for finding in report.findings.values() for detail in finding.details]
        return "\n".join([*found, *(each.text for each in report.failed)]), "\n".join(e.text for e in report.limits)


def opened(server: Server, saved_: Saved, folder: Path) -> Iterator[World]:
    """Put a saved deployment on the server, and yield it."""
    server.clear()
    with closing(connect(server.url)) as client:
        for key, value in saved_.keys.items():
            client.restore(key, 0, value)
    copy = folder / "snapshot.sqlite"
    copy.write_bytes(saved_.snapshot.read_bytes())
    with Harness(server.url, rules=saved_.rules, partitions=1) as harness, closing(Database(str(copy))) as database:
        yield World(harness, database)


_NAME: Final = re.compile(r"tally:\{[^}]*\}:(?:l(\d+):)?(?:g(\d+):)?(.*)", re.DOTALL)
_OF_A_GENERATION: Final = KINDS | {"ledger", "dead", "periods", "forgotten", "adopted", "resets"}
_OF_THE_TOPIC: Final = {"appended", "plain", "entries:gated", "entries:retired", "entries:copied", "entries:dropped"}


def kind_of(key: str, name: str, live: Deployment) -> str:
    """Return the first part of a key's name after its prefix.

    Some kinds have other names: `kept` are the keys of a generation or topic that is not live, `root` is the root hash
    if it describes another topic than the live one, `topic ledger` has the fields of the topic, and `later ledger` has
    those of the same names in a later generation.
    """
    if key == "tally:meta":
        return "meta" if live.layout.meta == key else "root"
    found = _NAME.fullmatch(key)
    assert found is not None
    topic, generation, rest = int(found[1] or 1), int(found[2] or 1), found[3]
    kind = rest.partition(":")[0]
    if kind == "files":
        return kind
    if topic != live.layout.topic:
        return "kept"
    if kind == "ledger" and name in _OF_THE_TOPIC:
        return "topic ledger" if generation == 1 else "later ledger"
    return "kept" if kind in _OF_A_GENERATION and generation != live.generation else kind


def elements(client: redis.Redis) -> Iterator[tuple[str, bytes]]:
    """Yield each field of a hash and each member of a set, with its key."""
    for key in sorted(client.scan_iter(count=1000)):
        read: Any = {b"hash": client.hkeys, b"zset": lambda key: client.zrange(key, 0, -1), b"set": client.smembers}
        for name in sorted(read.get(client.type(key), lambda _: [])(key)):
            yield key.decode(), name


def value_of(client: redis.Redis, key: str, name: bytes) -> Any:
    """Return the value of a field, the score of a member of a sorted set, or whether a set has a member."""
    kinds: Any = {b"hash": client.hget, b"zset": client.zscore, b"set": client.sismember}
    return kinds[client.type(key)](key, name) if client.exists(key) else None


def delete(client: redis.Redis, key: str, name: bytes) -> None:
    """Delete a field or a member."""
    kinds: Any = {b"hash": client.hdel, b"zset": client.zrem, b"set": client.srem}
    assert kinds[client.type(key)](key, name) == 1


def rows_of(key: str, name: bytes, live: Deployment) -> list[Row]:
    """Return the rows that state what happens without a field."""
    text = name.decode(errors="replace")
    kind = kind_of(key, text, live)
    return [row for row in ROWS if re.fullmatch(row.kinds, kind) and re.fullmatch(row.fields, text, re.DOTALL)]


MOST: Final = 1
"""Fields of one row and one kind of key that are deleted, each in a new copy of the deployment."""


def chosen(saved_: Saved, server: Server, folder: Path, row: Row) -> list[tuple[str, bytes]]:
    """Return the fields of a row that are deleted: of each kind of key and first word of the field, the first one."""
    found: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
    for world in opened(server, saved_, folder):
        live = Deployment.load(world.client)
        for key, name in elements(world.client):
            if rows_of(key, name, live) == [row] and value_of(world.client, key, name) != b"0":  # 0 is as no field
                text = name.decode(errors="replace")
                word = text if not row.fields.startswith(".*") else ""
                found.setdefault((kind_of(key, text, live), re.split("[@ \n]", word)[0]), []).append((key, name))
    return [each for group in found.values() for each in group[: 1 if row.outcome == LIMITED else MOST]]


def problem(world: World, row: Row, key: str, name: bytes, expected: dict[Any, int]) -> str:
    """Delete a field, let everything work, and return what is not as the row states; `""` if everything is."""
    delete(world.client, key, name)
    at_once = world.verify()[0]
    refusals = world.work()
    if row.outcome == REFUSED:
        return "" if any(key in each for each in refusals) and at_once else f"{refusals}, found {at_once!r}"
    later = world.verify()[0]
    if row.outcome == FOUND:
        found = is_named(key, name, at_once) and (is_named(key, name, later) or not later)
        right = later or (refusals == [] and world.harness.totals() == expected)
        return "" if found and right else f"found {at_once!r}, later {later!r}, {refusals}"
    if refusals:
        return f"{refusals}"
    world.look_after()
    left, limits = world.verify()
    is_back = value_of(world.client, key, name) is not None
    if left or world.harness.totals() != expected:
        return f"found {left!r}, totals {world.harness.totals()}"
    if row.outcome == LIMITED:
        return "" if re.search("generation 1|topic 1", limits) else f"not proved: {limits!r}"
    return "" if is_back or row.outcome == HARMLESS else "it is not there again"


def is_named(key: str, name: bytes, text: str) -> bool:
    """Return whether a text has a key, without what comes before its kind, or a field."""
    field_ = name.decode(errors="replace").replace("\n", " ")
    return any(each in text for each in (_NAME.sub(r"\3", key), field_.replace("sketched@", "sketch:")) if each)


@pytest.mark.slow
@pytest.mark.parametrize("deployment", ["rebuilt", "moved"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kinds} {row.fields}")
def test_a_deleted_field_is_never_silent(server_process, tmp_path, request, deployment, row):
    """Without a field, a process refuses by name, a verification finds it by name, or every figure stays right."""
    saved_ = request.getfixturevalue(deployment)
    cases = chosen(saved_, server_process, tmp_path, row)
    if not cases:
        pytest.skip("this deployment has no such field")
    for world in opened(server_process, saved_, tmp_path):
        assert world.verify()[0] == ""
        assert world.work() == []
        assert world.verify()[0] == ""
        world.look_after()
        assert world.verify()[0] == ""
        expected = world.harness.totals()
    problems = {}
    for key, name in cases:
        for world in opened(server_process, saved_, tmp_path):
            problems[f"{key} {name!r}"] = problem(world, row, key, name, expected)
    assert {case: text for case, text in problems.items() if text} == {}
    assert bool(row.reason) == (row.outcome == HARMLESS)


@pytest.mark.parametrize("deployment", ["rebuilt", "moved"])
def test_every_field_has_a_row(server_process, tmp_path, request, deployment):
    """The table states, once, what happens without each field that real deployments have."""
    for world in opened(server_process, request.getfixturevalue(deployment), tmp_path):
        live = Deployment.load(world.client)
        without = [(key, name) for key, name in elements(world.client) if len(rows_of(key, name, live)) != 1]
        assert without == []


@pytest.mark.parametrize("name", ["epoch", "layout", "partitions", "rules"])
def test_a_description_without_a_field_is_stored_again(server_process, tmp_path, rebuilt, name):
    """The error names the field, and what to do repairs the loss: `reopen` stores the hash again, with all fields."""
    for world in opened(server_process, rebuilt, tmp_path):
        generation, rules = world.harness.layout.keys[0].generation, Deployment.load(world.client).rules
        world.client.hdel("tally:meta", name)
        with pytest.raises(KeyLost, match=f"tally:meta has lost its field {name}.*Delete .*tallystream reopen"):
            Deployment.load(world.client)
        world.client.delete("tally:meta")
        assert describe(world.client, "tally", 1) == ["tally:meta"]
        reopen(world.client, Deployment.find(world.client))
        assert world.work() == []
        found = Deployment.load(world.client)
        assert (found.generation, found.rules) == (generation, rules)
        assert not world.verify()[0]


def test_the_rules_of_a_kept_generation_are_lost(server_process, tmp_path, rebuilt):
    """The finding names the generation, and `rebuild --drop`, which it states, removes the generation."""
    for world in opened(server_process, rebuilt, tmp_path):
        world.client.hdel("tally:meta", "rules@1")
        assert "rules@1. To repair it, remove generation 1" in world.verify()[0]
        subprocess.run([PROGRAM, "rebuild", "--drop", "--redis", world.harness.url], check=True, capture_output=True)
        assert not list(world.client.scan_iter("tally:{*}:total:*"))
        assert world.verify()[0] == ""
        assert world.work() == []


def test_lost_parts_of_rules_are_found_without_a_snapshot(server_process, tmp_path, rebuilt):
    """A verification names the lost parts of rules; without them, a change of the rules would leave no mark."""
    for world in opened(server_process, rebuilt, tmp_path):
        keys = world.harness.layout.keys[0]
        world.client.hdel(keys.forgotten, "!rules:view")
        found = verify(world.client, "tally", Sources()).findings["fields.lost"]
        assert found.details == [f"{keys.forgotten} has lost its field !rules:view. {LOST_PART}"]


def test_a_lost_number_of_subjects_is_found_without_a_snapshot(server_process, tmp_path, rebuilt):
    """A verification names the field and its value; with this value, it finds nothing, and the totals are right."""
    for world in opened(server_process, rebuilt, tmp_path):
        keys = world.harness.layout.keys[0]
        world.client.hdel(keys.ledger, "subjects@few")
        assert world.work() == []
        found = verify(world.client, "tally", Sources()).findings
        assert found.keys() == {"fields.lost"}
        assert found["fields.lost"].details == [f"{keys.ledger} has lost its field subjects@few. Set it to 2"]
        world.client.hset(keys.ledger, "subjects@few", 2)
        assert world.verify()[0] == ""
        assert {name: each for name, each in world.harness.totals().items() if name[0] == "few"} == {
            ("few", "f1"): 1,
            ("few", "f2"): 1,
        }
