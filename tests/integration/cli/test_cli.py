"""Tests of the commands as separate processes, as a user runs them, against a server with a worker."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tallystream.rules.windows import bucket
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.settings import RedisSettings, Settings
from tests.harness import Harness
from tests.paths import REAL_LOG, ROOT
from tests.servers import missing
from tests.waiting import until

PROGRAM = Path(sys.executable).with_name("tallystream")
SHIPPED = ROOT / "config" / "tallystream.toml"
NOBODY = "redis://127.0.0.1:1"


class Shell:
    """Runs commands in a folder without a configuration."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder

    def __call__(
        self, *arguments: str, status: int = 0, stdin: str | None = None, columns: int = 160
    ) -> subprocess.CompletedProcess[str]:
        """Run `tallystream` with arguments; check its exit status and that it shows no traceback."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TALLYSTREAM_")}
        environment |= {"TALLYSTREAM_REDIS_URL": self.url, "COLUMNS": str(columns)}
        done = subprocess.run(
            [PROGRAM, *arguments],
            env=environment,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert done.returncode == status, done.stderr
        return done

    def json(self, *arguments: str) -> dict:
        """Run a command with --json, and return the JSON document that is its whole standard output."""
        return json.loads(self(*arguments, "--json").stdout)


@pytest.fixture
def shell(fresh_server, tmp_path, monkeypatch):
    """Provide commands against a server with a worker that counts the shipped metrics."""
    monkeypatch.setattr("tallystream_worker.runtime.partition_worker.BLOCK", 0.05)  # the worker is stopped often
    server = fresh_server()
    with counting(Settings(redis=RedisSettings(url=server.url)), logs.configure(quiet=True)):
        yield Shell(server.url, tmp_path)


@pytest.fixture
def alone(tmp_path):
    """Provide commands without a server."""
    return Shell(NOBODY, tmp_path)


def log_line(path: str, host: str = "10.0.0.1", at: float | None = None) -> str:
    """Return a line of an access log."""
    stamp = datetime.fromtimestamp(time.time() if at is None else at, UTC).strftime("%d/%b/%Y:%H:%M:%S +0000")
    return f'{host} - - [{stamp}] "GET {path} HTTP/1.1" 200 512 "-" "Mozilla/5.0"\n'


def test_emit_and_get(shell):
    """An event emitted with --wait is in the next reading, which shows its position and lag."""
    shell("emit", "view", "article:1", "--wait")
    shell("emit", "view", "article:1", "--amount", "4", "--wait")
    shell("emit", "like", "article:1", "--actor", "u1", "--wait")
    found = shell.json("get", "article:1")
    assert found["subject"] == "article:1"
    assert found["counters"] == {
        "view": 5, "like": 1, "share": 0, "vote": 0, "api-call": 0, "read": 0, "clap": 0, "highlight": 0,
    }  # fmt: skip
    assert found["ratios"] == {"engagement_rate": 0.2}
    assert (found["lag"], found["error"]) == (0, 0)
    milliseconds, _, sequence = found["as_of"].partition("-")
    assert milliseconds.isdigit()
    assert sequence.isdigit()
    assert shell.json("get", "article:1", "view")["counters"] == {"view": 5}
    table = shell("get", "article:1").stdout
    assert "20.00%" in table
    assert "article:1" in table


def test_what_was_never_counted_is_zero(shell):
    """A subject without events has 0 for every metric."""
    assert set(shell.json("get", "nobody:1")["counters"].values()) == {0}


def test_windows(shell):
    """A series ends with the present bucket, and a range lists the buckets of its sum."""
    now = time.time()
    for ago in (0, 3600, 7200):
        shell("emit", "view", "article:1", "--at", str(now - ago), "--wait")
    found = shell.json("get", "article:1", "view", "--window", "hour", "--last", "3")
    assert (found["subject"], found["metric"], found["window"], found["lag"]) == ("article:1", "view", "hour", 0)
    points = {point["bucket"]: point["value"] for point in found["series"]}
    assert len(points) == 3
    label = bucket("hour", int(now) // 60).label
    assert points[label] == 1
    assert [point["start"] % 3600 for point in found["series"]] == [0, 0, 0]
    rolling = shell.json("get", "article:1", "view", "--over", "7d")
    assert (rolling["over"], rolling["value"], rolling["lag"]) == ("7d", 3, 0)
    assert rolling["end"] - rolling["start"] >= 7 * 86_400
    assert rolling["buckets"] >= 7
    assert "--window and --over read a single metric" in shell("get", "a", "--window", "hour", status=2).stderr
    refused = shell("get", "a", "view", "--window", "week", status=2).stderr
    assert "'week' is not a window of view; its windows are: hour, day, month" in refused


def test_top(shell):
    """The leaderboard is in order, of all time or of a window."""
    lines = [{"metric": "view", "subject": f"article:{n}", "amount": n} for n in range(1, 6)]
    shell("ingest", "-", "--format", "ndjson", "--wait", stdin="".join(json.dumps(line) + "\n" for line in lines))
    found = shell.json("top", "view", "-n", "2")
    assert found["top"] == [{"subject": "article:5", "value": 5}, {"subject": "article:4", "value": 4}]
    assert (found["metric"], found["window"], found["error"], found["lag"]) == ("view", "all", 0, 0)
    assert shell.json("top", "view", "-n", "1", "--window", "7d")["top"] == [{"subject": "article:5", "value": 5}]
    assert "article:5" in shell("top", "view", "--window", "month").stdout
    assert "read has no leaderboard: declare top = 100" in shell("top", "read", status=2).stderr


def test_status(shell):
    """The status lists each partition and every outcome, and shows that no event is unaccounted for."""
    shell("emit", "view", "article:1", "--wait")
    found = shell.json("status")
    assert (found["building"], found["moving"], found["kept_topic"]) == (None, None, None)
    assert shell.json("rebuild", "--drop") == {"removed": {}, "topics": {}, "rules": {}}
    assert found["partitions"][0]["stream"] == "tally:{p0.425}:stream"
    for row in found["partitions"]:
        assert row.keys() == {
            "stream", "as_of", "lag", "pending", "oldest_pending_seconds", "dead", "ids_ahead_seconds",
        }  # fmt: skip
        assert (row["lag"], row["pending"], row["dead"], row["ids_ahead_seconds"]) == (0, 0, 0, 0)
    assert len(found["partitions"]) == 4
    assert (found["lag"], found["pending"], found["dead"], found["unaccounted"]) == (0, 0, 0, 0)
    assert found["clock_step"] is None
    assert found["ledger"].keys() >= {"appended", "counted", "rejected", "duplicate", "late", "dead"}
    assert (found["ledger"]["appended"], found["ledger"]["counted"]) == (1, 1)
    assert "ledger: balances, every appended event is accounted for" in shell("status").stderr


@pytest.mark.parametrize("packed", [False, True])
def test_an_access_log(shell, tmp_path, packed):
    """An access log is counted by path, plain or gzip; lines of another form are reported and skipped."""
    lines = [log_line(f"/page/{n % 7}", f"10.0.0.{n % 3}") for n in range(70)]
    lines.insert(10, "this is no line of a log\n")
    lines.insert(20, lines[0].replace("/20", "/x20"))
    text = "".join(lines).encode()
    file = tmp_path / ("access.log.gz" if packed else "access.log")
    file.write_bytes(gzip.compress(text) if packed else text)
    done = shell("ingest", str(file), "--wait")
    assert "70 events counted, 2 bad lines" in done.stderr
    assert f"{file}:11: not a line of an access log" in done.stderr.replace("\n", "")
    assert shell.json("get", "/page/3", "view")["counters"] == {"view": 10}
    again = shell.json("ingest", str(file), "--wait")
    assert (again["events"], again["known"], again["bad_lines"], again["complete"]) == (0, 70, 2, True)
    assert [example["line"] for example in again["examples"]] == [11, 21]
    assert shell.json("status")["ledger"]["counted"] == 70
    assert shell.json("ingest", str(file), "--source", "once more", "--wait")["events"] == 70
    assert shell.json("status")["ledger"]["counted"] == 140


def test_the_real_log(shell):
    """The example log is counted as its source states: 10,000 lines of 1,498 paths, the icon 807 times."""
    if not REAL_LOG.is_file():
        missing("the example log is not here", unless="TALLYSTREAM_REQUIRE_LOG")
    found = shell.json("ingest", str(REAL_LOG), "--wait")
    assert (found["events"], found["bad_lines"]) == (10_000, 0)
    assert shell.json("get", "/favicon.ico")["counters"]["view"] == 807
    top = shell.json("top", "view", "-n", "5")["top"]
    assert [place["value"] for place in top] == [807, 546, 538, 533, 516]
    status = shell.json("status")
    assert (status["ledger"]["counted"], status["unaccounted"]) == (10_000, 0)


def test_a_file_that_is_not_there(shell, tmp_path):
    """A misspelt file name is an error before any event of the other files is sent."""
    good = tmp_path / "access.log"
    good.write_text(log_line("/a"))
    assert "nowhere.log" in shell("ingest", str(good), "nowhere.log", status=1).stderr
    assert shell.json("status")["ledger"]["appended"] == 0


def test_reset(shell):
    """A reset prints the amounts that it takes back, and the counters are 0 afterwards."""
    shell("emit", "view", "article:1", "--amount", "5", "--wait")
    shell("emit", "vote", "article:1", "--actor", "u1", "--wait")
    taken = shell.json("reset", "article:1")
    assert taken["subject"] == "article:1"
    assert {name: value for name, value in taken["taken_back"].items() if value} == {"view": 5, "vote": 1}
    shell("emit", "read", "article:1", "--wait")  # one partition, so what was before it is counted with it
    assert {name: value for name, value in shell.json("get", "article:1")["counters"].items() if value} == {"read": 1}
    assert shell.json("status")["unaccounted"] == 0


@pytest.mark.parametrize(
    "command", [("emit", "veiw", "a"), ("get", "a", "veiw"), ("top", "veiw"), ("reset", "a", "veiw")]
)
def test_an_unknown_metric(shell, command):
    """A misspelt metric is rejected with the declared ones, and with the place to declare another."""
    error = shell(*command, status=2).stderr
    assert "veiw is not declared; declared are api-call, clap" in error
    assert "Add [metric.veiw] to tallystream.toml and restart the worker" in error
    (shell.folder / "config").mkdir()
    file = shell.folder / "config" / "tallystream.toml"
    file.write_text("[metric.other]\n", encoding="utf-8")
    error = shell(*command, status=2).stderr
    assert "Add [metric.veiw] to config/tallystream.toml and restart the worker" in error
    file.write_text("[metric.veiw]\n", encoding="utf-8")
    error = shell(*command, status=2).stderr
    assert "[metric.veiw] is in config/tallystream.toml, but not in the published rules: restart the worker" in error
    assert "Add [" not in error


@pytest.mark.parametrize(
    "command",
    [("emit", "view", "a"), ("get", "a"), ("top", "view"), ("status",), ("reset", "a"), ("ingest", "access.log")],
)
def test_no_server(alone, command):
    """If no server replies, one line names the server and how to name or start another."""
    (alone.folder / "access.log").write_text(log_line("/a"))
    error = alone(*command, status=1).stderr
    assert f"cannot reach {NOBODY}" in error
    assert "--redis" in error
    assert "tallystream up" in error
    assert len(error.splitlines()) == 1


def test_a_server_that_reads_its_data(alone):
    """If the server has just started, and still reads its data, one line asks to wait: no other server is needed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as connection:
                        while connection.recv(65_536):
                            connection.sendall(b"-LOADING Valkey is loading the dataset in memory\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        error = alone("status", "--redis", url, status=1).stderr
    expected = (
        "has just started, and reads its data: Valkey is loading the dataset in memory. Wait, and run the command"
    )
    assert error == f"tallystream: {url} {expected} again\n"


@pytest.mark.parametrize("command", ["archive --once", "verify", "audit", "rebuild", "replay"])
def test_an_archive_without_its_package(shell, monkeypatch, command):
    """If an archive is configured, and the package that reads it is not installed, a command names the package."""
    hidden = shell.folder / "hidden"
    hidden.mkdir()
    (hidden / "pyarrow.py").write_text("raise ModuleNotFoundError('no pyarrow', name='pyarrow')\n", encoding="utf-8")
    (shell.folder / "tallystream.toml").write_text('[archive]\nurl = "archive"\n', encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    told = shell(*command.split(), status=2 if command == "verify" else 1).stderr  # 2: nothing could be checked
    assert "pip install 'tallystream-worker[archive]'" in told


def test_parquet_is_not_read_from_standard_input(alone):
    """`ingest --format parquet -` is an error that tells the user to name a file; nothing is appended."""
    (alone.folder / "access.log").write_text(log_line("/a"))
    for names in (["-"], ["access.log", "-"]):
        error = alone("ingest", "--format", "parquet", *names, status=2, stdin="PAR1").stderr
        assert error.startswith("tallystream: files: Parquet cannot be read from standard input: write it to a file")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["snapshot", "a.sqlite", "--whole"], "give --whole only with --once"),
        (["audit", "--metrics-port", "0"], "give --metrics-port only with --every"),
    ],
)
def test_an_option_without_effect_is_refused(alone, command, words):
    """An option that would be ignored without another option is an error that names both."""
    assert words in alone(*command, status=1).stderr


