"""The routes of live updates: server-sent events, and the same messages over a WebSocket."""

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Annotated, Any, Final

from litestar import Request, WebSocket, get, websocket
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException, WebSocketDisconnect
from litestar.params import QueryParameter
from litestar.response import Stream
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send
from redis.exceptions import RedisError

from tallystream.aio import Totals
from tallystream.errors import TallyError
from tallystream.rules.windows import seconds
from tallystream.wire.window import WINDOWS
from tallystream_worker.live.broadcaster import TICK, Broadcaster, TooManyReaders
from tallystream_worker.live.messages import HEARTBEAT
from tallystream_worker.live.subscriber import LiveReader
from tallystream_worker.live.subscription import subscription_of
from tallystream_worker.service.parameters import published
from tallystream_worker.service.problems import bad_request, problem

PATIENCE: Final = 15.0
"""Seconds without a message until a stream sends a heartbeat, and until a client that reads nothing is dropped."""

MAX_EVERY: Final = 60.0
"""Largest interval between updates that a reader may ask for, in seconds."""

_BEGIN: Final = b"retry: 1000\n\n"
_GOING_AWAY: Final = 1001
_REFUSED: Final = 1008
_TRY_LATER: Final = 1013
_REASON_BYTES: Final = 120
"""Bytes of a reason in a closing frame, which has room for 123."""

Metrics = Annotated[
    list[str] | None,
    QueryParameter(name="metric", description="a metric to follow; repeat it for several; default all"),
]
Subjects = Annotated[
    list[str] | None,
    QueryParameter(
        name="subject",
        description="a subject, or a pattern in which * matches any text; repeat it for several; default all",
    ),
]
Every = Annotated[float, QueryParameter(name="every", description="least number of seconds between two updates")]
Since = Annotated[
    str | None, QueryParameter(name="since", description="id of the last message, if Last-Event-ID cannot be sent")
]
WithOverview = Annotated[
    bool,
    QueryParameter(name="overview", description="also send the overview; without metric and subject, send no counters"),
]
WithTop = Annotated[
    str | None,
    QueryParameter(
        name="top", description="also send the leaderboards of this window (all, hour, day, ...) or range (such as 7d)"
    ),
]


@get("/v1/live", tags=["live"], summary="Totals as they change: server-sent events", media_type="text/event-stream")
async def live(
    totals: NamedDependency[Totals],
    broadcaster: NamedDependency[Broadcaster],
    request: Request[Any, Any, Any],
    metric: Metrics = None,
    subject: Subjects = None,
    every: Every = TICK,
    since: Since = None,
    overview: WithOverview = False,
    top: WithTop = None,
) -> Stream:
    """Send messages until the client disconnects or reads nothing for 15 seconds, or the service stops.

    docs/live.md lists the messages. Respond 400 if a parameter is not valid, 404 if a metric is not declared, and 503
    with `Retry-After` if the service has its maximum of readers, or of counters that readers follow by name, or if the
    counters cannot be read.
    """
    reader = await _reader(totals, metric, subject, every, overview=overview, top=top)
    await _join(broadcaster, reader, request.headers.get("last-event-id") or since)
    return _Events(broadcaster, reader)


@websocket("/v1/live/ws")
async def live_socket(
    socket: WebSocket[Any, Any, Any],
    totals: NamedDependency[Totals],
    broadcaster: NamedDependency[Broadcaster],
    metric: Metrics = None,
    subject: Subjects = None,
    every: Every = TICK,
    since: Since = None,
    overview: WithOverview = False,
    top: WithTop = None,
) -> None:
    """Send the same messages as `GET /v1/live`, as JSON texts, and ignore messages of the client.

    docs/live.md lists the messages. After 15 seconds without one, `{"event":"heartbeat"}` is sent. A client that reads
    nothing for 15 seconds is dropped.

    A socket with an undeclared metric, or a value that a parameter may not have, is accepted and then closed with code
    1008 and at most 120 bytes of the reason. It is closed with 1013 and the text `try again later` if there are too
    many readers, or counters that readers follow by name, or the counters cannot be read; and with 1001 when the
    service stops. If a value has the wrong type (`every=fast`), the router refuses the socket before it is accepted,
    and this function is not called.

    Args:
        socket: The connection, which is not accepted yet.
        totals: Reads the published rules.
        broadcaster: Gives the messages to this reader.
        metric: The metrics to follow; `None` for all.
        subject: Subjects, and patterns in which `*` matches any text; `None` for all.
        every: The least number of seconds between two updates, 0.25 to 60.
        since: The `id` of the last message that the client has, to continue after it; `None` to begin now.
        overview: Whether to send the overview, too. With it or `top`, and without `metric` and `subject`, no counters
            are sent.
        top: The window (`all`, `hour`, `day`, ...) or the range (such as `7d`) whose leaderboards are sent, too; `None`
            for none.
    """
    await socket.accept()  # accept first: a browser shows the reason of a closing frame, but not of a rejection
    try:
        reader = await _reader(totals, metric, subject, every, overview=overview, top=top)
        await _join(broadcaster, reader, since)
    except (TallyError, RedisError, HTTPException) as error:
        refused = isinstance(error, ValueError) or getattr(error, "status_code", 503) < HTTPStatus.INTERNAL_SERVER_ERROR
        reason = getattr(error, "detail", None) or str(error)
        shown = reason.encode()[:_REASON_BYTES].decode(errors="ignore") if refused else "try again later"
        await socket.close(_REFUSED if refused else _TRY_LATER, shown)
        return
    try:
        # Close only after receiving has ended: granian never closes a socket that is being read.
        if await _while_present(_send_texts(socket, reader), _until_closed(socket), reader.watch(PATIENCE)):
            await socket.close(_GOING_AWAY, "the service stops")
    finally:
        broadcaster.leave(reader)


