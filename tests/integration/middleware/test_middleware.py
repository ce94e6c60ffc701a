"""Middleware counts requests by route; it delays no request and makes no request fail."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import django
import fastapi
import flask
import httpx
import pytest
import starlette.routing
from django.conf import settings as django_settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import path
from litestar import Litestar, get
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from werkzeug.test import Client

from tallystream import Producer
from tallystream.errors import TallyError
from tallystream.middleware import RequestCounter
from tallystream.middleware.asgi import CountRequests
from tallystream.middleware.flask import count_requests
from tests.harness import Harness


@pytest.fixture
def harness(server):
    """A test harness on an empty server, with the metrics of the middleware."""
    with Harness(server.url, metrics=["request", "request-failed"]) as harness:
        yield harness


@pytest.fixture
def counter(harness):
    """The request counter that the middleware uses."""
    with Producer(harness.url, when_full="drop") as producer:
        yield RequestCounter(producer)


def counted(harness, counter):
    """Flush the events, count them, and return the totals by metric and subject."""
    counter.producer.flush(10)
    harness.drain()
    return harness.totals()


def ask(app, *paths, method="GET"):
    """Send one request for each path to an ASGI application, and return the status of each response."""

    async def asking():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return [(await client.request(method, path)).status_code for path in paths]

    return asyncio.run(asking())


def test_fastapi(harness, counter):
    """FastAPI requests are counted by route pattern, failed ones also as failures, unmatched ones as one subject."""
    app = fastapi.FastAPI()
    app.add_middleware(CountRequests, counter=counter)

    @app.get("/articles/{article}")
    def article(article: str) -> str:
        return article

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError

    assert ask(app, "/articles/1", "/articles/2", "/wp-admin", "/login.php", "/broken") == [200, 200, 404, 404, 500]
    assert counted(harness, counter) == {
        ("request", "GET /articles/{article}"): 2,
        ("request", "GET unmatched"): 2,
        ("request", "GET /broken"): 1,
        ("request-failed", "GET /broken"): 1,
    }


def test_starlette_and_its_mounts(harness, counter):
    """The subject of a mounted Starlette route includes the path of its mount."""

    def answer(_request):
        return PlainTextResponse("here")

    inner = [starlette.routing.Route("/items/{item:int}", answer)]
    app = Starlette(routes=[starlette.routing.Mount("/shop", routes=inner), starlette.routing.Route("/", answer)])
    app.add_middleware(CountRequests, counter=counter)
    assert ask(app, "/shop/items/1", "/shop/items/2", "/") == [200, 200, 200]
    assert counted(harness, counter) == {("request", "GET /shop/items/{item:int}"): 2, ("request", "GET /"): 1}


def test_requests_below_a_mount_that_no_route_matches(harness, counter):
    """Below a mount, requests that no route matches are one subject; those to an application without routes, another.

    That subject is the path of the mount.
    """

    def answer(_request):
        return PlainTextResponse("here")

    mount, route = starlette.routing.Mount, starlette.routing.Route
    inner = [route("/items", answer), mount("/deep", routes=[route("/items", answer)])]
    files = mount("/files", app=PlainTextResponse("file"))
    app = Starlette(routes=[mount("/api", routes=[*inner, files]), mount("/other", app=Starlette(routes=inner)), files])
    app.add_middleware(CountRequests, counter=counter)
    paths = ["/api/items", "/api/x", "/api/deep/y", "/api/deep/items", "/other/z", "/other/deep/items"]
    assert ask(app, *paths, "/files/a", "/files/b", "/api/files/c") == [200, 404, 404, 200, 404, 200, 200, 200, 200]
    assert counted(harness, counter) == {
        ("request", "GET unmatched"): 3,
        ("request", "GET /api/items"): 1,
        ("request", "GET /api/deep/items"): 1,
        ("request", "GET /other/deep/items"): 1,
        ("request", "GET /files"): 2,
        ("request", "GET /api/files"): 1,
    }


def test_fastapi_and_its_mounts(harness, counter):
    """FastAPI requests below a mount or an included router are counted like those of Starlette."""

    def article(article: str) -> str:
        return article

    router, mounted = fastapi.APIRouter(prefix="/in"), fastapi.FastAPI()
    router.get("/articles/{article}")(article)
    mounted.get("/articles/{article}")(article)
    app = fastapi.FastAPI()
    app.include_router(router)
    app.mount("/sub", mounted)
    app.mount("/files", PlainTextResponse("file"))
    app.add_middleware(CountRequests, counter=counter)
    paths = ["/in/articles/1", "/in/x", "/sub/articles/1", "/sub/x", "/files/a"]
    assert ask(app, *paths) == [200, 404, 200, 404, 200]
    assert counted(harness, counter) == {
        ("request", "GET /in/articles/{article}"): 1,
        ("request", "GET /sub/articles/{article}"): 1,
        ("request", "GET unmatched"): 2,
        ("request", "GET /files"): 1,
    }


def test_litestar(harness, counter):
    """Litestar requests are counted by path template."""

    @get("/articles/{article:int}", sync_to_thread=False)
    def article() -> str:
        return "here"

    app = Litestar([article], middleware=[DefineMiddleware(CountRequests, counter=counter)], logging_config=None)
    assert ask(app, "/articles/1", "/articles/2") == [200, 200]
    assert counted(harness, counter) == {("request", "GET /articles/{article}"): 2}


def test_flask(harness, counter):
    """Flask requests are counted by URL rule, and an exception also as a failure."""
    app = flask.Flask("articles")
    app.logger.disabled = True
    count_requests(app, counter=counter)

    @app.post("/articles/<int:article>/view")
    def view(article: int) -> str:
        return str(article)

    @app.get("/broken")
    def broken() -> str:
        raise RuntimeError

    client = app.test_client()
    states = [client.post("/articles/1/view"), client.post("/articles/2/view"), client.get("/x"), client.get("/broken")]
    assert [state.status_code for state in states] == [200, 200, 404, 500]
    assert counted(harness, counter) == {
        ("request", "POST /articles/<int:article>/view"): 2,
        ("request", "GET unmatched"): 1,
        ("request", "GET /broken"): 1,
        ("request-failed", "GET /broken"): 1,
    }


urlpatterns = [
    path("articles/<int:article>/", lambda _request, article: HttpResponse(str(article))),
    path("broken/", lambda _request: 1 / 0),
]


@pytest.fixture
def site(harness, monkeypatch):
    """A Django project whose middleware sends to the harness; yields the request counters that it makes."""
    if not django_settings.configured:
        django_settings.configure(
            ROOT_URLCONF=__name__,
            ALLOWED_HOSTS=["*"],
            MIDDLEWARE=["tallystream.middleware.django.count_requests"],
            LOGGING_CONFIG=None,
        )
        django.setup()
    monkeypatch.setattr(django_settings, "TALLYSTREAM_URL", harness.url, raising=False)
    monkeypatch.setattr(logging.getLogger("django.request"), "disabled", True)
    made: list[RequestCounter] = []
    connect = RequestCounter.connect

    def remembering(url):
        made.append(connect(url))
        return made[-1]

    monkeypatch.setattr(RequestCounter, "connect", remembering)
    yield made
    for counter in made:
        with contextlib.suppress(TallyError):
            counter.producer.close()


def django_totals(harness, counters):
    """Flush the events of the request counters, count them, and return the totals by metric and subject."""
    for counter in counters:
        counter.producer.flush(10)
    harness.drain()
    return {f"{metric} {subject}": total for (metric, subject), total in harness.totals().items()}


EXPECTED_OF_DJANGO = {
    "request GET /articles/<int:article>/": 2,
    "request GET unmatched": 1,
    "request GET /broken/": 1,
    "request-failed GET /broken/": 1,
}


def test_django_under_wsgi(harness, site):
    """Under WSGI, Django requests are counted by URL pattern, and an exception also as a failure."""
    client = Client(WSGIHandler())
    states = [client.get(path).status_code for path in ("/articles/1/", "/articles/2/", "/x", "/broken/")]
    assert states == [200, 200, 404, 500]
    assert django_totals(harness, site) == EXPECTED_OF_DJANGO


def test_django_under_asgi(harness, site):
    """Under ASGI, Django requests are counted by URL pattern, and an exception also as a failure."""
    assert ask(ASGIHandler(), "/articles/1/", "/articles/2/", "/x", "/broken/") == [200, 200, 404, 500]
    assert django_totals(harness, site) == EXPECTED_OF_DJANGO


def test_a_request_does_not_wait_for_a_server_that_is_away(caplog):
    """Without a server requests are answered; events that find no room are dropped and counted in `stats`."""
    producer = Producer("unix:///nonexistent/server.sock", when_full="drop", buffer_events=10, entry_events=10)
    try:
        app = flask.Flask("articles")
        count_requests(app, counter=RequestCounter(producer))
        client = app.test_client()
        assert {client.get("/x").status_code for _ in range(50)} == {404}
        assert (producer.stats.buffered, producer.stats.dropped) == (10, 40)
        # The middleware logs nothing; the producer logs one line if it has already tried to send.
        said = [record.getMessage() for record in caplog.records if record.name != "tallystream"]
        assert said == []
        assert len(caplog.records) <= 1
    finally:
        with contextlib.suppress(TallyError):
            producer.close(timeout=0)


def test_an_undeclared_metric_is_said_once(harness, caplog):
    """Requests for an undeclared metric do not fail, and one log line names the metric."""
    with Producer(harness.url, when_full="drop") as producer:
        producer.emit("request", "a")
        producer.flush(10)  # now the producer has read the declared metrics
        count = RequestCounter(producer, metric="hit")
        for _ in range(3):
            count("GET", "/", 200)
    (line,) = caplog.messages
    assert "hit" in line


def test_an_error_of_one_metric_does_not_keep_the_request_out_of_the_other(server, caplog):
    """If the metric of all requests is not declared, failed ones are still counted; each metric is logged once."""
    with Harness(server.url, metrics=["request-failed"]) as harness, Producer(harness.url) as producer:
        producer.emit("request-failed", "a")
        producer.flush(10)  # now the producer has read the declared metrics
        count = RequestCounter(producer)
        for _ in range(3):
            count("GET", "/", 500)
        neither = RequestCounter(producer, metric="hit", failed="hit-failed")
        for _ in range(3):
            neither("GET", "/", 500)
        producer.flush(10)
        harness.drain()
        assert harness.totals() == {("request-failed", "a"): 1, ("request-failed", "GET /"): 3}
    first, *others = caplog.messages
    assert "request is not declared" in first
    assert ["hit is" in line for line in others] == [True, False]
