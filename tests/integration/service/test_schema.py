"""Tests of the OpenAPI description with generated requests: each gets a described response, and none a server error."""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.specs.openapi import checks as described

from tallystream.rules.metrics import Metric, Rules
from tests.harness import Harness
from tests.http_service import http_service

if TYPE_CHECKING:
    from tests.servers import Server

RULES = Rules({"view": Metric("", ("hour", "day"), unique="day", top=100), "vote": Metric("", once="forever")})
EXAMPLES = int(os.environ.get("TALLYSTREAM_SCHEMA_EXAMPLES", "6"))
"""Number of generated requests for each operation; set more to search for faults."""


def test_the_schema_is_complete(server: Server) -> None:
    """Each operation describes its problems, the two writing ones their bodies; every reference is valid."""
    with http_service(server.url) as http:
        schema = http.get("/schema/openapi.json").json()
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            assert "default" in operation["responses"], path
            assert ("requestBody" in operation) == (path in ("/v1/events", "/v1/decide")), (method, path)
    decided = schema["paths"]["/v1/decide"]["post"]["responses"]
    assert decided.keys() == {"200", "409", "429", "default"}
    assert decided["200"]["content"] == decided["409"]["content"] == decided["429"]["content"]
    text = json.dumps(schema)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schema["components"]["schemas"]
    assert schema["openapi"].startswith("3.1")


def test_requests_drawn_from_the_schema(server: Server) -> None:
    """Every generated request, valid or not, gets a described response and no server error."""
    chosen = int(os.environ.get("TALLYSTREAM_SEED", "0")) or random.randrange(1, 2**32)
    print(f"TALLYSTREAM_SEED={chosen}")  # noqa: T201  # shown if the test fails
    with Harness(server.url, rules=RULES) as harness, http_service(harness.url) as http:
        schema = schemathesis.openapi.from_dict(http.get("/schema/openapi.json").json())
        schema.config.base_url = str(http.base_url)
        tried = 0
        for operation in schema.get_all_operations():
            case_of = operation.ok()
            if case_of.path.startswith("/v1/live"):
                continue  # an endless response

            @seed(chosen)
            @settings(
                max_examples=EXAMPLES, database=None, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=case_of.as_strategy())
            def ask(case: schemathesis.Case) -> None:
                answer = case.call()
                case.validate_response(
                    answer,
                    checks=[
                        checks.not_a_server_error, described.status_code_conformance,
                        described.content_type_conformance, described.response_schema_conformance,
                    ],
                )  # fmt: skip

            ask()
            tried += 1
        assert tried >= 12
        assert http.get("/healthz").status_code == 200
        harness.drain()
        assert harness.dead() == []


def test_requests_with_a_body_of_anything(server: Server) -> None:
    """Arbitrary bytes under any media type are rejected or accepted, and the service keeps running."""
    kinds = ["application/json", "application/x-ndjson", "application/cloudevents+json", "text/plain", "x/y", ""]
    with Harness(server.url, rules=RULES) as harness, http_service(harness.url) as http:

        @settings(max_examples=40, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @given(body=st.binary(max_size=200), kind=st.sampled_from(kinds))
        def post(body: bytes, kind: str) -> None:
            for path in ("/v1/events", "/v1/decide"):
                answer = http.post(path, content=body, headers={"Content-Type": kind})
                assert answer.status_code in (200, 202, 400, 415), (answer.status_code, answer.text)
                assert answer.status_code < 400 or answer.headers["content-type"] == "application/problem+json"

        post()
