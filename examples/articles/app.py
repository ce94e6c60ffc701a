"""Example application: articles with views and likes, posts with votes, and an API with a limit of calls.

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
"""The groups of the dashboard: the metric of each, and the prefix of its subjects."""

LONGEST = 100
"""Most subjects in a group of the dashboard: the length of the declared leaderboards."""


@asynccontextmanager
async def counters(app: FastAPI) -> AsyncIterator[None]:
    """Open one producer and one reader when the application starts, and close them when it stops."""
    url = os.environ.get("TALLYSTREAM_REDIS_URL", "redis://127.0.0.1:6379")
    async with Producer(url) as producer, Totals(url) as totals:
        app.state.producer, app.state.totals = producer, totals
        yield


app = FastAPI(title="articles", lifespan=counters)


async def decided(metric: str, subject: str, amount: int = 1, actor: str | None = None) -> Decision:
    """Count one event at once and return the decision, which has the new total.

    If the total is not needed, call `Producer.emit` instead: it does not wait for the server.
    """
    producer: Producer = app.state.producer
    return await producer.decide(metric, subject, amount, actor=actor)


@app.post("/articles/{article}/view")
async def view(article: str) -> Answer:
    """Count a view of an article, and return its views."""
    views = (await decided("view", f"article:{article}")).total
    return {"articleId": article, "views": views, "message": "View counted"}


@app.post("/articles/{article}/like")
async def like(article: str) -> Answer:
    """Count a like of an article, and return its likes."""
    likes = (await decided("like", f"article:{article}")).total
    return {"articleId": article, "likes": likes, "message": "Article liked"}


@app.post("/articles/{article}/unlike")
async def unlike(article: str) -> Answer:
    """Take a like of an article back, and return its likes, which are never shown below 0."""
    likes = (await decided("like", f"article:{article}", -1)).total
    return {"articleId": article, "likes": likes, "message": "Article unliked"}


@app.get("/articles/{article}/stats")
async def stats(article: str) -> Answer:
    """Return the views, likes and shares of an article, and its engagement rate."""
    totals: Totals = app.state.totals
    found = await totals.of(f"article:{article}")
    counters, rate = found.counters, found.ratios["engagement_rate"]
    shown: Answer = {"views": counters["view"], "likes": counters["like"], "shares": counters["share"]}
    return {"articleId": article, "stats": shown | {"engagement_rate": f"{rate:.2%}" if counters["view"] else "0%"}}


@app.post("/api/call")
async def call(x_api_key: Annotated[str, Header()] = "anonymous") -> JSONResponse:
    """Count a call of an API key; return 429 if the key has reached its limit in this clock hour."""
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
    """Count a vote of a user for a post; return 400 if the user has already voted for it."""
    outcome = await decided("vote", f"post:{post}", actor=x_user_id)
    if outcome.accepted:
        return JSONResponse({"postId": post, "upvotes": outcome.total, "message": "Upvoted successfully"})
    return JSONResponse({"error": "You already voted on this post"}, status_code=400)


@app.get("/dashboard")
async def dashboard() -> Answer:
    """Return the largest counters of each group, largest first."""
    totals: Totals = app.state.totals
    groups: Answer = {}
    for group, (metric, prefix) in GROUPS.items():
        board = await totals.top(metric, n=LONGEST)
        groups[group] = {place.subject.removeprefix(prefix): place.value for place in board.top}
    return groups


@app.exception_handler(EventError)
async def refused(_request: Request, error: EventError) -> JSONResponse:
    """Return 400 and the reason if an identifier is invalid: too long, empty, or with control characters."""
    return JSONResponse({"error": str(error)}, status_code=400)


@app.exception_handler(Exception)
async def failed(_request: Request, _error: Exception) -> JSONResponse:
    """Return 500 without details if a route fails: the server's log has the error, and the caller must not see it."""
    return JSONResponse({"error": "Internal server error"}, status_code=500)


def _instant(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
