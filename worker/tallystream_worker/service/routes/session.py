"""The routes of sessions: a page in a browser exchanges a token for a cookie that scripts cannot read.

`EventSource` and WebSockets in a browser cannot send a token, and a token in a URL would appear in logs and histories.
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
    """The role of the request, and whether this service needs tokens."""

    role: str | None
    """Role of the token or session; `null` without a valid one; `admin` if this service needs no tokens."""

    needed: bool
    """Whether this service needs tokens."""


class Sessions(Controller):
    """The HTTP routes that show, begin and end a session: `GET`, `POST` and `DELETE` of `/v1/session`."""

    path = "/v1/session"
    tags = ("session",)
    opt = {"role": Role.OPEN}  # noqa: RUF012  # litestar's option for all routes of a controller

    @get(summary="Whether a token is needed, and the role of this request")
    async def show(self, access: NamedDependency[Access], request: Request[Any, Any, Any]) -> Session:
        """Return the role of the request's token or session; `null` if the request has no valid one.

        It is `admin` for every request if this service needs no tokens.
        """
        return Session(access.role_of(request).word if access.knows(request) else None, bool(access.tokens))

    @post(summary="Exchange a token for a session cookie", status_code=200)
    async def begin(self, access: NamedDependency[Access], request: Request[Any, Any, Any]) -> Response[Session]:
        """Set a cookie that replaces the token of `Authorization: Bearer` for twelve hours.

        Respond 401 without a valid token, and 400 if this service needs no token.
        """
        if not access.tokens:
            raise bad_request("authorization", "must be absent: this service needs no token")
        token = bearer(request.headers.get("authorization", ""))
        session = access.tokens.session(token, time.time())
        if session is None:
            raise refused("send a token of this service as `Authorization: Bearer TOKEN`", wrong=bool(token))
        role = access.role_of(request)
        return Response(Session(role.word, needed=True), cookies=[_cookie(request, session, SESSION_SECONDS)])

    @delete(summary="End the session", status_code=204)
    async def end(self, request: Request[Any, Any, Any]) -> Response[None]:
        """Delete the session cookie of the browser; a copy of the session may be valid until its twelve hours end."""
        return Response(None, cookies=[_cookie(request, "", 0)])


def _cookie(request: Request[Any, Any, Any], session: str, seconds: int) -> Cookie:
    # With a TLS proxy this service receives plain HTTP; the origin of the page shows whether the browser used TLS.
    secure = request.headers.get("origin", "").startswith("https:")
    return Cookie(key=COOKIE, value=session, max_age=seconds, httponly=True, secure=secure, samesite="strict")
