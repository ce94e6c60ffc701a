"""Follows live updates of totals from the read service: server-sent events, with the standard library's `http.client`.

for update in follow("http://127.0.0.1:8080", metric="view", subject="article:*"):
    print(update.values)
"""

from __future__ import annotations

import http.client
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit

import msgspec

from tallystream.client.backoff import Backoff
from tallystream.errors import ConfigurationError, TallyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SILENCE: Final = 40.0
"""Seconds without a byte after which the connection counts as dead; the service sends a comment every 15 seconds."""

_FIRST_PAUSE: Final = 0.2
"""Seconds of back-off after the first failure."""

_LONGEST_PAUSE: Final = 5.0
"""Most seconds of back-off."""

_MAX_LINE: Final = 2**24
_MAX_SHOWN: Final = 500
_BUSY: Final = frozenset({429, 502, 503, 504})


class SubscriptionRefused(TallyError):
    """Raised if the read service refused a subscription with another status than 429, 502, 503 or 504."""


@dataclass(frozen=True)
class Update:
    """One live update: the present totals of changed counters, or a reset.

    Attributes:
        values: Totals by (subject, metric); may be empty, such as in the first update of a connection.
        errors: By how much a total may be too high, by (subject, metric); only for totals that are estimates. In at
            most 2 % of cases, a total is too high by more.
        as_of: Stream ID up to which every entry is in the totals; `0-0` in a reset.
        lag: Entries that are not counted yet; `None` if the server cannot tell, and in a reset.
        reset: Reason why all totals received so far may be outdated and must be read again; `values` is then empty.
            `None` for an update with totals.
        id: Position of this update: pass it to `follow(since=)` to continue after it; may be empty in a reset.
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
    """Yield an `Update` whenever totals have changed or must be read again (a reset), without end; wait in between.

    The first update of each connection comes at once, also if nothing has changed; it may have no totals. A later
    update may have a total that did not change, of a subject that is named without `*`.

    After a failed or lost connection, the end of the response, or an answer that the service is busy, connect again
    after a pause of up to 5 seconds, and continue after the last update; after a reset without an `id`, continue from
    the present. A connection is lost if no byte arrives for 40 seconds. An unknown host and an invalid certificate are
    failed connections, too: without `patience`, they are retried without end. The first step of the iterator checks the
    URL and connects, so the errors are raised by it or by a later step, not by the call.

    Args:
        url: URL of the read service, such as `http://127.0.0.1:8080`.
        metric: One metric or several; an empty iterable follows all.
        subject: One subject or several, or patterns in which `*` matches any text; an empty iterable follows all. The
            current total of a subject that is named without `*` is sent at once, if `since` is empty.
        every: Least seconds between two updates, 0.25 to 60; the service refuses other values.
        since: The `id` of an update, to continue after it; empty to begin now.
        token: Token of the read service, if it requires one.
        patience: Seconds since the last update or heartbeat (before the first of them: since the first step of the
            iterator). After that, a failed connection, or a response that ends, raises `TallyError`. `None` for no
            limit.

    Raises:
        SubscriptionRefused: the service refuses the subscription, such as for a wrong token or an undeclared metric.
        ConfigurationError: the scheme of the URL is not `http` or `https`, the URL has no host, its port is not
            valid, or the URL or the token has a character that a request cannot contain.
        TallyError: a connection failed or ended, and the last update or heartbeat was more than `patience` seconds ago.
        ValueError, KeyError, TypeError: an update cannot be read, because the server is not a read service.
    """
    parts = _parts(url)
    names = [("metric", each) for each in _listed(metric)] + [("subject", each) for each in _listed(subject)]
    path = f"{parts.path.rstrip('/')}/v1/live?{urlencode([*names, ('every', f'{every:g}')])}"
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    backoff, seen = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), time.monotonic()
    while True:
        connection = kind(str(parts.hostname), parts.port, timeout=_SILENCE)
        problem: Exception | None = None
        try:
            for update in _updates(connection, path, since, token):
                if update is not None:
                    backoff.reset()
                    since = update.id
                    yield update
                seen = time.monotonic()
        except (OSError, http.client.HTTPException) as error:
            problem = error
        finally:
            connection.close()
        if patience is not None and time.monotonic() - seen > patience:
            reason = problem or "the service ended its response"
            raise TallyError(f"no connection to {url} for {patience:g} seconds: {reason}") from problem
        time.sleep(backoff.next())


def _parts(url: str) -> SplitResult:
    """Return the parts of a URL of the read service.

    Raises:
        ConfigurationError: the URL is not one of HTTP, or its host or port is not valid.
    """
    try:
        parts = urlsplit(url)
        http.client.HTTPConnection(parts.hostname or "", parts.port)  # checks the host; does not connect
    except (ValueError, http.client.InvalidURL) as error:
        raise ConfigurationError(f"the read service's URL is not valid: {error}: {url[:_MAX_SHOWN]!r}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"the read service's URL must be http://HOST:PORT or https://HOST, not {url[:200]!r}")
    return parts


def _updates(connection: http.client.HTTPConnection, path: str, since: str, token: str) -> Iterator[Update | None]:
    """Send the request on a connection, and yield the updates of the response until it ends; `None` for a heartbeat.

    Other events than updates and resets are left out. The connection stays open: the caller must close it.

    Args:
        connection: A connection to the service.
        path: The path of the request, with its query.
        since: The `id` of the last update that was received, to continue after it; empty for none.
        token: The token of the request; empty for none.

    Raises:
        SubscriptionRefused: the service refuses the subscription.
        ConfigurationError: the URL or the token has a character that a request cannot contain.
        http.client.HTTPException, OSError: the connection failed, or the service is busy; a later attempt may succeed.
        ValueError, KeyError, TypeError: an update cannot be read, because the server is not a read service.
    """
    headers = {"Accept": "text/event-stream"}
    if since:
        headers["Last-Event-ID"] = since
    if token:
        headers["Authorization"] = f"Bearer {token}"
    _request(connection, path, headers)
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
            case "" if value:  # a comment is a heartbeat
                yield None
            case "event":
                event = value
            case "data":
                data = value
            case "id":
                id_ = value
            case "" if data:  # an empty line ends an event
                if (update := _update(event, data, id_)) is not None:
                    yield update
                event, data, id_ = "", "", ""


def _request(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> None:
    try:
        connection.request("GET", path, headers=headers)
    except OSError:
        raise  # some errors of certificates are also `ValueError`
    except (ValueError, http.client.InvalidURL) as error:
        raise ConfigurationError(f"the read service's URL or token cannot be sent: {error}") from None


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
