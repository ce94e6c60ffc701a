"""Articles with views, likes and votes, and an interface with a limit: an application on top of tallystream.

tallystream up --config examples/articles/tallystream.toml
granian --interface asgi --port 3000 examples.articles.app:app
"""

from __future__ import annotations

import os
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse

from tallystream import EventError
from tallystream.aio import Producer, Totals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tallystream import Decision

Answer = dict[str, Any]

GROUPS = {
    "article_views": ("view", "article:"),
    "article_likes": ("like", "article:"),
    "post_upvotes": ("vote", "post:"),
    "api_calls": ("api-call", "key:"),
}
"""What the dashboard shows: the metric of each group, and what its subjects begin with."""

LONGEST = 100
"""Subjects in each group of the dashboard: the length of the declared leaderboards."""


@asynccontextmanager
async def counters(app: FastAPI) -> AsyncIterator[None]:
    """Hold one producer and one reader for as long as the application runs."""
    url = os.environ.get("TALLYSTREAM_REDIS_URL", "redis://127.0.0.1:6379")
    async with Producer(url) as producer, Totals(url) as totals:
        app.state.producer, app.state.totals = producer, totals
        yield


app = FastAPI(title="articles", lifespan=counters)


async def decided(metric: str, subject: str, amount: int = 1, actor: str | None = None) -> Decision:
    """Count one event and return its verdict: these callers show the number that it led to.

    Who needs no number calls `emit` instead, which does not wait at all.
    """
    producer: Producer = app.state.producer
    return await producer.decide(metric, subject, amount, actor=actor)


@app.post("/articles/{article}/view")
async def view(article: str) -> Answer:
    """Count a view."""
    views = (await decided("view", f"article:{article}")).total
    return {"articleId": article, "views": views, "message": "View counted"}


@app.post("/articles/{article}/like")
async def like(article: str) -> Answer:
    """Count a like."""
    likes = (await decided("like", f"article:{article}")).total
    return {"articleId": article, "likes": likes, "message": "Article liked"}


@app.post("/articles/{article}/unlike")
async def unlike(article: str) -> Answer:
    """Take a like back; what is shown never falls below 0."""
    likes = (await decided("like", f"article:{article}", -1)).total
    return {"articleId": article, "likes": likes, "message": "Article unliked"}


@app.get("/articles/{article}/stats")
async def stats(article: str) -> Answer:
    """Show what an article has, with its rate of engagement."""
    totals: Totals = app.state.totals
    found = await totals.of(f"article:{article}")
    counters, rate = found.counters, found.ratios["engagement_rate"]
    shown: Answer = {"views": counters["view"], "likes": counters["like"], "shares": counters["share"]}
    return {"articleId": article, "stats": shown | {"engagement_rate": f"{rate:.2%}" if counters["view"] else "0%"}}


@app.post("/api/call")
async def call(x_api_key: Annotated[str, Header()] = "anonymous") -> JSONResponse:
    """Count a call; each key has so many in each clock hour."""
    totals: Totals = app.state.totals
    outcome = await decided("api-call", f"key:{x_api_key}")
    window = {
        "limit": (await totals.limit(f"key:{x_api_key}", "api-call")).limit,
        "remaining": outcome.remaining,
        "reset_at": _instant(outcome.reset_at or time.time()),
    }
    if outcome.accepted:
        return JSONResponse({"message": "API call counted"} | window)
    return JSONResponse({"error": "Rate limit exceeded"} | window, status_code=429)


@app.post("/posts/{post}/upvote")
async def upvote(post: str, x_user_id: Annotated[str, Header()] = "anonymous") -> JSONResponse:
    """Count a vote, one for each user and post."""
    outcome = await decided("vote", f"post:{post}", actor=x_user_id)
    if outcome.accepted:
        return JSONResponse({"postId": post, "upvotes": outcome.total, "message": "Upvoted successfully"})
    return JSONResponse({"error": "You already voted on this post"}, status_code=400)


@app.get("/dashboard")
async def dashboard() -> Answer:
    """Show the counters, grouped, the largest first."""
    totals: Totals = app.state.totals
    groups: Answer = {}
    for group, (metric, prefix) in GROUPS.items():
        board = await totals.top(metric, n=LONGEST)
        groups[group] = {place.subject.removeprefix(prefix): place.value for place in board.top}
    return groups


@app.exception_handler(EventError)
async def refused(_request: Request, error: EventError) -> JSONResponse:
    """Say what was wrong with an identifier: too long, empty, or not printable."""
    return JSONResponse({"error": str(error)}, status_code=400)


@app.exception_handler(Exception)
async def failed(_request: Request, _error: Exception) -> JSONResponse:
    """Answer a failure of ours: what failed is in the log, where the caller cannot read it."""
    return JSONResponse({"error": "Internal server error"}, status_code=500)


def _instant(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
