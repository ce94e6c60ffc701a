"""Creates every Redis client of tallystream.

redis-py's defaults suit caches: it retries ten times, and so sends writes again, and its timeout cuts blocking reads
short. Both would make counts wrong, so no other module creates a client.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

import redis
import redis.sentinel
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from tallystream.client.bounded_pool import Bounded, BoundedPool
from tallystream.client.cluster.client import ClusterClient
from tallystream.client.cluster.router import Router
from tallystream.client.connections import CountedSentinelConnection, connection_class
from tallystream.client.silence_watch import SILENCE, failover_aware
from tallystream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_URL: Final = "redis://127.0.0.1:6379"
"""URL of the server if the application sets none."""

TIMEOUT: Final = 5.0
"""Seconds without a byte after which a connection counts as dead, if `connect` is given no `timeout`."""

_UNIX: Final = "unix://"
_SENTINEL: Final = "redis+sentinel://"
_SENTINEL_PORT: Final = 26379
_SENTINEL_TIMEOUT: Final = 1.0
"""Seconds without a byte after which a connection to a Sentinel counts as dead."""
_SENTINEL_SHAPE: Final = re.compile(
    re.escape(_SENTINEL)
    + r"(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?(?P<hosts>[^@/]+)/(?P<name>[^/?#]+)(?:/(?P<db>\d{1,4}))?/?"
)
_CLUSTER_SHAPE: Final = re.compile(
    r"(?P<scheme>rediss?)\+cluster://(?:(?P<user>[^@/?]*)@)?(?P<hosts>[^@/?]+)(?:/0?)?(?P<options>\?.*)?"
)
_CLUSTER: Final = ("redis+cluster://", "rediss+cluster://")
_CLUSTER_PORT: Final = 6379
_SECRET: Final = re.compile(r"\b(?:user|username|\w*password)\s*=", re.IGNORECASE)
_OPTION: Final = re.compile(r"[\w%.-]+=[^?]*")
_LARGEST_PORT: Final = 65_535
_HOST_SHAPE: Final = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?")


def connect(url: str, *, block: float = 0.0, timeout: float = TIMEOUT, most: int | None = None) -> redis.Redis:
    """Return a client that never sends a write again that may have been executed; it connects on first use.

    Text in replies is `bytes`, except in replies that redis-py itself parses, such as that of INFO. If the server turns
    out to be a node of a cluster and the URL names no cluster, or the reverse, commands raise `ConfigurationError`.

    Args:
        url: `redis://`, `rediss://` or `unix://` for one server. `redis+sentinel://HOST:PORT,HOST:PORT/NAME` for the
            primary with that name at these Sentinels, which are asked again for each new connection. For a cluster,
            `redis+cluster://HOST:PORT,HOST:PORT` or `rediss+cluster://`, with some of its nodes. Except for Sentinels,
            it may have options of redis-py, such as `?socket_timeout=30`, which have precedence over the arguments.
        block: Most seconds that a blocking command of this client waits in the server, such as XREAD BLOCK.
        timeout: Seconds without a byte, in addition to `block`, after which a connection counts as dead. The attempt to
            connect to an address fails after the same time, but after at most 5 seconds.
        most: The most connections for commands in use to each server at a time, for a client that many threads share. A
            command waits at most `timeout` seconds for a free one, and then raises `redis.MaxConnectionsError`. `None`
            for no bound.

    Raises:
        ConfigurationError: the URL cannot be parsed, or has an option that a connection of its kind does not have, or
            whose value is not valid.
    """
    settings: dict[str, Any] = {
        "protocol": 3,
        "legacy_responses": False,
        "decode_responses": False,
        "socket_timeout": block + timeout,
        "socket_connect_timeout": min(block + timeout, TIMEOUT),
        "retry": Retry(NoBackoff(), 0),
        "max_connections": 2**31,  # redis-py would refuse a command while a hundred connections are in use
        "driver_info": None,  # redis-py would send it with a command that Redis 7.0, and an ACL for it, lacks
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    bound: dict[str, Any] = {} if most is None else {"most": most, "patience": timeout}
    try:
        if url.startswith(_CLUSTER):
            return _cluster(_ClusterUrl.parse(url), settings, bound)
        settings["redis_connect_func"] = _connected
        if url.startswith(_SENTINEL):
            return _primary(_SentinelUrl.parse(url), settings, bound)
        settings["connection_class"] = connection_class(url)
        client = _from_url(_with_absolute_path(url), settings, bound)
    except ValueError as error:
        raise ConfigurationError(
            f"Redis URL {without_credentials(url)!r} cannot be used: {error}. "
            "Write redis://HOST:PORT, rediss://HOST:PORT (TLS), unix:///PATH, "
            "redis+sentinel://HOST:PORT,HOST:PORT/NAME or redis+cluster://HOST:PORT,HOST:PORT"
        ) from None
    return client


def without_credentials(url: str) -> str:
    """Return a URL of a server or a database without its user and password, for messages.

    They may be before the host, or in options such as `username` and `password`. If a character of a password is not
    percent-encoded, so that it is not certain what is the password, more than the password is left out, at most all
    after `://`. A text without `://`, such as the path of a file, is returned unchanged.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    head, _, options = rest.partition("?")
    given = options.split("&")
    if "@" in options and not all(_OPTION.fullmatch(each) and ("@" not in each or _is_secret(each)) for each in given):
        # The question mark is a part of the user or the password, so the last `@` ends it, unless an option has that.
        before, _, tail = rest.rpartition("@")
        if _is_secret(before) or scheme == "unix":
            return f"{scheme}{separator}..."
        head, _, options = tail.partition("?")
        given = options.split("&")
    kept = "&".join(each for each in given if "@" not in each and not _is_secret(each))
    return scheme + separator + _without_user(head, is_path=scheme == "unix") + (kept and f"?{kept}")


