"""The routes that append events, or decide one event at once."""

import math
from http import HTTPStatus
from itertools import count, islice
from typing import Annotated, Any, Final

import msgspec
from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from redis.exceptions import RedisError

from tallystream.aio import Totals
from tallystream.errors import EventError, FlushTimeout, TallyError
from tallystream.producing.decider import Decision
from tallystream.storage.keys import Layout
from tallystream_worker.service.bodies.body import KINDS, receive
from tallystream_worker.service.bodies.events import SHOWN_FAULTS, BadEvent, Read, at_fault, read_event, read_events
from tallystream_worker.service.parameters import published
from tallystream_worker.service.problems import problem
from tallystream_worker.service.writer import MAX_HELD, Writer

MAX_EVENTS_BODY: Final = 2**20
"""Largest body with events to append, in bytes."""

MAX_EVENT_BODY: Final = 2**16
"""Largest body with one event to decide, in bytes."""

CONFIRM_TIMEOUT: Final = 5.0
"""Seconds within which Redis must have confirmed the events of a request."""

_STATUS: Final = {
    None: HTTPStatus.OK,
    "once": HTTPStatus.CONFLICT,
    "duplicate": HTTPStatus.CONFLICT,
    "limit": HTTPStatus.TOO_MANY_REQUESTS,
}


