"""The names in a request: subjects as a path has them, and metrics, which must be declared."""

from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from tallystream.aio import Totals
from tallystream.errors import EventError
from tallystream.reading.totals import declared
from tallystream.rules.metrics import Rules
from tallystream.storage.keys import Layout
from tallystream.wire.event import MAX_SUBJECT_BYTES, check_metric, check_text
from tallystream_worker.service.problems import problem


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


async def published(totals: Totals, *metrics: str) -> tuple[Layout, Rules]:
    """Return what is stored here and what is declared of it; the answer is 404 where one of `metrics` is not.

    Raises:
        ConfigurationError: nothing is declared yet.
        EventError: a metric that could not be declared.
    """
    deployment = await totals.deployment()
    names = declared(deployment)
    for metric in metrics:
        check_metric(metric)
        if metric not in names:
            limit = f"{metric} is not declared; declared are {', '.join(names)}"
            raise problem(HTTPStatus.NOT_FOUND, f"metric: {limit}", field="metric", limit=limit)
    return deployment.layout, deployment.rules