def _is_secret(text: str) -> bool:
    """Return whether a part of a URL has an option with a user or a password, such as `ssl_password=...`.

    The part may be percent-encoded. A name without `=` is no option.
    """
    return _SECRET.search(unquote(text)) is not None


def _without_user(address: str, *, is_path: bool) -> str:
    """Return `address` without its user and password; it is the part of a URL between `://` and the options.

    `is_path` states that the URL begins with `unix://`: the address then ends with a path, which may have an `@`.
    """
    if not is_path:
        return address.rpartition("@")[2]
    if address.startswith("/"):
        return address
    _, found, path = address.rpartition("@/")
    return f"/{path}" if found else address.rpartition("@")[2]


def connect_reader(url: str) -> redis.Redis:
    """Return a client for reads, as `connect` does; in a cluster, a node counts as dead after 1.5 seconds of silence.

    So a frozen node delays the caller for a short time only. Do not write with this client: a slow node may still
    execute a command after the client has given it up.

    Raises:
        ConfigurationError: the URL cannot be parsed, or has an option that is unknown or not valid.
    """
    return connect(url, timeout=SILENCE if url.startswith(_CLUSTER) else TIMEOUT)


def _with_absolute_path(url: str) -> str:
    """Return a `unix://` URL with its relative path made absolute; return any other URL, or one with `@`, unchanged.

    `unix://tally-data/server.sock` names a file below the current directory. redis-py would take the first folder for
    the name of a host, and connect to the rest. A URL with a user, `unix://USER:PASSWORD@/PATH`, keeps its meaning.
    """
    path = url.removeprefix(_UNIX)
    if path == url or path.startswith("/") or "@" in path:
        return url
    return f"{_UNIX}{quote(str(Path.cwd()))}/{path}"


def _from_url(url: str, settings: dict[str, Any], bound: dict[str, Any]) -> redis.Redis:
    """Return a client of one server, without connecting.

    Args:
        url: `redis://`, `rediss://` or `unix://`; its options have precedence over `settings`.
        settings: Settings of the pool and its connections.
        bound: Settings of `Bounded`; empty for a pool without a bound.

    Raises:
        ValueError: the URL cannot be parsed, or has an option that is unknown or not valid.
    """
    try:
        options, _ = parse_qs((parsed := urlsplit(url)).query), parsed.port
    except ValueError:  # its text may have a part of the password
        raise ValueError(
            "its host or its port cannot be parsed; in a user or a password, characters such as / ? # [ ] must be "
            "percent-encoded"
        ) from None
    kind = BoundedPool if bound else redis.ConnectionPool
    pool = kind.from_url(url, **settings, **bound)
    try:
        pool.connection_class(**pool.connection_kwargs)  # makes no connection
    except TypeError as error:
        unknown = [name for name in options if f"'{name}'" in str(error)]
        if not unknown:
            raise
        raise ValueError(f"a connection of this kind has no option {unknown[0]!r}; remove it") from None
    except redis.RedisError as error:
        raise ValueError(str(error)) from None
    client = redis.Redis(connection_pool=pool)
    client.auto_close_connection_pool = True
    return client


def _cluster(url: _ClusterUrl, settings: dict[str, Any], bound: dict[str, Any]) -> redis.Redis:
    def open_node(address: tuple[str, int], **more: Any) -> redis.Redis:
        kind = {"connection_class": connection_class(f"{url.scheme}://")}
        return _from_url(url.of(address), settings | kind | more, {})

    open_node(url.hosts[0])  # makes no connection; raises now if an option in the URL is invalid

    def open_watched(address: tuple[str, int], is_replaced: Callable[[], bool]) -> redis.Redis:
        return _from_url(url.of(address), settings | failover_aware(is_replaced, tls=url.scheme == "rediss"), bound)

    return ClusterClient(Router(url.hosts, open_node, open_watched))


def _connected(connection: Any) -> None:
    connection.on_connect()
    if _is_of_cluster(connection.handshake_metadata):
        connection.disconnect()
        raise _needs_cluster(connection)


def _is_of_cluster(said: Any) -> bool:
    return isinstance(said, dict) and said.get(b"mode") == b"cluster"


