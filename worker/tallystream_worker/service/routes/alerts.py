"""Alerts over HTTP: what is watched, and what is firing."""

from typing import Annotated

from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from tallystream.aio import Totals
from tallystream.reading.alerts import Alerts


@get("/v1/alerts", tags=["alerts"], summary="Declared alerts, and those that are firing")
async def alerts(
    totals: NamedDependency[Totals],
    n: Annotated[int, QueryParameter(name="n", description="firing alerts to show, at most 1,000")] = 100,
    offset: Annotated[int, QueryParameter(name="offset", description="firing alerts to leave out")] = 0,
) -> Alerts:
    """Return the declared alerts, and the subjects for which one is firing."""
    return await totals.alerts(n, offset)
