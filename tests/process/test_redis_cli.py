"""Events can be appended with redis-cli as the documentation shows: without a library, by XADD."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tallystream.storage.keys import partition_of
from tests.harness import Harness
from tests.paths import ROOT

PAGE = ROOT / "docs" / "integrations" / "redis-cli.md"
SUBJECTS = ["article:1", "article:2", "a b", "ümlaut", "a}b{c"]


@pytest.fixture
def cli(server):
    """Provide a function that runs redis-cli on the server of the test."""
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if program is None:
        if "CI" in os.environ:
            pytest.fail("redis-cli is not installed: apt-get install redis-tools")
        pytest.skip("redis-cli is not installed")

    def run(*arguments: str) -> str:
        where = server.url.removeprefix("unix://")
        address = ["-u", server.url] if where == server.url else ["-s", where.partition("?")[0]]
        done = subprocess.run([program, *address, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return run


def partition_by_shell(subject: str) -> int:
    """Return the partition of a subject, calculated with the shell command of the page."""
    (command,) = re.findall(r"\| shell \| `(.*)` \|", PAGE.read_text(encoding="utf-8"))
    command = command.replace("\\|", "|")
    done = subprocess.run(
        ["sh", "-c", command], env=os.environ | {"subject": subject}, check=True, capture_output=True, text=True
    )
    return int(done.stdout)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_shell_finds_the_partition(subject):
    """The shell command of the page returns the same partition as the library."""
    assert partition_by_shell(subject) == partition_of(subject, 4)


def test_an_event_from_redis_cli_counts(server, cli):
    """Entries that redis-cli appends to the streams named in `tally:meta` are counted, for any subject."""
    with Harness(server.url) as harness:
        tags = cli("HGET", "tally:meta", "tags").split()
        for subject in SUBJECTS:
            stream = f"tally:{{{tags[partition_by_shell(subject)]}}}:stream"
            assert re.fullmatch(r"\d+-\d+", cli("XADD", stream, "*", "metric", "view", "subject", subject))
            cli("XADD", stream, "*", "metric", "like", "subject", subject, "amount", "-2", "at", "1763900000.5")
        harness.drain()
        expected = {("view", subject): 1 for subject in SUBJECTS} | {("like", subject): -2 for subject in SUBJECTS}
        assert harness.totals() == expected


def test_an_event_in_the_wrong_stream_is_dead_lettered_with_the_name_of_the_right_one(server, cli):
    """An event in the stream of a wrong partition is dead-lettered; the reason names the correct stream."""
    with Harness(server.url) as harness:
        right = harness.layout.keys_of("article:1").stream
        wrong = next(keys.stream for keys in harness.layout.keys if keys.stream != right)
        cli("XADD", wrong, "*", "metric", "view", "subject", "article:1")
        harness.drain()
        (letter,) = harness.dead()
        assert right in letter[b"reason"].decode()
        assert harness.totals() == {}
