"""Every command works on a cluster, with the user that the documentation names for it; no command is denied."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tallystream.client.connect import connect
from tallystream.reading.totals import Totals
from tallystream.storage.keys import Layout
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.server.acl import generate, hashed, users
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.integration.cli.test_cli import Shell
from tests.integration.server.test_acl import _fields
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.local_cluster import LocalCluster

pytestmark = pytest.mark.slow

SUBJECTS = [f"article:{number}" for number in range(24)]
READER, PRODUCER, WORKER, ADMIN = "reader", "producer", "worker", "admin"


class Users:
    """The users of a cluster, created on each of its nodes."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._nodes = cluster.nodes
        self._hosts = cluster.url.partition("://")[2]
        self._passwords = generate()
        hashes = hashed(self._passwords)
        for node in self._nodes:
            for user in users():
                node.ask("ACL", "SETUSER", *user.line("tally", hashes[user.name]).split()[1:])
            node.ask("ACL", "LOG", "RESET")

    def url(self, user: str) -> str:
        """Return the URL with which a user connects."""
        return f"redis+cluster://tally-{user}:{self._passwords[user]}@{self._hosts}"

    def denied(self) -> set[tuple[str, str]]:
        """Return pairs of a user and a command or key that was denied to it, on any node."""
        rows = [_fields(row) for node in self._nodes for row in node.ask("ACL", "LOG")]
        return {(row[b"username"].decode(), row[b"object"].decode()) for row in rows}

    def remove(self) -> None:
        """Remove the users from every node."""
        for node in self._nodes:
            for user in users():
                node.ask("ACL", "DELUSER", f"tally-{user.name}")


@pytest.fixture
def who(cluster: LocalCluster) -> Iterator[Users]:
    """Provide the users of an empty cluster; a denied command or key fails the test."""
    made = Users(cluster)
    yield made
    denied = made.denied()
    made.remove()
    assert denied == set()


@pytest.fixture
def shell(who: Users, tmp_path: Path) -> Callable[[str], Shell]:
    """Provide a function that returns a shell for a user's commands."""
    return lambda user: Shell(who.url(user), tmp_path)


@contextlib.contextmanager
def worker(who: Users) -> Iterator[None]:
    """Run a worker as the worker's user until the block ends."""
    with counting(Settings(redis=RedisSettings(url=who.url(WORKER))), logs.configure(quiet=True)):
        yield


def ingested(shell: Callable[[str], Shell], folder: Path, **more: object) -> Counter[str]:
    """Ingest a file of views of all subjects, and wait until they are counted; return the views by subject."""
    expected = Counter({subject: 3 + number for number, subject in enumerate(SUBJECTS)})
    lines = [json.dumps({"metric": "view", "subject": subject} | more) for subject in expected.elements()]
    path = folder / "events.ndjson"
    path.write_text("\n".join(lines) + "\n")
    done = shell(PRODUCER).json("ingest", str(path), "--format", "ndjson", "--wait")
    assert done["events"] == expected.total()
    return expected


def views(who: Users) -> Counter[str]:
    """Return the counted views by subject, without zeros."""
    with Totals(who.url(READER)) as totals:
        found = totals.get_many((subject, "view") for subject in SUBJECTS).values
    return Counter({subject: value for (subject, _), value in found.items() if value})


def test_counting_and_reading(who, shell, tmp_path):
    """`ingest`, `emit`, `get`, `top`, `status`, `reset` and `dead` work over partitions on three nodes."""
    with worker(who):
        expected = ingested(shell, tmp_path)
        shell(PRODUCER)("emit", "view", SUBJECTS[0], "--amount", "100", "--wait")
        expected[SUBJECTS[0]] += 100
        assert views(who) == expected
        reader = shell(READER)
        assert reader.json("get", SUBJECTS[0])["counters"]["view"] == expected[SUBJECTS[0]]
        best = [(row["subject"], row["value"]) for row in reader.json("top", "view", "-n", "5")["top"]]
        assert sorted(best) == sorted(expected.most_common(5))
        with contextlib.closing(connect(who.url(PRODUCER))) as client:
            for keys in Layout().keys:
                client.xadd(keys.stream, {"metric": "no-such-metric", "subject": "x"})
        shell(PRODUCER)("emit", "view", SUBJECTS[0], "--wait")
        admin = shell(ADMIN)
        letters = until(lambda: len(rows := admin.json("dead")) == len(Layout().keys) and rows, 30, what="dead letters")
        admin("dead", "show", letters[0]["name"])
        assert admin("dead", "retry", letters[0]["name"], status=1).stdout.startswith("entries 1")
        assert "entries 4" in admin("dead", "drop", "--all").stdout
        admin("reset", SUBJECTS[0], "view")
        until(lambda: reader.json("status")["unaccounted"] == 0, 30, what="the worker to acknowledge the reset")
    assert SUBJECTS[0] not in views(who)


@pytest.mark.timeout(300)  # about 20 commands, each a process
def test_the_log_is_folded_again(who, shell, tmp_path):
    """`replay`, `audit`, `rebuild` with undo and drop, and `retract` work on a cluster."""
    with worker(who):
        expected = ingested(shell, tmp_path)
        for subject in SUBJECTS[:8]:
            shell(PRODUCER)("emit", "view", subject, "--actor", "bot:7", "--wait")
        told = expected + Counter(SUBJECTS[:8])
        admin = shell(ADMIN)
        printed = [json.loads(line) for line in admin("replay", "--metric", "view").stdout.splitlines()]
        replayed: Counter[str] = Counter()
        for event in printed:
            replayed[event["subject"]] += event.get("amount", 1)
        assert replayed == told == views(who)
        assert admin.json("audit")["differences"] == []
        with contextlib.closing(connect(who.url(ADMIN))) as client:
            client.incrby(Layout().keys_of(SUBJECTS[3]).total("view", SUBJECTS[3]), 5)
        found = json.loads(admin("audit", "--json", status=1).stdout)["differences"]
        assert [each["difference"] for each in found] == [5]
        assert admin.json("rebuild")["live"]
        assert views(who) == told
        assert admin.json("rebuild", "--undo")["live"]
        assert views(who)[SUBJECTS[3]] == told[SUBJECTS[3]] + 5
        assert list(admin.json("rebuild", "--drop")["removed"]) == ["2"]
        taken = admin.json("retract", "--actor", "bot:7")
        assert taken["events"] == 8
        assert views(who) == expected
        assert admin.json("audit")["differences"] == []
    assert shell(READER).json("status")["unaccounted"] == 0


def test_everything_comes_back(who, shell, tmp_path, server):
    """`archive`, `snapshot` and `drill` work on a cluster; `restore` brings back all data, also after the snapshot."""
    admin, database, folder = shell(ADMIN), str(tmp_path / "tally.sqlite"), str(tmp_path / "archive")
    with worker(who):
        expected = ingested(shell, tmp_path)
        assert admin.json("archive", folder, "--once")["events"] == expected.total()
        assert admin.json("snapshot", database, "--once")["rows"] > 0
        for subject in SUBJECTS[:6]:
            shell(PRODUCER)("emit", "view", subject, "--wait")
        expected.update(SUBJECTS[:6])
        assert admin.json("archive", folder, "--once")["events"] == 6
        assert admin.json("drill", database, "--archive", folder)["differing"] == 0
    server.clear()
    admin("restore", database, "--archive", folder)
    assert views(who) == expected
    with worker(who):
        shell(PRODUCER)("emit", "view", SUBJECTS[0], "--wait")
    assert views(who) == expected + Counter([SUBJECTS[0]])
    assert shell(READER).json("status")["unaccounted"] == 0
