"""The command that emits one event."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

from cyclopts import Parameter

from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream_worker.cli.options import Where, flag, whole_number


def emit(
    metric: str,
    subject: str,
    *,
    amount: Annotated[int, Parameter(converter=whole_number)] = 1,
    actor: str | None = None,
    at: float | None = None,
    id: str | None = None,  # the event's own word
    wait: Annotated[bool, flag("return only when it is counted")] = False,
    timeout: Annotated[float, Parameter(help="seconds to wait at most")] = 10.0,
    where: Where = Where(),
) -> None:
    """Emit one event.

    Parameters
    ----------
    metric
        what is counted, such as view
    subject
        what it is counted for, such as article:1
    amount
        how much to add, a whole number
    actor
        who did it
    at
        when it happened, in seconds since 1970
    id
        the event's own name, for metrics that count each once
    """
    settings = where.settings()
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        rules = totals.deployment.declared  # also: an unreachable server is an error now, not after the time limit
    if rules is not None:
        rules.refuse_undeclared(metric)
    with Producer(settings.redis.url, namespace=settings.redis.namespace) as producer:
        producer.emit(metric, subject, amount, actor=actor, at=at, id=id)
        producer.flush(timeout, wait="counted" if wait else "appended")
