"""Tests of the OpenAPI description: it is complete, agrees with the responses, and is printed as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from docs._generate import http_reference
from tallystream_worker.service.examples import ANSWERS, BODIES
from tallystream_worker.settings.settings import DEFAULT_RULES
from tests.harness import Harness
from tests.http_service import http_service

if TYPE_CHECKING:
    from tests.servers import Server

QUERIES = {"/v1/counters": "?subject=article:1", "/v1/subjects": "?prefix=art"}
OF_RULES = {"/v1/limits": "api-call", "/v1/votes": "vote"}


def url_of(path: str) -> str:
    """Return a path with values for its parameters."""
    metric = next((metric for prefix, metric in OF_RULES.items() if path.startswith(prefix)), "view")
    filled = path.replace("{subject}", "article:1").replace("{metric}", metric)
    return filled + QUERIES.get(path, "")


def without_nulls(example: Any) -> Any:
    """Return an example without null values, as the description has it."""
    if isinstance(example, dict):
        return {name: without_nulls(value) for name, value in example.items() if value is not None}
    return [without_nulls(value) for value in example] if isinstance(example, list) else example


def shape(answer: Any) -> Any:
    """Return the field names of a response and of the records in it, without values."""
    fields = {name: shape(value) if isinstance(value, dict) else None for name, value in answer.items()}
    return {name: inner and inner.keys() if name == "overview" else None for name, inner in fields.items()}


def test_the_page_of_the_interface_is_current() -> None:
    """`docs/http-reference.md` is the present output of its generator."""
    made = http_reference.page()
    assert http_reference.PAGE.read_text(encoding="utf-8") == made, "run: python -m docs._generate.http_reference"


def test_examples_are_what_is_answered(server: Server) -> None:
    """Every example has the fields of the real response, and every example body is accepted."""
    with Harness(server.url, rules=DEFAULT_RULES) as harness, http_service(server.url) as http:
        harness.drain()
        for path, kinds in BODIES.items():
            for kind, example in kinds.items():
                if isinstance(example, str):
                    answer = http.post(path, content=example, headers={"content-type": kind})
                else:
                    content = httpx.Request("POST", "http://x", json=example).content
                    answer = http.post(path, content=content, headers={"content-type": kind})
                assert answer.status_code in (200, 202), answer.text
                assert answer.json().keys() == ANSWERS[path, "post"].keys()
        harness.drain()
        for (path, method), example in ANSWERS.items():
            if method == "get":
                answer = http.get(url_of(path))
                assert (answer.status_code, shape(answer.json())) == (200, shape(example)), path


def test_every_route_is_described(server: Server) -> None:
    """Each route has a description, an example response, its bodies, and the schema of errors."""
    with http_service(server.url) as http:
        description = http.get("/schema/openapi.json").json()
    assert description["openapi"].startswith("3.1")
    for path, item in description["paths"].items():
        for method, operation in item.items():
            assert operation["summary"], path
            assert operation["description"], path
            if method == "post" and path in BODIES:
                assert operation["requestBody"]["content"].keys() == BODIES[path].keys()
            if (path, method) in ANSWERS:
                success = next(answer for status, answer in operation["responses"].items() if status.startswith("2"))
                assert next(iter(success["content"].values()))["example"] == without_nulls(ANSWERS[path, method])
    undescribed = {
        path
        for path, item in description["paths"].items()
        if path.startswith("/v1") and not {(path, method) for method in item} & ANSWERS.keys()
    }
    assert undescribed <= {"/v1/session", "/v1/live"}
