"""Counts requests in Flask applications.

from tallystream.middleware.flask import count_requests

count_requests(app, "redis://127.0.0.1:6379")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import request

from tallystream.client.connect import DEFAULT_URL
from tallystream.middleware.requests import RequestCounter

if TYPE_CHECKING:
    from flask import Flask, Response


def count_requests(app: Flask, url: str = DEFAULT_URL, counter: RequestCounter | None = None) -> RequestCounter:
    """Count the requests of an application from now on; return the counter, see `RequestCounter`.

    Args:
        app: The application.
        url: Where Redis or Valkey is, for a producer of its own.
        counter: Used in place of one made from `url`.
    """
    count = counter or RequestCounter.connect(url)

    def count_request(response: Response) -> Response:
        # Also called for the answer that Flask makes of an exception.
        rule = request.url_rule
        count(request.method, None if rule is None else rule.rule, response.status_code)
        return response

    app.after_request(count_request)
    return count
