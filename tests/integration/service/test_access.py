"""Tests of tokens, sessions, hosts and origins over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from tallystream.errors import ConfigurationError
from tallystream_worker.service.app import create_app
from tallystream_worker.service.server import serving
from tallystream_worker.service.tokens import Role
from tests.harness import Harness
from tests.http_service import http_service, settings_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.servers import Server

NOBODY = "redis://127.0.0.1:1"
READ, WRITE, ADMIN = "reader-" + "r" * 20, "writer-" + "w" * 20, "admin-" + "a" * 20
TOKENS = {"read_token": READ, "write_token": WRITE, "admin_token": ADMIN}
EVENT = {"metric": "view", "subject": "article:1"}
PROBLEM = "application/problem+json"


HANDSHAKE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


def bearing(token: str) -> dict[str, str]:
    """Return the header with a token."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def harness(server: Server) -> Iterator[Harness]:
    """Provide a deployment with groups in every partition."""
    with Harness(server.url) as harness:
        yield harness


@pytest.fixture
def http(harness: Harness) -> Iterator[httpx.Client]:
    """Provide a client without a token, of a service with tokens."""
    with http_service(harness.url, **TOKENS) as client:
        yield client


def routes() -> list[tuple[str, str, dict[str, object]]]:
    """Return every method and path of the service, with the options of the route."""
    app = create_app(settings_for(NOBODY, **TOKENS))
    found = []
    for route in app.routes:
        for handler in route.route_handlers if hasattr(route, "route_handlers") else [route.route_handler]:
            found += [(method, route.path, handler.opt) for method in getattr(handler, "http_methods", ["WEBSOCKET"])]
    return found


def test_every_route_but_the_open_ones_needs_a_token(http: httpx.Client) -> None:
    """Without a token every route returns 401, except the routes that are declared open."""
    open_ones = set()
    asked = 0
    for method, path, opt in routes():
        if opt.get("role") == Role.OPEN:
            open_ones.add(path)
            continue
        if method == "WEBSOCKET":
            refused = http.get(path, headers=HANDSHAKE)
            assert refused.status_code in (401, 403), (path, refused.status_code)
            assert http.get(path, headers=HANDSHAKE | {"Origin": "https://evil.example"}).status_code == 403
            continue
        answer = http.request(method, path.replace(":str}", "}"), json={})
        assert answer.status_code == 401, (method, path)
        assert answer.headers["content-type"] == PROBLEM
        assert answer.headers["www-authenticate"].startswith("Bearer")
        asked += 1
    assert {"/healthz", "/readyz", "/v1/session"} <= open_ones
    assert asked >= 12
    assert not any(path.startswith(("/v1/c", "/v1/e", "/v1/d", "/metrics", "/schema")) for path in open_ones)


