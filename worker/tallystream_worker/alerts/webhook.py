"""Posts a notification to a URL, signed as Standard Webhooks requires (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tallystream_worker.settings.alerts import Hook

TIMEOUT: Final = 10.0
"""Seconds after which one step of a post fails: to connect to one address of the host, to send, or to receive."""


_AGENT: Final = f"tallystream/{version('tallystream-worker')}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as a failure: notifications go only to the configured URL."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener: Final = urllib.request.build_opener(_NoRedirect)


def signature(key: bytes, id_: str, timestamp: int, body: bytes) -> str:
    """Return the value of the header `webhook-signature`: `v1,` and base64 of HMAC-SHA256 of `<id>.<timestamp>.<body>`.

    Args:
        key: The signing key.
        id_: The id of the notification.
        timestamp: The time of the attempt, in seconds since 1970.
        body: The body of the request.
    """
    signed = hmac.new(key, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


def send(hook: Hook, id_: str, body: bytes) -> str | None:
    """Post a notification to a webhook, once; return `None` if the reply is 2xx, else why the delivery failed.

    An error of the connection is not raised: it is the reason that is returned. Each step of the post takes at most 10
    seconds (see `TIMEOUT`), except the look-up of the host's name. A redirect is not followed: it is a failure. The
    timestamp in the headers is that of the attempt. The request is signed if the hook has a key.

    Args:
        hook: The URL and the key.
        id_: The id of the notification, the same in every attempt.
        body: The JSON body.
    """
    timestamp = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": _AGENT,
        "webhook-id": id_,
        "webhook-timestamp": str(timestamp),
    }
    if hook.key:
        headers["webhook-signature"] = signature(hook.key, id_, timestamp, body)
    request = urllib.request.Request(hook.url, body, headers, method="POST")  # noqa: S310  # checked when configured
    try:
        with _opener.open(request, timeout=TIMEOUT):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return f"answered {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