class Appended(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many events were appended; with `partial`, also how many are invalid, and the first 20 of these."""

    appended: int
    """Number of events that were appended."""

    at_fault: int = 0
    """Number of invalid events, which were not appended; absent for 0."""

    refused: list[BadEvent] = []
    """The first 20 invalid events; absent if there are none."""


class Events(Controller):
    """The HTTP routes that append events (`POST /v1/events`) or decide one event at once (`POST /v1/decide`)."""

    path = "/v1"
    tags = ("events",)

    @post(
        "/events",
        summary="Append 1 to 1,000 events",
        status_code=HTTPStatus.ACCEPTED,
        request_max_body_size=MAX_EVENTS_BODY,
    )
    async def append(
        self,
        totals: NamedDependency[Totals],
        writer: NamedDependency[Writer],
        request: Request[Any, Any, Any],
        partial: Annotated[
            bool, QueryParameter(name="partial", description="append the valid events even if others are invalid")
        ] = False,
    ) -> Appended:
        """Append the events, and respond 202 when they are in the streams; they are counted later.

        With `[worker] durability` `replica` or `fsync`, they are then on a replica or on the disk too.

        Respond 504 if that takes over 5 seconds: the events are still appended when Redis accepts them, unless this
        process ends before, or Redis refuses them for good. Respond 503 with `Retry-After` if there is no room, or if
        Redis cannot be read: none is appended. Respond 503 without `Retry-After` if Redis refuses the events for good,
        or if the stored deployment is replaced meanwhile: it has `unknown`, and so many of the first valid events may
        be appended; no later one is.

        If an event is invalid, respond 400: none is appended, so the corrected body can be sent again. Only if the
        rules have changed since an earlier request appended events, the 400 may have `taken`: so many of the first
        valid events are, or will be, appended. Senders that cannot correct events use `partial`: the valid events are
        appended, and the response lists the first 20 of the others. It is 400 if all are invalid, and may be 400 if the
        rules have changed. After a 408, 413 or 415 (the body is too slow, too large or of another type) none is
        appended.
        """
        kind, body = await receive(request, MAX_EVENTS_BODY, KINDS)
        rules = await published(totals)
        read = read_events(kind, body, rules)
        if read.faults and not (partial and read.events):
            raise at_fault(read.faults)
        await _append(writer, read, totals, (await totals.deployment()).layout)
        return Appended(len(read.events), len(read.faults), read.faults[:SHOWN_FAULTS])

    @post(
        "/decide",
        summary="Count one event now and return the decision",
        status_code=HTTPStatus.OK,
        request_max_body_size=MAX_EVENT_BODY,
    )
    async def decide(
        self, totals: NamedDependency[Totals], writer: NamedDependency[Writer], request: Request[Any, Any, Any]
    ) -> Response[Decision]:
        """Respond 200 if the event is accepted, 409 if it does not count once more, 429 if the limit is reached.

        409 is for an event whose id was counted before, and for a vote that has the amount of its actor's present vote,
        or is earlier than that vote. A later vote of the same amount still replaces its time. Of events with one id the
        earliest counts (not with `seen = "bloom"`), so one that is earlier than the counted event replaces it, and
        `total` may change.

        After a 400 the event was not counted: it is invalid, too late or too far ahead, its metric is spread or kept in
        a sketch, or the total would be too large. After a 503 with `Retry-After` it was not counted either. After a 503
        without, it is not known whether the event was counted: send it again only if it has an id that counts once, or
        its metric counts once per actor. After a 504 the event is decided, but the replica or the disk that
        `[worker] durability` names has not confirmed it within a second: a failover or a crash may undo it. Send it
        again under the same condition.
        """
        _, body = await receive(request, MAX_EVENT_BODY)
        rules = await published(totals)
        event = read_event(body, rules)
        try:
            outcome = await writer.producer().decide(
                event.metric, event.subject, event.amount, actor=event.actor, at=event.at, id=event.id
            )
        except RedisError:
            detail = (
                "it is unknown whether the event was counted. Send it again if it has an id or its metric counts once "
                "per actor; otherwise sending it again may count it twice"
            )
            raise problem(HTTPStatus.SERVICE_UNAVAILABLE, detail) from None
        headers = {}
        if outcome.reason == "limit" and outcome.reset_at is not None:
            headers["Retry-After"] = str(max(0, math.ceil(outcome.reset_at - (await totals.deployment()).now)))
        return Response(outcome, status_code=_STATUS[outcome.reason], headers=headers)


def _no_room(why: str) -> Exception:
    detail = f"{why}: no event of this request was accepted, send them again"
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "1"})


def _not_known(why: TallyError, taken: int) -> Exception:
    detail = (
        f"{why}: it is unknown which of the first {taken} events are appended. If you send them again, they may be "
        "counted twice, unless they have ids"
    )
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, unknown=taken)


async def _append(writer: Writer, read: Read, totals: Totals, layout: Layout) -> None:
    """Append the valid events of a body, and wait until they are in the streams.

    Raises:
        ProblemDetailsException: the problem that the response states.
        RedisError: it cannot be read whether the streams have room; no event is appended.
    """
    producer, events = writer.producer(), read.events
    if writer.is_stalled:
        raise _no_room("earlier events still wait for Redis to accept them")
    if not await writer.room.is_there_for(events, totals, layout):
        raise _no_room("a stream is full until workers count and trim some of its entries")
    # Accept all events or none. Only this event loop emits, and `emit` does not suspend, so the room stays free.
    if len(events) > MAX_HELD - producer.stats.buffered:
        raise _no_room("too many events wait for Redis to accept them")
    taken = 0
    try:
        for event in events:
            await producer.emit(event.metric, event.subject, event.amount, actor=event.actor, at=event.at, id=event.id)
            taken += 1
        await producer.flush(CONFIRM_TIMEOUT)
    except EventError as error:  # the rules have changed since they were read
        invalid = {fault.index for fault in read.faults}
        place = next(islice((index for index in count() if index not in invalid), taken, None))
        raise at_fault([BadEvent(place, error.field, error.problem)], taken=taken) from None
    except FlushTimeout as error:
        if not writer.is_using(producer):
            raise _not_known(error, taken) from None
        writer.is_stalled = True
        detail = (
            f"Redis has not confirmed the events within {CONFIRM_TIMEOUT:g} seconds. They are buffered and will still "
            "be sent. If you send them again, they may be counted twice, unless they have ids"
        )
        raise problem(HTTPStatus.GATEWAY_TIMEOUT, detail) from None
    except TallyError as error:  # Redis refuses the producer; or another request has given it up
        await writer.give_up(producer)
        raise (_not_known(error, taken) if taken else _no_room(str(error))) from None
