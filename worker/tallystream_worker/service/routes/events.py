"""Events over HTTP: to be appended, or to be decided at once."""

import math
import time
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from redis.exceptions import RedisError

from tallystream.aio import Producer, Totals
from tallystream.errors import ConfigurationError, EventError, FlushTimeout
from tallystream.producing.decider import Decision
from tallystream.storage.keys import Layout
from tallystream.wire.event import Event
from tallystream_worker.service.bodies.body import KINDS, receive
from tallystream_worker.service.bodies.events import SHOWN_FAULTS, BadEvent, at_fault, read_event, read_events
from tallystream_worker.service.parameters import published
from tallystream_worker.service.problems import problem
from tallystream_worker.service.writer import MAX_HELD, Writer

MAX_EVENTS_BODY: Final = 2**20
MAX_EVENT_BODY: Final = 2**16
"""Bytes of a body with events, and with one to decide."""

CONFIRM_TIMEOUT: Final = 5.0
"""Seconds within which Redis must have taken the events of a request."""

_STATUS: Final = {
    None: HTTPStatus.OK,
    "once": HTTPStatus.CONFLICT,
    "duplicate": HTTPStatus.CONFLICT,
    "limit": HTTPStatus.TOO_MANY_REQUESTS,
}


class Appended(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many events are in the streams now, to be counted; with `partial`, how many were refused, and why.

    `refused` names the first 20 of them.
    """

    appended: int
    at_fault: int = 0
    refused: list[BadEvent] = []


class Events(Controller):
    """Writes of events."""

    path = "/v1"
    tags = ("events",)

    @post(
        "/events",
        summary="Append events: one, or at most 1,000",
        status_code=HTTPStatus.ACCEPTED,
        request_max_body_size=MAX_EVENTS_BODY,
    )
    async def append(
        self,
        totals: NamedDependency[Totals],
        writer: NamedDependency[Writer],
        request: Request[Any, Any, Any],
        partial: Annotated[
            bool, QueryParameter(name="partial", description="take the good events where others are at fault")
        ] = False,
    ) -> Appended:
        """Answer once the events are in the streams.

        Where one of them is at fault none is taken, so that the same body can be sent again once it is put right; with
        `partial` the good ones are taken, for senders that cannot put anything right.
        """
        kind, body = await receive(request, MAX_EVENTS_BODY, KINDS)
        rules = await published(totals)
        read = read_events(kind, body, rules)
        if read.faults and not (partial and read.events):
            raise at_fault(read.faults)
        producer = writer.producer()
        try:
            await _append(writer, producer, read.events, totals, (await totals.deployment()).layout)
        except ConfigurationError:
            await writer.give_up(producer)
            raise
        return Appended(len(read.events), len(read.faults), read.faults[:SHOWN_FAULTS])

    @post(
        "/decide",
        summary="Count one event now and return the verdict",
        status_code=HTTPStatus.OK,
        request_max_body_size=MAX_EVENT_BODY,
    )
    async def decide(
        self, totals: NamedDependency[Totals], writer: NamedDependency[Writer], request: Request[Any, Any, Any]
    ) -> Response[Decision]:
        """Answer 200 where the event was accepted, 409 where it counts once only, 429 beyond its limit."""
        _, body = await receive(request, MAX_EVENT_BODY)
        rules = await published(totals)
        event = read_event(body, rules)
        try:
            outcome = await writer.producer().decide(
                event.metric, event.subject, event.amount, actor=event.actor, at=event.at, id=event.id
            )
        except RedisError:
            detail = (
                "it is not known whether the event was counted: where its metric counts once per actor, or it has an "
                "id, ask again; elsewhere that may count it twice"
            )
            raise problem(HTTPStatus.SERVICE_UNAVAILABLE, detail) from None
        headers = {}
        if outcome.reason == "limit" and outcome.reset_at is not None:
            headers["Retry-After"] = str(max(0, math.ceil(outcome.reset_at - time.time())))
        return Response(outcome, status_code=_STATUS[outcome.reason], headers=headers)


def _no_room(why: str) -> Exception:
    detail = f"{why}: none of these was taken, send them again"
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})


async def _append(writer: Writer, producer: Producer, events: list[Event], totals: Totals, layout: Layout) -> None:
    if writer.is_stalled:
        raise _no_room("earlier events still wait for Redis to take them")
    if not await writer.room.is_there_for(events, totals, layout):
        raise _no_room("the log is full until some of it is counted and trimmed")
    # Room for all or for none. Only this loop emits, and `emit` does not suspend: the room stays.
    if len(events) > MAX_HELD - producer.stats.buffered:
        raise _no_room("too many events wait for Redis to take them")
    for index, event in enumerate(events):
        try:
            await producer.emit(event.metric, event.subject, event.amount, actor=event.actor, at=event.at, id=event.id)
        except EventError as error:  # the rules have changed since they were read a moment ago
            raise at_fault([BadEvent(index, error.field, error.problem)], taken=index) from None
    try:
        await producer.flush(CONFIRM_TIMEOUT)
    except FlushTimeout:
        writer.is_stalled = True
        detail = (
            f"Redis has not taken the events within {CONFIRM_TIMEOUT:g} seconds; they are held and will still be "
            "sent: sent again, they may be counted twice, unless they have ids"
        )
        raise problem(HTTPStatus.GATEWAY_TIMEOUT, detail) from None