@pytest.mark.parametrize(
    ("token", "read", "write"),
    [(READ, 200, 403), (WRITE, 200, 202), (ADMIN, 200, 202)],
)
def test_a_role_may_do_what_it_is_for(http: httpx.Client, token: str, read: int, write: int) -> None:
    """A reader may read and not write; a writer may also read."""
    headers = bearing(token)
    assert http.get("/v1/counters/article:1", headers=headers).status_code == read
    assert http.get("/metrics", headers=headers).status_code == read
    assert http.get("/schema/openapi.json", headers=headers).status_code == read
    for path in ("/v1/events", "/v1/decide"):
        answer = http.post(path, json=EVENT, headers=headers)
        assert answer.status_code == (200 if write == 202 and path == "/v1/decide" else write)
        if write == 403:
            assert answer.headers["content-type"] == PROBLEM
            assert (answer.json()["role"], answer.json()["needed"]) == ("read", "write")


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", f"Basic {READ}", READ, f"Bearer {READ}x", f"Bearer {READ[:-1]}",
        f"Bearer {READ.upper()}", f"Bearer {READ} {READ}", "Bearer " + "x" * 10_000, b"Bearer \xff\xfe",
    ],
)  # fmt: skip
def test_a_wrong_token_is_refused(http: httpx.Client, header: str | bytes) -> None:
    """An empty, cut, misspelt or non-text token, or one of another scheme, is a 401 without details."""
    answer = http.get("/v1/counters/article:1", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="tallystream", error="invalid_token"'
    assert READ not in answer.text
    assert answer.json()["status"] == 401


def test_a_token_in_the_url_is_no_token(http: httpx.Client) -> None:
    """A token in the URL, which would appear in logs and histories, is ignored."""
    for name in ("token", "access_token", "authorization"):
        assert http.get("/v1/counters/article:1", params={name: READ}).status_code == 401


def test_health_is_open_and_its_details_are_not(server: Server) -> None:
    """Health needs no token, but the reasons of a 503 need a token or a session."""
    with http_service(server.url, **TOKENS) as http:
        assert http.get("/healthz").status_code == 200
        bare, told = http.get("/readyz"), http.get("/readyz", headers=bearing(READ))
        wrong = http.get("/readyz", headers=bearing("x" * 20))
        http.post("/v1/session", headers=bearing(READ)).raise_for_status()
        by_session = http.get("/readyz")
    assert {each.status_code for each in (bare, told, wrong, by_session)} == {503}
    assert "tally:meta" not in bare.text + wrong.text
    assert "a token or a session gets the reasons" in bare.json()["detail"]
    for each in (told, by_session):
        assert "tally:meta does not exist" in each.json()["reasons"][0]


def test_several_tokens_are_good_while_one_replaces_the_other(harness: Harness, tmp_path) -> None:
    """A file may have the old and the new token of a role; both are accepted."""
    file = tmp_path / "read"
    file.write_text(f"{READ}\n{READ}-new\n")
    with http_service(harness.url, read_token=f"file:{file}") as http:
        for token in (READ, f"{READ}-new"):
            assert http.get("/v1/counters/a", headers=bearing(token)).status_code == 200
        assert http.get("/v1/counters/a", headers=bearing(f"{READ}\n{READ}-new".split()[0][:-1])).status_code == 401
        assert http.post("/v1/events", json=EVENT, headers=bearing(READ)).status_code == 403


@pytest.mark.parametrize("content", ["", " \n", "short", "x" * 600, "ä" * 30, None])
def test_a_token_that_protects_nothing_is_refused_at_start(tmp_path, content: str | None) -> None:
    """A missing or empty token file, or a weak token, prevents the start, so the service is not open."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"serve\.write_token") as refused:
        create_app(settings_for(NOBODY, write_token=f"file:{file}"))
    assert (content or "").strip() in ("", "short") or content not in str(refused.value)
    with pytest.raises(ConfigurationError, match="openssl rand"):
        create_app(settings_for(NOBODY, admin_token="guess"))  # noqa: S106


def test_a_session_stands_for_a_token(http: httpx.Client) -> None:
    """A page exchanges its token for a cookie that scripts cannot read; it is valid until it expires."""
    assert http.get("/v1/session").json() == {"role": None, "needed": True}
    assert http.post("/v1/session").status_code == 401
    assert http.post("/v1/session", headers=bearing("x" * 30)).status_code == 401
    begun = http.post("/v1/session", headers=bearing(READ))
    assert begun.json() == {"role": "read", "needed": True}
    cookie = begun.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/" in cookie
    assert "secure" not in cookie
    assert READ not in cookie
    assert http.get("/v1/counters/a").status_code == 200
    assert http.get("/v1/session").json() == {"role": "read", "needed": True}
    own = {"Origin": str(http.base_url).rstrip("/")}
    assert http.post("/v1/events", json=EVENT, headers=own).status_code == 403
    assert http.delete("/v1/session", headers=own).status_code == 204
    assert http.get("/v1/counters/a").status_code == 401


def test_a_session_over_tls_is_for_tls_only(http: httpx.Client) -> None:
    """If the page was loaded by https, the browser sends its cookie only by https."""
    own = f"https://{http.base_url.netloc.decode()}"
    assert "secure" in http.post("/v1/session", headers=bearing(READ) | {"Origin": own}).headers["set-cookie"].lower()


def test_a_forged_session_is_refused(harness: Harness, http: httpx.Client) -> None:
    """A session with another role, another expiry or no signature is a 401."""
    http.post("/v1/session", headers=bearing(READ))
    genuine = http.cookies["tallystream_session"]
    role, expiry, mac = genuine.split(".")
    http.cookies.clear()
    for forged in (
        f"admin.{expiry}.{mac}", f"{role}.{int(expiry) + 1}.{mac}", f"{role}.{expiry}.", f"{role}.{expiry}",
        f"{role}.{expiry}.{mac}0", f"{role}.1.{mac}", ".", "..", "read.nan.x", "x" * 5000,
    ):  # fmt: skip
        answer = http.get("/v1/counters/a", headers={"Cookie": f"tallystream_session={forged}"})
        assert answer.status_code == 401, forged
    with http_service(harness.url, read_token=READ + "-other") as other:
        assert other.get("/v1/counters/a", headers={"Cookie": f"tallystream_session={genuine}"}).status_code == 401


def test_a_session_ends(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expired session is a 401 with advice."""
    monkeypatch.setattr("tallystream_worker.service.tokens.SESSION_SECONDS", -1)
    http.post("/v1/session", headers=bearing(READ))
    answer = http.get(
        "/v1/counters/a", headers={"Cookie": f"tallystream_session={http.cookies.get('tallystream_session')}"}
    )
    assert answer.status_code == 401
    assert "POST /v1/session" in answer.json()["detail"]


def test_a_session_writes_only_from_its_own_page(http: httpx.Client) -> None:
    """A page of another site, or a request without an origin, cannot write with the cookie of a user."""
    http.post("/v1/session", headers=bearing(WRITE))
    own = str(http.base_url).rstrip("/")
    assert http.post("/v1/events", json=EVENT, headers={"Origin": own}).status_code == 202
    for origin in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": own + "0"}):
        answer = http.post("/v1/events", json=EVENT, headers=origin)
        assert (answer.status_code, answer.json()["field"]) == (403, "origin")


def test_a_foreign_page_cannot_write_where_everything_is_open(harness: Harness) -> None:
    """Without tokens, on loopback, a page of another site is rejected, though the browser can reach the service."""
    with http_service(harness.url) as http:
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            for kind in ("application/json", "text/plain"):
                headers = {"Origin": origin, "Content-Type": kind}
                assert http.post("/v1/events", content=json.dumps(EVENT), headers=headers).status_code == 403
        assert (
            http.post("/v1/events", json=EVENT, headers={"Origin": str(http.base_url).rstrip("/")}).status_code == 202
        )
        assert http.post("/v1/events", json=EVENT).status_code == 202


def test_a_name_that_is_not_ours_is_refused(harness: Harness) -> None:
    """On loopback without tokens, only host names of the service are accepted (DNS rebinding)."""
    with http_service(harness.url, hosts=("counts.internal",)) as http:
        for host in (
            "localhost",
            "localhost:8080",
            "127.0.0.1",
            "[::1]:8080",
            "LOCALHOST",
            "counts.internal:1",
            "10.0.0.7",
        ):
            assert http.get("/v1/counters/a", headers={"Host": host}).status_code == 200, host
        for host in (
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "xlocalhost",
        ):
            for path in ("/v1/counters/a", "/healthz", "/metrics", "/nothing"):
                answer = http.get(path, headers={"Host": host})
                assert (answer.status_code, answer.json()["field"]) == (421, "host"), host
            assert "[serve] hosts" in answer.json()["detail"]


def test_a_token_proves_more_than_a_name(http: httpx.Client) -> None:
    """With tokens every host name is accepted, because a page that rebinds its name has no token."""
    assert http.get("/v1/counters/a", headers=bearing(READ) | {"Host": "counts.example"}).status_code == 200
    assert http.get("/v1/counters/a", headers={"Host": "evil.example"}).status_code == 401


def test_named_origins_may_read_and_write(harness: Harness) -> None:
    """Pages of the configured origins get the CORS headers, without cookies; other pages do not."""
    page = "https://shop.example"
    with http_service(harness.url, origins=(page,), **TOKENS) as http:
        asking = {
            "Origin": page,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        preflight = http.options("/v1/events", headers=asking)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        answer = http.post("/v1/events", json=EVENT, headers=bearing(WRITE) | {"Origin": page})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, page)
        assert answer.headers["vary"] == "Origin"
        refused = http.get("/v1/counters/a", headers={"Origin": page})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, page)
        for origin in ("https://shop.example.evil", "http://shop.example", "https://shop.example:8443"):
            answer = http.get("/v1/counters/a", headers=bearing(READ) | {"Origin": origin})
            assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (200, None)
            assert http.options("/v1/events", headers=asking | {"Origin": origin}).status_code == 403
        assert "access-control-allow-credentials" not in preflight.headers


def test_any_origin_means_any(harness: Harness) -> None:
    """With `*` every page may read and write, and the response has `*` instead of the origin."""
    with http_service(harness.url, origins=("*",)) as http:
        answer = http.post("/v1/events", json=EVENT, headers={"Origin": "https://any.example"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, "*")


def test_no_origin_is_allowed_by_default(http: httpx.Client) -> None:
    """Without the setting no response has a CORS header."""
    answer = http.get("/v1/counters/a", headers=bearing(READ) | {"Origin": "https://shop.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_listening_to_everyone_without_a_token_is_said_loudly() -> None:
    """A warning is logged at a start without tokens on an address that is not loopback; otherwise none is."""
    with capture_logs() as said, serving(settings_for(NOBODY, host="0.0.0.0")):  # noqa: S104
        pass
    assert [line["log_level"] for line in said] == ["warning"]
    assert said[0]["event"] == "service.exposed"
    assert "TALLYSTREAM_SERVE_READ_TOKEN" in said[0]["action"]
    with capture_logs() as said:
        with serving(settings_for(NOBODY, host="0.0.0.0", **TOKENS)):  # noqa: S104
            pass
        with serving(settings_for(NOBODY)):
            pass
    assert said == []
