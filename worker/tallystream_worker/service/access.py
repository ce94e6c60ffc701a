"""Checks that each request has a token or a session with a sufficient role.

A route needs the role `read`, or `write` if its method changes something, unless it declares another one with
`role=Role...`. So a new route without a declaration is closed. If no token is configured, all routes are open; on a
loopback address `HostAndOriginCheck` then accepts only requests for a host name of this service or an IP address.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from litestar.plugins.problem_details import ProblemDetailsException

from tallystream_worker.service.problems import problem
from tallystream_worker.service.tokens import Role, Tokens

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler

COOKIE: Final = "tallystream_session"
"""Name of the cookie that has the session."""

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CHALLENGE: Final = 'Bearer realm="tallystream"'


class Access:
    """Checks the roles of requests: `guard` rejects a request without the role that its route needs.

    `role_of` returns the role of a request, and `knows` whether a request has a role or a higher one.

    Args:
        tokens: The accepted tokens; with none, all requests have the role admin.
    """

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        """The accepted tokens."""

    def guard(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Raise an error unless the role of a request is sufficient for the route.

        `create_app` makes this the guard of all routes of the router. It is not called for a request that the fast path
        answers: `one_counter` checks its role.

        An open route accepts every request, also with an unknown token; so does each route if no token is configured.

        Raises:
            ProblemDetailsException: 401 if `role_of` raises it: an invalid token is rejected even with a valid session;
                403 if the role is not sufficient.
        """
        needed = role_needed(str(connection.scope.get("method", "GET")), handler.opt)
        if needed is Role.OPEN or not self.tokens:
            return
        role = self.role_of(connection)
        if role < needed:
            detail = f"the role {needed.word} is needed; the token has the role {role.word}"
            raise problem(HTTPStatus.FORBIDDEN, detail, role=role.word, needed=needed.word)

    def role_of(self, connection: ASGIConnection[Any, Any, Any, Any]) -> Role:
        """Return the role of a request by its token, or else by its session; `ADMIN` if no token is configured.

        The session is only read if the request has no `Authorization` header.

        Raises:
            ProblemDetailsException: 401 if the request has no token and no session, or the one that is read is unknown
                or has expired, or the header has no Bearer token.
        """
        if not self.tokens:
            return Role.ADMIN
        header = connection.headers.get("authorization")
        if header is not None:
            token = bearer(header)
            role = self.tokens.role_of(token) if token else None
            if role is None:
                raise refused("the token is not a token of this service", wrong=True)
            return role
        if session := connection.cookies.get(COOKIE):
            role = self.tokens.role_in(session, time.time())
            if role is None:
                raise refused(
                    "the session is not valid any more: exchange the token for a new one with POST /v1/session",
                    wrong=True,
                )
            return role
        raise refused("a token is needed: send it as `Authorization: Bearer TOKEN`")

    def knows(self, connection: ASGIConnection[Any, Any, Any, Any], least: Role = Role.READ) -> bool:
        """Return whether a request has at least the role `least`; `True` for every request if no token is configured.

        Return `False` if `role_of` would raise an error.
        """
        try:
            return self.role_of(connection) >= least
        except ProblemDetailsException:
            return False


def role_needed(method: str, opt: dict[str, Any]) -> Role:
    """Return the role that a route needs: the declared one, else `READ` for GET, HEAD and OPTIONS, else `WRITE`.

    Args:
        method: The HTTP method.
        opt: Litestar's options of the route; `role` has the declared role.
    """
    stated = opt.get("role")
    if stated is not None:
        return Role(stated)
    return Role.READ if method in _READS else Role.WRITE


def bearer(header: str) -> str:
    """Return the token in the value of an `Authorization` header; empty if it has none, or the scheme is not Bearer."""
    scheme, _, token = header.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def refused(detail: str, *, wrong: bool = False) -> Exception:
    """Return the exception for the response 401.

    Args:
        detail: The problem, for a person.
        wrong: The request had a token or a session, and it is not valid.
    """
    challenge = f'{_CHALLENGE}, error="invalid_token"' if wrong else _CHALLENGE
    return problem(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})