def test_a_password_is_not_repeated(alone):
    """The message about an unreachable server does not contain the password."""
    error = alone("status", "--redis", "redis://user:secret@127.0.0.1:1", status=1).stderr
    assert "cannot reach redis://127.0.0.1:1" in error
    assert "secret" not in error


def test_check(alone):
    """The shipped configuration is valid; each metric is printed with its stored data and cost."""
    found = alone.json("check", str(SHIPPED))
    assert found["metrics"].keys() == {"view", "like", "share", "vote", "api-call", "read", "clap", "highlight"}
    assert "limit 1,000 per hour" in found["metrics"]["api-call"]["stores"]
    assert all(metric["bytes_per_subject"] > 0 for metric in found["metrics"].values())
    assert found["ratios"] == ["engagement_rate"]
    assert (found["bytes_per_producer"], found["bytes_per_dropped_dead_letter"]) == (70, 87)
    printed = " ".join(alone("check", str(SHIPPED)).stdout.split())
    assert "valid" in printed
    assert "70 bytes for each producer that has appended to it in the last 30 days (with a spool, 365 days)" in printed


def test_check_names_the_sections_of_a_warning(alone):
    """A warning is printed whole: names in brackets are no formatting."""
    (alone.folder / "silent.toml").write_text(
        '[metric.view]\nwindows = ["day"]\nretention = {day = "20d"}\n'
        '[[alert]]\nname = "x"\nmetric = "view"\nover = "30d"\nabove = 5\n',
        encoding="utf-8",
    )
    warning = " ".join(alone("check", "silent.toml").stderr.split())
    assert "[[alert]] 'x' is silent" in warning
    assert "Raise retention in [metric.view]" in warning