class _Events(Stream):
    """A response that sends a reader's messages as server-sent events until the client is gone or the service stops.

    The client is gone, too, if it reads nothing for 15 seconds. Then the reader leaves the broadcaster.
    """

    def __init__(self, broadcaster: Broadcaster, reader: LiveReader) -> None:
        # Without this header, a proxy could buffer the response and delay every update.
        super().__init__((), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._broadcaster = broadcaster
        self._reader = reader

    def to_asgi_response(self, *args: Any, **settings: Any) -> ASGIResponse:
        """Return the ASGI application that sends the events."""
        return _Following(self._broadcaster, self._reader, super().to_asgi_response(*args, **settings))


class _Following(ASGIResponse):
    def __init__(self, broadcaster: Broadcaster, reader: LiveReader, response: ASGIResponse) -> None:
        self._broadcaster = broadcaster
        self._reader = reader
        self._response = response
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        try:
            await self._response.start_response(send)
            await _while_present(_send_events(send, self._reader), _until_gone(receive), self._reader.watch(PATIENCE))
        finally:
            self._broadcaster.leave(self._reader)


async def _reader(
    totals: Totals,
    metrics: list[str] | None,
    subjects: list[str] | None,
    every: float,
    *,
    overview: bool,
    top: str | None,
) -> LiveReader:
    rules = await published(totals, *(metrics or []))
    if not TICK <= every <= MAX_EVERY:
        raise bad_request("every", f"must be {TICK:g} to {MAX_EVERY:g} seconds")
    if top is not None and top != "all" and top not in WINDOWS:
        try:
            seconds(top)
        except ValueError:
            raise bad_request("top", "must be all, hour, day, month, or a duration such as 7d") from None
    follows = None
    if metrics or subjects or not (overview or top):
        follows = subscription_of(metrics or rules.metric, subjects or ["*"])
    # The broadcaster sends once each tick: only a reader that wants fewer updates needs its own timer.
    return LiveReader(follows, every if every > TICK else 0.0, overview=overview, top=top)


async def _join(broadcaster: Broadcaster, reader: LiveReader, since: str | None) -> None:
    try:
        await broadcaster.join(reader, since)
    except TooManyReaders as error:
        raise problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers={"Retry-After": "5"}) from None


async def _while_present(sending: Coroutine[Any, Any, None], *endings: Coroutine[Any, Any, None]) -> bool:
    """Run all the coroutines until one of them ends, then cancel the others; no error of any of them is raised.

    Args:
        sending: Sends messages.
        endings: Coroutines that end when the client is gone, or does not read.

    Returns:
        Whether `sending` ended without an error, and none of `endings` did.
    """
    tasks = [asyncio.create_task(each) for each in (sending, *endings)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        sent, *ended = await asyncio.gather(*tasks, return_exceptions=True)
    return sent is None and None not in ended


async def _send_events(send: Send, reader: LiveReader) -> None:
    await send({"type": "http.response.body", "body": _BEGIN, "more_body": True})
    while (messages := await reader.next()) is not None:
        body = b"".join([message.sse for message in messages]) or HEARTBEAT
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_texts(socket: WebSocket[Any, Any, Any], reader: LiveReader) -> None:
    while (messages := await reader.next()) is not None:
        for text in [message.text for message in messages] or ['{"event":"heartbeat"}']:
            await socket.send_text(text)


async def _until_closed(socket: WebSocket[Any, Any, Any]) -> None:
    try:
        while True:
            await socket.receive_data(mode="text")
    except WebSocketDisconnect:
        return
