"""The error replies of real servers, Redis and Valkey, are classified correctly by `tallystream.client.replies`."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest
import redis

from tallystream.client.connect import connect
from tallystream_worker.server.errors import EmbeddedServerError
from tests.replies import meanings
from tests.secured import binary_of, free_port
from tests.waiting import until

MISSING_KEY = {"key_missing", "stream_or_group_missing"}
MISSING_GROUP = {"group_missing", "stream_or_group_missing", "about_server"}
DENIED = {"permission_missing", "refusal", "about_server"}
NO_REPLY = {"about_server", "connection_stale", "broken"}


@pytest.fixture(params=["valkey", "redis"])
def start(request, fresh_server):
    """A function that starts a Valkey or a Redis server with the given settings."""
    return lambda *extra, **settings: fresh_server(extra=extra, binary=Path(binary_of(request.param)), **settings)


@contextlib.contextmanager
def client_of(server, user=None):
    """Yield a client made by `connect`, for the default user or for the given name and password."""
    url = server.url if user is None else f"{server.url}?username={user[0]}&password={user[1]}"
    with contextlib.closing(connect(url)) as client:
        yield client


def error_of(client, *command):
    """Execute a command that must fail, and return its error."""
    with pytest.raises(redis.RedisError) as caught:
        client.execute_command(*command)
    return caught.value


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("XINFO GROUPS", "none"), MISSING_KEY),
        (("XINFO STREAM", "none"), MISSING_KEY),
        (("XINFO CONSUMERS", "none", "g"), MISSING_KEY),
        (("XSETID", "none", "0-1"), MISSING_KEY),
        (("XGROUP DESTROY", "none", "g"), MISSING_KEY),
        (("XGROUP SETID", "none", "g", "0"), MISSING_KEY),
        (("EVAL", "return redis.call('XINFO', 'GROUPS', KEYS[1])", 1, "none"), MISSING_KEY),
        (("XPENDING", "none", "g"), MISSING_GROUP),
        (("XPENDING", "stream", "other"), MISSING_GROUP),
        (("XINFO CONSUMERS", "stream", "other"), MISSING_GROUP),
        (("XREADGROUP", "GROUP", "other", "c", "STREAMS", "stream", ">"), MISSING_GROUP),
        (("XCLAIM", "stream", "other", "c", 0, "0-1"), MISSING_GROUP),
        (("XAUTOCLAIM", "stream", "other", "c", 0, "0-0"), MISSING_GROUP),
        (("XGROUP SETID", "stream", "other", "0"), MISSING_GROUP),
        (("EVAL", "return redis.call('XPENDING', KEYS[1], 'other')", 1, "stream"), MISSING_GROUP),
        (("EVAL", "error({ err = 'NOGROUP stream has no group' })", 0), MISSING_GROUP),
        (("EVAL", "return { err = 'NOGROUP stream has no group' }", 0), MISSING_GROUP),
        (("XGROUP CREATE", "stream", "group", "0"), {"group_there"}),
        (("NOSUCHCOMMAND", 1, 2), {"command_unknown"}),
        (("EVALSHA", "0" * 40, 0), {"about_server"}),
        (("GET", "stream"), {"refusal", "wrong_type"}),
        (("EVAL", "return redis.call('GET', KEYS[1])", 1, "stream"), {"refusal", "wrong_type"}),
        (("INCRBY", "text", 1), set()),
    ],
)
def test_replies_about_keys_and_commands(server, command, expected):
    """Replies about missing keys and groups, an existing group, an unknown command or script, and a wrong type."""
    client = server.client()
    client.set("text", "no number")
    client.xgroup_create("stream", "group", mkstream=True)
    assert meanings(error_of(client, *command)) == expected


def test_no_node_of_a_cluster(start):
    """A single server replies to CLUSTER SLOTS that it has no cluster support."""
    with client_of(start()) as client:
        assert meanings(error_of(client, "CLUSTER", "SLOTS")) == {"single_server"}


def test_no_append_only_file(start):
    """WAITAOF is unknown before Redis 7.2, and refused without an append-only file."""
    with client_of(start("--appendonly", "no")) as client:
        info = client.info("server")
        is_known = "valkey_version" in info or tuple(map(int, info["redis_version"].split("."))) >= (7, 2)
        expected = "append_only_file_missing" if is_known else "command_unknown"
        assert meanings(error_of(client, "WAITAOF", 1, 0, 1)) == {expected}


def test_users(start):
    """Replies about a wrong password, no password, and a missing permission, also within a script."""
    server = start()
    with client_of(server) as admin:
        admin.execute_command("ACL", "SETUSER", "u", "on", ">secret", "~own*", "+get", "+eval", "+ping")
        with client_of(server, ("u", "wrong")) as client:
            assert meanings(error_of(client, "PING")) == NO_REPLY | {"refusal"}
        with client_of(server, ("u", "secret")) as client:
            for command in (("SET", "own", 1), ("GET", "other")):
                assert meanings(error_of(client, *command)) == DENIED, command
                script = f"return redis.call({', '.join(repr(str(part)) for part in command)})"
                assert meanings(error_of(client, "EVAL", script, 0)) == DENIED, command
        admin.execute_command("ACL", "SETUSER", "default", ">secret", "resetpass", ">secret")
        with client_of(server) as client:
            assert meanings(error_of(client, "PING")) == NO_REPLY | {"refusal"}


def test_too_many_clients(start):
    """A server at its limit of clients replies with an error and closes the connection."""
    server = start()
    with client_of(server) as first:
        first.config_set("maxclients", 1)
        with client_of(server) as second:
            assert meanings(error_of(second, "PING")) == NO_REPLY | {"unreachable"}


def test_memory(start):
    """A server without free memory refuses a write, also within a script."""
    with client_of(start()) as client:
        client.config_set("maxmemory", 1)
        for command in (("SET", "a", 1), ("EVAL", "return redis.call('SET', KEYS[1], 1)", 1, "a")):
            assert isinstance(error := error_of(client, *command), redis.exceptions.OutOfMemoryError)
            assert meanings(error) == {"about_server"}


def test_replicas(start):
    """Replies of a primary with too few replicas, of a replica to a write, and of a replica without its primary."""
    with client_of(start()) as client:
        client.config_set("min-replicas-to-write", 1)
        assert meanings(error_of(client, "SET", "a", 1)) == {"about_server"}
        client.execute_command("REPLICAOF", "127.0.0.1", 1)
        assert meanings(error_of(client, "SET", "a", 1)) == {"about_server", "connection_stale"}
        client.config_set("replica-serve-stale-data", "no")
        assert meanings(error_of(client, "GET", "a")) == {"about_server", "not_executed", "unreachable"}


def test_a_disk_that_takes_nothing(start):
    """A server whose snapshot to disk failed refuses writes, if it is configured to."""
    server = start("--appendonly", "no")
    (server.data / "dump.rdb").mkdir()  # a folder with the name of the file makes the save fail
    with client_of(server) as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", what="the failure")
        assert meanings(error_of(client, "SET", "a", 1)) == {"about_server"}


def test_loading(start):
    """A server that is still loading its data executes no command."""
    server = start("--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024")
    with client_of(server) as client, client.pipeline(transaction=False) as pipeline:
        for number in range(30_000):
            pipeline.set(f"key:{number}", number)
        pipeline.execute()
    server.kill()

    def load() -> None:
        with pytest.raises(EmbeddedServerError):  # it is killed before it has loaded everything
            server.start()

    def is_loading() -> bool:
        try:
            with client_of(server) as client:
                client.dbsize()
        except redis.RedisError as error:
            errors.append(error)
        return bool(errors) and isinstance(errors[-1], redis.exceptions.BusyLoadingError)

    errors = []
    loading = threading.Thread(target=load)
    loading.start()
    try:
        until(is_loading, what="LOADING")
    finally:
        os.kill(server.pid, signal.SIGKILL)
        loading.join()
    assert meanings(errors[-1]) == NO_REPLY | {"unreachable"}


def test_a_script_that_runs_on(start):
    """While a script runs without end, a server executes no other command."""
    server = start()
    with client_of(server) as client, client_of(server) as other:
        client.config_set("busy-reply-threshold", 1)
        running = threading.Thread(target=lambda: error_of(other, "EVAL", "while true do end", 0))
        running.start()
        found = set()

        def is_busy() -> bool:
            try:
                client.get("a")
            except redis.ResponseError as error:
                found.update(meanings(error))
            return bool(found)

        try:
            until(is_busy, what="BUSY")
        finally:
            client.script_kill()
            running.join()
        assert found == {"about_server"}


def test_a_wait_that_is_ended(start):
    """A blocking read that an administrator ends with CLIENT UNBLOCK gets an error reply."""
    server = start()
    with client_of(server) as client, client_of(server) as other:
        waiting = other.client_id()
        found = []
        blocked = threading.Thread(target=lambda: found.append(error_of(other, "XREAD", "BLOCK", 0, "STREAMS", "s", 0)))
        blocked.start()
        until(lambda: client.execute_command("CLIENT", "UNBLOCK", waiting, "ERROR") == 1, what="the read")
        blocked.join()
        assert meanings(found[0]) == {"about_server"}


def test_a_transaction_with_an_error(start):
    """A transaction with a command that cannot be queued is discarded."""
    with client_of(start()) as client:
        client.execute_command("MULTI")
        assert meanings(error_of(client, "NOSUCHCOMMAND")) == {"command_unknown"}
        assert meanings(error_of(client, "EXEC")) == {"about_server"}


def test_a_node_without_slots(start):
    """A node of a cluster without slots executes no command that has a key."""
    server = start("--cluster-enabled", "yes", "--cluster-port", str(free_port()), port=0)
    with redis.Redis.from_url(server.url, protocol=3, legacy_responses=False) as client:
        assert meanings(error_of(client, "GET", "a")) == {"not_executed", "about_server", "unreachable"}
