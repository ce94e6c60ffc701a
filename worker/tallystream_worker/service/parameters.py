"""The parameters of reads: subjects as a path has them, metrics, which must be declared, and a position to wait for."""

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
        description="a stream ID; the answer waits until everything up to it is counted, or is 504",
    ),
]


def subject_in_path(encoded: str) -> str:
    """Return a subject that stands percent-encoded in a path.

    Raises:
        EventError: it cannot be one.
    """
    try:
        subject = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise EventError("subject", "must be UTF-8, percent-encoded") from None
    return check_text("subject", subject, MAX_SUBJECT_BYTES)


async def published(totals: Totals, *metrics: str) -> Rules:
    """Return what is declared; the answer is 404 if one of `metrics` is not.

    Raises:
        ConfigurationError: nothing is declared yet.
        EventError: a metric that could not be declared.
    """
    rules = (await totals.deployment()).rules
    for metric in metrics:
        check_metric(metric)
        if metric not in rules.metric:
            limit = f"{metric} is not declared; declared are {', '.join(sorted(rules.metric))}"
            raise problem(HTTPStatus.NOT_FOUND, f"metric: {limit}", field="metric", limit=limit)
    return rules
