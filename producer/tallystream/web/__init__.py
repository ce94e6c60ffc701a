"""Counts the requests of a web application by route, without making any of them wait.

`tallystream.web.asgi` serves FastAPI, Starlette and Litestar, `tallystream.web.django` Django, and
`tallystream.web.flask` Flask. Declare what is counted in the worker's configuration:

    [metric.request]
    windows = ["hour", "day"]
    top = 100

    [metric.request-failed]
    windows = ["hour", "day"]
    top = 100
"""

from tallystream.web.counting import RequestCounter

__all__ = ["RequestCounter"]
