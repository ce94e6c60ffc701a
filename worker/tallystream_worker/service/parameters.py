"""The parameters that reads share: subjects in paths, declared metrics, and the read barrier `after`."""

from http import HTTPStatus
from typing import Annotated
from urllib.parse import unquote_to_bytes

from litestar.params import QueryParameter

from tallystream.aio import Totals
from tallystream.errors import EventError
from tallystream.rules.metrics import Rules
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_metric, check_text
from tallystream_worker.service.problems import problem

After = Annotated[
    str | None,
    QueryParameter(
        name="after",
        description="a stream ID; wait until all entries up to it are counted; respond 504 if this takes too long",
    ),
]


def subject_in_path(encoded: str) -> str:
    """Return the subject of a percent-encoded path segment, in Unicode normal form C.

    Raises:
        EventError: the segment is not a valid subject.
    """
    try:
        subject = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise EventError("subject", "must be UTF-8, percent-encoded") from None
    return check_text("subject", subject, MAX_SUBJECT_BYTES)


async def published(totals: Totals, *metrics: str) -> Rules:
    """Return the declared rules, after checking that each of `metrics` is declared.

    They are at most a second old, but older while the cluster node that has them does not answer.

    Raises:
        ConfigurationError: no rules are declared yet, or the stored data is of another release.
        DeploymentChanged: the stored deployment was deleted, or a restore has not finished.
        KeyLost: the hash that describes the deployment or its live topic is lost, or has lost a field.
        DamagedValue: a value that describes the deployment has a form that tallystream never writes.
        EventError: the name of a metric is not valid.
        ProblemDetailsException: 404 if a metric is not declared.
        RedisError: the rules cannot be read.
    """
    rules = (await totals.deployment()).rules
    for metric in metrics:
        check_metric(metric)
        if metric not in rules.metric:
            limit = f"{metric} is not declared; declared are {', '.join(sorted(rules.metric))}"
            raise problem(HTTPStatus.NOT_FOUND, f"metric: {limit}", field="metric", limit=limit)
    return rules