def test_a_rebuild_prints_what_changes(shell):
    """A table and JSON show the live value, the new value and the change of each counter that differs."""
    shell("emit", "view", "article:1", "--wait")
    ledger = shell.json("status")["ledger"]
    assert (ledger["appended"], ledger["counted"]) == (1, 1)
    (shell.folder / "tallystream.toml").write_text("[metric.view]\nwindows = []\n[metric.like]\n", encoding="utf-8")
    found = shell.json("rebuild", "--no-switch")
    (gone,) = [row for row in found["differences"] if row["counter"].startswith("day:view:")]
    assert (gone["live"], gone["new"], gone["change"]) == (1, None, -1)
    assert found["moving"] == 0
    printed = shell("rebuild", "--no-switch").stdout
    (row,) = [line for line in printed.splitlines() if line.startswith("│ day:view:")]
    assert [cell.strip() for cell in row.strip("│").split("│")][1:] == ["1", "-", "-1"]


def test_a_rebuild_states_how_many_counters_it_cannot_compare(server, tmp_path):
    """Counters that events may still change are no differences: their number is printed, and how to compare them."""
    shell = Shell(server.url, tmp_path)
    with Harness(server.url, metrics=("view",), partitions=1) as harness:
        harness.client.xadd(harness.layout.keys[0].stream, {"metric": "view", "subject": "a"})  # no worker counts it
        printed = shell("rebuild", "--no-switch").stdout
        assert "1 counters were not compared, because events for them were always waiting to be counted: to" in printed
        assert "generation 2 is built but not live; 0 counters differ" in printed
        found = shell.json("rebuild", "--no-switch")
        assert (found["differences"], found["moving"]) == ([], 1)
        harness.drain()
        found = shell.json("rebuild", "--no-switch")
        assert (found["differences"], found["moving"]) == ([], 0)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[metric.view]\nlimit = 5\n", ["[metric.view]", "limit and per go together"]),
        ('[metric.view]\nwindows = ["week"]\n', ["metric", "windows", "week"]),
        ("[metric.view]\ntpo = 5\n", ["tpo"]),
        ("[metric.View]\n", ["[metric.View]: the name must be 1 to 64 of a-z"]),
        ("[metric.view\n", ["line 1"]),
        ("[redis]\nulr = 'x'\n", ["redis.ulr: unknown setting", "namespace, partitions, url"]),
        ("zone = 'Wien'\n[metric.view]\n", ["zone: 'Wien' is not a time zone"]),
    ],
)
def test_check_of_a_broken_file(alone, text, parts):
    """A mistake in a configuration is an error with the file, the setting, and the allowed values."""
    (alone.folder / "broken.toml").write_text(text)
    error = alone("check", "broken.toml", status=1).stderr
    for part in ("tallystream: broken.toml: ", *parts):
        assert part in error


