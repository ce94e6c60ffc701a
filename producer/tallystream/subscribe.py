"""Following counters as they change, from the read service: server-sent events over `http.client`, nothing else.

for update in follow("http://127.0.0.1:8080", metric="view", subject="article:*"):
    print(update.values)
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from tallystream.client.backoff import Backoff
from tallystream.errors import ConfigurationError, TallyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SILENCE: Final = 40.0
"""Seconds without a byte after which the connection counts as dead: the service says every 15 that it lives."""

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
"""Seconds to wait after the first failure, and at most."""

_MAX_LINE: Final = 2**24
_MAX_SHOWN: Final = 500
_BUSY: Final = frozenset({429, 502, 503, 504})


class SubscriptionRefused(TallyError):
    """The service refuses what was asked, and would again: says why."""


@dataclass(frozen=True)
class Update:
    """What changed.

    Attributes:
        values: Totals by subject and metric.
        errors: By how much a value may be too high, for those that are not exact.
        as_of: Stream ID up to which everything is in the values.
        lag: Entries that are not counted yet; `None` where the server cannot tell.
        reset: Why everything that is held may be old and must be read anew, else `None`; then there are no values.
        id: The position: hand it to `follow(since=)` to go on from here.
    """

    values: dict[tuple[str, str], int]
    errors: dict[tuple[str, str], int] = field(default_factory=dict)
    as_of: str = "0-0"
    lag: int | None = None
    reset: str | None = None
    id: str = ""


def follow(
    url: str,
    *,
    metric: str | Iterable[str] = (),
    subject: str | Iterable[str] = (),
    every: float = 0.25,
    since: str = "",
    token: str = "",
    patience: float | None = None,
) -> Iterator[Update]:
    """Yield what changes, for ever: a lost connection is made anew, and goes on behind the last update.

    Args:
        url: The read service, such as `http://127.0.0.1:8080`.
        metric: Names; none means all.
        subject: Names, or patterns in which `*` stands for anything; none means all. What is named without a `*`
            comes at once, as it is now.
        every: The least seconds between two updates.
        since: The `id` of an update, to go on from there.
        token: Where the service asks for one.
        patience: Seconds without a connection after which to give up; `None` for never.

    Raises:
        SubscriptionRefused: the service will not serve this: a wrong token, an undeclared metric, a limit.
        ConfigurationError: the URL cannot be used.
        TallyError: there was no connection for longer than `patience`.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"the read service's URL must be http://HOST:PORT or https://HOST, not {url[:200]!r}")
    names = [("metric", each) for each in _listed(metric)] + [("subject", each) for each in _listed(subject)]
    path = f"{parts.path.rstrip('/')}/v1/live?{urlencode([*names, ('every', f'{every:g}')])}"
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    backoff, seen = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), time.monotonic()
    while True:
        connection = kind(parts.hostname, parts.port, timeout=_SILENCE)
        try:
            for update in _updates(connection, path, since, token):
                backoff.reset()
                seen, since = time.monotonic(), update.id
                yield update
        except (OSError, http.client.HTTPException) as error:
            if patience is not None and time.monotonic() - seen > patience:
                raise TallyError(f"no connection to {url} for {patience:g} seconds: {error}") from error
        finally:
            connection.close()
        time.sleep(backoff.next())


def _updates(connection: http.client.HTTPConnection, path: str, since: str, token: str) -> Iterator[Update]:
    """Yield the updates of one connection until it ends."""
    headers = {"Accept": "text/event-stream"}
    if since:
        headers["Last-Event-ID"] = since
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    if response.status in _BUSY:
        raise http.client.HTTPException(f"status {response.status}")
    if response.status != http.client.OK:
        raise SubscriptionRefused(f"{response.status} {response.reason}: {_detail(response.read(_MAX_LINE))}")
    event, data, id_ = "", "", ""
    while line := response.readline(_MAX_LINE):
        name, _, value = line.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                event = value
            case "data":
                data = value
            case "id":
                id_ = value
            case "" if not value and data:  # the empty line that ends an event; a comment has a value
                if (update := _update(event, data, id_)) is not None:
                    yield update
                event, data, id_ = "", "", ""


def _update(event: str, data: str, id_: str) -> Update | None:
    if event == "reset":
        return Update({}, reset=msgspec.json.decode(data)["reason"], id=id_)
    if event != "counters":
        return None
    said: dict[str, Any] = msgspec.json.decode(data)
    counters = {(each["subject"], each["metric"]): each for each in said["counters"]}
    return Update(
        {counter: each["value"] for counter, each in counters.items()},
        {counter: each["error"] for counter, each in counters.items() if each["error"]},
        said["as_of"],
        said["lag"],
        id=id_,
    )


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _detail(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:_MAX_SHOWN].decode(errors="replace")
