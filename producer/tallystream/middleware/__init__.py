"""Counts the requests of a web application by route, without making any of them wait.

`tallystream.middleware.asgi` serves FastAPI, Starlette and Litestar, `tallystream.middleware.django` Django, and
`tallystream.middleware.flask` Flask. Declare what is counted in the worker's configuration:

    [metric.request]
    windows = ["hour", "day"]
    top = 100

    [metric.request-failed]
    windows = ["hour", "day"]
    top = 100
"""

from tallystream.middleware.requests import RequestCounter

__all__ = ["RequestCounter"]
