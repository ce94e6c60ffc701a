"""Events in the body of a request, each checked as a whole before anything is done with any."""

import asyncio
import json
import re
import time
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.exceptions.http_exceptions import RequestEntityTooLarge

from tallystream.errors import EventError
from tallystream.event import Event, check_at
from tallystream.rules import Rules
from tallystream_worker.http.problems import bad_request, problem

MAX_EVENTS: Final = 1000
"""The most events in one body."""

_RECEIVE_TIMEOUT: Final = 10.0
"""Seconds that a client may take to send a body: one that never ends would hold its connection for ever."""

_SHOWN: Final = 200
_AT_FAULT: Final = re.compile(r"(?:at `\$\.|field `)(\w{1,64})`$")

_decode: Final = msgspec.json.Decoder(Event).decode
_decode_list: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


async def receive(request: Request[Any, Any, Any], most: int) -> bytes:
    """Return the body, of `most` bytes at most; else the answer is 415, 413 or 408.

    A page of some other site can make a browser send a form or plain text here, but nothing that says it is JSON:
    for that the browser asks first, and is refused.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        limit = "must be application/json"
        raise problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-type: {limit}", field="content-type", limit=limit)
    try:
        async with asyncio.timeout(_RECEIVE_TIMEOUT):
            return await request.body()
    except RequestEntityTooLarge:
        limit = f"at most {most:,} bytes"
        raise problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: {limit}", field="body", limit=limit) from None
    except TimeoutError:
        limit = f"must be sent within {_RECEIVE_TIMEOUT:g} seconds"
        raise problem(HTTPStatus.REQUEST_TIMEOUT, f"body: {limit}", field="body", limit=limit) from None


def read_event(text: bytes | msgspec.Raw, rules: Rules) -> Event:
    """Return the event that a JSON object is.

    Raises:
        EventError: it is none, or none that its metric's rules have a place for.
    """
    try:
        event = _decode(text)
        # The decoder alone would let the last one of two equal keys win.
        json.loads(bytes(text), object_pairs_hook=_only_once)
    except EventError:
        raise
    except (ValueError, RecursionError) as error:  # msgspec's own errors are ValueErrors
        if isinstance(error.__cause__, EventError):
            raise error.__cause__ from None
        found = _AT_FAULT.search(str(error))
        raise EventError(found[1] if found else "body", str(error)[:_SHOWN]) from None
    rules.refuse_undeclared(event.metric)
    rules.refuse(event.metric, event.amount, event.actor)
    if event.at is not None:
        check_at(event.at, time.time())
    return event


def read_events(text: bytes, rules: Rules) -> list[Event]:
    """Return the events that a JSON object or a list of them is; else the answer is 400, and names the first at fault.

    Raises:
        EventError: the list itself cannot be read.
    """
    if text.lstrip()[:1] != b"[":
        items = [msgspec.Raw(text)]
    else:
        try:
            items = _decode_list(text)
        except (ValueError, RecursionError) as error:
            raise EventError("body", str(error)[:_SHOWN]) from None
    if not 1 <= len(items) <= MAX_EVENTS:
        raise bad_request("body", f"must be one event, or a list of 1 to {MAX_EVENTS:,}, not {len(items):,}")
    events = []
    for index, item in enumerate(items):
        try:
            events.append(read_event(item, rules))
        except EventError as error:
            raise bad_event(index, error) from None
    return events


def bad_event(index: int, error: EventError, **members: Any) -> Exception:
    """Return the answer to an event at fault, by its place in the body, from 0."""
    return problem(
        HTTPStatus.BAD_REQUEST, f"event {index}: {error}",
        field=error.field, limit=error.problem, index=index, **members,
    )  # fmt: skip


def _only_once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise EventError(key, "must be given once only")
        seen.add(key)
