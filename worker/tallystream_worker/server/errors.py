"""The error of the embedded server."""

from __future__ import annotations

from tallystream.errors import TallyError


class EmbeddedServerError(TallyError):
    """Raised if the embedded server cannot be started, or its folder claimed, or it has no URL or process ID now."""
