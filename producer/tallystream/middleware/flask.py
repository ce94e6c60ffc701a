"""Flask middleware that counts requests.

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
    """Make a Flask application count each request when its response is made; return the `RequestCounter` that counts.

    If Flask passes on the exception of a view instead of making a response of it (debug or testing mode), the request
    is not counted. After a second call for the same application, each request is counted twice. This function does not
    wait for the server.

    Args:
        app: The Flask application.
        url: URL of Redis or Valkey, for a new producer; not used with `counter`.
        counter: `RequestCounter` to use instead of a new one for `url`.

    Raises:
        ConfigurationError: the URL is invalid.
        AssertionError: the application has already handled a request.
    """
    count = counter or RequestCounter.connect(url)

    def count_request(response: Response) -> Response:
        # Flask calls this also for the response that it makes of an exception.
        rule = request.url_rule
        count(request.method, None if rule is None else rule.rule, response.status_code)
        return response

    app.after_request(count_request)
    return count
