"""The command `emit`: emits one event."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

from cyclopts import Parameter

from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream_worker.cli.options import DAY, Where, flag, number, whole_number


def emit(
    metric: str,
    subject: str,
    *,
    amount: Annotated[int, Parameter(converter=whole_number)] = 1,
    actor: str | None = None,
    at: float | None = None,
    id: str | None = None,  # named as the field of the event
    wait: Annotated[bool, flag("return only when the event is counted")] = False,
    timeout: Annotated[float, number("seconds to wait at most", 0, DAY)] = 10.0,
    where: Where = Where(),
) -> None:
    """Emit one event, and return when it is appended, or with --wait when it is counted.

    If this takes longer than --timeout, the command fails, although the event may still be appended. If rules are
    stored that do not declare the metric, nothing is emitted.

    Parameters
    ----------
    metric
        the metric to count, such as view
    subject
        the subject to count it for, such as article:1
    amount
        the amount to add, a whole number
    actor
        the actor of the event, such as user:7
    at
        the time of the event, in seconds since 1970
    id
        the id of the event, for metrics that count each id once
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        rules = totals.deployment.declared  # an unreachable server fails here, before the flush timeout
    if rules is not None:
        rules.refuse_undeclared(metric)
    with Producer(settings.redis.url, namespace=settings.redis.namespace) as producer:
        producer.emit(metric, subject, amount, actor=actor, at=at, id=id)
        producer.flush(timeout, wait="counted" if wait else "appended")
