"""The settings as frozen dataclasses, which raise a `ConfigurationError` for a value that is not valid.

`load.load` reads them from a file and the environment.
The defaults here and in `config/tallystream.toml` are the same; a test checks this.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Mapping  # noqa: TC003  # msgspec reads the annotations
from dataclasses import dataclass, field
from typing import Final, Literal

from tallystream.client.connect import DEFAULT_URL
from tallystream.client.durability import Durability, DurabilityCheck
from tallystream.errors import ConfigurationError
from tallystream.rules.metrics import Metric, Ratio, Rules, first_doubled
from tallystream.rules.windows import seconds
from tallystream.storage.keys import MAX_PARTITIONS, NAMESPACE
from tallystream_worker.settings.alerts import Hook  # noqa: TC001  # the same

DEFAULT_RULES: Final = Rules(
    {
        "view": Metric("a page, an article or a video was looked at", ("hour", "day", "month"), unique="day", top=100),
        "like": Metric("a like (amount 1) or its withdrawal (amount -1)", ("day",), top=100, floor=0),
        "share": Metric("something was passed on", ("day",), top=100),
        "vote": Metric("a vote up (1), down (-1) or taken back (0), one per actor", top=100, once="forever"),
        "api-call": Metric("a call of an interface, by key", ("hour", "day"), limit=1000, per="hour", accept_late="1d"),
        "read": Metric("an article was read to its end", ("day",)),
        "clap": Metric("applause, several at once by amount", ("day",), top=100),
        "highlight": Metric("a passage was marked", ("day",)),
    },
    {"engagement_rate": Ratio(("like", "share"), ("view",))},
)
"""The metrics and ratios of a configuration that declares none."""


@dataclass(frozen=True)
class RedisSettings:
    """The server and the namespace of the data."""

    url: str = DEFAULT_URL
    """URL of the server, of Sentinels or of a cluster: `redis://`, `rediss://` (TLS), `unix://`; see `connect`."""

    namespace: str = NAMESPACE
    """First part of every key."""

    partitions: int = 0
    """Number of partitions; 0 for the stored number, or 4 at the first start."""

    eviction: str = "refuse"
    """`refuse`: while a server may evict keys, a worker does not start, and a running one does not count the partitions
    of that server. `allow`: the worker counts, and only logs this."""

    def __post_init__(self) -> None:
        if self.eviction not in ("refuse", "allow"):
            raise ConfigurationError(f'redis.eviction: must be "refuse" or "allow", not {self.eviction!r}')
        if self.partitions:
            _within("redis.partitions", self.partitions, 1, MAX_PARTITIONS)
        if not self.namespace or any(c in self.namespace for c in "{}: ") or not self.namespace.isprintable():
            raise ConfigurationError("redis.namespace: must be a word without braces, colons or spaces")

    @property
    def expected(self) -> int | None:
        """The number of partitions that the deployment must have; `None` if any number is accepted."""
        return self.partitions or None


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of workers. An *entry* is one element of a stream. A *batch* is the entries that one call counts."""

    name: str = ""
    """Consumer name; empty for the name of the host."""

    processes: int = 1
    """Number of worker processes."""

    max_keys: int = 3000
    """Size at which a batch is full, about its number of counters; see `Batch.counters`."""

    claim_idle: float = 30.0
    """Seconds since the last delivery of a pending entry after which a worker claims it, whichever consumer has it."""

    max_deliveries: int = 10
    """Most deliveries of an entry; an entry that is delivered more often is dead-lettered."""

    stop_timeout: float = 10.0
    """Seconds that the services of a worker have to end after SIGTERM; then it ends without waiting for them."""

    durability: Durability = "memory"
    """Where each batch must be; a worker waits up to 1 second for it: `memory`, `replica` or `fsync`; see
    `DurabilityCheck`. A worker stores it when it starts, and commands wait for the same after each of their steps."""

    def __post_init__(self) -> None:
        _within("worker.processes", self.processes, 1, 256)
        _within("worker.max_keys", self.max_keys, 100, 100_000)
        _within("worker.claim_idle", self.claim_idle, 0.1, 86_400)
        _within("worker.max_deliveries", self.max_deliveries, 1, 1_000)
        _within("worker.stop_timeout", self.stop_timeout, 0.1, 3_600)
        DurabilityCheck(self.durability)

    @property
    def read_durability(self) -> Literal["memory", "replica"]:
        """The durability for which a read with `after` waits; reads cannot check `fsync`, so then it is `memory`."""
        return "replica" if self.durability == "replica" else "memory"

    @property
    def consumer(self) -> str:
        """The consumer name: `name`, or the name of the host if `name` is empty."""
        return self.name or socket.gethostname()


