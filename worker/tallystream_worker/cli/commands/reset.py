"""The command `reset`: sets the counters of a subject to 0."""

from __future__ import annotations

from contextlib import closing

from tallystream.client.connect import connect
from tallystream.reading.totals import Totals
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_text
from tallystream_worker.cli.options import AsJson, Where
from tallystream_worker.cli.output import print_json, print_table
from tallystream_worker.rebuild.reset import reset as take_back


def reset(
    subject: str,
    metric: str | None = None,
    /,
    *,
    json: AsJson = False,
    where: Where = Where(),
) -> None:
    """Set the totals of a subject, also those of its buckets, to 0; later events count from there.

    Limits, ids and unique actors do not change, and the original events stay in the streams. The command waits until
    the workers have counted everything, and fails if they have not within 10 seconds. It prints the totals before, and
    leaves out those that were 0 (--json has them). A metric with `exact = false` cannot be reset.

    Parameters
    ----------
    subject
        the subject, such as article:1
    metric
        the metric; default all metrics with exact counters
    """
    settings = where.settings()
    subject = check_text("subject", subject, MAX_SUBJECT_BYTES)
    with closing(Totals(settings.redis.url, namespace=settings.redis.namespace)) as totals:
        deployment = totals.deployment
    rules = deployment.rules
    if metric is None:
        metrics = [name for name in sorted(rules.metric) if rules.metric[name].exact]
    else:
        rules.refuse_undeclared(metric)
        metrics = [metric]
    with closing(connect(settings.redis.url)) as client:
        taken = take_back(client, deployment, subject, metrics)
    if json:
        print_json({"subject": subject, "taken_back": taken})
        return
    print_table(subject, ["metric", "taken back"], [[name, f"{value:,}"] for name, value in taken.items() if value])
