"""Names this process in the record of a change of rules."""

from __future__ import annotations

import os
import socket
from importlib.metadata import version


def publisher() -> str:
    """Return the host, the number of this process, and the release, such as `web-1 pid 4711 (tallystream 0.1.0)`."""
    return f"{socket.gethostname()} pid {os.getpid()} (tallystream {version('tallystream-worker')})"