@dataclass(frozen=True)
class RetentionSettings:
    """The bounds of the streams and of the dead letters.

    Each partition has its own bounds in bytes of server memory. 0 bytes mean no bound. If `backlog_bytes` is not 0,
    `bytes` must be more than 0 and at most `backlog_bytes`. `age` and `bytes` remove only counted entries, and no entry
    that a program still needs: see docs/retention.md.
    """

    age: str = "7d"
    """Time for which counted entries are kept, such as `7d`; `forever` for no bound."""

    bytes: int = 268_435_456
    """Bytes of counted entries that are kept."""

    backlog_bytes: int = 1_073_741_824
    """Bytes of a stream above which it accepts no more entries."""

    dead_bytes: int = 67_108_864
    """Bytes of dead letters that are kept."""

    def __post_init__(self) -> None:
        try:
            seconds(self.age)
        except ValueError as error:
            raise ConfigurationError(f"retention.age: {error}") from None
        for name in ("bytes", "backlog_bytes", "dead_bytes"):
            _within(f"retention.{name}", getattr(self, name), 0, 2**50)
        if self.backlog_bytes and not 0 < self.bytes <= self.backlog_bytes:
            raise ConfigurationError(
                "retention.backlog_bytes: must be 0 or at least retention.bytes: counted entries are in the stream too"
            )

    @property
    def age_seconds(self) -> int | None:
        """The age in seconds after which a counted entry may be trimmed; `None` for no bound."""
        return seconds(self.age)