def test_check_of_no_file(alone):
    """The error about a missing configuration names the file."""
    assert "nowhere.toml: cannot be read" in alone("check", "nowhere.toml", status=1).stderr


def test_check_and_plan_read_no_secrets(alone):
    """A file whose alert has a secret is valid on a machine that does not have the secret."""
    (alone.folder / "signed.toml").write_text(
        '[metric.view]\n[[alert]]\nname = "a"\nmetric = "view"\nabove = 1\n'
        'webhook = "https://example.com/hook"\nsecret = "env:NOT_SET"\n'
    )
    assert "valid" in alone("check", "signed.toml").stdout
    alone("plan", "--events-per-second", "1000", "--subjects", "10", "--config", "signed.toml")


def test_the_demo(alone):
    """The demo starts everything itself, counts exactly, prints this, and ends."""
    done = alone("demo", "--events", "20000", "--once")
    assert done.stdout.startswith("counted exactly: 20,000 of 20,000 events over ")


def test_an_event_that_is_waited_for_is_confirmed(shell):
    """`emit --wait` prints that the event is counted, and names the rules that may have left it out; so does --json."""
    assert shell("emit", "view", "a").stdout == ""
    assert shell("emit", "view", "a", "--wait").stdout == "1 event counted\n"
    assert shell.json("emit", "view", "a") == {"events": 1, "state": "appended", "unless": []}
    assert shell.json("emit", "view", "a", "--wait") == {"events": 1, "state": "counted", "unless": []}
    voted = shell("emit", "vote", "a", "--actor", "u1", "--wait").stdout
    assert voted == "1 event counted, unless a rule of vote left it out: once\n"
    assert shell.json("emit", "vote", "a", "--actor", "u1", "--wait")["unless"] == ["once"]


