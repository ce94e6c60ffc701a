"""Bearer tokens with their roles, and the sessions that a browser gets in exchange for a token.

Each request is compared with the digests of all tokens, which have one length, so the time reveals nothing about the
tokens. A session is stateless: `<role>.<expiry>.<mac>`, with a MAC key that is derived from the token. So every service
with the same token for the same role accepts the session. A service without the token in its settings does not.
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
"""Seconds for which a session is valid: a working day. After that, the user has to enter the token again."""

MIN_TOKEN: Final = 16
"""Smallest length of a token in characters; a shorter one could be guessed."""

MAX_TOKEN: Final = 512
"""Largest length of a token in characters."""

_FILE: Final = "file:"


class Role(IntEnum):
    """The role of a request; each role includes the rights of the lower ones."""

    OPEN = 0
    """Routes that need no token."""
    READ = 1
    """May read."""
    WRITE = 2
    """May also append and decide events."""
    ADMIN = 3
    """May do everything."""

    @property
    def word(self) -> str:
        """The name of the role in settings and messages, in lowercase."""
        return self.name.lower()


class Tokens:
    """The accepted tokens; false as a condition if there are none.

    `role_of` and `role_in` return the role of a token and of a session; `session` makes a session.

    Args:
        by_role: Any number of tokens for each role; for example the old and the new one while a token is replaced.
    """

    def __init__(self, by_role: dict[Role, tuple[str, ...]]) -> None:
        self._digests = [(role, _digest(token)) for role, tokens in by_role.items() for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def role_of(self, token: str) -> Role | None:
        """Return the highest role for which a token is configured; `None` if it is configured for none."""
        presented = _digest(token)
        found = Role.OPEN
        for role, digest in self._digests:
            if hmac.compare_digest(presented, digest):
                found = max(found, role)
        return found or None

    def session(self, token: str, now: float) -> str | None:
        """Return the text of a new session for a token, valid for 12 hours from `now`; `None` if no role has the token.

        Args:
            token: The token.
            now: Present time in seconds since 1970.
        """
        role = self.role_of(token)
        if role is None:
            return None
        claim = f"{role.word}.{int(now) + SESSION_SECONDS}"
        return f"{claim}.{_mac(_digest(token), claim)}"

    def role_in(self, session: str, now: float) -> Role | None:
        """Return the role of a session; `None` if it is forged or expired, or its token no longer has that role.

        Args:
            session: The text of the session.
            now: Present time in seconds since 1970.
        """
        claim, _, mac = session.rpartition(".")
        word, _, expiry = claim.partition(".")
        found = None
        for role, digest in self._digests:
            genuine = hmac.compare_digest(_digest(mac), _digest(_mac(digest, claim)))
            if genuine and word == role.word and int(expiry) > now:
                found = role
        return found


def tokens_of(serve: ServeSettings) -> Tokens:
    """Return the `Tokens` of all roles: each setting is tokens separated by spaces, or `file:PATH`, a file of them.

    An empty setting gives its role no token; an empty file is an error.

    Raises:
        ConfigurationError: a file cannot be read or is empty, or a token is too short, too long or not printable ASCII.
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
            # An empty file is an error and not the same as no token: an empty secret must not open the service.
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
