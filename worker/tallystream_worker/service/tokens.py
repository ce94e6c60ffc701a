"""Who may do what: bearer tokens with a role each, and the sessions that a browser gets in exchange for one.

Tokens are compared as digests of one length, all of them at every request: how long that takes says nothing about
them. A session is stateless, so every service that knows the token knows the session: `<role>.<expiry>.<mac>`, where
the key of the mac is made from the token. Whoever takes a token out of the settings ends its sessions with it.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from tallystream_worker.settings.settings import ServeSettings

SESSION_SECONDS: Final = 12 * 3600
"""Seconds that a session lasts: a working day, after which the token is asked for again."""

MIN_TOKEN: Final = 16
MAX_TOKEN: Final = 512
"""Characters of a token: with fewer it could be guessed."""

_FILE: Final = "file:"


class Role(IntEnum):
    """What a request may do; each role may do what those before it may."""

    OPEN = 0
    READ = 1
    WRITE = 2
    ADMIN = 3

    @property
    def word(self) -> str:
        """The role as settings and messages have it."""
        return self.name.lower()


class Tokens:
    """The tokens that are accepted, by role.

    Args:
        by_role: Any number of tokens for each role; while one is being replaced, the old and the new.
    """

    def __init__(self, by_role: dict[Role, tuple[str, ...]]) -> None:
        self._digests = [(role, _digest(token)) for role, tokens in by_role.items() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def role_of(self, token: str) -> Role | None:
        """Return what the bearer of a token may do; `None` where it is no token of ours."""
        presented = _digest(token)
        found = Role.OPEN
        for role, digest in self._digests:
            if hmac.compare_digest(presented, digest):
                found = max(found, role)
        return found or None

    def session(self, token: str, now: float) -> str | None:
        """Return a session in exchange for a token; `None` where it is no token of ours."""
        role = self.role_of(token)
        if role is None:
            return None
        claim = f"{role.word}.{int(now) + SESSION_SECONDS}"
        return f"{claim}.{_mac(_digest(token), claim)}"

    def role_in(self, session: str, now: float) -> Role | None:
        """Return what the bearer of a session may do; `None` where it is none of ours, or over."""
        claim, _, mac = session.rpartition(".")
        word, _, expiry = claim.partition(".")
        found = None
        for role, digest in self._digests:
            genuine = hmac.compare_digest(_digest(mac), _digest(_mac(digest, claim)))
            if genuine and word == role.word and int(expiry) > now:
                found = role
        return found


def tokens_of(serve: ServeSettings) -> Tokens:
    """Return the tokens that are configured, from the files that hold them where it says so.

    Raises:
        ConfigurationError: a file cannot be read, or a token could be guessed; says how to make one.
    """
    stated = {Role.READ: serve.read_token, Role.WRITE: serve.write_token, Role.ADMIN: serve.admin_token}
    return Tokens({role: _read(f"serve.{role.word}_token", text) for role, text in stated.items()})


def _read(setting: str, text: str) -> tuple[str, ...]:
    if text.startswith(_FILE):
        path = Path(text.removeprefix(_FILE))
        try:
            tokens = tuple(path.read_text("ascii").split())
        except OSError as error:
            raise ConfigurationError(f"{setting}: {path} cannot be read ({error.strerror})") from None
        except UnicodeDecodeError:
            tokens = ("",)
        if not tokens:
            # Not the same as no token: an empty secret must not open the service.
            raise ConfigurationError(f"{setting}: {path} is empty; {_HOW}")
    else:
        tokens = tuple(text.split())
    for token in tokens:
        if not MIN_TOKEN <= len(token) <= MAX_TOKEN or not token.isascii() or not token.isprintable():
            raise ConfigurationError(
                f"{setting}: each token must be {MIN_TOKEN} to {MAX_TOKEN} ASCII characters; {_HOW}"
            )
    return tokens


_HOW: Final = "make one with: openssl rand -hex 32"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _mac(digest: bytes, claim: str) -> str:
    key = hmac.digest(digest, b"tallystream session", "sha256")
    return hmac.new(key, claim.encode("utf-8", "surrogatepass"), "sha256").hexdigest()