def _needs_cluster(connection: Any) -> ConfigurationError:
    # Commands on this node's own keys would succeed, and so hide the wrong URL.
    where = f"{getattr(connection, 'host', 'HOST')}:{getattr(connection, 'port', 'PORT')}"
    return ConfigurationError(
        f"the server at {where} is a node of a cluster: write redis+cluster://{where} (rediss+cluster:// for TLS), "
        "and add other nodes, separated by commas, for when this one is down"
    )


def _primary(url: _SentinelUrl, settings: dict[str, Any], bound: dict[str, Any]) -> redis.Redis:
    # The timeout of a Sentinel is short, because the next Sentinel is asked if it does not reply.
    asking = settings | {"socket_timeout": _SENTINEL_TIMEOUT, "socket_connect_timeout": _SENTINEL_TIMEOUT}
    client: redis.Redis = redis.sentinel.Sentinel(url.hosts, sentinel_kwargs=asking).master_for(
        url.name,
        redis.Redis,
        _BoundedPrimaryPool if bound else _PrimaryPool,
        connection_class=CountedSentinelConnection,
        username=url.username,
        password=url.password,
        db=url.db,
        **settings,
        **bound,
    )
    return client


class _PrimaryPool(redis.sentinel.SentinelConnectionPool):
    """A pool of connections to the primary; to close it also closes the connections to the Sentinels."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections to the primary and to the Sentinels, with `inuse_connections` also those in use."""
        super().disconnect(inuse_connections)
        for sentinel in self.sentinel_manager.sentinels:
            sentinel.connection_pool.disconnect(inuse_connections)


class _BoundedPrimaryPool(Bounded, _PrimaryPool):
    """A `_PrimaryPool` with a bound on the connections to the primary in use: see `Bounded`."""


@dataclass(frozen=True)
class _SentinelUrl:
    """The parts of `redis+sentinel://[user:password@]host:port,host:port/name[/db]`.

    User and password are for the primary, not for the Sentinels.

    Attributes:
        hosts: The host and the port of each Sentinel; 26379 if the URL states no port. An IPv6 address has no brackets.
        name: The name that the Sentinels have for the primary, percent-decoded.
        db: The number of the database; 0 if the URL states none.
        username: The user, percent-decoded; `None` if the URL has none.
        password: The password, percent-decoded; `None` if the URL has none.
    """

    hosts: list[tuple[str, int]]
    name: str
    db: int
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> _SentinelUrl:
        """Parse the URL of a primary at Sentinels.

        Raises:
            ValueError: the URL does not have the form that `_SentinelUrl` states, or a port is not 1 to 65535.
        """
        found = _SENTINEL_SHAPE.fullmatch(url)
        if found is None:
            raise ValueError("it does not name Sentinels and a primary")
        user, password = found["user"], found["password"]
        return cls(
            _hosts(found["hosts"], _SENTINEL_PORT),
            unquote(found["name"]),
            int(found["db"] or 0),
            unquote(user) if user else None,
            unquote(password) if password else None,
        )


@dataclass(frozen=True)
class _ClusterUrl:
    """The parts of `redis+cluster://[user:password@]host:port,host:port[?options]`; options as for a single server.

    Attributes:
        hosts: The host and the port of each node; 6379 if the URL states no port. An IPv6 address has no brackets.
        scheme: The scheme of the URL of one node: `redis`, or `rediss` if this URL begins with `rediss+cluster://`.
        user: User and password with the `@` after them, percent-encoded as in the URL; empty if the URL has none.
        options: The options with the `?` before them; empty if the URL has none.
    """

    hosts: list[tuple[str, int]]
    scheme: str
    user: str
    options: str

    @classmethod
    def parse(cls, url: str) -> _ClusterUrl:
        """Parse the URL of a cluster, without a check of its options.

        Raises:
            ValueError: the URL does not have the form that `_ClusterUrl` states, names a database other than 0, or has
                a port that is not 1 to 65535.
        """
        found = _CLUSTER_SHAPE.fullmatch(url)
        if found is None:
            raise ValueError("it does not name nodes of a cluster, or it names a database other than 0")
        user = f"{found['user']}@" if found["user"] else ""
        return cls(_hosts(found["hosts"], _CLUSTER_PORT), found["scheme"], user, found["options"] or "")

    def of(self, address: tuple[str, int]) -> str:
        """Return the URL (`redis://` or `rediss://`) of the node at a host and port, with this user and options."""
        host, port = address
        return f"{self.scheme}://{self.user}{f'[{host}]' if ':' in host else host}:{port}{self.options}"


def _hosts(text: str, usual_port: int) -> list[tuple[str, int]]:
    hosts = []
    for host in text.split(","):
        part = _HOST_SHAPE.fullmatch(host)
        if part is None:
            raise ValueError("one of its hosts is not HOST or HOST:PORT")
        port = int(part["port"] or usual_port)
        if not 0 < port <= _LARGEST_PORT:
            raise ValueError(f"a port must be 1 to {_LARGEST_PORT}, not {port}")
        hosts.append((part["name"].strip("[]"), port))
    return hosts
