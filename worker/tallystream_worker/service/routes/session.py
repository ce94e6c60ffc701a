"""Sessions: a browser's page exchanges a token for a cookie that no script can read.

`EventSource` and WebSockets of a browser cannot send a token, and a token in a URL ends up in logs and histories.
"""

import time
from typing import Any

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.datastructures import Cookie
from litestar.di import NamedDependency

from tallystream_worker.service.access import COOKIE, Access, bearer, refused
from tallystream_worker.service.problems import bad_request
from tallystream_worker.service.tokens import SESSION_SECONDS, Role


class Session(msgspec.Struct, frozen=True):
    """What the sender of the request may do; `needed` tells whether this service asks for tokens at all."""

    role: str | None
    needed: bool


class Sessions(Controller):
    """Signing in and out."""

    path = "/v1/session"
    tags = ("session",)
    opt = {"role": Role.OPEN}  # noqa: RUF012  # litestar's way to say it for all routes of a controller

    @get(summary="Whether a token is needed, and what the one in use may do")
    async def show(self, access: NamedDependency[Access], request: Request[Any, Any, Any]) -> Session:
        """Return the role of the request's token or session, or none."""
        return Session(access.role_of(request).word if access.knows(request) else None, bool(access.tokens))

    @post(summary="Exchange a token for a session cookie", status_code=200)
    async def begin(self, access: NamedDependency[Access], request: Request[Any, Any, Any]) -> Response[Session]:
        """Set a cookie that stands for the token in `Authorization: Bearer` for twelve hours."""
        if not access.tokens:
            raise bad_request("authorization", "this service needs no token")
        token = bearer(request.headers.get("authorization", ""))
        session = access.tokens.session(token, time.time())
        if session is None:
            raise refused("send a token of this service as `Authorization: Bearer TOKEN`", wrong=bool(token))
        role = access.role_of(request)
        return Response(Session(role.word, needed=True), cookies=[_cookie(request, session, SESSION_SECONDS)])

    @delete(summary="End the session", status_code=204)
    async def end(self, request: Request[Any, Any, Any]) -> Response[None]:
        """Take the cookie back."""
        return Response(None, cookies=[_cookie(request, "", 0)])


def _cookie(request: Request[Any, Any, Any], session: str, seconds: int) -> Cookie:
    # Behind a proxy with TLS this service sees plain HTTP; the page that asks says what it was loaded by.
    secure = request.headers.get("origin", "").startswith("https:")
    return Cookie(key=COOKIE, value=session, max_age=seconds, httponly=True, secure=secure, samesite="strict")
