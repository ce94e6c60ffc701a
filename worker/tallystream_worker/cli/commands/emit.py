"""The command `emit`: emits one event."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tallystream.producing.producer import Producer
from tallystream.reading.totals import Totals
from tallystream_worker.cli.options import DAY, AsJson, Where, flag, number, whole_number
from tallystream_worker.cli.output import console, print_json

if TYPE_CHECKING:
    from tallystream.rules.metrics import Metric


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
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Emit one event, and return when it is appended, or with --wait when it is counted.

    With --wait, a line states that the event was counted, also if it became a dead letter; if a rule of the metric may
    have left it out, such as its limit, the line names the rule. With --json, JSON is printed instead: `state` is
    appended or counted, and `unless` has the names of these rules. Without both, nothing is printed.

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
        deployment = totals.deployment
        rules = deployment.declared  # an unreachable server fails here, before the flush timeout
    if rules is not None:
        rules.refuse_undeclared(metric)
    store = settings.redis
    with Producer(store.url, namespace=store.namespace, durability=deployment.durability) as producer:
        producer.emit(metric, subject, amount, actor=actor, at=at, id=id)
        producer.flush(timeout, wait="counted" if wait else "appended")
    unless = _may_leave_out(None if rules is None else rules.metric[metric], at, id)
    if json:
        print_json({"events": 1, "state": "counted" if wait else "appended", "unless": unless})
    elif wait:
        told = f", unless a rule of {metric} left it out: {', '.join(unless)}" if unless else ""
        console.print(f"1 event counted{told}", soft_wrap=True)


def _may_leave_out(rule: Metric | None, at: float | None, id_: str | None) -> list[str]:
    """Return the names of rules that may leave an event out of the totals, although it was processed.

    These are `once` and `limit` if the metric has them, `ids` if the event has an id that counts once, and
    `accept_late` if the caller has stated a time, and the metric does not count such an event if it is late.

    Args:
        rule: The rule of the event's metric; `None` if no rules are stored: then the list is empty.
        at: The time that the caller stated for the event, in seconds since 1970; `None` if it stated none.
        id_: The id of the event; `None` if it has none.
    """
    if rule is None:
        return []
    by_id = id_ is not None and rule.keeps_ids
    late = rule.id_late_seconds if by_id else rule.late_seconds
    reasons = {
        "once": rule.once is not None,
        "limit": rule.limit is not None,
        "ids": by_id,
        "accept_late": at is not None and late is not None and (by_id or rule.rejects_late),
    }
    return [name for name, applies in reasons.items() if applies]
