"""The error of the embedded server."""

from __future__ import annotations

from tallystream.errors import TallyError


class EmbeddedServerError(TallyError):
    """The embedded server could not be started; the message says why and what to do."""
