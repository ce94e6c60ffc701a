"""Middleware that counts the requests of a web application by route, without delaying them.

Use `tallystream.middleware.asgi` with FastAPI, Starlette and Litestar, `tallystream.middleware.django` with Django, and
`tallystream.middleware.flask` with Flask. Declare the metrics in the worker's configuration:

    [metric.request]
    windows = ["hour", "day"]
    top = 100

    [metric.request-failed]
    windows = ["hour", "day"]
    top = 100
"""

from tallystream.middleware.requests import RequestCounter

__all__ = ["RequestCounter"]