@dataclass(frozen=True)
class ServeSettings:
    """The HTTP service (`tallystream serve`, also called read service). If no token is set, no request needs one."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = 8080
    """Port to listen on; 0 for any free port."""

    read_timeout: float = 5.0
    """Most seconds for which a request with `?after=` waits until its entry is counted."""

    read_token: str = field(default="", repr=False)
    """Tokens of readers, separated by spaces, or `file:PATH` of a file with them; empty for none."""

    write_token: str = field(default="", repr=False)
    """Tokens of writers, which may also read; written like `read_token`."""

    admin_token: str = field(default="", repr=False)
    """Tokens of admins, which may do everything; written like `read_token`."""

    hosts: tuple[str, ...] = ()
    """Host names that requests may use, in addition to `localhost`, `host` and IP addresses.

    If empty, any name may be used, unless the service listens on a loopback address without tokens."""

    origins: tuple[str, ...] = ()
    """Origins of other sites whose pages may write here and read the responses; `*` for all."""

    def __post_init__(self) -> None:
        _within("serve.port", self.port, 0, 65_535)
        _within("serve.read_timeout", self.read_timeout, 0.0, 60.0)
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigurationError(f'serve.origins: must be like https://example.com or "*", not {origin!r}')
        for host in self.hosts:
            if not _HOST.fullmatch(host):
                raise ConfigurationError(f"serve.hosts: must be host names without port or scheme, not {host!r}")
        for name, listed in (("origins", self.origins), ("hosts", tuple(map(str.lower, self.hosts)))):
            if (doubled := first_doubled(listed)) is not None:
                raise ConfigurationError(f"serve.{name}: {doubled} is listed twice; list it once")


@dataclass(frozen=True)
class ArchiveSettings:
    """The archive of all entries as Parquet files: its place, and how often a worker writes new entries to it.

    `every` may be 0.1 to 86,400 seconds.
    """

    url: str = ""
    """Folder or URL of the archive; empty for no archive."""

    every: float = 60.0
    """Seconds between two passes of the archive; a pass writes the new entries to files."""

    def __post_init__(self) -> None:
        _within("archive.every", self.every, 0.1, 86_400)


@dataclass(frozen=True)
class SnapshotSettings:
    """The database that a worker copies the counters to: its place, and how often changed counters are copied.

    `every` may be 0.1 to 86,400 seconds.
    """

    url: str = ""
    """SQLite file or database URL; empty for no snapshots."""

    every: float = 60.0
    """Seconds between two snapshots."""

    def __post_init__(self) -> None:
        _within("snapshot.every", self.every, 0.1, 86_400)


@dataclass(frozen=True)
class AuditSettings:
    """The audits that run while a worker counts."""

    every: str = ""
    """Time between two audits, such as `6h`; empty for no audits."""

    sample: float = 1.0
    """Share of the counters to compare, more than 0 and at most 1."""

    def __post_init__(self) -> None:
        _check_schedule("audit", "audits", self.every, self.sample)


@dataclass(frozen=True)
class VerifySettings:
    """The verifications that run while a worker counts."""

    every: str = ""
    """Time between two verifications, such as `1d`; empty for none."""

    sample: float = 1.0
    """Share of the counters to compare with the events, more than 0 and at most 1."""

    def __post_init__(self) -> None:
        _check_schedule("verify", "verifications", self.every, self.sample)


@dataclass(frozen=True)
class Settings:
    """All settings: the sections of the configuration file, the rules, and the webhooks of the alerts.

    Attributes:
        redis: The server and the namespace.
        worker: Counting.
        serve: The read service.
        retention: The bounds of the streams.
        archive: The archive.
        snapshot: The snapshots.
        audit: The audits.
        verify: The verifications.
        rules: The declared metrics, ratios and alerts; the default ones if the configuration states none.
        states_rules: Whether the configuration states rules.
        states_metrics: Whether the configuration states metrics; if not, those of `rules` are the default ones.
        hooks: By alert name, the target of its notifications; an alert without a webhook is not in it.
    """

    redis: RedisSettings = field(default_factory=RedisSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    archive: ArchiveSettings = field(default_factory=ArchiveSettings)
    snapshot: SnapshotSettings = field(default_factory=SnapshotSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    verify: VerifySettings = field(default_factory=VerifySettings)
    rules: Rules = DEFAULT_RULES
    states_rules: bool = True
    states_metrics: bool = True
    hooks: Mapping[str, Hook] = field(default_factory=dict)

    def rules_over(self, stored: Rules | None, removing: Collection[str] = ()) -> Rules:
        """Return the rules to count by: those that the configuration states, else the stored ones, else the default.

        If it states any rules, stored metrics that it lacks are kept, because another configuration may declare them;
        if it states no metrics, all of them. The alerts of kept metrics are kept, and so are the ratios that name a
        kept metric, unless they also name a metric that the result lacks. An alert or ratio of the configuration
        replaces a stored one with its name. Stored retractions are kept, too. The time zone is that of the
        configuration, or UTC.

        Args:
            stored: The stored rules; `None` if none are stored: then the result is `rules`.
            removing: Stored metrics that are not kept. It has no effect on metrics that the configuration states, or if
                it states no rules.

        Raises:
            ConfigurationError: the rules of the configuration and the kept ones are not valid together, for example
                because of another time zone.
        """
        if stored is None:
            return self.rules
        if not self.states_rules:
            return stored
        own = self.rules.metric if self.states_metrics else {}
        kept = {name: rule for name, rule in stored.metric.items() if name not in own and name not in removing}
        metric = own | kept
        ratio = {
            name: ratio
            for name, ratio in stored.ratio.items()
            if not kept.keys().isdisjoint({*ratio.of, *ratio.by}) and metric.keys() >= {*ratio.of, *ratio.by}
        }
        names = {alert.name for alert in self.rules.alert}
        alerts = [alert for alert in stored.alert if alert.metric in kept and alert.name not in names]
        try:
            return Rules(
                metric, ratio | self.rules.ratio, self.rules.zone, (*self.rules.alert, *alerts), stored.retracted
            )
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error}. The configuration lacks {', '.join(sorted(kept))}, which the server has: add the metric to "
                "the file, or remove it from the server with --replace-rules"
            ) from None

    def missing_from(self, stored: Rules | None) -> list[str]:
        """Return, sorted, the stored metrics that the configuration lacks.

        If `stored` is `None`, or the configuration states no metrics, the list is empty.
        """
        if stored is None or not (self.states_rules and self.states_metrics):
            return []
        return sorted(stored.metric.keys() - self.rules.metric.keys())


_ORIGIN: Final = re.compile(r"https?://[a-z0-9._-]+(?::[0-9]{1,5})?")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+")


def _check_schedule(section: str, what: str, every: str, sample: float) -> None:
    try:
        if every and seconds(every) is None:
            raise ConfigurationError(f"{section}.every: must be a time such as 6h, or empty for no {what}")
    except ValueError as error:
        raise ConfigurationError(f"{section}.every: {error}") from None
    if not 0 < sample <= 1:
        raise ConfigurationError(f"{section}.sample: must be more than 0 and at most 1, not {sample}")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigurationError(f"{name}: must be {least:,} to {most:,}, not {value:,}")