def test_the_list_of_dead_letters_cuts_no_name(shell):
    """In a narrow terminal, `dead` prints each name whole in two lines, with a metric that is not declared."""
    import redis  # noqa: PLC0415

    with redis.Redis.from_url(shell.url) as client:
        client.xadd("tally:{p0.425}:stream", {"metric": "download", "subject": "a"})
        until(lambda: client.xlen("tally:{p0.425}:dead"), what="the dead letter")
    (row,) = shell.json("dead")
    assert row["metric"] == "download"
    first, reason = shell("dead", columns=40).stdout.splitlines()
    assert first == f"{row['name']}  {row['since']}, 1 event, 1 attempt, metric download"
    assert reason == f"    {row['reason']}"


def test_dead_letters_are_listed_retried_and_dropped(shell):
    """`dead` lists dead letters, escapes their bytes, counts nothing twice, and fails if nothing was done."""
    import redis  # noqa: PLC0415

    with redis.Redis.from_url(shell.url) as client:
        client.xadd("tally:{p0.425}:stream", {"metric": "undeclared", "subject": "a\x1b[31m"})
        deadline = time.monotonic() + 10
        while not client.xlen("tally:{p0.425}:dead") and time.monotonic() < deadline:
            time.sleep(0.01)
    (row,) = json.loads(shell("dead", "list", "--json").stdout)
    assert (row["events"], row["attempts"]) == (1, 1)
    assert row["reason"] in shell("dead").stdout
    shown = shell("dead", "show", row["name"]).stdout
    assert "\x1b" not in shown
    assert "undeclared" in shown
    assert "dead lettered again 1" in shell("dead", "retry", "--all", status=1).stdout
    assert "no dead letters named" in shell("dead", "drop", status=1).stderr
    assert "is not the name of a dead letter" in shell("dead", "drop", "7/x", status=1).stderr
    assert "events dropped 1" in shell("dead", "drop", "--reason", "subject").stdout
    assert json.loads(shell("dead", "--json").stdout) == []
    assert shell("dead").stdout == "there are no dead letters\n"
    assert "1 dead" in shell("status").stdout


