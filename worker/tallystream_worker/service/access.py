"""The guard of every route: a token or a session, and a role that is enough.

A route needs `read`, one that changes something `write`, unless it says otherwise with `role=Role...`: so a route that
is added and says nothing is closed, not open. Where no token is configured, everything is open, and `gate` keeps to
those who ask by a name of ours.
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

_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CHALLENGE: Final = 'Bearer realm="tallystream"'


class Access:
    """Decides whether a request may do what it asks for."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    def guard(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Let a request pass, or answer 401 (no token, or not ours) or 403 (ours, and not enough)."""
        needed = role_needed(str(connection.scope.get("method", "GET")), handler.opt)
        if needed is Role.OPEN or not self.tokens:
            return
        role = self.role_of(connection)
        if role < needed:
            detail = f"this needs the role {needed.word}; the token has {role.word}"
            raise problem(HTTPStatus.FORBIDDEN, detail, role=role.word, needed=needed.word)

    def role_of(self, connection: ASGIConnection[Any, Any, Any, Any]) -> Role:
        """Return the role of a request; where no token is configured, everyone is an operator.

        Raises:
            ProblemDetailsException: it has no token, or one that is not ours: the answer is 401.
        """
        if not self.tokens:
            return Role.ADMIN
        header = connection.headers.get("authorization")
        if header is not None:
            token = bearer(header)
            role = self.tokens.role_of(token) if token else None
            if role is None:
                raise refused("the token is not one of this service's", wrong=True)
            return role
        if session := connection.cookies.get(COOKIE):
            role = self.tokens.role_in(session, time.time())
            if role is None:
                raise refused("the session is over: exchange the token for a new one with POST /v1/session", wrong=True)
            return role
        raise refused("a token is needed: send it as `Authorization: Bearer TOKEN`")

    def knows(self, connection: ASGIConnection[Any, Any, Any, Any], least: Role = Role.READ) -> bool:
        """Tell whether a request to an open route may be told more than everyone."""
        try:
            return self.role_of(connection) >= least
        except ProblemDetailsException:
            return False


def role_needed(method: str, opt: dict[str, Any]) -> Role:
    """Return the role that a route needs: what it states, else by whether it changes anything."""
    stated = opt.get("role")
    if stated is not None:
        return Role(stated)
    return Role.READ if method in _READS else Role.WRITE


def bearer(header: str) -> str:
    """Return the token of an `Authorization` header, empty where it is of another scheme."""
    scheme, _, token = header.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def refused(detail: str, *, wrong: bool = False) -> Exception:
    """Return the answer to who is not known; `wrong` where something was presented."""
    challenge = f'{_CHALLENGE}, error="invalid_token"' if wrong else _CHALLENGE
    return problem(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": challenge})
