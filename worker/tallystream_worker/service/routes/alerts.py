"""The route of alerts: the declared ones, and those that are firing."""

from typing import Annotated

from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from tallystream.aio import Totals
from tallystream.reading.alerts import Alerts


@get("/v1/alerts", tags=["alerts"], summary="The declared alerts")
async def alerts(
    totals: NamedDependency[Totals],
    n: Annotated[int, QueryParameter(name="n", description="number of firing subjects to return, at most 1,000")] = 100,
    offset: Annotated[int, QueryParameter(name="offset", description="number of firing subjects to skip")] = 0,
) -> Alerts:
    """Return each declared alert with the number of subjects for which it fires, and one page of what fires.

    The page has at most `n` pairs of alert and subject that fire, after the first `offset`, of all alerts together, the
    latest first.

    Respond 400 if `n` is not 0 to 1,000 or `offset` is negative. With `n=0`, the numbers may be too high after the
    server's clock was set back: they then include subjects whose alert ended with the present bucket.
    """
    return await totals.alerts(n, offset)
