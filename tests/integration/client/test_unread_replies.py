"""A connection on which a reply is still to come never answers the next command, whatever exception came between."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest
from redis import Redis

from tallystream.client.connect import connect
from tallystream.client.silence_watch import failover_aware
from tests.sentinel import watched

SLOW = ("BLPOP", "{unread}:never", 1)
"""A command whose reply comes after a second, and would be taken for the reply to the next command."""

BEFORE_SELECT = "redis.connection.AbstractConnection.activate_maint_notifications_handling_if_enabled"
"""Beginning of the name of the function that redis-py calls right before a new connection chooses its database."""


def interrupt(*_, **__):
    """Raise the exception of Ctrl-C."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def interrupted_after(seconds):
    """Raise KeyboardInterrupt in the main thread after some seconds, as Ctrl-C does."""
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def client_of(url, most=None):
    """Connect, and store a value to read; close the client after the block."""
    with contextlib.closing(connect(url, most=most)) as client:
        client.set("{unread}:b", "right")
        yield client


def test_an_interrupted_pipeline_answers_no_later_command(server):
    """If Ctrl-C comes between two replies of a pipeline, the next command gets its own reply."""
    with client_of(server.url) as client:
        with client.pipeline(transaction=False) as pipeline:
            pipeline.response_callbacks = client.response_callbacks | {"GET": interrupt}
            client.response_callbacks["STRLEN"] = interrupt
            pipeline.execute_command("STRLEN", "{unread}:b").execute_command("GET", "{unread}:b")
            pipeline.execute_command(*SLOW)
            with pytest.raises(KeyboardInterrupt):
                pipeline.execute()
        assert client.get("{unread}:b") == b"right"


@pytest.mark.parametrize("transaction", [False, True])
def test_an_interrupted_pipeline_answers_no_later_pipeline(server, transaction):
    """If Ctrl-C comes between two replies of a pipeline, the next pipeline gets its own replies."""
    with client_of(server.url) as client:
        client.response_callbacks["STRLEN"] = interrupt
        with client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("STRLEN", "{unread}:b").execute_command(*SLOW)
            with pytest.raises(KeyboardInterrupt):
                pipeline.execute()
        with client.pipeline(transaction=transaction) as pipeline:
            pipeline.get("{unread}:b").execute_command("TTL", "{unread}:b")
            assert pipeline.execute() == [b"right", -1]


def test_an_interrupted_command_answers_no_later_command(server):
    """If Ctrl-C comes while a command waits for its reply, the next command gets its own reply."""
    with client_of(server.url) as client:
        with interrupted_after(0.3), pytest.raises(KeyboardInterrupt):
            client.execute_command(*SLOW)
        assert client.get("{unread}:b") == b"right"


def test_an_interrupted_command_keeps_no_connection_of_a_bounded_client(server):
    """If Ctrl-C comes while the only connection of a client waits for a reply, the next command still gets it."""
    with client_of(server.url, most=1) as client:
        for _ in range(2):
            with interrupted_after(0.3), pytest.raises(KeyboardInterrupt):
                client.execute_command(*SLOW)
            with client.pipeline(transaction=False) as pipeline:
                pipeline.get("{unread}:b").execute_command("TTL", "{unread}:b")
                assert pipeline.execute() == [b"right", -1]


def test_an_interrupt_right_after_a_command_was_sent(server, monkeypatch):
    """If Ctrl-C comes after a command was sent and before its reply is awaited, the next command gets its own reply."""
    with client_of(server.url) as client:
        with monkeypatch.context() as patched:
            patched.setattr("redis.Redis.parse_response", interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.execute_command(*SLOW)
        assert client.get("{unread}:b") == b"right"


def test_an_interrupted_handshake_leaves_no_connection_to_another_database(redis_url, monkeypatch):
    """If Ctrl-C comes before a new connection has chosen its database, no command is executed in database 0."""
    with client_of(f"{redis_url}?db=7") as client:
        client.connection_pool.disconnect()
        with monkeypatch.context() as patched:
            patched.setattr(BEFORE_SELECT, interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.get("{unread}:b")
        assert client.get("{unread}:b") == b"right"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OverflowError])
def test_an_interrupted_question_about_a_silent_node(fresh_server, error):
    """If the question whether a silent node was replaced raises, the node's reply answers no later command."""

    def ask():
        raise error

    url = fresh_server(port=0).url
    with (
        client_of(url) as client,
        contextlib.closing(Redis.from_url(url, protocol=3, socket_timeout=9, **failover_aware(ask, tls=False))) as node,
    ):
        assert client.get("{unread}:b") == b"right"
        with pytest.raises(error):
            node.execute_command("BLPOP", "{unread}:never", 3)
        began = time.monotonic()
        assert node.get("{unread}:b") == b"right"
        assert time.monotonic() - began < 1, "it waited for the reply to the other command"


@pytest.mark.slow
def test_an_interrupted_command_at_a_primary_of_sentinels(fresh_server, tmp_path):
    """If Ctrl-C comes while a primary found by a Sentinel has not replied, the next command gets its own reply."""
    with watched(fresh_server, tmp_path) as servers, client_of(servers.url) as client:
        with interrupted_after(0.3), pytest.raises(KeyboardInterrupt):
            client.execute_command(*SLOW)
        assert client.get("{unread}:b") == b"right"