def test_plan_without_its_extra():
    """If `tallystream-plan` is not installed, `plan` prints the package to install, for any arguments."""
    program = (
        "import sys; sys.modules['tallystream_plan'] = None; sys.argv = ['tallystream', 'plan', '--subjects', '10']; "
        "from tallystream_worker.cli.main import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "pip install 'tallystream-worker[plan]'" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_plan(alone):
    """`plan` prints the needs of a load, with reasons for people and all constants for programs."""
    asked = ["plan", "--events-per-second", "1e6", "--subjects", "1000000", "--config", str(SHIPPED)]
    shown = alone(*asked).stdout
    assert "primaries" in shown
    assert "what costs most" in shown
    found = alone.json(*asked, "--metric", "view", "--metric", "vote=0.25", "--actors", "3", "--retention", "1h")
    assert found["load"]["shares"] == {"view": 0.75, "vote": 0.25}
    assert found["workers"] >= 1
    assert found["measured"]["memory"]["total"] > 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--metric", "viw"], "viw: is not declared"),
        (["--metric", "view=much"], "must be a number"),
        (["--metric", "view=0.5"], "the shares add up to 0.5"),
        (["--costs", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_plan_of_what_makes_no_sense(alone, more, words):
    """An input that `plan` cannot calculate with is an error of one line."""
    asked = ["plan", "--events-per-second", "1000", "--subjects", "10", "--config", str(SHIPPED)]
    assert words in alone(*asked, *more, status=1).stderr
