"""The articles application answers the requests of the tutorial's clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tallystream.wire.window import HOUR
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.settings.load import load
from tallystream_worker.settings.settings import RedisSettings
from tests.paths import ROOT
from tests.waiting import until


@contextlib.contextmanager
def articles(redis_url):
    """Run the application with the command of its README; end it with SIGTERM, without a traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "granian"), "--interface", "asgi", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "examples.articles.app:app"],
        cwd=ROOT,
        env=os.environ | {"TALLYSTREAM_REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, process.stdout.read()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/dashboard").status_code == 200
        return False

    try:
        until(answers, timeout=30, what="the application to answer")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output.decode()
    assert b"Traceback" not in output


@pytest.fixture
def client(server, monkeypatch):
    """Provide a client of the application, while a worker counts the metrics of its configuration."""
    monkeypatch.setattr("tallystream_worker.runtime.partition_worker.BLOCK", 0.05)
    # A new hour resets the limits: no test may run across its beginning.
    until(lambda: time.time() % HOUR < HOUR - 20, timeout=30, what="the hour to begin")
    settings = load(ROOT / "examples/articles/tallystream.toml", {})
    settings = replace(settings, redis=RedisSettings(url=server.url))
    with (
        counting(settings, logs.configure(quiet=True)),
        articles(server.url) as url,
        httpx.Client(base_url=url) as client,
    ):
        yield client


def test_the_tutorial_s_clients_work_unchanged(client):
    """Requests for views, likes, calls, votes and the dashboard get the tutorial's fields, statuses and numbers."""
    views = [client.post("/articles/1/view").json() for _ in range(5)]
    assert views[0] == {"articleId": "1", "views": 1, "message": "View counted"}
    assert views[-1]["views"] == 5

    likes = [client.post("/articles/1/like").json() for _ in range(3)]
    assert likes[-1] == {"articleId": "1", "likes": 3, "message": "Article liked"}
    assert client.post("/articles/1/unlike").json() == {"articleId": "1", "likes": 2, "message": "Article unliked"}
    assert client.post("/articles/2/unlike").json()["likes"] == 0
    assert client.get("/articles/1/stats").json() == {
        "articleId": "1",
        "stats": {"views": 5, "likes": 2, "shares": 0, "engagement_rate": "40.00%"},
    }
    assert client.get("/articles/none/stats").json()["stats"]["engagement_rate"] == "0%"

    calls = [client.post("/api/call", headers={"x-api-key": "test-key-123"}) for _ in range(10)]
    assert [call.json()["remaining"] for call in calls] == list(range(999, 989, -1))
    assert calls[0].json().keys() == {"message", "limit", "remaining", "reset_at"}
    assert calls[0].json()["limit"] == 1000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00:00\.000Z", calls[0].json()["reset_at"])

    vote = {"x-user-id": "user1"}
    first = client.post("/posts/123/upvote", headers=vote)
    assert first.json() == {"postId": "123", "upvotes": 1, "message": "Upvoted successfully"}
    again = client.post("/posts/123/upvote", headers=vote)
    assert (again.status_code, again.json()) == (400, {"error": "You already voted on this post"})
    assert client.post("/posts/123/upvote", headers={"x-user-id": "user2"}).json()["upvotes"] == 2

    assert client.get("/dashboard").json() == {
        "article_views": {"1": 5},
        "article_likes": {"1": 2, "2": 0},
        "post_upvotes": {"123": 2},
        "api_calls": {"test-key-123": 10},
    }


def test_a_hundred_views_at_once_are_a_hundred(client):
    """100 concurrent views get the totals 1 to 100, and statistics requested right after them contain all 100."""

    async def together() -> list[int]:
        async with httpx.AsyncClient(base_url=client.base_url) as caller:
            answers = await asyncio.gather(*(caller.post("/articles/7/view") for _ in range(100)))
        return [answer.json()["views"] for answer in answers]

    assert sorted(asyncio.run(together())) == list(range(1, 101))
    assert client.get("/articles/7/stats").json()["stats"]["views"] == 100


def test_the_call_after_the_limit_is_refused(client):
    """Of 1,001 calls with one key, 1,000 pass and the last gets status 429; calls with other keys still pass."""
    key = {"x-api-key": "busy"}
    states = [client.post("/api/call", headers=key).status_code for _ in range(1000)]
    assert states == [200] * 1000
    refused = client.post("/api/call", headers=key)
    assert refused.status_code == 429
    assert refused.json() | {"reset_at": None} == {
        "error": "Rate limit exceeded", "limit": 1000, "remaining": 0, "reset_at": None,
    }  # fmt: skip
    assert client.post("/api/call").json()["remaining"] == 999


def test_an_identifier_that_cannot_exist_is_refused(client):
    """A request for an article name with a control character gets status 400, and the error names the subject."""
    answer = client.post("/articles/a%00b/view")
    assert answer.status_code == 400
    assert "subject" in answer.json()["error"]
